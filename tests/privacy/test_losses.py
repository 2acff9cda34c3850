"""Privacy loss distributions: against published values, dp-accounting's, and exact divergences of small mechanisms."""

import itertools
import math
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.special import iv, ive, logsumexp

from quorate.privacy import (
    DistributedDiscreteGaussianEvent,
    DistributedSkellamEvent,
    Event,
    NoisyVector,
    TruncatedPoissonSampledEvent,
)
from quorate.privacy.gaussian_rounds import gaussian_epsilon
from quorate.privacy.losses import _least_variance, released_epsilon, server_epsilon

STEPS = 10**5


def fine(
    sigma: float, *, shares: int = 100, quorum: int = 0, norm: float = 1.0
) -> DistributedDiscreteGaussianEvent:
    """A sum whose steps are so fine that it is a Gaussian of deviation sigma to seven digits."""
    variance = Fraction(round((STEPS * sigma) ** 2), shares)
    return DistributedDiscreteGaussianEvent(
        (NoisyVector("delta", 4, STEPS * norm, variance),), shares, shares, quorum
    )


def poisson(q: float, sigma: float) -> TruncatedPoissonSampledEvent:
    return TruncatedPoissonSampledEvent(1000, q, 1000, fine(sigma), dropout=0.0)


# --- Published values


@pytest.mark.parametrize(
    ("q", "sigma", "rounds", "delta", "epsilon"),
    [
        (0.01, 1, 1000, 1e-5, 1.8282),
        (0.01, 1.1, 10_000, 1e-5, 5.1926),
        (256 / 60_000, 1.1, 14_100, 1e-5, 2.3852),
        (0.1, 2, 100, 1e-6, 2.6750),
        (1 / 3, 2, 30, 300**-1.1, 2.956),
    ],
)
def test_the_sampled_gaussian_costs_what_is_published(
    q: float, sigma: float, rounds: int, delta: float, epsilon: float
) -> None:
    assert released_epsilon([(poisson(q, sigma), rounds)], delta) == pytest.approx(epsilon, abs=1e-3)


def test_one_gaussian_costs_what_its_curve_says() -> None:
    assert server_epsilon([(fine(1.0), 1)], 1e-5) == pytest.approx(gaussian_epsilon(1.0, 1e-5), abs=1e-5)


# --- Against dp-accounting


@pytest.mark.parametrize(
    ("q", "sigma", "rounds", "delta"), [(0.02, 0.7, 20, 1e-6), (0.5, 3.0, 200, 1e-4), (0.9, 5.0, 7, 1e-3)]
)
def test_dp_accounting_says_the_same(q: float, sigma: float, rounds: int, delta: float) -> None:
    sampled = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    theirs = pld.PLDAccountant().compose(sampled, rounds).get_epsilon(delta)
    assert released_epsilon([(poisson(q, sigma), rounds)], delta) == pytest.approx(theirs, rel=1e-3)


def test_rounds_of_different_kinds_are_composed_exactly() -> None:
    first, second, plain = poisson(0.1, 1.0), poisson(0.3, 2.5), fine(4.0)
    accountant = pld.PLDAccountant()
    for q, sigma, count in [(0.1, 1.0, 8), (0.3, 2.5, 30)]:
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma)), count
        )
    accountant.compose(dp_accounting.GaussianDpEvent(4.0), 3)
    rounds = [(first, 8), (second, 30), (plain, 3)]
    found = {released_epsilon(order, 1e-5) for order in itertools.permutations(rounds)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)


def test_a_cap_costs_no_more_than_dp_accounting_says() -> None:
    """Its neighbours replace a member where the cohort is full; ours zero it out, which is less."""
    reference = {100: 9.58, 110: 5.28, 120: 3.21, 140: 2.956}
    ours = {
        cap: released_epsilon(
            [(TruncatedPoissonSampledEvent(300, 1 / 3, cap, fine(2.0), 0.0), 30)], 300**-1.1
        )
        for cap in (*reference, 300)
    }
    for cap, epsilon in reference.items():
        assert ours[300] - 1e-6 <= ours[cap] <= epsilon + 1e-3
    assert ours[140] == pytest.approx(2.956, abs=1e-3)
    assert list(ours.values()) == sorted(ours.values(), reverse=True)


