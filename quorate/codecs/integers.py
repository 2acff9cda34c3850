"""From real values to the integers of a ring: stochastic rounding within a norm, digits, and residues."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quorate.codecs.contract import TILE
from quorate.errors import DataError
from quorate.randomness import Randomness

__all__ = ["Digits", "Discretise", "Wrap", "rounded_norm_bound"]

_ROUNDINGS = 1000
"""Attempts at conditional rounding; each succeeds with probability 1 - β at least."""


@dataclass(frozen=True)
class Discretise:
    """Scales to integers and rounds them stochastically, which keeps the expectation (to 2^-33 of a step).

    With a norm bound, rounding is repeated until the integer vector is within it (conditional rounding,
    Kairouz et al. 2021, algorithm 1), which makes the sensitivity of the integer sum exactly that bound. The
    condition biases the vector by at most √β / 2(1-β) steps in L2 norm, β being the probability that a
    rounding is
    rejected: for a unit vector u, E[⟨u, R-x⟩; rejected]² ≤ β·Var⟨u, R⟩ ≤ β/4. See `rounded_norm_bound`.

    Args:
        scale: integer steps for one unit of the vector.
        norm_bound: the largest L2 norm of the integer vector, in steps; None rounds once.
    """

    scale: float
    norm_bound: float | None = None

    def length(self, n: int) -> int:
        """Unchanged."""
        return n

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Integer vectors, shape (clients, n): int32 where the norm bound is below 2^30, else int64.

        Raises:
            DataError: a vector is too long: it was not rounded to within the norm bound in 1,000 attempts.
        """
        short = self.norm_bound is not None and self.norm_bound < 2**30
        rounded = np.empty(values.shape, np.int32 if short else np.int64)
        pending = np.arange(len(values))
        for _ in range(_ROUNDINGS):
            squares = np.array([self._round(values[i], rounded[i], randomness) for i in pending])
            if self.norm_bound is None:
                break
            # Squares are exact up to 2^53, and off by less than 2^-40 of them beyond.
            pending = pending[squares > self.norm_bound**2 * (1 - 2.0**-40)]
            if not pending.size:
                break
        else:
            raise DataError(
                f"{pending.size} vectors are longer than the norm bound of {self.norm_bound:g} steps allows"
            )
        return rounded

    def _round(self, values: np.ndarray, out: np.ndarray, randomness: Randomness) -> float:
        """Rounds one vector once into `out`: ⌊x + U⌋, U uniform; returns the square of its norm."""
        square = 0.0
        for start in range(0, len(values), TILE):
            tile = slice(start, start + TILE)
            moved = np.multiply(values[tile], self.scale, dtype=np.float64)
            moved += randomness.words(len(moved), np.dtype(np.uint32)) * 2.0**-32
            np.floor(moved, out=moved)
            square += float(moved @ moved)
            out[tile] = moved
        return square

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """The sum in the vector's own units, float64, shape (n,)."""
        return total / self.scale


@dataclass(frozen=True)
class Digits:
    """Integers as signed digits, each a coordinate of its own: for few numbers that a narrow ring would coarsen.

    Digits of a sum are sums of digits, so n clients' stay within n·(base - 1). An integer has the lowest digits first,
    all with its own sign; the magnitude is below base^count.

    Args:
        base: at least 2.
        count: of digits.
    """

    base: int
    count: int

    def length(self, n: int) -> int:
        """`count` for each."""
        return n * self.count

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Digits, int64, shape (clients, n·count)."""
        rest = np.abs(values)
        digits = np.empty((*values.shape, self.count), np.int64)
        for place in range(self.count):
            rest, digits[..., place] = np.divmod(rest, self.base)
        digits *= np.sign(values)[..., None]
        return digits.reshape(len(values), -1)

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """The sum of the integers, int64, shape (n,)."""
        weights = np.array([self.base**place for place in range(self.count)], np.int64)
        integers: np.ndarray = total.reshape(n, self.count) @ weights
        return integers


@dataclass(frozen=True)
class Wrap:
    """Integers modulo 2^bits, the ring in which they are summed. A sum in [-2^(bits-1), 2^(bits-1)) comes back.

    Args:
        bits: 16 or 32.
    """

    bits: int

    def length(self, n: int) -> int:
        """Unchanged."""
        return n

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Residues, uint16 or uint32, shape (clients, n); int32 values are looked at anew, without a copy."""
        if self.bits == 32 and values.dtype == np.int32:
            return values.view(np.uint32)
        return values.astype(np.uint16 if self.bits == 16 else np.uint32)

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """The residues' representatives in [-2^(bits-1), 2^(bits-1)), int64, shape (n,)."""
        unsigned, signed = (np.uint16, np.int16) if self.bits == 16 else (np.uint32, np.int32)
        return np.ascontiguousarray(total, unsigned).view(signed).astype(np.int64)


def rounded_norm_bound(norm: float, length: int, beta: float = math.exp(-0.5)) -> float:
    """The bound on a rounded vector's L2 norm, in steps, for conditional rounding.

    The smaller of the certain bound ‖x‖ + √m and the one that holds with probability at least 1 - β, so that
    rounding is repeated 1/(1-β) times at most in expectation (Kairouz et al. 2021, section 4.3).

    Args:
        norm: the L2 norm of the vector before rounding, in steps.
        length: the number of coordinates, m.
        beta: the largest probability that one rounding is rejected.
    """
    certain = (norm + math.sqrt(length)) ** 2
    likely = norm**2 + length / 4 + math.sqrt(2 * math.log(1 / beta)) * (norm + math.sqrt(length) / 2)
    return math.sqrt(min(certain, likely))
