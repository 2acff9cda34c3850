"""Random bits as explicit values: a stream of AES-256-CTR output that is passed to whoever draws from it.

Two kinds of randomness exist in Quorate and are never mixed. *Protocol* randomness (keys, masks, noise, the choice of
a cohort) is drawn from a `Randomness`; *simulation* randomness (data order, partitions, initial parameters) comes from
`numpy.random.Generator` objects. On a real run a `Randomness` is keyed by the operating system; in a seeded simulation
its key is derived from the seed, so that the run can be repeated, and whatever it protects is marked as simulated.

AES-256 in counter mode under a secret key is the CTR construction of NIST SP 800-38A; keys are derived from one another
by HKDF-SHA-256 (RFC 5869).
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quorate.errors import QuorateError

__all__ = ["Randomness", "generator"]

_TILE_BYTES = 1 << 18
_ZEROS = memoryview(bytes(_TILE_BYTES))


class Randomness:
    """A deterministic stream of random bytes under one 256-bit key; the stream never repeats within 2^64 blocks.

    It is not thread-safe, and refuses to be used in a forked child, where the same noise would be drawn twice: spawn a
    stream for the child before the fork, or key a new one there.

    Args:
        key: 32 bytes. Whoever knows them knows every bit that is drawn.
        seeded: whether the key comes from a seed, so that what is drawn protects nobody.
    """

    def __init__(self, key: bytes, *, seeded: bool = False):
        if len(key) != 32:
            raise ValueError(f"a key of 32 bytes is needed, got {len(key)}")
        self.seeded = seeded
        self._key = key
        self._process = os.getpid()
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def system(cls) -> Randomness:
        """A stream keyed by the operating system: for everything that protects somebody."""
        return cls(os.urandom(32))

    @classmethod
    def from_seed(cls, seed: int) -> Randomness:
        """A stream that is the same for the same seed: for simulations that are to be repeated."""
        return cls(_derive(seed.to_bytes(16, "big", signed=True), "seed"), seeded=True)

    def spawn(self, *names: str | int) -> Randomness:
        """An independent stream, the same for the same names; drawing from either does not move the other."""
        return Randomness(_derive(self._key, *names), seeded=self.seeded)

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes of the stream."""
        return self.words(count, np.dtype(np.uint8)).tobytes()

    def words(self, count: int, dtype: np.dtype[np.unsignedinteger]) -> np.ndarray:
        """The next `count` unsigned integers, uniform over the whole range of `dtype`; shape (count,)."""
        if os.getpid() != self._process:
            raise QuorateError(
                "a Randomness was carried over a fork: the same random bits would be used twice"
            )
        out = np.empty(count, dtype)
        raw = out.data.cast("B")
        for start in range(0, len(raw), _TILE_BYTES):
            tile = raw[start : start + _TILE_BYTES]
            self._cipher.update_into(_ZEROS[: len(tile)], tile)
        return out

    def uniform(self, count: int) -> np.ndarray:
        """`count` float64 numbers on the grid k·2^-53, uniform in [0, 1)."""
        words = self.words(count, np.dtype(np.uint64))
        words >>= np.uint64(11)
        return words * 2.0**-53

    def below(self, bound: int) -> int:
        """One integer, uniform in [0, bound): rejection over the smallest power of two (no modulo bias)."""
        if bound < 1:
            raise ValueError(f"bound must be at least 1, got {bound}")
        bits = (bound - 1).bit_length()
        size = (bits + 7) // 8
        while True:
            value = int.from_bytes(self.bytes(size), "big") >> (8 * size - bits) if bits else 0
            if value < bound:
                return value

    def many_below(self, bound: int, count: int) -> list[int]:
        """The integers that so many calls of `below` would draw, several at a time.

        Args:
            bound: at least 1, at most 2^63.
            count: how many.
        """
        if not 1 <= bound <= 1 << 63:
            raise ValueError(f"bound must be from 1 to 2^63, got {bound}")
        bits = (bound - 1).bit_length()
        size = (bits + 7) // 8
        drawn: list[int] = [] if bits else [0] * count
        while len(drawn) < count:
            wide = np.zeros((count - len(drawn), 8), np.uint8)
            wide[:, 8 - size :] = self.words(len(wide) * size, np.dtype(np.uint8)).reshape(len(wide), size)
            values = wide.view(">u8")[:, 0] >> np.uint64(8 * size - bits)
            drawn += values[values < bound].tolist()
        return drawn

    def permutation(self, count: int) -> list[int]:
        """A uniform permutation of range(count), by Fisher–Yates."""
        order = list(range(count))
        for i in range(count - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


def generator(seed: int | None, *names: str | int) -> np.random.Generator:
    """A NumPy generator for simulation randomness: the same for the same seed and names; fresh when seed is None."""
    if seed is None:
        return np.random.default_rng()
    key = _derive(seed.to_bytes(16, "big", signed=True), "simulation", *names)
    return np.random.default_rng(int.from_bytes(key, "big"))


def _derive(key: bytes, *names: str | int) -> bytes:
    info = b"quorate/randomness" + b"".join(
        len(encoded).to_bytes(4, "big") + encoded for encoded in (_tagged(name) for name in names)
    )
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(key)


def _tagged(name: str | int) -> bytes:
    return b"i%d" % name if isinstance(name, int) else b"s" + name.encode()
