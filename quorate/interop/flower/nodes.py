"""A node's side of our rounds in Flower: frames come in a message, the answers leave in its reply.

Two kinds of nodes do it. One of ours is one process (`serve`) that holds its participation in memory. A stock SuperNode
starts a process a message, which runs the ClientApp made here (`client_app`): what it is in the middle of stays in
`context.state`, and is played again from the start (`Notes`).

Neither runs code that travelled: a client app is what the run's bundle says, but whose data it trains on, and by
which installed task, the node's owner says.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import safetensors.numpy
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from quorate import plugins
from quorate.clients.participation import Participation
from quorate.clients.slices import client_of
from quorate.clients.states import ClientStates
from quorate.errors import DataError, PlanError, PolicyRefused, ProtocolViolation, QuorateError
from quorate.fleets import Client
from quorate.interop.flower.internals import Node, error_reply
from quorate.interop.flower.transport import MESSAGE_TYPE, frames_in, with_frames
from quorate.parameters import Parameters
from quorate.plan import Terms
from quorate.randomness import Randomness
from quorate.rounds import Assignment, Instruction, Outcome, State, Update
from quorate.task import Task
from quorate.wire import frames

__all__ = ["Attendance", "Notes", "Work", "client_app", "on", "owned", "serve"]

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class Attendance:
    """A member's participations, one after the other: an assignment opens the next.

    Args:
        begin: makes the participation for an assignment; a `PlanError`, `DataError` or `PolicyRefused` declines it.
        conclude: told how a round ended, of this participation or of one that an earlier process had.
    """

    def __init__(
        self,
        begin: Callable[[Assignment], Participation],
        conclude: Callable[[str, int, Outcome], None],
    ):
        self._begin, self._conclude = begin, conclude
        self._current: Participation | None = None

    def answer(self, received: Sequence[bytes]) -> list[bytes]:
        """The answers to some frames, in order.

        Raises:
            ProtocolViolation: the coordinator broke the protocol; the participation is over.
        """
        return [answer for data in received for answer in self._answer(data)]

    def _answer(self, data: bytes) -> list[bytes]:
        frame = frames.decode(data)
        if isinstance(frame, frames.Conclusion):
            self._conclude(frame.run, frame.round, frame.outcome)
            return []
        if isinstance(frame, Assignment):
            self._current = None
            try:
                self._current = self._begin(frame)
            except PolicyRefused as refusal:
                return _decline(frame, refusal.code, refusal)
            except PlanError as unread:
                return _decline(frame, "terms", unread)
            except DataError as missing:
                return _decline(frame, "data", missing)
        if self._current is None:
            raise ProtocolViolation(f"a {type(frame).__name__} outside of a participation")
        try:
            return self._current.receive(data)
        except ProtocolViolation:
            self._current = None
            raise


def _decline(assignment: Assignment, code: str, refusal: QuorateError) -> list[bytes]:
    return [frames.encode(frames.Decline(assignment.run, assignment.round, code, str(refusal)))]


# --- a node of ours


def serve(node: Node, answer: Callable[[Sequence[bytes]], list[bytes]], stopped: threading.Event) -> None:
    """Answers a SuperLink's messages until it is stopped.

    Args:
        node: open.
        answer: gives the frames that answer a message's, as `Attendance.answer` does.
        stopped: looked at between messages.

    Raises:
        httpx.HTTPError: the SuperLink does not answer any more.
    """
    pause_s = _FIRST_PAUSE_S
    while not stopped.is_set():
        message = node.receive()
        if message is None:
            stopped.wait(pause_s)
            pause_s = min(pause_s * 1.3, _LONGEST_PAUSE_S)
            continue
        pause_s, started = _FIRST_PAUSE_S, time.monotonic()
        reply = _reply(message, answer)
        try:
            node.reply(reply, time.monotonic() - started)
        except httpx.HTTPStatusError as error:
            log.info("node %s: its reply is not wanted any more: %s", node.id, error)


def _reply(message: Message, answer: Callable[[Sequence[bytes]], list[bytes]]) -> Message:
    try:
        if message.metadata.message_type != MESSAGE_TYPE:
            raise ProtocolViolation(
                f"a message of type {message.metadata.message_type!r}; this node answers {MESSAGE_TYPE!r} only"
            )
        return Message(with_frames(answer(frames_in(message.content))), reply_to=message)
    except ProtocolViolation as violation:
        log.warning("a message is not answered: %s", violation)
        return error_reply(message, str(violation))


# --- a stock SuperNode


@dataclass(frozen=True)
class Work:
    """What a node trains, and on what: its owner's matter.

    Args:
        data: its own examples; None: a task that has its data is installed.
        tasks: those that are installed otherwise than as entry points, by name.
    """

    data: Any = None
    tasks: Mapping[str, Task] = field(default_factory=dict)

    def installed(self, assignment: Assignment) -> Mapping[str, Task]:
        """The tasks that are installed otherwise than as entry points."""
        return self.tasks

    def client(self, assignment: Assignment) -> Client:
        """The client that an assignment asks for.

        Raises:
            PlanError: the terms ask for a task that is not installed here.
            DataError: the data do not fit it.
        """
        task = Terms.parse(assignment.terms, self.installed(assignment)).task.resolve()
        return client_of(task, self.data)


def on(examples: Callable[[Context], Any]) -> Callable[[Context], Work]:
    """The work of a node that trains the plan's task, as it is installed here, on its own examples.

    Args:
        examples: gives them, from what the node's owner configured.
    """
    return lambda context: Work(examples(context))


def owned(context: Context) -> Work:
    """The work that the node's owner names in the node's config, each as `module:attribute`.

    `quorate-data` is called with the node's context and gives its examples; `quorate-task` is a `Task` that has its
    data.

    Raises:
        DataError: neither is named.
        PlanError: what is named can't be imported, or is no task.
    """
    data, task = (context.node_config.get(f"quorate-{part}") for part in ("data", "task"))
    if isinstance(task, str):
        found = plugins.find("quorate-task", task)
        if not isinstance(found, Task):
            raise PlanError(f"quorate-task: {task!r} is a {type(found).__name__}; accepted: a Task")
        return Work(tasks={found.name: found})
    if isinstance(data, str):
        return Work(plugins.find("quorate-data", data)(context))
    raise DataError(
        "this node's config names neither quorate-data, a function that is called with the node's context and gives "
        "its examples, nor quorate-task, a task that has its data; accepted: module:attribute"
    )


def client_app(work: Callable[[Context], Work]) -> ClientApp:
    """The ClientApp for stock SuperNodes.

    Args:
        work: the node's, from what its owner configured (`context.node_config`); see `on` and `owned`. It is asked for
            when an assignment comes; what it raises declines that.
    """
    app = ClientApp()

    @app.query(action=MESSAGE_TYPE.partition(".")[2])
    def exchange(message: Message, context: Context) -> Message:
        notes = Notes.read(context.state)
        resumed = _Resumed(str(context.node_id), notes, lambda: work(context))
        reply = _reply(message, resumed.answer)
        notes.write(context.state)
        return reply

    return app


@dataclass
class Notes:
    """What a node's next process needs: what was heard in this round, and the key of what was drawn in it.

    It holds the round's secrets, and stays in the node's own memory: `context.state` does not leave a SuperNode.

    Args:
        key: of the participation's randomness.
        heard: the frames of the participation, in order.
        said: SHA-256 of what was answered to each.
        work: what training gave, so that nobody trains twice.
        states: what is kept between rounds.
    """

    key: bytes = b""
    heard: list[bytes] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)
    work: bytes = b""
    states: bytes = b""

    @classmethod
    def read(cls, state: RecordDict) -> Notes:
        """From a context's state; empty if there are none."""
        record = state.config_records.get("quorate")
        return cls() if record is None else cls(**dict(record))  # type: ignore[arg-type]

    def write(self, state: RecordDict) -> None:
        """Into a context's state."""
        state["quorate"] = ConfigRecord(dict(vars(self)))

    def forget(self) -> None:
        """The participation is over."""
        self.key, self.heard, self.said, self.work = b"", [], [], b""


