"""The choice of a cohort, in secret: amplification by sampling holds only against those who can't know it.

The draw comes from protocol randomness and is not published. What is drawn is exactly the sampler that the ledger's
event names: Poisson sampling truncated at the largest cohort, or a fixed number without replacement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quorate.fleets import Population
from quorate.randomness import Randomness
from quorate.rounds import Member

__all__ = ["FixedSize", "Sampler", "TruncatedPoisson"]


class Sampler(Protocol):
    """Draws cohorts."""

    def draw(self, population: Population, randomness: Randomness) -> tuple[Member, ...]:
        """A cohort, in random order."""
        ...


@dataclass(frozen=True)
class TruncatedPoisson:
    """Every member independently with the same probability; of a cohort that is too large, a uniform subset.

    Args:
        expected: the expected cohort (before truncation); the probability is `expected` / population.
        largest: the most members a cohort can have.
    """

    expected: int
    largest: int

    def draw(self, population: Population, randomness: Randomness) -> tuple[Member, ...]:
        """A cohort of at most `largest` members, perhaps empty."""
        threshold = (self.expected << 64) // population.size
        if threshold >= 1 << 64:
            chosen = np.arange(population.size)
        else:
            words = randomness.words(population.size, np.dtype(np.uint64))
            chosen = np.flatnonzero(words < np.uint64(threshold))
        order = randomness.permutation(len(chosen))
        return tuple(population.member(int(chosen[i])) for i in order[: self.largest])


@dataclass(frozen=True)
class FixedSize:
    """A uniform subset of a fixed size, without replacement.

    Args:
        size: the cohort; all members when there are fewer.
    """

    size: int

    def draw(self, population: Population, randomness: Randomness) -> tuple[Member, ...]:
        """A cohort of `size` members."""
        drawn: dict[int, None] = {}
        wanted = min(self.size, population.size)
        while len(drawn) < wanted:
            drawn[randomness.below(population.size)] = None
        return tuple(population.member(index) for index in drawn)
