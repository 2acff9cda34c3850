"""Codecs: sensitivity, orthogonality, unbiasedness, and sums that come back from the ring."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import linalg

from quorate.codecs import Chain, Clip, Digits, Discretise, Rotate, Wrap, hadamard, rounded_norm_bound
from quorate.errors import DataError
from quorate.randomness import Randomness

RANDOMNESS = Randomness.from_seed(0)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 40))
anything = st.floats(width=64)
modest = st.floats(-1e3, 1e3, width=32)
edges = st.sampled_from(
    [0.0, -0.0, 5e-324, -2.2e-308, 1e-170, 1.7e308, -1.7e308, math.nan, math.inf, -math.inf]
)


def norms(values: np.ndarray) -> np.ndarray:
    return np.array([math.hypot(*row) for row in values])


# --- Clip


@given(hnp.arrays(np.float64, shapes, elements=anything | edges), st.floats(1e-6, 1e6))
def test_a_clipped_vector_is_within_the_norm_for_any_input_at_all(values: np.ndarray, norm: float) -> None:
    clipped = Clip(norm).encode(values, RANDOMNESS)
    assert np.isfinite(clipped).all()
    assert (norms(clipped) <= norm * (1 + 1e-12)).all()


@given(hnp.arrays(np.float32, shapes, elements=st.floats(width=32)))
def test_any_float32_update_can_be_clipped(values: np.ndarray) -> None:
    assert (norms(Clip(0.5).encode(values, RANDOMNESS)) <= 0.5 * (1 + 1e-12)).all()


def test_a_float32_vector_whose_squares_overflow_is_within_the_norm_after_rounding() -> None:
    longest = np.full((1, 24), 3.4028186e38, np.float32)
    assert norms(Clip(0.5).encode(longest, RANDOMNESS))[0] <= 0.5


@given(hnp.arrays(np.float64, shapes, elements=st.floats(-1e300, 1e300)), st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction_and_short_vectors(values: np.ndarray, norm: float) -> None:
    before = norms(values)
    factors = np.minimum(1, norm / np.maximum(before, 1e-300))
    clipped = Clip(norm).encode(values, RANDOMNESS)
    np.testing.assert_allclose(clipped, values * factors[:, None], rtol=1e-9, atol=norm * 1e-12)
    short = before < norm * (1 - 1e-12)
    assert np.array_equal(clipped[short], values[short])


def test_a_vector_with_a_value_that_is_no_number_becomes_zero_alone() -> None:
    values = np.array([[3.0, 4.0], [math.nan, 1.0], [math.inf, 1.0], [0.3, 0.4]])
    expected = [[0.6, 0.8], [0, 0], [0, 0], [0.3, 0.4]]
    np.testing.assert_allclose(Clip(1.0).encode(values, RANDOMNESS), expected)


def test_clipping_does_not_change_its_input() -> None:
    values = np.array([[3.0, 4.0]])
    Clip(1.0).encode(values, RANDOMNESS)
    assert values.tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("norm", [0.0, -1.0, math.inf, math.nan])
def test_a_clip_norm_that_is_no_positive_number_is_refused(norm: float) -> None:
    with pytest.raises(DataError, match="positive"):
        Clip(norm)


# --- Rotate


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


# --- Discretise


@settings(deadline=None)
@given(hnp.arrays(np.float64, shapes, elements=modest), st.floats(0.01, 100), st.floats(0.5, 100))
def test_conditional_rounding_respects_its_bound(values: np.ndarray, scale: float, norm: float) -> None:
    bound = rounded_norm_bound(norm * scale, values.shape[1])
    clipped = Clip(norm).encode(values, RANDOMNESS)
    rounded = Discretise(scale, bound).encode(clipped, RANDOMNESS)
    assert rounded.dtype == (np.int32 if bound < 2**30 else np.int64)
    assert (norms(rounded.astype(float)) <= bound).all()
    assert (np.abs(rounded - clipped * scale) <= 1 + 1e-9).all()


@settings(deadline=None)
@given(hnp.arrays(np.float32, shapes, elements=st.floats(width=32)), st.floats(1, 1e5))
def test_the_whole_chain_is_within_its_bound_for_any_float32_update(values: np.ndarray, scale: float) -> None:
    rotate = Rotate(bytes(32))
    bound = rounded_norm_bound(scale * (1 + 2.0**-20), rotate.length(values.shape[1]))
    chain = Chain.of(Clip(1.0), rotate, Discretise(scale, bound))
    assert (norms(chain.encode(values, RANDOMNESS).astype(float)) <= bound).all()


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


# --- Wrap, and the whole chain


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


@settings(deadline=None)
@given(hnp.arrays(np.float64, shapes, elements=st.floats(-2, 2)), st.integers(0, 2**32))
def test_the_decoded_sum_is_within_one_step_a_client_of_the_true_sum(values: np.ndarray, seed: int) -> None:
    n, scale = values.shape[1], 1000.0
    rotate = Rotate(seed.to_bytes(32, "big"))
    bound = rounded_norm_bound(scale, rotate.length(n))
    chain = Chain.of(Clip(1.0), rotate, Discretise(scale, bound), Wrap(32))
    encoded = chain.encode(values, Randomness.from_seed(seed))
    assert encoded.shape == (len(values), chain.length(n))
    decoded = chain.decode(encoded.sum(axis=0, dtype=np.uint32), n)
    truth = Clip(1.0).encode(values, RANDOMNESS).sum(axis=0)
    # Each rotated coordinate is off by less than a step a client, and turning back keeps the L2 norm of that.
    assert np.linalg.norm(decoded - truth) <= len(values) * math.sqrt(chain.length(n)) / scale


def test_a_chain_runs_forwards_and_back() -> None:
    chain = Chain.of(Rotate(bytes(32)), Rotate(bytes([1] * 32)))
    values = np.arange(10.0)[None, :]
    assert chain.length(10) == 16
    np.testing.assert_allclose(chain.decode(chain.encode(values, RANDOMNESS)[0], 10), values[0], atol=1e-4)
