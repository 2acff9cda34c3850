"""The contract of a codec, and chains of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quorate.randomness import Randomness

__all__ = ["TILE", "Chain", "Codec"]

TILE = 1 << 15
"""So many values of a vector are worked on at once: they stay in a core's cache."""


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
