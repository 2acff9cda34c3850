"""Masks: AES-256 in counter mode as a stream of ring elements, added to vectors in tiles.

The mask of a key is the key stream itself (initial counter two, NIST SP 800-38A), read as little-endian
unsigned integers of the ring's width: every value of the ring is equally likely. A tile of vector, key
stream and zeros stays in the processor's second-level cache, so that adding a mask costs little more than
making it.

The counter begins at two because this is the key stream of GCM under a nonce of twelve zero bytes (SP 800-38D):
where OpenSSL has GCM on 512-bit registers, it makes it in four fifths of the time of its counter mode, with the
tag, which nobody asks for. A key is used for one mask, and for nothing else.

`add_masks` is a pure function of its arguments, on any range of the vector. `MaskStream` does the same tile by
tile, for a vector that is sent while it is masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

__all__ = ["TILE_BYTES", "Mask", "MaskStream", "add_masks"]

TILE_BYTES = 96 << 10
_BLOCK_BYTES = 16
_FIRST_COUNTER = 2
_NONCE = bytes(12)
_LINE_BYTES = 64
_ZEROS = memoryview(bytes(TILE_BYTES))


class Mask(NamedTuple):
    """One mask: its AES key, and whether it is subtracted."""

    key: bytes
    negative: bool = False


class MaskStream:
    """Masks for the elements of a vector, in order: each call takes up where the last one stopped.

    Args:
        masks: what to add.
        dtype: uint16 or uint32.
        start: the first element's index; a multiple of 16 bytes.
    """

    def __init__(self, masks: Sequence[Mask], dtype: np.dtype[np.unsignedinteger], start: int = 0):
        if start * dtype.itemsize % _BLOCK_BYTES:
            raise ValueError(
                f"a range must start at a whole block of {_BLOCK_BYTES} bytes, got element {start}"
            )
        counter = _FIRST_COUNTER + start * dtype.itemsize // _BLOCK_BYTES
        mode: modes.GCM | modes.CTR = modes.CTR(counter.to_bytes(_BLOCK_BYTES, "big"))
        if start == 0 and _has_wide_gcm():
            mode = modes.GCM(_NONCE)
        self._streams = [
            (
                Cipher(algorithms.AES256(key), mode).encryptor().update_into,
                np.subtract if negative else np.add,
            )
            for key, negative in masks
        ]
        self._stream = _aligned(TILE_BYTES)
        self._tile = _aligned(TILE_BYTES).view(dtype)
        self._values = self._stream.view(dtype.newbyteorder("<"))

    def tiles(self, vector: np.ndarray) -> Iterator[np.ndarray]:
        """The next len(vector) elements with their masks, in tiles; each is overwritten by the next."""
        room = memoryview(self._stream.data)
        for begin in range(0, len(vector), len(self._tile)):
            part = vector[begin : begin + len(self._tile)]
            tile, values = self._tile[: len(part)], self._values[: len(part)]
            zeros, out = _ZEROS[: part.nbytes], room[: part.nbytes]
            tile[:] = part
            for update_into, combine in self._streams:
                update_into(zeros, out)
                combine(tile, values, tile)
            yield tile

    def add(self, vector: np.ndarray) -> None:
        """Adds the masks to the next len(vector) elements, in place, modulo the ring."""
        begin = 0
        for tile in self.tiles(vector):
            vector[begin : begin + len(tile)] = tile
            begin += len(tile)


@lru_cache(maxsize=1)
def _has_wide_gcm() -> bool:
    """Whether the processor has what OpenSSL's fast GCM needs: AES and multiplication without carry on 512 bits."""
    try:
        from numpy._core import _multiarray_umath as found  # type: ignore[attr-defined]
    except ImportError:  # NumPy 1
        from numpy.core import _multiarray_umath as found
    features: dict[str, bool] = getattr(found, "__cpu_features__", {})
    return features.get("AVX512_ICL", False)


def _aligned(size: int) -> np.ndarray:
    """Bytes that begin at a cache line: adding is up to twice as fast there."""
    room = np.zeros(size + _LINE_BYTES, np.uint8)
    begin = -room.ctypes.data % _LINE_BYTES
    return room[begin : begin + size]


def add_masks(vector: np.ndarray, masks: Sequence[Mask], start: int = 0) -> None:
    """Adds masks to a range of a vector, in place, modulo the ring.

    Args:
        vector: shape (m,), uint16 or uint32, contiguous: the elements [start, start + m) of the whole.
        masks: what to add.
        start: the first element's index; a multiple of 16 bytes.
    """
    MaskStream(masks, vector.dtype, start).add(vector)
