from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from quorate.privacy.secagg import masks
from quorate.privacy.secagg.masks import TILE_BYTES, Mask, add_masks
from quorate.randomness import Randomness

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def stream(key, count, dtype):
    raw = (
        Cipher(algorithms.AES256(key), modes.CTR((2).to_bytes(16, "big")))
        .encryptor()
        .update(bytes(count * dtype().itemsize))
    )
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("length", [1, 3, 1000, TILE_BYTES // 4 + 5])
def test_a_mask_is_the_key_stream_of_aes_in_counter_mode(dtype, length):
    vector = np.zeros(length, dtype)
    add_masks(vector, [Mask(KEY)])
    assert (vector == stream(KEY, length, dtype)).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_masks_of_opposite_signs_cancel(dtype):
    vector = np.arange(100_000).astype(dtype)
    add_masks(vector, [Mask(KEY), Mask(OTHER, negative=True)])
    assert (vector != np.arange(100_000).astype(dtype)).mean() > 0.99
    add_masks(vector, [Mask(OTHER), Mask(KEY, negative=True)])
    assert (vector == np.arange(100_000).astype(dtype)).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_ranges_of_a_vector_can_be_masked_apart(dtype):
    whole, parts = np.zeros(300_000, dtype), np.zeros(300_000, dtype)
    add_masks(whole, [Mask(KEY), Mask(OTHER, negative=True)])
    for start, stop in pairwise((0, 64, 100_000, 299_992, 300_000)):
        add_masks(parts[start:stop], [Mask(KEY), Mask(OTHER, negative=True)], start)
    assert (whole == parts).all()


@pytest.mark.parametrize("wide", [False, True])
def test_the_key_stream_is_the_same_on_every_processor(wide, monkeypatch):
    monkeypatch.setattr(masks, "_has_wide_gcm", lambda: wide)
    vector = np.zeros(TILE_BYTES, np.uint16)  # two tiles
    add_masks(vector, [Mask(KEY)])
    assert (vector == stream(KEY, len(vector), np.uint16)).all()


def test_a_range_that_begins_within_a_block_is_refused():
    with pytest.raises(ValueError, match="whole block"):
        add_masks(np.zeros(8, np.uint32), [Mask(KEY)], 3)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_masked_values_are_uniform_over_the_whole_ring(dtype):
    vector = np.zeros(1 << 20, dtype)  # the least random input there is
    add_masks(vector, [Mask(key) for key in (Randomness.from_seed(3).bytes(32), KEY)])
    bits = 8 * vector.dtype.itemsize
    counts = np.bincount(vector >> (bits - 8), minlength=256)
    expected = len(vector) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)
    for bit in range(bits):
        ones = int(((vector >> bit) & 1).sum())
        assert abs(ones - len(vector) / 2) < 6 * np.sqrt(len(vector)) / 2
    top = np.iinfo(dtype).max
    assert vector.max() > top - top // 1000
