"""The contracts of a sum: its two halves, what drives them, and where the sum ends.

A summation (plain, ideal or secure) is sans-I/O: bytes in, bytes out. A driver (`quorate.server.sessions`) moves the
messages of the server's half over a transport; each client runs the other half. `quorate.sums` and
`quorate.privacy.secagg` implement them.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from quorate.randomness import Randomness
from quorate.rounds import Aggregate, CohortBounds, Member

__all__ = [
    "ClientSum",
    "Exposure",
    "Journal",
    "Loss",
    "Lost",
    "Message",
    "Outgoing",
    "ServerSum",
    "Sink",
    "SumSession",
    "Summation",
    "Transport",
]


class Sink(Protocol):
    """Takes encoded vectors: one running sum, one sum a bucket, or single updates. The aggregator supplies it."""

    @property
    def survivors(self) -> tuple[Member, ...]:
        """Whose vectors were added, in that order."""
        ...

    def add(self, encoded: np.ndarray, members: Sequence[Member]) -> None:
        """Adds a block: shape (len(members), m), or (m,) for what is already the sum over `members`."""
        ...

    def result(self) -> Aggregate:
        """What was added."""
        ...


class Journal(Protocol):
    """What a round writes down durably before it acts; the store implements it.

    Each transition of a round is written before the message that follows from it leaves:

        before                                            is written
        anything of the round is drawn                    the round, under a number that the run never used before
        an assignment leaves                              the charge, then the cohort
        the first request that can open a sum leaves      revealing (of a plain sum: before the first vector is taken)
        a member is told that it may keep its state       committed, who is in the sum, and the checkpoint, together
        a charge that was taken back is forgotten         the refund, then aborted

    Whoever finds a round open at its start aborts it, and takes the charge back only where `revealing` was not written.
    Session ids are hashes over the run's random id and the round's number, so they are never used again either.
    Only the third line is the summation's to ask for; the coordinator does the others.
    """

    def revealing(self) -> None:
        """Called before the first message (or addition) after which something of a client's data can be released.

        Until then an aborted round's charge can be refunded; from then on it can't.
        """
        ...


@dataclass(frozen=True)
class SumSession:
    """What both halves of a sum agree on before it starts.

    Args:
        binding: 32 bytes: a hash over the task, terms, run, round and everything broadcast. The roster is added by the
            protocol itself, once it is known.
        length: the number of values of an encoded vector.
        dtype: of an encoded vector: uint16 or uint32 for a ring, float32 for plain values.
        bounds: the cohort's bounds.
    """

    binding: bytes
    length: int
    dtype: np.dtype[Any]
    bounds: CohortBounds


@dataclass(frozen=True)
class Outgoing:
    """A message to one member."""

    member: Member
    data: bytes


@dataclass(frozen=True)
class Message:
    """A message from one member."""

    member: Member
    data: bytes


class Loss(enum.StrEnum):
    """Why a member is out of a round."""

    LATE = "late"
    GONE = "gone"
    VIOLATION = "broke the protocol"
    DECLINED = "declined"
    SPARE = "not needed"


@dataclass(frozen=True)
class Lost:
    """A member that will not answer any more in this round.

    Args:
        member: which one.
        reason: in words.
        loss: why, to be counted.
    """

    member: Member
    reason: str = "connection lost"
    loss: Loss = Loss.GONE


class Transport(Protocol):
    """Carries opaque messages to and from members, in order for each of them. It may outlive a round.

    Whoever uses it tells what belongs to which round: a late message is delivered as any other.
    """

    def send(self, member: Member, data: bytes) -> None:
        """Queues a message; a member that can't be reached shows as `Lost` later, never as an error here."""
        ...

    def receive(self, timeout_s: float) -> Message | Lost | None:
        """The next event from any member, or None when there was none within `timeout_s` seconds.

        `Lost` says that what was sent may not have arrived, or will not be answered. A loss before the last `send` to
        the member is not reported, if the member was back by then.
        """
        ...


class ServerSum(Protocol):
    """The server's half of one sum, without I/O: a driver feeds it messages and sends what it returns.

    The driver calls `begin` once, then, phase after phase, `receive` and `lose` for what comes in, and `advance` when
    nobody is awaited any more or the phase's deadline has passed, until `done`.
    """

    @property
    def phase(self) -> str:
        """The name of the phase that is under way."""
        ...

    @property
    def awaited(self) -> Collection[Member]:
        """Who has not answered in this phase yet."""
        ...

    @property
    def done(self) -> bool:
        """Whether the sum is known."""
        ...

    @property
    def reveals(self) -> bool:
        """Whether what this phase sends or takes lets something of a client's data be released: journal first."""
        ...

    def begin(self, members: Sequence[Member]) -> list[Outgoing]:
        """Opens the session with a cohort; returns the first messages, if the server speaks first."""
        ...

    def receive(self, member: Member, data: bytes) -> None:
        """Takes a message.

        Raises:
            ProtocolViolation: the message is not allowed; the driver then calls `lose`.
        """
        ...

    def lose(self, member: Member) -> None:
        """Takes note that the member is gone."""
        ...

    def advance(self) -> list[Outgoing]:
        """Closes the phase with who has answered, and returns the next phase's messages.

        Raises:
            QuorumNotReached: too few are left; nothing is released, now or later.
        """
        ...


class Exposure(enum.IntEnum):
    """How much of what a client computed depends on its answers being out of its hands."""

    NOTHING = 0
    MASKED = 1
    """Its vector is out, under masks: others can open the sum that it is in."""
    REVEALED = 2
    """Its shares are out, or its vector as it is: it must never answer in this round again."""


class ClientSum(Protocol):
    """A client's half of one sum, without I/O: bytes in, bytes out."""

    @property
    def exposure(self) -> Exposure:
        """What is exposed once its last answer is sent: to be written down before that."""
        ...

    def begin(self) -> bytes | None:
        """The first message, if the client speaks first."""
        ...

    def receive(self, data: bytes) -> bytes | None:
        """Takes the server's message and returns the answer.

        Raises:
            ProtocolViolation: the server broke the protocol: the client answers no more in this session.
            PolicyRefused: the protocol was kept, but the roster or survivors fall short of what the client accepts.
        """
        ...


class Summation(Protocol):
    """A way to sum, for one round: makes both halves. `quorate.sums` and `quorate.privacy.secagg` implement it."""

    @property
    def session(self) -> SumSession:
        """What both halves agree on."""
        ...

    @property
    def journal(self) -> Journal:
        """Written before anything can be revealed."""
        ...

    @property
    def direct(self) -> bool:
        """Whether a fleet that holds the encoded vectors may add them to the sink itself, with no message at all."""
        ...

    def server(self, sink: Sink) -> ServerSum:
        """The server's half; what it learns goes into the sink, which counts only once it is `done`."""
        ...

    def client(self, encoded: np.ndarray, randomness: Randomness) -> ClientSum:
        """A client's half, with its encoded vector: shape (length,), of the session's dtype."""
        ...