class _Resumed:
    """Plays a participation again as far as it came, and goes on. All that is drawn in it follows from one key."""

    def __init__(self, member: str, notes: Notes, work: Callable[[], Work]):
        self._member, self._notes, self._work = member, notes, work
        self._states = ClientStates.loaded(notes.states) if notes.states else ClientStates()
        self._attendance: Attendance | None = None

    def answer(self, received: Sequence[bytes]) -> list[bytes]:
        answers = [answer for data in received for answer in self._answer(data)]
        self._notes.states = self._states.dumped()
        return answers

    def _answer(self, data: bytes) -> list[bytes]:
        notes, frame = self._notes, frames.decode(data)
        if isinstance(frame, frames.Conclusion):
            self._states.conclude(frame.run, frame.round, frame.outcome)
            notes.forget()
            return []
        if isinstance(frame, Assignment):
            notes.forget()
            notes.key, self._attendance = os.urandom(32), None
        try:
            answers = self._resumed().answer([data])
        except ProtocolViolation:
            notes.forget()
            raise
        notes.heard.append(data)
        notes.said.append(_digest(answers))
        return answers

    def _resumed(self) -> Attendance:
        if self._attendance is None:
            self._attendance = Attendance(self._begin, self._states.conclude)
            for data, said in zip(self._notes.heard, self._notes.said, strict=True):
                if _digest(self._attendance.answer([data])) != said:
                    raise ProtocolViolation(
                        "this participation can't be resumed: it does not say the same again"
                    )
        return self._attendance

    def _begin(self, assignment: Assignment) -> Participation:
        work = self._work()
        client = _TrainsOnce(work.client(assignment), self._notes)
        randomness = Randomness(self._notes.key)
        tasks = work.installed(assignment)
        return Participation(self._member, client, self._states, randomness, tasks=tasks)


class _TrainsOnce:
    """A client whose work is noted, and given again."""

    def __init__(self, client: Client, notes: Notes):
        self._client, self._notes = client, notes
        self.rules, self.keys = client.rules, getattr(client, "keys", ())

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        if not self._notes.work:
            self._notes.work = _packed(*self._client.fit(parameters, instruction, state))
        return _unpacked(self._notes.work)

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        if not self._notes.work:
            self._notes.work = _packed(self._client.evaluate(parameters, instruction, state), {})
        return _unpacked(self._notes.work)[0]


def _digest(answers: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(answer).digest() for answer in answers)).digest()


def _packed(update: Update, state: State) -> bytes:
    arrays: dict[str, np.ndarray] = {"examples": np.array([update.examples], np.int64)}
    arrays |= {f"vector/{name}": np.array(vector, order="C") for name, vector in update.vectors.items()}
    arrays |= {f"metric/{name}": np.array([value], np.float64) for name, value in update.metrics.items()}
    arrays |= {f"state/{name}": np.array(value, order="C") for name, value in state.items()}
    return safetensors.numpy.save(arrays)


def _unpacked(packed: bytes) -> tuple[Update, State]:
    arrays = safetensors.numpy.load(packed)

    def named(kind: str) -> dict[str, np.ndarray]:
        return {name[len(kind) :]: array for name, array in arrays.items() if name.startswith(kind)}

    metrics = {name: float(value[0]) for name, value in named("metric/").items()}
    return Update(named("vector/"), int(arrays["examples"][0]), metrics), named("state/")
