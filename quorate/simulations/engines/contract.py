"""What an engine is: it trains members of a cohort and encodes their updates, in this process or in others.

Where the sum allows it, encoded vectors are added where they are made, and only partial sums travel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from quorate.rounds import Assignment, Instruction, Member, State, Updates
from quorate.task import Task

__all__ = ["Contributions", "Done", "Engine", "Order", "Training"]

Training = Callable[
    [Task, Assignment, Sequence[Any], Sequence[Instruction], Sequence[State]],
    tuple[Updates, Sequence[State]],
]
"""Has a block of clients work on their data, each with its instruction and state."""


@dataclass(frozen=True)
class Order:
    """What an engine is to do.

    Args:
        assignment: of the round.
        members: who trains; those who drop out before that are not among them.
        states: what each of them kept from earlier rounds; nothing for a member that is not named.
        summed: whether the encoded vectors are to be added up.
        discount: for how much their updates count, from 0 to 1.
    """

    assignment: Assignment
    members: tuple[Member, ...]
    states: Mapping[Member, State]
    summed: bool
    discount: float = 1.0


@dataclass(frozen=True)
class Contributions:
    """The work of a block of members.

    Args:
        members: who.
        encoded: their encoded vectors, shape (members, m), uint16, uint32 or float32; or, of an order that is to be
            summed, the sum over them, shape (1, m), float64.
        states: what each keeps if the round is committed.
    """

    members: tuple[Member, ...]
    encoded: np.ndarray
    states: tuple[State, ...]

    def add_to(self, total: np.ndarray) -> None:
        """Adds the vectors to a sum, shape (m,), of the ring's dtype or float64."""
        for vector in self.encoded:
            np.add(total, vector, out=total)


@dataclass(frozen=True)
class Done:
    """What came of an order.

    Args:
        encoded: if it was to be summed, partial sums with the members that are in each: arrays of shape (m,), of
            the ring's dtype or float64; otherwise every member's own vector, shape (m,), of the ring's or float32.
        states: what the members keep if the round is committed.
    """

    encoded: Sequence[tuple[tuple[Member, ...], np.ndarray]]
    states: Mapping[Member, State]

    @property
    def members(self) -> tuple[Member, ...]:
        """Whose updates were made; the others of the order were lost."""
        return tuple(member for members, _ in self.encoded for member in members)


class Engine(Protocol):
    """Does the training of a simulated cohort."""

    def run(self, order: Order) -> Done:
        """Trains and encodes. A member whose vector is not finite, or whose process died, is lost.

        Raises:
            PolicyRefused: the clients do not implement the local rule.
            DataError: data, instruction or state do not fit the model.
        """
        ...

    def close(self) -> None:
        """Ends processes and frees memory."""
        ...
