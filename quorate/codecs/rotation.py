"""The random rotation that flattens a vector, by the Walsh–Hadamard transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from quorate.errors import DataError
from quorate.randomness import Randomness

__all__ = ["Rotate", "hadamard"]

_ALONE = 1 << 18
"""Multiplications of one product: for so few OpenBLAS starts no threads, which would keep cores busy for a while."""


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
        height = min(length // order, _ALONE // order**2)
        np.matmul(
            out.reshape(rows, order, -1, height).transpose(0, 2, 3, 1),
            matrix,
            out=following.reshape(rows, -1, height, order),
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
