"""Rotations are orthogonal, and flatten."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import linalg

from quorate.codecs import Rotate, hadamard
from quorate.errors import DataError
from tests.codecs.arrays import RANDOMNESS, modest, norms, shapes


@pytest.mark.parametrize("bits", range(13))
def test_the_transform_is_that_of_the_hadamard_matrix(bits: int) -> None:
    values = np.random.default_rng(bits).normal(size=(3, 1 << bits))
    expected = values @ linalg.hadamard(1 << bits) / math.sqrt(1 << bits)
    np.testing.assert_allclose(hadamard(values), expected, atol=1e-9)


def test_a_length_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(DataError, match="power of two"):
        hadamard(np.zeros((1, 12)))


@given(hnp.arrays(np.float64, shapes, elements=modest), st.binary(min_size=32, max_size=32))
def test_a_rotation_keeps_norms_and_turns_back(values: np.ndarray, seed: bytes) -> None:
    rotate, n = Rotate(seed), values.shape[1]
    rotated = rotate.encode(values, RANDOMNESS)
    assert rotated.shape == (len(values), rotate.length(n))
    tolerance = 2.0**-20 * norms(values).sum() + 1e-12
    np.testing.assert_allclose(norms(rotated), norms(values), atol=tolerance)
    np.testing.assert_allclose(rotate.decode(rotated.sum(axis=0), n), values.sum(axis=0), atol=tolerance)


def test_a_rotation_flattens_a_vector_with_one_large_coordinate() -> None:
    values = np.zeros((1, 1024))
    values[0, 17] = 1.0
    rotated = Rotate(bytes(32)).encode(values, RANDOMNESS)
    np.testing.assert_allclose(np.abs(rotated), 1 / 32, rtol=1e-6)


def test_rotations_of_different_seeds_differ() -> None:
    values = np.ones((1, 64))
    first, second = (Rotate(bytes([seed] * 32)).encode(values, RANDOMNESS) for seed in (0, 1))
    assert not np.allclose(first, second)
