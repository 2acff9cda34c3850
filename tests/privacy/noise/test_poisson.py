"""Poisson and Skellam samples have exactly their laws."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import special, stats

from quorate.privacy.noise.poisson import poisson_numbers, skellam
from quorate.randomness import Randomness
from tests.privacy.noise import chi_square

MEANS = [Fraction(1, 10), Fraction(1), Fraction(22, 7), Fraction(150), Fraction(4000, 3)]
VARIANCES = [Fraction(1, 4), Fraction(1), Fraction(22, 7), Fraction(150), Fraction(4000, 3), Fraction(10**5)]


def skellam_law(variance: Fraction) -> tuple[int, np.ndarray]:
    """e^-μ I_|x|(μ), for a reach of 14 deviations; the mass beyond is negligible."""
    reach = math.ceil(14 * math.sqrt(variance)) + 6
    return -reach, special.ive(np.abs(np.arange(-reach, reach + 1)), float(variance))


@pytest.mark.parametrize("mean", MEANS, ids=str)
def test_poisson_samples_have_the_exact_law(mean: Fraction) -> None:
    samples = poisson_numbers(mean, 200_000, Randomness.from_seed(7))
    law = stats.poisson.pmf(np.arange(math.ceil(mean + 14 * math.sqrt(mean)) + 6), float(mean))
    assert chi_square.p_value(samples, 0, law) > 1e-4


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_skellam_samples_have_the_exact_law(variance: Fraction) -> None:
    samples = skellam(variance, 200_000, Randomness.from_seed(7))
    assert chi_square.p_value(samples, *skellam_law(variance)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_ten_million_skellam_samples_have_the_exact_law(variance: Fraction) -> None:
    samples = skellam(variance, 10_000_000, Randomness.from_seed(11))
    assert chi_square.p_value(samples, *skellam_law(variance)) > 1e-4
    assert chi_square.tail_is_right(samples, *skellam_law(variance), 4 * math.sqrt(variance))


def test_the_test_notices_a_variance_that_is_two_percent_off() -> None:
    samples = skellam(Fraction(102), 300_000, Randomness.from_seed(7))
    assert chi_square.p_value(samples, *skellam_law(Fraction(100))) < 1e-4


def test_skellam_noise_is_closed_under_sums() -> None:
    """The sum of two has the law of their joint variance: what the mechanism needs no τ for."""
    randomness = Randomness.from_seed(3)
    total = skellam(Fraction(3, 2), 200_000, randomness) + skellam(Fraction(5, 2), 200_000, randomness)
    assert chi_square.p_value(total, *skellam_law(Fraction(4))) > 1e-4


@pytest.mark.parametrize("variance", [Fraction(10**9), Fraction(2**60), Fraction(2**81, 3)])
def test_wide_noise_has_the_moments_and_quantiles_of_a_gaussian(variance: Fraction) -> None:
    scaled = skellam(variance, 100_000, Randomness.from_seed(5)) / math.sqrt(variance)
    assert abs(scaled.mean()) < 5 / math.sqrt(100_000)
    assert abs(scaled.var() - 1) < 5 * math.sqrt(2 / 100_000)
    assert stats.kstest(scaled, "norm").pvalue > 1e-4


def test_the_same_stream_gives_the_same_samples() -> None:
    first = skellam(12, 1000, Randomness.from_seed(1))
    assert np.array_equal(first, skellam(12, 1000, Randomness.from_seed(1)))
    assert not np.array_equal(first, skellam(12, 1000, Randomness.from_seed(2)))


@pytest.mark.parametrize("wrong", [0, -1, 2**90])
def test_a_parameter_out_of_range_is_refused(wrong: int) -> None:
    for draw in (poisson_numbers, skellam):
        with pytest.raises(ValueError, match="mean"):
            draw(wrong, 1, Randomness.from_seed(1))
