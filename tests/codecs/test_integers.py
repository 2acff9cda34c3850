"""Rounding is unbiased within its bound, and sums come back from the ring."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quorate.codecs import Clip, Digits, Discretise, Wrap, rounded_norm_bound
from quorate.errors import DataError
from quorate.randomness import Randomness
from tests.codecs.arrays import RANDOMNESS, modest, norms, shapes


@settings(deadline=None)
@given(hnp.arrays(np.float64, shapes, elements=modest), st.floats(0.01, 100), st.floats(0.5, 100))
def test_conditional_rounding_respects_its_bound(values: np.ndarray, scale: float, norm: float) -> None:
    bound = rounded_norm_bound(norm * scale, values.shape[1])
    clipped = Clip(norm).encode(values, RANDOMNESS)
    rounded = Discretise(scale, bound).encode(clipped, RANDOMNESS)
    assert rounded.dtype == (np.int32 if bound < 2**30 else np.int64)
    assert (norms(rounded.astype(float)) <= bound).all()
    assert (np.abs(rounded - clipped * scale) <= 1 + 1e-9).all()


def test_the_bound_is_reached_by_rounding_once_with_the_stated_probability() -> None:
    """Kairouz et al. 2021, section 4.3: a rounding is rejected with probability β at most."""
    length, norm, beta = 64, 5.0, math.exp(-0.5)
    values = np.full((4000, length), norm / math.sqrt(length))
    rounded = Discretise(1.0).encode(values, Randomness.from_seed(1))
    rejected = np.mean(norms(rounded.astype(float)) > rounded_norm_bound(norm, length, beta))
    assert rejected <= beta + 0.03


@given(st.floats(0, 1e6), st.integers(1, 1 << 20))
def test_the_bound_is_at_least_the_norm_and_at_most_the_certain_one(norm: float, length: int) -> None:
    assert norm <= rounded_norm_bound(norm, length) <= (norm + math.sqrt(length)) * (1 + 1e-12)


def test_rounding_is_unbiased_without_a_condition() -> None:
    values = np.tile([0.1, -0.1, 0.5, 2.75, -3.999], (40_000, 1))
    mean = Discretise(1.0).encode(values, Randomness.from_seed(2)).mean(axis=0)
    np.testing.assert_allclose(mean, values[0], atol=5 * 0.5 / math.sqrt(40_000))


def test_the_bias_of_conditional_rounding_is_within_the_stated_bound() -> None:
    length, norm, beta = 16, 2.0, math.exp(-0.5)
    values = np.full((40_000, length), norm / math.sqrt(length))
    discretise = Discretise(1.0, rounded_norm_bound(norm, length, beta))
    bias = discretise.encode(values, Randomness.from_seed(3)).mean(axis=0) - values[0]
    assert np.linalg.norm(bias) <= math.sqrt(beta) / (2 * (1 - beta))


def test_a_vector_that_is_too_long_for_the_bound_is_refused() -> None:
    with pytest.raises(DataError, match="norm bound"):
        Discretise(1.0, 2.0).encode(np.array([[3.0, 3.0]]), RANDOMNESS)


def test_no_clients_and_no_values_are_no_integers() -> None:
    assert Discretise(1.0, 1.0).encode(np.zeros((0, 3)), RANDOMNESS).shape == (0, 3)
    assert Discretise(1.0).encode(np.zeros((2, 0)), RANDOMNESS).shape == (2, 0)
    assert Clip(1.0).encode(np.zeros((2, 0)), RANDOMNESS).shape == (2, 0)


@given(
    hnp.arrays(np.int64, shapes, elements=st.integers(-(2**40), 2**40) | st.integers(-9, 9)),
    st.sampled_from([16, 32]),
)
def test_a_ring_sum_comes_back_when_it_is_in_range(values: np.ndarray, bits: int) -> None:
    total = values.sum(axis=0)
    assume((np.abs(total) < 2 ** (bits - 1)).all())
    ring = Wrap(bits)
    encoded = ring.encode(values, RANDOMNESS)
    assert encoded.dtype == np.dtype(f"uint{bits}")
    assert np.array_equal(ring.decode(encoded.sum(axis=0, dtype=encoded.dtype), values.shape[1]), total)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("end", [-1, 1])
def test_the_ends_of_the_range_come_back(bits: int, end: int) -> None:
    total = end * 2 ** (bits - 1) - (end > 0)
    ring = Wrap(bits)
    assert ring.decode(ring.encode(np.array([[total]]), RANDOMNESS)[0], 1).tolist() == [total]


@given(
    hnp.arrays(np.int64, shapes, elements=st.integers(-(10**6), 10**6)),
    st.integers(2, 300),
    st.integers(20, 24),
)
def test_the_digits_of_a_sum_are_small_and_give_the_sum(values: np.ndarray, base: int, count: int) -> None:
    codec = Digits(base, count)
    encoded = codec.encode(values, RANDOMNESS)
    assert encoded.shape == (len(values), codec.length(values.shape[1]))
    assert np.abs(encoded).max(initial=0) < base
    if base**count < 2**62:
        assert np.array_equal(codec.decode(encoded.sum(axis=0), values.shape[1]), values.sum(axis=0))
