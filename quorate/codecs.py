"""Codecs: composable pairs of `encode` (on the client) and `decode` (on the server) around a sum.

A codec maps a block of client vectors, shape (clients, n), to another, shape (clients, m), and maps the *sum*
of such vectors back. Codecs chain as gradient transformations do in Optax: encoding runs from the first to
the last, decoding from the last to the first. The leading clients axis lets a vectorised simulation use the
same code as one device.

Values are float32 or float64 until `Discretise`, int32 or int64 until `Wrap`, and uint16 or uint32 on the wire. The
codecs of a mechanism (noise shares) live with it, in `quorate.privacy.mechanisms`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from quorate.errors import DataError
from quorate.randomness import Randomness

__all__ = [
    "Chain",
    "Clip",
    "ClipL1",
    "ClipParts",
    "Codec",
    "Digits",
    "Discretise",
    "Rotate",
    "Wrap",
    "hadamard",
    "rounded_norm_bound",
]

_TILE = 1 << 15
_ROUNDINGS = 1000
"""Attempts at conditional rounding; each succeeds with probability 1 - β at least."""


class Codec(Protocol):
    """A pair of functions around a sum. Both are pure but for what they draw from `randomness`."""

    def length(self, n: int) -> int:
        """The number of encoded values for a vector of `n` values."""
        ...

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Client vectors, shape (clients, n), as encoded vectors, shape (clients, length(n))."""
        ...

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """The sum of encoded vectors, shape (length(n),), as the sum of the vectors, shape (n,)."""
        ...


@dataclass(frozen=True)
class Chain:
    """Codecs one after the other: the first sees a client's vector first, and the sum last."""

    codecs: tuple[Codec, ...]

    @classmethod
    def of(cls, *codecs: Codec) -> Chain:
        """A chain of the given codecs."""
        return cls(codecs)

    def length(self, n: int) -> int:
        """The number of encoded values after the last codec."""
        return self._lengths(n)[-1]

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Runs every codec's `encode`, first to last."""
        for codec in self.codecs:
            values = codec.encode(values, randomness)
        return values

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """Runs every codec's `decode`, last to first."""
        for codec, before in zip(reversed(self.codecs), reversed(self._lengths(n)[:-1]), strict=True):
            total = codec.decode(total, before)
        return total

    def _lengths(self, n: int) -> list[int]:
        lengths = [n]
        for codec in self.codecs:
            lengths.append(codec.length(lengths[-1]))
        return lengths


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
        squares = np.array([_square(row) for row in values]) if single else _squares(values)
        # Where squares overflow or vanish in float64 (or are NaN), or the factor would be a float32 with fewer
        # digits, the row is clipped again with more care.
        careless = (squares > 1e-280) & (squares < (1e60 if single else 1e280))
        norms = np.sqrt(np.where(careless, squares, 0.0))
        shrink = self.norm * (1 - 2.0**-22) if single else self.norm
        factors = np.where(norms > self.norm, shrink / np.maximum(norms, self.norm), 1.0)
        clipped: np.ndarray = np.array(values, np.float32 if single else np.float64)
        for row in np.flatnonzero(careless & (norms > self.norm)):
            clipped[row] *= clipped.dtype.type(factors[row])
        for row in np.flatnonzero(~careless):
            clipped[row] = self._careful(np.asarray(values[row], np.float64), shrink)
        return clipped

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


@dataclass(frozen=True)
class Rotate:
    """A random rotation, H·D / √m: flattens a vector, so that no coordinate is much larger than the others.

    D is a diagonal of random signs from a public seed, H the Walsh–Hadamard matrix; vectors are padded with
    zeros to m, the next power of two. Orthogonal, so it keeps L2 norms (Suresh et al. 2017, section 3).

    Args:
        seed: 32 public bytes; both sides expand them to the same signs.
    """

    seed: bytes

    def length(self, n: int) -> int:
        """The next power of two."""
        return 1 << max(n - 1, 0).bit_length()

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Rotated vectors, float32, shape (clients, length(n)), within 2^-20 of the norm of the exact ones."""
        n = values.shape[1]
        padded = np.empty((len(values), self.length(n)), np.float32)
        padded[:, n:] = 0
        np.multiply(values, self._signs(padded.shape[1])[:n], out=padded[:, :n], casting="unsafe")
        return hadamard(padded)

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """The inverse rotation of a sum, float64, shape (n,)."""
        turned = hadamard(np.asarray(total, np.float64)[None, :])[0]
        turned *= self._signs(len(turned))
        restored: np.ndarray = turned[:n]
        return restored

    def _signs(self, length: int) -> np.ndarray:
        """±1, float32: -1 for every bit that is set."""
        octets = Randomness(self.seed).words((length + 7) // 8, np.dtype(np.uint8))
        signs: np.ndarray = _octet_signs().take(octets, axis=0).reshape(-1)[:length]
        return signs


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
        for start in range(0, len(values), _TILE):
            tile = slice(start, start + _TILE)
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


def hadamard(values: np.ndarray) -> np.ndarray:
    """The orthonormal Walsh–Hadamard transform of each row; shape (rows, 2^p), its own inverse; the dtype is kept.

    H of order 2^p is the Kronecker product of smaller ones, so it is applied to one group of index bits after
    the other, as matrix products of order 16 at most. Each product moves its group behind the others, which
    after the last one have come back to their places.

    Raises:
        DataError: the row length is not a power of two.
    """
    rows, length = values.shape
    if length & (length - 1) or not length:
        raise DataError(f"a Walsh–Hadamard transform needs a power of two, got {length}")
    out, free = values, [np.empty(values.shape, values.dtype) for _ in range(2)]
    for order in _orders(length.bit_length() - 1):
        matrix, following = _sylvester(order).astype(values.dtype), free.pop()
        np.matmul(
            out.reshape(rows, order, length // order).swapaxes(1, 2),
            matrix,
            out=following.reshape(rows, length // order, order),
        )
        if out is not values:
            free.append(out)
        out = following
    return out.copy() if out is values else out


def _orders(bits: int) -> Sequence[int]:
    """As few as can be, and as equal: 16 costs the fewest operations that are not bound by memory."""
    groups = -(-bits // 4)
    return [1 << (bits * (i + 1) // groups - bits * i // groups) for i in range(groups)]


@lru_cache
def _sylvester(order: int) -> np.ndarray:
    """Sylvester's Hadamard matrix of the given order, made orthonormal."""
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= math.sqrt(order)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=1)
def _octet_signs() -> np.ndarray:
    """The eight signs of every octet, shape (256, 8)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)).reshape(256, 8)
    return 1 - 2 * bits.astype(np.float32)


def _squares(values: np.ndarray) -> np.ndarray:
    """The sum of squares of each row, float64; infinite or NaN where it can't be told."""
    wide = np.asarray(values, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        squares: np.ndarray = np.einsum("ij,ij->i", wide, wide)
    return squares


def _square(values: np.ndarray) -> float:
    """The sum of squares of one float32 vector, in float64 and in tiles."""
    tiles = (values[start : start + _TILE].astype(np.float64) for start in range(0, len(values), _TILE))
    return float(sum(tile @ tile for tile in tiles))