@pytest.mark.slow
def test_published_truncated_poisson_values_come_from_dp_accounting() -> None:
    sampled = dp_accounting.dp_event.TruncatedSubsampledGaussianDpEvent(
        dataset_size=10_000, sampling_probability=0.01, truncated_batch_size=120, noise_multiplier=1.0
    )
    assert pld.PLDAccountant().compose(sampled, 1000).get_epsilon(1e-5) == pytest.approx(5.2972, abs=1e-3)


# --- Exact divergences of small mechanisms


REACH = 240


def law_of_noise(variance: Fraction, shares: int, single: int = 0) -> np.ndarray:
    """The law on -REACH..REACH of a sum of shares, and of one draw in the place of `single` more of them."""
    x = np.arange(-REACH, REACH + 1)
    law = np.zeros(len(x))
    law[REACH] = 1
    for each in [variance] * shares + ([single * variance] if single else []):
        share = np.exp(-(x**2) / (2 * float(each)))
        law = np.convolve(law, share / share.sum())[REACH : 3 * REACH + 1]
    return law


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


@pytest.mark.parametrize("q", [0.05, 1 / 3, 0.8])
@pytest.mark.parametrize(("variance", "shift"), [(Fraction(16), 8), (Fraction(25), 4)])
def test_no_exact_divergence_is_above_the_bound(q: float, variance: Fraction, shift: int) -> None:
    """With shares drawn one by one on one side, and in one draw on the other: as `top_up` does."""
    sums = DistributedDiscreteGaussianEvent((NoisyVector("delta", 1, shift, variance),), 4, 4, 0)
    event = TruncatedPoissonSampledEvent(1000, q, 1000, sums, dropout=0.0)
    without, with_it = law_of_noise(variance, 2, 2), np.roll(law_of_noise(variance, 3, 1), shift)
    mixture = (1 - q) * without + q * with_it
    for rounds in (1, 2):
        first, second = mixture, without
        if rounds == 2:
            first, second = (np.outer(law, law).ravel() for law in (mixture, without))
        for epsilon in (0.1, 0.5, 1.0):
            exact = max(hockey_stick(first, second, epsilon), hockey_stick(second, first, epsilon))
            if exact > 1e-6:
                assert released_epsilon([(event, rounds)], exact) >= epsilon - 1e-6
                # And the bound is not a loose one: r² of the variance, and the grid, is what it costs.
                assert released_epsilon([(event, rounds)], exact) <= 1.1 * epsilon + 0.04


def release(values: tuple[int, ...], q: float, cap: int, quorum: int, laws: list[np.ndarray]) -> np.ndarray:
    """The exact law of what a round releases, given that it is; laws[n] is the noise of n survivors, topped up."""
    law = np.zeros(2 * REACH + 1)
    for drawn in itertools.product((False, True), repeat=len(values)):
        chosen = [value for value, taken in zip(values, drawn, strict=True) if taken]
        chance = q ** len(chosen) * (1 - q) ** (len(values) - len(chosen))
        cohorts = list(itertools.combinations(chosen, min(cap, len(chosen))))
        for cohort in cohorts:
            if len(cohort) >= quorum:
                law += chance / len(cohorts) * np.roll(laws[len(cohort)], sum(cohort))
    return law / law.sum()


@pytest.mark.parametrize(("cap", "quorum"), [(4, 0), (4, 2), (2, 0), (3, 1), (2, 2)])
@pytest.mark.parametrize("q", [0.2, 0.6])
def test_the_bound_covers_an_enumerated_round(cap: int, quorum: int, q: float) -> None:
    variance = Fraction(6)
    laws = [law_of_noise(variance, n, 4 - n) for n in range(5)]
    sums = DistributedDiscreteGaussianEvent((NoisyVector("delta", 1, 3, variance),), 2, 4, quorum)
    event = TruncatedPoissonSampledEvent(4, q, cap, sums, dropout=0.0)
    for others in itertools.product((-3, 1), repeat=3):
        with_it = release((3, *others), q, cap, quorum, laws)
        without = release((0, *others), q, cap, quorum, laws)
        for epsilon in (0.05, 0.3, 0.8):
            for first, second in ((with_it, without), (without, with_it)):
                exact = hockey_stick(first, second, epsilon)
                if exact > 1e-6:
                    assert released_epsilon([(event, 1)], exact) >= epsilon - 1e-6


