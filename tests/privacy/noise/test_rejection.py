"""The histogram of a law encloses it, and what floating point does not decide is decided exactly."""

import decimal
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from quorate.privacy.noise import gaussian, poisson, rejection
from quorate.privacy.noise.rejection import Density, Table
from quorate.randomness import Randomness

GAUSSIAN = [Fraction(1, 100), Fraction(1, 4), Fraction(1), Fraction(22, 7), Fraction(150), Fraction(10**6)]
GAUSSIAN.append(Fraction(2**80))
POISSON = [Fraction(1, 100), Fraction(1), Fraction(22, 7), Fraction(256), Fraction(5000), Fraction(2**70)]
TABLES = [gaussian.table(v) for v in GAUSSIAN] + [poisson._table(mean)[0] for mean in POISSON]
NAMES = [f"Gaussian {v}" for v in GAUSSIAN] + [f"Poisson {mean}" for mean in POISSON]
EVERY = pytest.mark.parametrize("table", TABLES, ids=NAMES)


def density(table: Table, negative: bool, size: int) -> Fraction:
    """S·f, to 40 digits."""
    log = table.density.logarithm(negative, size, 40)
    return Fraction(0) if log is None else table.unit * Fraction(decimal.Context(prec=45).exp(log))


@EVERY
def test_the_histogram_encloses_the_law(table: Table) -> None:
    width = 1 << table.offset_bits
    for block in range(0, table.tail, 7):
        for side in (False, True):
            place = side * table.tail + block
            if block or not side:
                assert int(table.slots[place]) >= density(table, side, block * width)
                assert int(table.sure[place]) <= density(table, side, block * width + width - 1)
    # Of the negative block of zero nothing is sure: its first is a minus zero.
    assert table.sure[table.tail] == 0
    for side in (False, True):
        wide, start = width << table.tail_bits, table.tail * width
        first, second = (density(table, side, start + k * wide) for k in (0, 1))
        assert first * (1 << table.tail_bits) <= Fraction(1, 2)
        assert second <= first / 2  # and beyond, because the laws are log-concave


@EVERY
def test_every_slot_proposes_its_block(table: Table) -> None:
    width = 1 << table.offset_bits
    first = np.arange(table.tail) * width
    bases = np.concatenate([first, -first - (width - 1)])
    blocks = np.concatenate([np.repeat(np.arange(2 * table.tail + 2), table.sure), table._open_blocks])
    counts = np.bincount(blocks, minlength=2 * table.tail + 3)
    assert len(blocks) == 1 << 16
    assert np.array_equal(counts[:-1], table.slots)
    inside = blocks < 2 * table.tail
    assert np.array_equal(table._bases[inside], bases[blocks[inside]])


@EVERY
def test_exact_arithmetic_decides_as_floating_point_does(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = table.sample(600, Randomness.from_seed(3))
    monkeypatch.setattr(rejection, "MARGIN", 1e300)  # now every proposal is settled exactly
    again = Table(
        table.density, table.offset_bits, table.unit, table.tail, table.tail_bits, table.slots, table.sure
    )
    assert np.array_equal(fast, again.sample(600, Randomness.from_seed(3)))


@EVERY
def test_floating_point_is_far_more_precise_than_the_margin(table: Table) -> None:
    for place in np.linspace(0, table.tail << table.offset_bits, 60).astype(int).tolist():
        for side in (False, True):
            exact = density(table, side, place) / table.unit
            found = table.density.ratio(np.array([side]), np.array([float(place)]))[0]
            if exact > Fraction(1, 2**200):
                assert abs(Fraction(float(found)) / exact - 1) < Fraction(1, 2**38)
            else:
                assert found < 2.0**-190


class Halves:
    """A law of which only the tail is looked at."""

    def ratio(self, negative: np.ndarray, size: np.ndarray) -> np.ndarray:
        return np.exp(-size * size / 2)

    def logarithm(self, negative: bool, size: int, digits: int) -> decimal.Decimal:
        return decimal.Decimal(-(size**2)) / 2


@pytest.mark.parametrize("tail_bits", [0, 1])
def test_the_tail_is_sampled_with_the_right_probability(tail_bits: int) -> None:
    """With only the tails' slots in the table, what comes out is the law, conditioned on the tails."""
    slots, sure = np.array([0, 0, 0, 0, 1, 1]), np.zeros(6, np.int64)
    table = Table(Halves(), 0, 2, 2, tail_bits, slots, sure)
    vars(table)["_open_blocks"] = np.repeat([4, 5], 1 << 15)  # and no slot that is drawn again
    samples = table.sample(4000, Randomness.from_seed(1))
    counts = np.bincount(np.abs(samples))[:5]
    law = np.exp(-(np.arange(2, 5.0) ** 2) / 2)
    assert counts[:2].sum() == 0
    assert counts[3] / counts[2] == pytest.approx(law[1] / law[0], rel=0.2)
    assert abs((samples > 0).mean() - 0.5) < 0.05


class Fixed(Halves):
    """f(1) = 1/e."""

    def logarithm(self, negative: bool, size: int, digits: int) -> decimal.Decimal:
        return decimal.Decimal(-1)


def test_a_comparison_that_is_close_draws_more_bits() -> None:
    """U/2 starts with the first 64 bits of exp(-1): only further bits decide, and both answers occur."""
    first = int(2 * Fraction(decimal.Context(prec=60).exp(decimal.Decimal(-1))) * 2**64)
    law: Density = Fixed()
    table, randomness = Table(law, 0, 1, 1, 0, np.zeros(4), np.zeros(4)), Randomness.from_seed(2)

    def below(uniform: int, start: Fraction = Fraction(0)) -> bool:
        return table._below(uniform, Fraction(1, 2), start, False, 1, randomness)

    assert {below(first) for _ in range(64)} == {True, False}
    assert below(first - 1)
    assert not below(first + 1)
    assert not below(first - 1, Fraction(1, 2**60))


def test_blocks_that_are_too_narrow_are_refused() -> None:
    with pytest.raises(ValueError, match="too narrow"):
        Table.of(gaussian._Gaussian(Fraction(2**40)), 4)


def test_no_samples_are_an_empty_array() -> None:
    assert TABLES[0].sample(0, Randomness.from_seed(1)).shape == (0,)


def test_the_law_of_a_wide_table_is_that_of_its_density() -> None:
    """A check of the checks: a table whose slots are wrong is noticed."""
    table = gaussian.table(Fraction(150))
    kept: Any = table.slots.copy()
    kept[3] -= 40
    wrong = Table(
        table.density, 0, table.unit, table.tail, table.tail_bits, kept, np.minimum(table.sure, kept)
    )
    expected = math.exp(-9 / 300)
    right, off = (
        (t.sample(200_000, Randomness.from_seed(4)) == 3).mean()
        / (t.sample(200_000, Randomness.from_seed(5)) == 0).mean()
        for t in (table, wrong)
    )
    assert abs(right - expected) < 0.05
    assert off < expected
