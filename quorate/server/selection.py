"""The choice of a cohort, in secret: amplification by sampling holds only against those who can't know it.

The draw comes from protocol randomness and is not published. What is drawn is exactly the sampler that the ledger's
event names: Poisson sampling truncated at the largest cohort, or a fixed number without replacement. A separated one
keeps members from coming again too soon. Who is done first is not drawn at all, and nothing is amplified by it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from quorate.errors import QuorateError
from quorate.fleets import Population, Workforce
from quorate.randomness import Randomness
from quorate.rounds import Member

__all__ = ["FirstDone", "FixedSize", "Sampler", "Separated", "TruncatedPoisson"]

_TILE = 1 << 20


class Sampler(Protocol):
    """Draws cohorts."""

    def draw(self, population: Population, randomness: Randomness) -> tuple[Member, ...]:
        """A cohort, in random order."""
        ...


@dataclass(frozen=True)
class TruncatedPoisson:
    """Every present member independently with the same probability; of a cohort that is too large, a uniform subset.

    Args:
        expected: the expected cohort (before truncation) of as many members as are present at least; the probability
            is `expected` / `population.present`.
        largest: the most members a cohort can have.
    """

    expected: int
    largest: int

    def draw(self, population: Population, randomness: Randomness) -> tuple[Member, ...]:
        """A cohort of at most `largest` members, perhaps empty."""
        threshold = (self.expected << 64) // population.present
        if threshold >= 1 << 64:
            chosen: list[int] = list(range(population.size))
        else:
            chosen = [int(i) for i in _below(threshold, population.size, randomness)]
        chosen = list(population.those_present(chosen))
        order = randomness.permutation(len(chosen))
        return tuple(population.member(chosen[i]) for i in order[: self.largest])


@dataclass(frozen=True)
class FixedSize:
    """A uniform subset of a fixed size of those present, without replacement.

    Args:
        size: the cohort; all members when there are fewer.
    """

    size: int

    def draw(self, population: Population, randomness: Randomness) -> tuple[Member, ...]:
        """A cohort of `size` members.

        Raises:
            QuorateError: fewer members are present than the population says.
        """
        return _subset(population, min(self.size, population.present), frozenset(), randomness)


@dataclass(frozen=True)
class Separated:
    """A uniform subset of a fixed size of those present who were in no recent sum.

    Args:
        size: the cohort.
        recent: says who was in the sum of a recent round, by the coordinator's own records.
    """

    size: int
    recent: Callable[[], Collection[Member]]

    def draw(self, population: Population, randomness: Randomness) -> tuple[Member, ...]:
        """A cohort of `size` members; of fewer, when there are no more.

        Raises:
            QuorateError: fewer members are present than the population says.
        """
        recent = frozenset(self.recent())
        wanted = min(self.size, max(0, population.present - len(recent)))
        return _subset(population, wanted, recent, randomness)


@dataclass(frozen=True)
class FirstDone:
    """The members whose work is done first, of those who work at the same time: a buffer (Nguyen et al. 2022).

    Args:
        size: the cohort.
        recent: says who was in the sum of a recent round, and must not begin to work yet.
    """

    size: int
    recent: Callable[[], Collection[Member]]

    def draw(self, population: Population, randomness: Randomness) -> tuple[Member, ...]:
        """A cohort of `size` members, in the order in which they were done.

        Raises:
            QuorateError: there are not so many.
        """
        return cast(Workforce, population).first_done(self.size, frozenset(self.recent()), randomness)


def _subset(
    population: Population, wanted: int, barred: Collection[Member], randomness: Randomness
) -> tuple[Member, ...]:
    """So many different members who are present and not barred, each set of them as likely as any other."""
    drawn: dict[int, Member] = {}
    tried = 0
    while len(drawn) < wanted:
        found = randomness.many_below(population.size, wanted - len(drawn))
        tried += len(found)
        for index in population.those_present([index for index in found if index not in drawn]):
            member = population.member(index)
            if member not in barred:
                drawn[index] = member
        if tried > 100 * (population.size + 10):
            raise QuorateError(
                f"fewer members are present than the {population.present} that were said to be"
            )
    return tuple(drawn.values())


def _below(threshold: int, count: int, randomness: Randomness) -> Iterator[int]:
    """The indices, of `count`, whose 64 random bits are below the threshold.

    Nearly always the first eight bits decide; the others are drawn only where they don't.
    """
    first, rest = divmod(threshold, 1 << 56)
    for start in range(0, count, _TILE):
        bits = randomness.words(min(_TILE, count - start), np.dtype(np.uint8))
        for index in np.flatnonzero(bits <= first).tolist():
            if bits[index] < first or int.from_bytes(randomness.bytes(7), "big") < rest:
                yield start + index