# --- Skellam noise


def skellam(variance: int, shift: float, dimension: int = 1) -> DistributedSkellamEvent:
    return DistributedSkellamEvent((NoisyVector("delta", dimension, shift, Fraction(variance)),), 1, 1, 0)


def skellam_law(variance: int) -> np.ndarray:
    reach = math.ceil(14 * math.sqrt(variance))
    law: np.ndarray = ive(np.abs(np.arange(-reach, reach + 1)), variance)
    return law


@pytest.mark.parametrize("q", [0.05, 0.5, 1.0])
@pytest.mark.parametrize(("deviation", "shift"), [(30, 15), (100, 20), (1000, 800), (3000, 1500)])
def test_no_exact_divergence_of_skellam_noise_is_above_the_bound(
    q: float, deviation: int, shift: int
) -> None:
    law = skellam_law(deviation**2)
    without, with_it = np.pad(law, (0, shift)), np.pad(law, (shift, 0))
    mixture = (1 - q) * without + q * with_it
    event = TruncatedPoissonSampledEvent(1000, q, 1000, skellam(deviation**2, shift), dropout=0.0)
    for epsilon in (0.05, 0.2, 0.5, 1.0):
        exact = max(hockey_stick(mixture, without, epsilon), hockey_stick(without, mixture, epsilon))
        if exact > 1e-9:
            found = released_epsilon([(event, 1)], exact)
            assert found >= epsilon - 1e-6
            # Five or six of the deviation's steps, and the grid, are what it costs.
            assert deviation < 1000 or found <= 1.02 * epsilon + 0.01


@pytest.mark.parametrize("shift", [(20, 0), (14, 14), (18, 8)])
def test_skellam_noise_in_two_dimensions_costs_at_most_the_bound_whatever_the_direction(
    shift: tuple[int, int],
) -> None:
    moved = [np.pad(skellam_law(1600), (by, 0)) for by in shift]
    still = [np.pad(skellam_law(1600), (0, by)) for by in shift]
    with_it, without = (np.outer(*laws).ravel() for laws in (moved, still))
    event = skellam(1600, math.hypot(*shift), dimension=2)
    for epsilon in (0.3, 1.0, 1.6):
        exact = hockey_stick(with_it, without, epsilon)
        assert exact > 1e-6
        assert server_epsilon([(event, 1)], exact) >= epsilon - 1e-6


def test_skellam_noise_costs_nearly_what_gaussian_noise_costs() -> None:
    event = skellam(3000**2, 3000.0, dimension=1024)
    sampled = TruncatedPoissonSampledEvent(1000, 0.01, 1000, event, dropout=0.0)
    assert released_epsilon([(sampled, 1000)], 1e-5) == pytest.approx(1.8282, rel=5e-3)
    assert server_epsilon([(event, 1)], 1e-5) == pytest.approx(4.377178, rel=5e-3)


def clocks(square: float, paths: int, steps: int) -> np.ndarray:
    """∫ ds/|B_s|² of planar Brownian bridges between points of a circle, see `quorate.privacy.losses`."""
    generator = np.random.default_rng(5)
    angles = generator.vonmises(0.0, square, paths)
    ends = math.sqrt(square) * np.stack([np.cos(angles) - 1, np.sin(angles)])[..., None]
    s = np.arange(1, steps + 1) / steps
    walks = np.cumsum(generator.normal(0, steps**-0.5, (2, paths, steps)), axis=2)
    bridges = walks - s * walks[..., -1:] + s * ends
    bridges[0] += math.sqrt(square)
    found: np.ndarray = (1 / (bridges**2).sum(axis=0)).mean(axis=1)
    return found


