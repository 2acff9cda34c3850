"""Factorisations of the prefix sum, for DP-FTRL: noise that is taken back in later rounds.

With x_t the sum of round t, the server releases C·x + z instead of x + z, for a lower triangular C, and estimates x
by C⁻¹(C·x + z) = x + C⁻¹z, whose prefix sums have far less noise than those of fresh noise. What a member adds in one
round shows in a column of C, so its L2 sensitivity is the column's norm; contributions whose columns don't overlap
add up as separate participations do.

*Banded*: C is Toeplitz with b bands, the first coefficients of the square root of the prefix matrix, c_0 = 1 and c_k
= c_{k-1}·(2k - 1)/2k (Fichtenberger, Henzinger, Upadhyay 2023, theorem 1; Kalinin and Lampert 2024 for the bands).
Columns b rounds apart don't overlap (Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization", theorem
2). Coefficients are whole numbers of 1/256, so that everything that noise is added to is a whole number.

*Tree*: C has a row a node of a binary tree over b rounds: the sum of the rounds below it. A new tree begins every b
rounds (Kairouz, McMahan, Song, Thakkar, Thakurta, Xu 2021, "Practical and Private (Deep) Learning without Sampling or
Shuffling", section 4 and appendix D.2, with restarts). A round is in ⌈log2 b⌉ + 1 nodes.

Everything is computed on integers; only the estimate, which is made of what was released, is a float.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quorate.rounds import State

__all__ = ["Banded", "Factorization", "Tree", "square_root_coefficients"]

_UNIT = 256

Noise = Callable[[int], np.ndarray]
"""So many noise samples, int64, each with the standard deviation noise multiplier × sensitivity × column norm."""


class Factorization(Protocol):
    """A lower triangular C, applied one round after the other."""

    @property
    def column_norm_squared(self) -> int:
        """The square of the largest L2 norm of what one unit of one round adds to what is released, in its own unit."""
        ...

    def init(self, length: int) -> State:
        """What is kept between rounds, before the first."""
        ...

    def release(self, state: State, total: np.ndarray, noise: Noise) -> tuple[np.ndarray, State]:
        """One round.

        Args:
            state: before it.
            total: the sum of the round, int64, shape (length,).
            noise: gives what is added.

        Returns:
            The estimate of `total`, float64, shape (length,), and the state after the round.
        """
        ...


def square_root_coefficients(count: int) -> np.ndarray:
    """The first coefficients of (1 - x)^(-1/2), float64, shape (count,): the square root of the prefix sum."""
    k = np.arange(1, count)
    return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])


@dataclass(frozen=True)
class Banded:
    """The banded square root.

    Args:
        bands: b, the number of rounds that a contribution shows in.
    """

    bands: int

    @property
    def coefficients(self) -> np.ndarray:
        """In units of 1/256, int64, shape (bands,)."""
        return np.round(_UNIT * square_root_coefficients(self.bands)).astype(np.int64)

    @property
    def column_norm_squared(self) -> int:
        """Of the coefficients."""
        return int((self.coefficients**2).sum())

    def init(self, length: int) -> State:
        """No round yet."""
        shape = (self.bands - 1, length)
        return {"sums": np.zeros(shape, np.int64), "estimates": np.zeros(shape)}

    def release(self, state: State, total: np.ndarray, noise: Noise) -> tuple[np.ndarray, State]:
        """W = Σ c_j·x_{t-j} + z; the estimate is (w - Σ_{j≥1} c_j·x̂_{t-j}) / c_0."""
        c = self.coefficients
        noisy = c[0] * total + noise(len(total))
        for j in range(1, self.bands):
            noisy += c[j] * state["sums"][j - 1]
        estimate = noisy.astype(np.float64)
        for j in range(1, self.bands):
            estimate -= c[j] * state["estimates"][j - 1]
        estimate /= c[0]
        return estimate, {
            "sums": _pushed(state["sums"], total),
            "estimates": _pushed(state["estimates"], estimate),
        }


@dataclass(frozen=True)
class Tree:
    """A binary tree over some rounds, and another when they are over.

    Args:
        rounds: b, after which a new tree begins.
    """

    rounds: int

    @property
    def levels(self) -> int:
        """Of nodes that a round can be in: ⌈log2 b⌉ + 1."""
        return math.ceil(math.log2(self.rounds)) + 1

    @property
    def column_norm_squared(self) -> int:
        """The number of levels."""
        return self.levels

    def init(self, length: int) -> State:
        """No node is finished."""
        shape = (self.levels, length)
        return {
            "round": np.zeros(1, np.int64),
            "nodes": np.zeros(shape, np.int64),
            "noisy": np.zeros(shape, np.int64),
            "prefix": np.zeros(length, np.int64),
        }

    def release(self, state: State, total: np.ndarray, noise: Noise) -> tuple[np.ndarray, State]:
        """Finishes one node; the estimate is the noisy prefix sum less the one before."""
        number = int(state["round"][0]) + 1
        nodes, noisy = state["nodes"].copy(), state["noisy"].copy()
        level = (number & -number).bit_length() - 1
        nodes[level] = total + nodes[:level].sum(axis=0)
        noisy[level] = nodes[level] + noise(len(total))
        nodes[:level], noisy[:level] = 0, 0
        prefix = noisy.sum(axis=0)
        estimate = (prefix - state["prefix"]).astype(np.float64)
        if number == self.rounds:
            return estimate, self.init(len(total))
        return estimate, {"round": np.array([number]), "nodes": nodes, "noisy": noisy, "prefix": prefix}


def _pushed(rows: np.ndarray, newest: np.ndarray) -> np.ndarray:
    """The newest row first, the oldest gone."""
    return np.concatenate([newest[None, :], rows[:-1]]) if len(rows) else rows
