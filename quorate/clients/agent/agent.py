"""The agent's loop: check in, take part, come back when it is told to; for months.

    paused, or conditions unmet  → wait
    check in                     → what undecided rounds came to; when to come back; or an assignment
    an assignment                → policy, written down, training in the child, the sum, the outcome
    anything that fails          → back off, with full jitter

Whoever fails here (the application, the network, the coordinator) costs a round at most. One participation at a time.
Whatever waits here waits for an event or a message; nothing turns in a loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import grpc

from quorate.clients.agent.backoff import Backoff
from quorate.clients.agent.channels import Connection
from quorate.clients.agent.conditions import Sensors, System, unmet
from quorate.clients.agent.description import Description
from quorate.clients.agent.policy import Policy
from quorate.clients.agent.state import AgentState
from quorate.clients.agent.stream import ComeBack, Refused, Stream, StreamLost
from quorate.errors import IdentityRefused, PlanError, ProtocolViolation, StateError, TrainingFailed
from quorate.logs import bound
from quorate.wire import device_pb2 as pb
from quorate.wire.streams import VERSIONS, ZSTD

if TYPE_CHECKING:
    from quorate.clients.agent.training import Trainer
    from quorate.clients.participation import Participation
    from quorate.rounds import Assignment
    from quorate.wire import frames

__all__ = ["Agent", "Settings"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What does not concern what is accepted.

    Args:
        waiting_s: how long the agent waits on a stream for an assignment before it begins anew.
        conditions_s: how long it waits while its conditions do not hold; half of it to all of it.
        look_s: how often conditions are looked at while training runs.
        farewell_s: how long a stream stays after the device declined.
        refused_s: how long it waits after the coordinator refused it; half of it to all of it.
        linger_s: what a round loaded, its child process too, is kept for waits that are shorter than this.
        backoff: after failures.
    """

    waiting_s: float = 1800.0
    conditions_s: float = 120.0
    look_s: float = 5.0
    farewell_s: float = 30.0
    refused_s: float = 3600.0
    linger_s: float = 8.0
    backoff: Backoff = field(default_factory=Backoff)