def test_the_clock_of_a_planar_bridge_has_the_transform_that_makes_skellam_noise() -> None:
    """Hartman and Watson 1974, Yor 1980: what the proof cites, seen; and that its widths are hardly ever narrow."""
    square = 40.0
    found = clocks(square, 4000, 250)
    for order in (1.0, 3.0, 6.0):
        seen = np.exp(-(order**2) * found / 2)
        error = seen.std() / math.sqrt(len(seen))
        assert abs(seen.mean() - iv(order, square) / iv(0, square)) < 4 * error + 1e-3
    theta = 1 + 2 * sum(np.exp(-(x**2) * found / 2) for x in range(1, 60))
    weights = ive(0, square) * theta  # of the discrete Gaussians of variance 1/t
    assert weights.mean() == pytest.approx(1, abs=0.02)
    for unlikely in (0.5, 0.1, 0.01):
        narrow = 1 / found < _least_variance(square, 1, unlikely)
        assert (weights * narrow).mean() <= unlikely


# --- Properties


@settings(max_examples=8, deadline=None)
@given(st.floats(0.4, 8), st.floats(0.01, 0.9), st.integers(1, 300), st.sampled_from([1e-7, 1e-5, 1e-3]))
def test_epsilon_grows_with_rounds_probability_and_norm(
    sigma: float, q: float, rounds: int, delta: float
) -> None:
    def epsilon(event: Event, count: int) -> float:
        return released_epsilon([(event, count)], delta)

    base = epsilon(poisson(q, sigma), rounds)
    assert epsilon(poisson(q, sigma), rounds + 1) >= base - 1e-5
    assert epsilon(poisson(min(1.0, q * 1.1), sigma), rounds) >= base - 1e-5
    assert epsilon(poisson(q, sigma * 1.1), rounds) <= base + 1e-5
    # Infinite is what can't be told here: then the moments' ε is said.
    assert math.isinf(base) or base <= server_epsilon([(poisson(q, sigma), rounds)], delta) + 1e-5


def test_several_vectors_are_one_gaussian() -> None:
    one = fine(2.0)
    two = DistributedDiscreteGaussianEvent(
        (*one.vectors, NoisyVector("control", 9, 300.0, Fraction(900))), 100, 100, 0
    )
    mean = math.hypot(0.5, 300 / math.sqrt(90_000 - 4))
    assert server_epsilon([(two, 1)], 1e-5) == pytest.approx(gaussian_epsilon(mean, 1e-5), abs=1e-6)


def test_what_can_not_be_told_is_infinite() -> None:
    narrow = DistributedDiscreteGaussianEvent((NoisyVector("delta", 1, 1.0, Fraction(1, 4)),), 4, 4, 0)
    assert released_epsilon([(narrow, 1)], 1e-5) == math.inf
    assert server_epsilon([(narrow, 1)], 1e-5) == math.inf
    assert released_epsilon([(poisson(0.1, 1.0), 1)], 1e-10) == math.inf
    assert released_epsilon([(poisson(0.1, 0.01), 1)], 1e-5) == math.inf


def test_the_continuous_gaussian_rounded_at_random_is_a_discrete_one() -> None:
    """The step of the proof that is not a citation, by numerical integration: N(μ, σ² - r²), rounded, is N_Z(μ, σ²)."""
    variance, r2 = 9.0, 4.0
    y = np.linspace(-60, 60, 24_001)
    z = np.arange(-60, 61)
    density = np.exp(-(y**2) / (2 * (variance - r2))) / math.sqrt(2 * math.pi * (variance - r2))
    logs = -((z[:, None] - y[None, :]) ** 2) / (2 * r2)
    rounded = trapezoid(np.exp(logs - logsumexp(logs, axis=0)) * density, y, axis=1)
    discrete = np.exp(-(z**2) / (2 * variance))
    discrete /= discrete.sum()
    inside = np.abs(z) < 20
    np.testing.assert_allclose(rounded[inside], discrete[inside], rtol=1e-9)
