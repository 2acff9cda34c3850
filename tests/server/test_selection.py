"""Cohorts: exactly the samplers that the ledger's events name. The streams are fixed, so the tests are, too."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quorate.errors import QuorateError
from quorate.randomness import Randomness
from quorate.server.selection import FixedSize, TruncatedPoisson, _below

DRAWS = 4000
SURPRISE = 1e-4


@dataclass(frozen=True)
class Numbered:
    """Members that are called as their index."""

    size: int

    @property
    def present(self) -> int:
        return self.size

    def member(self, index: int) -> str:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return str(index)

    def those_present(self, indices):
        return indices


@dataclass(frozen=True)
class HalfAway(Numbered):
    """Of these, only members with an even index are there."""

    @property
    def present(self) -> int:
        return (self.size + 1) // 2

    def those_present(self, indices):
        return [index for index in indices if index % 2 == 0]


def draws(sampler, size, seed=1):
    root = Randomness.from_seed(seed)
    return [sampler.draw(Numbered(size), root.spawn("cohort", i)) for i in range(DRAWS)]


def inclusions(cohorts, size):
    counted = Counter(member for cohort in cohorts for member in cohort)
    return [counted[str(i)] for i in range(size)]


def check_each(counts, probability):
    """An exact binomial test for each member, corrected for how many there are."""
    for count in counts:
        assert stats.binomtest(count, DRAWS, probability).pvalue > SURPRISE / len(counts)


@pytest.mark.parametrize(("expected", "size"), [(3, 20), (1, 7), (19, 20)])
def test_without_a_cap_every_member_is_drawn_with_the_probability(expected, size):
    cohorts = draws(TruncatedPoisson(expected, size), size)
    check_each(inclusions(cohorts, size), expected / size)


def test_the_size_of_a_cohort_is_binomial():
    sizes = np.bincount([len(cohort) for cohort in draws(TruncatedPoisson(4, 12), 12)], minlength=13)
    expected = stats.binom(12, 4 / 12).pmf(np.arange(13)) * DRAWS
    edge = expected < 5
    observed = [*sizes[~edge], sizes[edge].sum()]
    assert stats.chisquare(observed, [*expected[~edge], expected[edge].sum()]).pvalue > SURPRISE


def test_members_are_drawn_independently():
    together = sum("0" in cohort and "1" in cohort for cohort in draws(TruncatedPoisson(5, 20), 20))
    assert stats.binomtest(together, DRAWS, (5 / 20) ** 2).pvalue > SURPRISE


def test_a_truncated_cohort_is_a_uniform_part_of_what_was_drawn():
    expected, largest, size = 6, 7, 20
    cohorts = draws(TruncatedPoisson(expected, largest), size)
    others = np.arange(size)  # of the other 19 members, how many were drawn with this one
    kept = stats.binom(size - 1, expected / size).pmf(others) @ np.minimum(1, largest / (others + 1))
    check_each(inclusions(cohorts, size), expected / size * kept)


@given(size=st.integers(1, 60), data=st.data())
def test_a_cohort_is_of_different_members_and_never_above_the_cap(size, data):
    expected = data.draw(st.integers(1, size))
    largest = data.draw(st.integers(1, size))
    seed = data.draw(st.integers(0, 2**32))
    cohort = TruncatedPoisson(expected, largest).draw(Numbered(size), Randomness.from_seed(seed))
    assert len(cohort) <= largest
    assert len(set(cohort)) == len(cohort)


def test_a_cohort_may_be_empty():
    assert () in draws(TruncatedPoisson(1, 5), 5)


def test_with_probability_one_everybody_is_drawn():
    for cohort in draws(TruncatedPoisson(9, 9), 9)[:50]:
        assert sorted(cohort) == [str(i) for i in range(9)]


def test_with_probability_one_the_cap_still_holds():
    cohorts = draws(TruncatedPoisson(9, 4), 9)
    assert {len(cohort) for cohort in cohorts} == {4}
    check_each(inclusions(cohorts, 9), 4 / 9)


@pytest.mark.parametrize(
    ("sampler", "size"), [(TruncatedPoisson(5, 5), 5), (TruncatedPoisson(6, 4), 6), (FixedSize(5), 5)]
)
def test_the_order_of_a_cohort_is_random(sampler, size):
    cohorts = draws(sampler, size)
    first = Counter(cohort[0] for cohort in cohorts)
    assert stats.chisquare([first[str(i)] for i in range(size)]).pvalue > SURPRISE


@pytest.mark.parametrize(("wanted", "size"), [(3, 20), (1, 7), (6, 7)])
def test_a_fixed_size_draws_every_member_equally_often(wanted, size):
    cohorts = draws(FixedSize(wanted), size)
    assert {len(set(cohort)) for cohort in cohorts} == {wanted}
    check_each(inclusions(cohorts, size), wanted / size)


def test_a_fixed_size_draws_every_pair_equally_often():
    pairs = Counter(frozenset(cohort) for cohort in draws(FixedSize(2), 5))
    assert len(pairs) == 10
    assert stats.chisquare(list(pairs.values())).pvalue > SURPRISE


def test_a_fixed_size_above_the_population_draws_everybody():
    assert sorted(FixedSize(9).draw(Numbered(3), Randomness.from_seed(0))) == ["0", "1", "2"]


@pytest.mark.parametrize("sampler", [TruncatedPoisson(10, 15), FixedSize(10)])
def test_the_same_stream_draws_the_same_cohort_and_another_one_another(sampler):
    population = Numbered(1000)
    first = sampler.draw(population, Randomness.from_seed(5).spawn("cohort", 1))
    assert sampler.draw(population, Randomness.from_seed(5).spawn("cohort", 1)) == first
    assert sampler.draw(population, Randomness.from_seed(5).spawn("cohort", 2)) != first


def test_only_the_drawn_members_are_made():
    made = []

    class Lazy(Numbered):
        def member(self, index):
            made.append(index)
            return super().member(index)

    cohort = TruncatedPoisson(20, 20).draw(Lazy(100_000), Randomness.from_seed(3))
    assert len(made) == len(cohort) <= 20


@pytest.mark.parametrize("sampler", [TruncatedPoisson(5, 20), FixedSize(5)])
def test_only_present_members_are_drawn_and_all_of_them_alike(sampler):
    root = Randomness.from_seed(7)
    cohorts = [sampler.draw(HalfAway(20), root.spawn("cohort", i)) for i in range(DRAWS)]
    counts = inclusions(cohorts, 20)
    assert counts[1::2] == [0] * 10
    check_each(counts[::2], 5 / 10)


@pytest.mark.parametrize("threshold", [0, 1, 1 << 56, (1 << 56) - 1, 3 << 55, (1 << 64) - 1, 77 << 50])
def test_indices_below_a_threshold_have_its_probability_whatever_its_bytes(threshold):
    count = 40_000
    drawn = list(_below(threshold, count, Randomness.from_seed(11)))
    assert stats.binomtest(len(drawn), count, threshold / 2**64).pvalue > SURPRISE
    assert drawn == sorted(set(drawn))


def test_members_who_are_said_to_be_there_and_are_not_end_the_draw():
    class Empty(Numbered):
        def those_present(self, indices):
            return []

    with pytest.raises(QuorateError, match="fewer members are present"):
        FixedSize(3).draw(Empty(10), Randomness.from_seed(0))