class Agent:
    """One device's agent.

    Args:
        tasks: the installed tasks, by `module:attribute`.
        connection: to the coordinator.
        policy: the device's.
        state: what outlives the process.
        settings: see `Settings`.
        sensors: what conditions are checked by; None: this machine's.

    Raises:
        PlanError: two tasks have one name.
    """

    def __init__(
        self,
        tasks: Mapping[str, Description],
        connection: Connection,
        policy: Policy,
        state: AgentState,
        settings: Settings | None = None,
        sensors: Sensors | None = None,
    ):
        self.connection, self.policy, self.state = connection, policy, state
        self.settings = settings or Settings()
        self._sensors = sensors or System(state.directory)
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._stream: Stream | None = None
        self._looked, self._seen, self._took_part = 0.0, "", False
        self._tasks = tasks
        self._trainers: dict[str, tuple[Description, Trainer]] = {}
        names = [description.name for description in tasks.values()]
        if len(set(names)) != len(names):
            raise PlanError(f"--task: found tasks named {', '.join(names)}; accepted: one of each name")
        largest = max((description.values for description in tasks.values()), default=0)
        # The model, a rule's extra vectors, and room for the sum's messages in the largest cohort.
        self._most_bytes = (8 << 20) + 4 * 4 * largest
        if policy.limits.largest_frame_mb is not None:
            self._most_bytes = policy.limits.largest_frame_mb * 10**6

    def run(self) -> bool:
        """Takes part until `stop` is called, or until there is time to begin anew.

        Returns:
            Whether the agent should begin anew, in a fresh process: what rounds loaded is not kept while it waits.
        """
        log.info("started", extra={"device": self.connection.device, "fields": {"tasks": self._names()}})
        try:
            while not self._stopping.is_set():
                wait_s = self._forgiving()
                if wait_s > self.settings.linger_s and not self._stopping.is_set():
                    self._rest()
                    if self._took_part:
                        return True
                log.debug("waiting", extra={"fields": {"seconds": round(wait_s, 1)}})
                self._wake.wait(wait_s)
                self._wake.clear()
        finally:
            self._rest()
        log.info("stopped", extra={"device": self.connection.device})
        return False

    def stop(self) -> None:
        """Ends `run` soon, training included; from another thread."""
        self._stopping.set()
        self.wake()

    def wake(self) -> None:
        """Ends the wait that is under way, on a stream too; from another thread."""
        self._wake.set()
        if (stream := self._stream) is not None:
            stream.interrupt()

    # --- a turn

    def _forgiving(self) -> float:
        """A turn; what can't be written down is not done, and tried again later."""
        try:
            self.state.give_up()
            return self._turn()
        except (StateError, sqlite3.Error, OSError) as error:
            log.error("the agent's memory can't be used: %s", error)
            return self.settings.backoff.failed()

    def _turn(self) -> float:
        """One check-in and what follows; returns how long to wait before the next."""
        settings = self.settings
        if self.state.fact("paused"):
            self._say("paused")
            return settings.refused_s  # `resume` wakes the agent
        missing = unmet(self.policy.conditions, self._sensors.read())
        if missing:
            self._say("not now: " + "; ".join(missing))
            return settings.backoff.around(settings.conditions_s)
        try:
            self.connection.prepare()
            come_back = self._participate()
        except (Refused, IdentityRefused) as refused:
            log.error("%s", refused)
            self._say(str(refused))
            return settings.backoff.around(settings.refused_s)
        except StreamLost as lost:
            log.warning("%s", lost)
            self._say(str(lost))
            return settings.backoff.failed()
        except ProtocolViolation as violation:
            log.error("the coordinator broke the protocol: %s", violation)
            self._say(f"the coordinator broke the protocol: {violation}")
            return settings.backoff.failed()
        finally:
            self.state.give_up()
            _trim()
        settings.backoff.worked()
        self._say(come_back.reason or "idle")
        self.state.come_back(come_back.after_s)
        return come_back.after_s

    def _participate(self) -> ComeBack:
        """One stream, from the check-in to the time to come back."""
        waiting_s, participation = self.settings.waiting_s, None
        with contextlib.closing(self.connection.channel()) as channel, self._dialled(channel) as stream:
            self.state.note(last_check_in=repr(self.state.now()))
            deadline = time.monotonic() + waiting_s
            while not self._leaving(participation):
                said = stream.receive(max(0.0, deadline - time.monotonic()))
                if isinstance(said, ComeBack):
                    return said
                if said is None:
                    if time.monotonic() < deadline:
                        continue
                    if participation is not None and participation.declined is not None:
                        return ComeBack(self.settings.backoff.around(self.settings.farewell_s), "declined")
                    raise StreamLost("the coordinator said nothing for too long")
                from quorate.rounds import Assignment
                from quorate.wire import frames

                frame = frames.decode(said)
                if isinstance(frame, frames.Conclusion):
                    self._concluded(frame)
                    continue
                with bound(run=frame.run, round=frame.round):
                    if isinstance(frame, Assignment) and participation is None:
                        participation = self._begin(frame)
                        phase_s = frame.deadlines.phase_s
                        waiting_s = frame.deadlines.training_s + phase_s
                    if participation is None:
                        raise ProtocolViolation(f"a {type(frame).__name__} came before an assignment")
                    for answer in participation.take(frame):
                        stream.send(answer)
                    if participation.declined is not None:
                        self._declined(participation.declined)
                        waiting_s = self.settings.farewell_s
                deadline = time.monotonic() + waiting_s
        return ComeBack(0.0, "interrupted")

    def _leaving(self, participation: Participation | None) -> bool:
        """Whether the stream is to be left: when the agent stops, or was paused outside of a round."""
        return self._stopping.is_set() or (participation is None and self.state.fact("paused") is not None)

    @contextlib.contextmanager
    def _dialled(self, channel: grpc.Channel) -> Iterator[Stream]:
        check_in = pb.CheckIn(
            versions=VERSIONS,
            tasks=self._names(),
            undecided=[pb.Participation(run=run, round=round) for run, round in self.state.undecided()],
            encodings=_encodings(),
            software=f"quorate {version('quorate')}",
            device=self.connection.claimed,
        )
        with Stream(channel, check_in, self._most_bytes) as stream:
            self._stream = stream
            try:
                yield stream
            finally:
                self._stream = None

    # --- a participation

    def _begin(self, assignment: Assignment) -> Participation:
        self._say(f"in round {assignment.round} of run {assignment.run}")
        # What a round needs takes more memory than all the rest: it is loaded for the first.
        from quorate.clients.agent.round import begin
        from quorate.clients.agent.training import Trainer

        self._took_part = True
        for path, task in self._tasks.items():
            if task.name not in self._trainers:
                self._trainers[task.name] = task, Trainer(path, self.policy.limits, self._check)
        return begin(assignment, self.connection, self.policy, self.state, self._sensors, self._trainers)

    def _concluded(self, frame: frames.Conclusion) -> None:
        """An outcome, of this round or of one that was undecided."""
        self.state.conclude(frame.run, frame.round, frame.outcome)
        log.info("the round is %s", frame.outcome, extra={"run": frame.run, "round": frame.round})

    def _declined(self, said: frames.Decline) -> None:
        self.state.refused(said.run, said.round, said.code, said.reason)
        log.warning("declined: %s", said.reason, extra={"reason": said.code})

    def _check(self) -> None:
        """Looked at while training runs.

        Raises:
            TrainingFailed: training must stop.
        """
        if self._stopping.is_set():
            raise TrainingFailed("the device is going away", "stopping")
        stream = self._stream
        if stream is not None and not stream.alive:
            raise TrainingFailed("the stream was lost", "stream")
        if time.monotonic() - self._looked < self.settings.look_s:
            return
        self._looked = time.monotonic()
        if self.state.fact("paused"):
            raise TrainingFailed("the device was paused", "paused")
        missing = unmet(self.policy.conditions, self._sensors.read(), training=True)
        if missing:
            log.warning("training is stopped: %s", "; ".join(missing))
            raise TrainingFailed("the device's conditions no longer hold", "conditions")

    # --- below

    def _names(self) -> list[str]:
        return sorted(description.name for description in self._tasks.values())

    def _rest(self) -> None:
        for _, trainer in self._trainers.values():
            trainer.close()

    def _say(self, doing: str) -> None:
        """What `quorate agent status` shows."""
        if doing != self._seen:
            self._seen = doing
            log.info("%s", doing)
            self.state.note(doing=doing)


def _encodings() -> list[str]:
    from importlib.util import find_spec

    return [ZSTD] if find_spec("zstandard") is not None else []


def _trim() -> None:
    """Gives what a round used back to the system, where the C library can."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
