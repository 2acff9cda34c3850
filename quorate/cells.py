"""Cells: how values fall into the cells of a question, and what the cells' shares say.

A member contributes at most 1 over all cells of a question, whatever its values are, and so do its L1 and L2 norms:
that is what noise is for. A bounded mean is a histogram of two cells: a value is split between the two ends of its
range, in proportion to how near it is to each. An answer is a ratio of cells: it needs no count of who took part, and
is no less private than the cells (post-processing: Dwork and Roth 2014, proposition 2.1).

Federated statistics (`quorate.clients.adapters.statistics`) ask such questions of examples, federated evaluation
(`quorate.evaluation`) of what members measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Bins", "Ends", "Question", "Values", "shares"]


class Question(Protocol):
    """How values fall into cells, and what cells say."""

    @property
    def cells(self) -> int:
        """How many there are."""
        ...

    def tally(self, values: np.ndarray) -> np.ndarray:
        """How much of finite or infinite float64 values, shape (n,), is in each cell: at least 0, n in all at most."""
        ...

    def answer(self, shares: np.ndarray) -> dict[str, float]:
        """From each cell's share, at least 0 and 1 in all."""
        ...


@dataclass(frozen=True)
class Bins:
    """Which values lie between which edges. A value beyond the edges counts in the nearest bin.

    Args:
        edges: finite and growing, at least two.
    """

    edges: tuple[float, ...]

    @property
    def cells(self) -> int:
        """One fewer than edges."""
        return len(self.edges) - 1

    def tally(self, values: np.ndarray) -> np.ndarray:
        """How many are in each bin; a bin holds its lower edge, and the last one its upper edge as well."""
        bins = np.searchsorted(self.edges, values, side="right") - 1
        return np.bincount(np.clip(bins, 0, self.cells - 1), minlength=self.cells)

    def answer(self, shares: np.ndarray) -> dict[str, float]:
        """The share of each bin."""
        last = self.cells - 1
        return {
            f"[{self.edges[i]:g}, {self.edges[i + 1]:g}{']' if i == last else ')'}": float(share)
            for i, share in enumerate(shares)
        }

    def quantile(self, cells: np.ndarray, probability: float) -> float | None:
        """The value below which the given share lies, as if values were spread evenly within their bin.

        With noise in them, cells add up to a distribution that may fall: it is taken to be half-way between the
        smallest growing one above it and the largest one below it. (Cells that noise made negative are not emptied
        first, which would make many of empty bins.) Without noise it is right to the width of a bin.

        Args:
            cells: as they were summed, shape (cells,).
            probability: between 0 and 1.

        Returns:
            None where there is nothing in all cells together.
        """
        until = np.concatenate([[0.0], np.cumsum(np.asarray(cells, np.float64))])
        if until[-1] <= 0:
            return None
        until = until / until[-1]
        above, below = np.maximum.accumulate(until), np.minimum.accumulate(until[::-1])[::-1]
        until = np.clip((above + below) / 2, 0.0, 1.0)
        i = min(max(int(np.searchsorted(until, probability, side="left")), 1), self.cells)
        low, high = self.edges[i - 1], self.edges[i]
        width = until[i] - until[i - 1]
        within = (probability - until[i - 1]) / width if width > 0 else 0.0
        return float(low + (high - low) * min(max(within, 0.0), 1.0))


@dataclass(frozen=True)
class Values:
    """Which values are which of some whole numbers; others count nowhere.

    Args:
        values: all different.
    """

    values: tuple[int, ...]

    @property
    def cells(self) -> int:
        """One a value."""
        return len(self.values)

    def tally(self, values: np.ndarray) -> np.ndarray:
        """How many are each."""
        return np.array([np.count_nonzero(values == value) for value in self.values])

    def answer(self, shares: np.ndarray) -> dict[str, float]:
        """The share of each."""
        return {str(value): float(share) for value, share in zip(self.values, shares, strict=True)}


@dataclass(frozen=True)
class Ends:
    """The mean of values, each moved to the nearest within a range.

    Args:
        low: of the range.
        high: above `low`.
    """

    low: float
    high: float
    cells = 2

    def tally(self, values: np.ndarray) -> np.ndarray:
        """How near they are to the lower end, and to the upper one."""
        places = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        return np.array([np.sum(1 - places), np.sum(places)])

    def answer(self, shares: np.ndarray) -> dict[str, float]:
        """The `mean`."""
        return {"mean": self.low + (self.high - self.low) * float(shares[1])}


def shares(cells: np.ndarray) -> np.ndarray | None:
    """Each cell's share of all, float64, shape (cells,): cells that noise made negative count as empty.

    None where no cell is above 0: there was more noise than answer, or nobody answered.
    """
    counted = np.maximum(np.asarray(cells, np.float64), 0.0)
    total = float(counted.sum())
    return None if total <= 0 else np.asarray(counted / total)
