"""`quorate agent run --flower SUPERLINK`: a device's agent whose rounds come in Flower's messages.

It is one node of the SuperLink in one process, and an agent in all else: the same policy, budget and memory, and the
application in a child process. While the device is paused, or its conditions do not hold, it declines.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
import httpx

from quorate.clients.agent.backoff import Backoff
from quorate.clients.agent.conditions import Sensors, System, unmet
from quorate.clients.agent.description import Description
from quorate.clients.agent.policy import Policy, read_policy
from quorate.clients.agent.round import begin
from quorate.clients.agent.signals import Heard, listening
from quorate.clients.agent.state import AgentState, held
from quorate.clients.agent.training import Trainer
from quorate.clients.participation import Participation
from quorate.errors import PlanError, PolicyRefused, QuorateError, TrainingFailed
from quorate.interop.flower.internals import Node
from quorate.interop.flower.nodes import Attendance, serve
from quorate.logs import configure
from quorate.rounds import Assignment, Member

__all__ = ["FlowerAgent", "run_agent"]

log = logging.getLogger(__name__)


def run_agent(
    superlink: str,
    tasks: Sequence[str],
    policy: Path | None,
    directory: Path,
    root_certificates: Path | None,
    log_level: str,
    json_logs: bool,
) -> None:
    """Takes part until SIGTERM or SIGINT.

    Args:
        superlink: `host:port`.
        tasks: `module:attribute` of each.
        policy: its file.
        directory: of the agent's state.
        root_certificates: a PEM file.
        log_level: debug, info, warning or error.
        json_logs: one JSON object a line.

    Raises:
        QuorateError: the agent can't start.
    """
    if json_logs:
        configure(log_level)
    else:
        logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("httpx", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    certificates = None if root_certificates is None else root_certificates.read_bytes()
    kept = Policy() if policy is None else read_policy(str(policy))
    with held(directory), contextlib.closing(AgentState(directory)) as state, listening() as heard:
        state.note(tasks=" ".join(tasks), policy=None if policy is None else str(policy))
        FlowerAgent(superlink, tasks, kept, state, certificates).run(heard)


class FlowerAgent:
    """One device's agent as a node of a SuperLink.

    Args:
        superlink: its address, `host:port`.
        tasks: `module:attribute` of each installed task.
        policy: the device's.
        state: what outlives the process.
        certificates: PEM, to verify the SuperLink with; None connects without TLS.
        sensors: what conditions are checked by; None: this machine's.

    Raises:
        PlanError: a task can't be used, or two have one name.
    """

    def __init__(
        self,
        superlink: str,
        tasks: Sequence[str],
        policy: Policy,
        state: AgentState,
        certificates: bytes | None = None,
        sensors: Sensors | None = None,
    ):
        self._superlink, self._certificates = superlink, certificates
        self._policy, self._state = policy, state
        self._sensors = sensors or System(state.directory)
        self._stopping = threading.Event()
        self._current: Participation | None = None
        self._trainers = self._described(tasks)

    def run(self, heard: Heard) -> None:
        """Takes part until it is told to stop; a SuperLink that goes away is looked for again.

        Args:
            heard: the signals of this process.
        """
        heard.tell(self._stopping.set, lambda: None)
        backoff = Backoff()
        self._state.give_up()
        try:
            while not self._stopping.is_set():
                try:
                    self._serve()
                except (httpx.HTTPError, QuorateError) as error:
                    log.warning("%s", error)
                    self._state.note(doing=str(error))
                    self._stopping.wait(backoff.failed())
                else:
                    backoff.worked()
        finally:
            for _, trainer in self._trainers.values():
                trainer.close()
        log.info("stopped")

    def _serve(self) -> None:
        with Node(self._superlink, self._certificates, patience_s=60.0) as node:
            device = _Device(self._superlink, str(node.id))
            self._state.note(coordinator=self._superlink, device=device.device, doing="idle")
            log.info("node %s of the SuperLink at %s", node.id, self._superlink)
            attendance = Attendance(lambda assignment: self._begin(assignment, device), self._state.conclude)

            def answer(received: Sequence[bytes]) -> list[bytes]:
                try:
                    return attendance.answer(received)
                finally:
                    self._note_refusal()

            serve(node, answer, self._stopping)

    def _begin(self, assignment: Assignment, device: _Device) -> Participation:
        if self._state.fact("paused"):
            raise PolicyRefused("the device is paused", "paused")
        self._state.give_up()
        self._state.note(doing=f"in round {assignment.round} of run {assignment.run}")
        self._current = begin(assignment, device, self._policy, self._state, self._sensors, self._trainers)
        return self._current

    def _note_refusal(self) -> None:
        if self._current is not None and (said := self._current.declined) is not None:
            self._state.refused(said.run, said.round, said.code, said.reason)
            log.warning("declined: %s", said.reason)
            self._current = None

    def _described(self, tasks: Sequence[str]) -> Mapping[str, tuple[Description, Trainer]]:
        found: dict[str, tuple[Description, Trainer]] = {}
        for path in tasks:
            trainer = Trainer(path, self._policy.limits, self._check)
            description = trainer.describe()
            if description.name in found:
                raise PlanError(
                    f"--task: found two tasks named {description.name}; accepted: one of each name"
                )
            found[description.name] = description, trainer
        return found

    def _check(self) -> None:
        """Looked at while training runs.

        Raises:
            TrainingFailed: training must stop.
        """
        if self._stopping.is_set():
            raise TrainingFailed("the device is going away", "stopping")
        if self._state.fact("paused"):
            raise TrainingFailed("the device was paused", "paused")
        if unmet(self._policy.conditions, self._sensors.read(), training=True):
            raise TrainingFailed("the device's conditions no longer hold", "conditions")


class _Device:
    """A node of Flower's as an agent knows itself: it has a name, and no identity of ours."""

    claimed = ""
    identities = None

    def __init__(self, address: str, device: Member):
        self.address, self.device = address, device

    def prepare(self) -> None:
        """Nothing."""

    def refresh(self) -> None:
        """Nothing."""

    def channel(self) -> grpc.Channel:
        """There is none: Flower's client has its own."""
        raise QuorateError("a node of a SuperLink has no channel of its own")
