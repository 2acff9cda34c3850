"""Who takes part in a round: clients, their identities, populations, and the fleets that run them.

Everything here is a protocol, or data that fleets give: who implements what is said at each.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quorate.parameters import Parameters
from quorate.randomness import Randomness
from quorate.rounds import Assignment, Close, Closed, Instruction, Member, Outcome, State, Update
from quorate.summation import Sink, Summation

__all__ = [
    "Ability",
    "Client",
    "DataHolder",
    "Enrolment",
    "Fleet",
    "Identities",
    "Identity",
    "Population",
    "Workforce",
]


class Ability(enum.StrEnum):
    """What a fleet can do; a plan that needs another is refused before it starts."""

    SECURE = "secure"
    SINGLE_UPDATES = "single-updates"
    CLIENT_STATE = "client-state"
    HELD_OUT_DATA = "held-out-data"
    IDENTITIES = "identities"
    LOCAL_DATA = "local-data"
    BUFFERED = "buffered"


class Client(Protocol):
    """What an application writes, or an adapter makes: local training on local data."""

    @property
    def rules(self) -> frozenset[str]:
        """The local rules it implements, and `dp-sgd` if it can do that.

        A plan that needs another is refused, never ignored.
        """
        ...

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """Trains from `parameters` and returns the update, and the state to keep if the round is committed."""
        ...

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """Computes metrics only."""
        ...


class Identity(Protocol):
    """A member's own long-term key."""

    @property
    def certificate(self) -> bytes:
        """What the others' `Enrolment` knows it by: at most 1,024 bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature (RFC 8032): 64 bytes."""
        ...


class Enrolment(Protocol):
    """Who may take part."""

    def public_key(self, certificate: bytes) -> bytes | None:
        """The Ed25519 public key (32 bytes) of an enrolled identity, or None if it is not enrolled."""
        ...


@dataclass(frozen=True)
class Identities:
    """Who the members of a fleet are to one another, where they have long-term keys.

    Args:
        enrolment: whom its holder believes to be a member.
        own: gives a member its identity: on a device always the same one, in a simulation one drawn from the member's
            randomness; None on a server.
    """

    enrolment: Enrolment
    own: Callable[[Randomness], Identity] | None = None


class DataHolder(Protocol):
    """A fleet whose members' data are on this machine (`Ability.LOCAL_DATA`)."""

    def data_of(self, member: Member) -> Any:
        """A member's data."""
        ...


class Population(Protocol):
    """Who can be selected. Lazy: a million members cost nothing until they are drawn."""

    @property
    def size(self) -> int:
        """How many members there are."""
        ...

    @property
    def present(self) -> int:
        """How many of them can be selected now, at least; `size` where all can."""
        ...

    def member(self, index: int) -> Member:
        """The member at an index in [0, size)."""
        ...

    def those_present(self, indices: Sequence[int]) -> Sequence[int]:
        """Those of the indices whose members can be selected now, in the same order."""
        ...


class Workforce(Population, Protocol):
    """Some members work all the time, each on the model that was the newest when it began (`Ability.BUFFERED`)."""

    def first_done(
        self, count: int, barred: Collection[Member], randomness: Randomness
    ) -> tuple[Member, ...]:
        """The next members whose work is done, each once; for everybody who ends another one begins.

        Args:
            count: how many.
            barred: who must not begin now.
            randomness: chooses who begins.

        Raises:
            QuorateError: there are not so many.
        """
        ...


class Fleet(Protocol):
    """Runs the client side of a round and moves its messages. Blocking; it owns whatever event loop it needs."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can do."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether its members exist in a simulation only."""
        ...

    @property
    def identities(self) -> Identities | None:
        """Who its members are to one another; None where they have no identities."""
        ...

    def population(self) -> Population:
        """Who can be selected now."""
        ...

    def collect(self, assignment: Assignment, summation: Summation, sink: Sink, close: Close) -> Closed:
        """Has the cohort work, and sums what it gives into `sink`.

        Raises:
            QuorumNotReached: fewer than the bounds' `min_survivors` were left; the sink is to be thrown away.
        """
        ...

    def conclude(self, run: str, round: int, outcomes: Mapping[Member, Outcome]) -> None:
        """Tells the members how the round ended for each of them: they keep or drop what they staged. Idempotent.

        It is told again after a restart, for the last committed round and for every aborted one.
        """
        ...

    def held_out(self) -> Any:
        """Data for the server's own evaluation, or None."""
        ...

    def close(self, failure: BaseException | None = None) -> None:
        """Frees workers, sockets and files.

        Args:
            failure: what ended the run before its time: whoever is told that it has ended is told so.
        """
        ...
