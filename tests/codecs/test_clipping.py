"""Clipped vectors are within the norm, for any input at all."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quorate.codecs import Clip
from quorate.errors import DataError
from tests.codecs.arrays import RANDOMNESS, norms, shapes

anything = st.floats(width=64)
edges = st.sampled_from(
    [0.0, -0.0, 5e-324, -2.2e-308, 1e-170, 1.7e308, -1.7e308, math.nan, math.inf, -math.inf]
)


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
