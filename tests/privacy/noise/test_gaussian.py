"""The discrete Gaussian sampler has exactly the law that it states."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from quorate.privacy.noise import discrete_gaussian
from quorate.randomness import Randomness
from tests.privacy.noise import chi_square

VARIANCES = [Fraction(1, 4), Fraction(1), Fraction(22, 7), Fraction(150), Fraction(4000, 3), Fraction(10**6)]


def exact_pmf(variance: Fraction, reach: int) -> np.ndarray:
    """P(x) for x = -reach..reach; the mass beyond is negligible at 12 standard deviations."""
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(x**2) / (2 * float(variance)))
    return weights / weights.sum()


def p_value(samples: np.ndarray, variance: Fraction) -> float:
    reach = math.ceil(14 * math.sqrt(variance)) + 2
    return chi_square.p_value(samples, -reach, exact_pmf(variance, reach))


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_the_samples_have_the_exact_law(variance: Fraction) -> None:
    samples = discrete_gaussian(variance, 300_000, Randomness.from_seed(7))
    assert p_value(samples, variance) > 1e-4


def test_the_chi_square_test_notices_a_variance_that_is_two_percent_off() -> None:
    samples = discrete_gaussian(Fraction(102), 300_000, Randomness.from_seed(7))
    assert p_value(samples, Fraction(100)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_ten_million_samples_have_the_exact_law(variance: Fraction) -> None:
    samples = discrete_gaussian(variance, 10_000_000, Randomness.from_seed(11))
    assert p_value(samples, variance) > 1e-4
    reach = math.ceil(14 * math.sqrt(variance)) + 2
    law = exact_pmf(variance, reach)
    assert chi_square.tail_is_right(samples, -reach, law, 4 * math.sqrt(variance))


@pytest.mark.parametrize("variance", [Fraction(10**9), Fraction(2**60), Fraction(2**80), Fraction(2**81, 3)])
def test_wide_noise_has_the_moments_and_quantiles_of_a_gaussian(variance: Fraction) -> None:
    scaled = discrete_gaussian(variance, 200_000, Randomness.from_seed(5)) / math.sqrt(variance)
    assert abs(scaled.mean()) < 5 / math.sqrt(200_000)
    assert abs(scaled.var() - 1) < 5 * math.sqrt(2 / 200_000)
    assert stats.kstest(scaled, "norm").pvalue > 1e-4


def test_the_same_stream_gives_the_same_samples() -> None:
    first = discrete_gaussian(12, 1000, Randomness.from_seed(1))
    assert np.array_equal(first, discrete_gaussian(12, 1000, Randomness.from_seed(1)))
    assert not np.array_equal(first, discrete_gaussian(12, 1000, Randomness.from_seed(2)))


def test_no_samples_are_an_empty_array() -> None:
    assert discrete_gaussian(1, 0, Randomness.from_seed(1)).shape == (0,)


@pytest.mark.parametrize("variance", [0, -1, 2**90])
def test_a_variance_out_of_range_is_refused(variance: int) -> None:
    with pytest.raises(ValueError, match="variance"):
        discrete_gaussian(variance, 1, Randomness.from_seed(1))
