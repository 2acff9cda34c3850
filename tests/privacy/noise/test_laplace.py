"""Discrete Laplace samples have exactly their law."""

import math
from fractions import Fraction

import numpy as np
import pytest

from quorate.privacy.noise import discrete_laplace, laplace
from quorate.randomness import Randomness
from tests.privacy.noise import chi_square

SCALES = [Fraction(1, 100), Fraction(1, 3), Fraction(1), Fraction(22, 7), Fraction(150), Fraction(4000, 3)]


def law(scale: Fraction) -> tuple[int, np.ndarray]:
    """(1-r)/(1+r)·r^|x|, r = e^(-1/b)."""
    reach, r = math.ceil(40 * scale) + 3, math.exp(-1 / scale)
    return -reach, (1 - r) / (1 + r) * r ** np.abs(np.arange(-reach, reach + 1.0))


@pytest.mark.parametrize("scale", SCALES[1:], ids=str)
def test_the_samples_have_the_exact_law(scale: Fraction) -> None:
    samples = discrete_laplace(scale, 200_000, Randomness.from_seed(7))
    assert chi_square.p_value(samples, *law(scale)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES[1:], ids=str)
def test_ten_million_samples_have_the_exact_law(scale: Fraction) -> None:
    samples = discrete_laplace(scale, 10_000_000, Randomness.from_seed(11))
    assert chi_square.p_value(samples, *law(scale)) > 1e-4
    assert chi_square.tail_is_right(samples, *law(scale), 8 * float(scale))


def test_the_test_notices_a_scale_that_is_two_percent_off() -> None:
    samples = discrete_laplace(Fraction(102, 10), 300_000, Randomness.from_seed(7))
    assert chi_square.p_value(samples, *law(Fraction(10))) < 1e-4


def test_a_tiny_scale_gives_zeros_and_a_huge_one_wide_noise() -> None:
    assert not discrete_laplace(Fraction(1, 100), 10_000, Randomness.from_seed(1)).any()
    wide = discrete_laplace(2**40, 100_000, Randomness.from_seed(1)) / 2.0**40
    assert wide.var() == pytest.approx(2, rel=0.05)
    assert np.abs(wide).mean() == pytest.approx(1, rel=0.02)


def test_what_lies_beyond_the_last_digit_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as few digits as one, the law is the same."""
    monkeypatch.setattr(laplace.math, "log2", lambda x: 1.0)
    samples = discrete_laplace(Fraction(22, 7), 100_000, Randomness.from_seed(9))
    assert chi_square.p_value(samples, *law(Fraction(22, 7))) > 1e-4


def test_coins_that_agree_in_64_bits_draw_more() -> None:
    class Agreeing:
        """The first 64 bits of the probability, then real randomness."""

        def __init__(self) -> None:
            self.first, self.randomness = True, Randomness.from_seed(4)

        def words(self, count: int, dtype: np.dtype[np.unsignedinteger]) -> np.ndarray:
            if not self.first:
                return self.randomness.words(count, dtype)
            self.first = False
            return np.full(count, laplace._bits(Fraction(1), True, 64), dtype)

    coins = laplace._coins(Fraction(1), True, 400, Agreeing())  # type: ignore[arg-type]
    rest = (laplace._bits(Fraction(1), True, 128) & (2**64 - 1)) / 2**64
    assert coins.mean() == pytest.approx(rest, abs=0.1)


@pytest.mark.parametrize("exponent", [Fraction(1), Fraction(1, 1000), Fraction(30)])
def test_the_bits_of_a_probability_are_exact(exponent: Fraction) -> None:
    for logistic in (False, True):
        short, long = (laplace._bits(exponent, logistic, bits) for bits in (64, 128))
        assert long >> 64 == short
        value = math.exp(-exponent)
        assert short / 2**64 == pytest.approx(value / (1 + value) if logistic else value)


@pytest.mark.parametrize("scale", [0, -1, 2**41])
def test_a_scale_out_of_range_is_refused(scale: int) -> None:
    with pytest.raises(ValueError, match="scale"):
        discrete_laplace(scale, 1, Randomness.from_seed(1))
