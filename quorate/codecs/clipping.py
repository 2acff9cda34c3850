"""Clipping: each client's vector to an L2 or L1 norm, as a whole or part by part, whatever it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quorate.codecs.contract import TILE
from quorate.errors import DataError
from quorate.randomness import Randomness

__all__ = ["Clip", "ClipL1", "ClipParts", "norms"]


@dataclass(frozen=True)
class Clip:
    """Scales each client's vector to an L2 norm of at most `norm`: x · min(1, norm / ‖x‖₂).

    A vector that holds NaN or ±inf has no norm; it becomes the zero vector, so that the sensitivity of the
    sum is `norm` for any input at all.

    Args:
        norm: the clip norm, in the update's units; positive and finite.
    """

    norm: float

    def __post_init__(self) -> None:
        if not (self.norm > 0 and math.isfinite(self.norm)):
            raise DataError(f"a clip norm is positive and finite, got {self.norm}")

    def length(self, n: int) -> int:
        """Unchanged."""
        return n

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Clipped copies, shape (clients, n); float32 for float32 values, float64 for any others.

        A float32 vector that is too long is made shorter by 2^-22 of its length more, for the rounding of products.
        """
        single = values.dtype == np.float32
        squares = _squares(values)
        factors = self._factors(squares, single=single)
        careful = np.isnan(factors)
        clipped: np.ndarray = values * factors.astype(np.float32 if single else np.float64)[:, None]
        for row in np.flatnonzero(careful):
            clipped[row] = self._careful(np.asarray(values[row], np.float64), self._aim(single=single))
        return clipped

    def factors(self, norms: np.ndarray) -> np.ndarray:
        """What `encode` multiplies float32 vectors of these L2 norms by; NaN where it looks at the vector's values."""
        return self._factors(np.square(norms), single=True)

    def _factors(self, squares: np.ndarray, *, single: bool) -> np.ndarray:
        """NaN where squares overflow or vanish in float64 (or are NaN), or a float32 factor would have fewer digits."""
        careless = (squares > 1e-280) & (squares < (1e60 if single else 1e280))
        norms = np.sqrt(np.where(careless, squares, 0.0))
        factors = np.where(norms > self.norm, self._aim(single=single) / np.maximum(norms, self.norm), 1.0)
        return np.where(careless, factors, np.nan)

    def _aim(self, *, single: bool) -> float:
        """The norm of what was too long."""
        return self.norm * (1 - 2.0**-22) if single else self.norm

    def _careful(self, values: np.ndarray, shrink: float) -> np.ndarray:
        """One clipped vector, shape (n,), of any values at all; one that is too long gets the norm `shrink`."""
        if not values.size or not np.isfinite(values).all():
            return np.zeros_like(values)
        largest = np.abs(values).max()
        if largest == 0:
            return values
        scaled = values / largest
        root = math.sqrt(float(scaled @ scaled))
        return values if largest <= self.norm / root else scaled * (shrink / root)

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """Unchanged: a clipped vector can't be unclipped."""
        return total


@dataclass(frozen=True)
class ClipParts:
    """Scales each of K parts of a vector to an L2 norm of at most norm/√K, so that the whole is within the norm.

    Args:
        norm: of the whole, in the vector's own units.
        lengths: of the parts, in order.
    """

    norm: float
    lengths: tuple[int, ...]

    def length(self, n: int) -> int:
        """Unchanged."""
        return n

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Clipped copies, shape (clients, n), as `Clip` makes them."""
        clip = Clip(self.norm / math.sqrt(len(self.lengths)))
        ends = np.cumsum(self.lengths)[:-1]
        parts = [clip.encode(part, randomness) for part in np.split(values, ends, axis=1)]
        return np.concatenate(parts, axis=1)

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """Unchanged: a clipped vector can't be unclipped."""
        return total


@dataclass(frozen=True)
class ClipL1:
    """Scales each client's vector to an L1 norm of at most `norm`: x · min(1, norm / ‖x‖₁).

    A vector that holds NaN or ±inf becomes the zero vector, as with `Clip`.

    Args:
        norm: the clip norm, in the update's units; positive and finite.
    """

    norm: float

    def __post_init__(self) -> None:
        if not (self.norm > 0 and math.isfinite(self.norm)):
            raise DataError(f"a clip norm is positive and finite, got {self.norm}")

    def length(self, n: int) -> int:
        """Unchanged."""
        return n

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Clipped copies, float64, shape (clients, n), within 2^-30 of the norm for up to 2^20 values."""
        clipped = np.zeros(values.shape)
        for row, vector in enumerate(np.asarray(values, np.float64)):
            largest = float(np.abs(vector).max(initial=0.0))
            if largest == 0 or not math.isfinite(largest):
                continue
            scaled = vector / largest  # so that nothing overflows
            total = float(np.abs(scaled).sum())
            clipped[row] = vector if largest <= self.norm / total else scaled * (self.norm / total)
        return clipped

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """Unchanged: a clipped vector can't be unclipped."""
        return total


def norms(values: np.ndarray) -> np.ndarray:
    """The L2 norms of vectors, (clients, n), float64, shape (clients,); infinite or NaN where they can't be told."""
    return np.asarray(np.sqrt(_squares(values)))


def _squares(values: np.ndarray) -> np.ndarray:
    """The sum of squares of each row, float64; infinite or NaN where it can't be told."""
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype == np.float32:
            return np.array([_square(row) for row in values])
        wide = np.asarray(values, np.float64)
        squares: np.ndarray = np.einsum("ij,ij->i", wide, wide)
    return squares


def _square(values: np.ndarray) -> float:
    """The sum of squares of one float32 vector, in float64 and in tiles."""
    tiles = (values[start : start + TILE].astype(np.float64) for start in range(0, len(values), TILE))
    return float(sum(tile @ tile for tile in tiles))
