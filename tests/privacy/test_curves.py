"""Rényi curves: against published values, and against exact divergences of small mechanisms."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy.special import logsumexp

from quorate.codecs import rounded_norm_bound
from quorate.privacy.accounting import to_epsilon
from quorate.privacy.curves import (
    ORDERS,
    edge_probability,
    released_curve,
    sampled_curve,
    server_curve,
    sum_curve,
)
from quorate.privacy.events import (
    CentralDiscreteGaussianEvent,
    DistributedDiscreteGaussianEvent,
    DistributedSkellamEvent,
    LocalDiscreteGaussianEvent,
    NoisyVector,
    TruncatedPoissonSampledEvent,
)

PUBLISHED_ORDERS = (*range(2, 129), 256)
REACH = 240
SMALL_ORDERS = (1.125, 1.5, 2, 3, 4.25, 6, 9, 16)


def noisy_sum(
    bound: float,
    variance: Fraction,
    *,
    dimension: int = 1,
    shares: int = 3,
    released: int = 4,
    quorum: int = 0,
) -> DistributedDiscreteGaussianEvent:
    vector = NoisyVector("delta", dimension, bound, variance)
    return DistributedDiscreteGaussianEvent((vector,), shares, released, quorum)


def everybody(event: DistributedDiscreteGaussianEvent, probability: float) -> TruncatedPoissonSampledEvent:
    """Poisson sampling without truncation and without dropouts: no edges but an empty round."""
    return TruncatedPoissonSampledEvent(1000, probability, 1000, event, dropout=0.0)


# --- Published values


@pytest.mark.parametrize(
    ("bits", "scale", "multiplier", "rounds", "inflation", "epsilon"),
    [
        (20, 1e4, 1, 1, 1.00136, 4.7595),
        (20, 1e3, 1, 1, 1.12412, 5.4119),
        (16, 256, 2, 100, 1.12065, 41.5231),
        (16, 2048, 2, 100, 1.00221, 35.2373),
    ],
)
def test_the_distributed_discrete_gaussian_costs_what_is_published(
    bits: int, scale: float, multiplier: float, rounds: int, inflation: float, epsilon: float
) -> None:
    """Kairouz, Liu, Steinke 2021 with clip norm 1, β = e^-1/2, 100 clients, δ = 1e-5."""
    bound = rounded_norm_bound(scale, 1 << bits)
    assert bound / scale == pytest.approx(inflation, abs=1e-5)
    variance = Fraction((multiplier * scale) ** 2 / 100)
    event = noisy_sum(bound, variance, dimension=1 << bits, shares=100, released=100)
    curve = rounds * sum_curve(event, 100, PUBLISHED_ORDERS)
    assert to_epsilon(curve, 1e-5, PUBLISHED_ORDERS) == pytest.approx(epsilon, abs=1e-3)


@pytest.mark.parametrize(
    ("bits", "scale", "multiplier", "rounds", "epsilon"),
    [
        (20, 1e4, 1, 1, 4.7595),
        (20, 1e3, 1, 1, 5.4119),
        (16, 256, 2, 100, 41.5234),
        (16, 2048, 2, 100, 35.2373),
    ],
)
def test_distributed_skellam_noise_costs_what_is_published(
    bits: int, scale: float, multiplier: float, rounds: int, epsilon: float
) -> None:
    """Agarwal, Kairouz, Liu 2021 with clip norm 1, β = e^-1/2, 100 clients, δ = 1e-5."""
    bound = rounded_norm_bound(scale, 1 << bits)
    variance = Fraction((multiplier * scale) ** 2 / 100)
    event = DistributedSkellamEvent((NoisyVector("delta", 1 << bits, bound, variance),), 100, 100, 0)
    curve = rounds * sum_curve(event, 100, PUBLISHED_ORDERS)
    assert to_epsilon(curve, 1e-5, PUBLISHED_ORDERS) == pytest.approx(epsilon, abs=1e-3)


@pytest.mark.parametrize(
    ("q", "sigma", "rounds", "delta", "epsilon"),
    [
        (1, 1, 1, 1e-5, 4.7285),
        (0.01, 1, 1000, 1e-5, 2.1014),
        (0.01, 1.1, 10_000, 1e-5, 5.6320),
        (256 / 60_000, 1.1, 14_100, 1e-5, 2.6003),
        (0.1, 2, 100, 1e-6, 2.9142),
    ],
)
def test_dp_accounting_is_used_as_it_is_meant(
    q: float, sigma: float, rounds: int, delta: float, epsilon: float
) -> None:
    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    accountant = rdp.RdpAccountant().compose(event, rounds)
    assert accountant.get_epsilon(delta) == pytest.approx(epsilon, abs=1e-3)


def test_what_replacing_a_member_costs_is_published_and_more_than_zeroing_it_out() -> None:
    """Why nothing is claimed for cohorts of a fixed size: their theorem is for replacing one member by any other."""
    replace_one = dp_accounting.NeighboringRelation.REPLACE_ONE
    gaussian = dp_accounting.GaussianDpEvent(1.0)
    fixed = dp_accounting.SampledWithoutReplacementDpEvent(1000, 10, gaussian)
    accountant = rdp.RdpAccountant(neighboring_relation=replace_one).compose(fixed, 1000)
    assert accountant.get_epsilon(1e-5) == pytest.approx(3.5761, abs=1e-3)
    poisson = dp_accounting.PoissonSampledDpEvent(0.01, gaussian)
    replacing = pld.PLDAccountant(neighboring_relation=replace_one).compose(poisson, 1000)
    zeroing = pld.PLDAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    ).compose(poisson, 1000)
    assert replacing.get_epsilon(1e-5) == pytest.approx(2.8434, abs=1e-3)
    assert zeroing.get_epsilon(1e-5) == pytest.approx(1.8282, abs=1e-3)


@pytest.mark.parametrize(("multiplier", "rounds", "epsilon"), [(1, 1, 4.7527), (2, 100, 35.1266)])
def test_central_noise_costs_what_the_gaussian_costs(multiplier: float, rounds: int, epsilon: float) -> None:
    """The published column beside the distributed mechanisms: Rényi orders 2–128 and 256, δ = 1e-5."""
    event = CentralDiscreteGaussianEvent(
        (NoisyVector("delta", 1 << 16, 1e4, Fraction(multiplier * 10**4) ** 2),), 0
    )
    curve = rounds * sum_curve(event, 1, PUBLISHED_ORDERS)
    assert to_epsilon(curve, 1e-5, PUBLISHED_ORDERS) == pytest.approx(epsilon, abs=1e-3)


def test_a_privacy_loss_distribution_is_tighter() -> None:
    event = dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.0))
    accountant = pld.PLDAccountant().compose(event, 1000)
    assert accountant.get_epsilon(1e-5) == pytest.approx(1.8282, abs=1e-3)


@pytest.mark.parametrize(("q", "sigma", "rounds"), [(0.01, 1.0, 1000), (0.1, 2.0, 100), (1 / 3, 2.0, 30)])
def test_fine_steps_cost_what_the_sampled_gaussian_costs(q: float, sigma: float, rounds: int) -> None:
    """With steps so fine that τ vanishes, the curve is the Gaussian's, and so is its amplification."""
    event = everybody(
        noisy_sum(1000, Fraction(round((1000 * sigma) ** 2 / 100)), shares=100, released=100), q
    )
    sampled = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    accountant = rdp.RdpAccountant(PUBLISHED_ORDERS).compose(sampled, rounds)
    curve = rounds * sampled_curve(event, PUBLISHED_ORDERS)
    epsilon = to_epsilon(curve, 1e-5, PUBLISHED_ORDERS)
    assert epsilon == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-3)
    assert epsilon >= accountant.get_epsilon(1e-5) - 1e-9


# --- Exact divergences of small mechanisms


@lru_cache
def noise_law(variance: Fraction, shares: int) -> np.ndarray:
    """The logarithm of the law of a sum of shares on -REACH..REACH; most of it is below what floats hold."""
    x = np.arange(-REACH, REACH + 1)
    share = -(x**2) / (2 * float(variance))
    share -= logsumexp(share)
    law = share
    for _ in range(shares - 1):
        distance = x[:, None] - x
        moved = np.where(np.abs(distance) <= REACH, share[np.clip(distance, -REACH, REACH) + REACH], -np.inf)
        law = logsumexp(law[None, :] + moved, axis=1)
    return law


def shifted(law: np.ndarray, shift: int) -> np.ndarray:
    return np.roll(law, shift)


def mixed(q: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.logaddexp(math.log1p(-q) + first, math.log(q) + second)


def renyi(p: np.ndarray, q: np.ndarray, order: float) -> float:
    """D_α of two laws given by logarithms, without the edges, where shifts wrap around."""
    inside = slice(8, -8) if len(p) > 2 * REACH else slice(None)
    return float(logsumexp(order * p[inside] + (1 - order) * q[inside])) / (order - 1)


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(9)])
@pytest.mark.parametrize("shares", [1, 2, 5])
def test_the_curve_of_a_sum_is_above_its_exact_divergence(variance: Fraction, shares: int) -> None:
    law = noise_law(variance, shares)
    for shift in (1, 2, 5):
        curve = sum_curve(noisy_sum(shift, variance, shares=shares, released=shares), shares, SMALL_ORDERS)
        for order, bound in zip(SMALL_ORDERS, curve, strict=True):
            exact = renyi(shifted(law, shift), law, order)
            assert exact <= bound * (1 + 1e-9) + 1e-12
            if variance >= 1 and shares == 1:
                assert exact >= bound * 0.97  # and the bound is not a loose one


def skellam_law(variance: float) -> np.ndarray:
    """The logarithm of e^-μ I_|x|(μ) on -REACH..REACH."""
    x = np.abs(np.arange(-REACH, REACH + 1))
    with np.errstate(divide="ignore"):
        law: np.ndarray = np.log(special.ive(x, variance))
    return law


def skellam_sum(
    bound: float, variance: Fraction, shares: int = 3, released: int = 4
) -> DistributedSkellamEvent:
    return DistributedSkellamEvent((NoisyVector("delta", 1, bound, variance),), shares, released, 0)


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(1), Fraction(9), Fraction(50)])
@pytest.mark.parametrize("shares", [1, 5])
def test_the_curve_of_skellam_noise_is_above_its_exact_divergence(variance: Fraction, shares: int) -> None:
    law = skellam_law(shares * float(variance))
    for shift in (1, 2, 5):
        curve = sum_curve(skellam_sum(shift, variance, shares, shares), shares, SMALL_ORDERS)
        for order, bound in zip(SMALL_ORDERS, curve, strict=True):
            inside = np.isfinite(law) & np.isfinite(shifted(law, shift))
            exact = renyi(shifted(law, shift)[inside], law[inside], order)
            assert exact <= bound * (1 + 1e-9) + 1e-12
            if shares * variance >= 45 and shift <= 2 and order >= 2:
                assert exact >= bound * 0.8  # and the bound is not a loose one


@pytest.mark.parametrize("q", [0.01, 1 / 3, 0.9])
@pytest.mark.parametrize("variance", [Fraction(2), Fraction(12)])
@pytest.mark.parametrize("shift", [1, 4])
def test_the_sampled_curve_of_skellam_noise_is_above_both_directions(
    q: float, variance: Fraction, shift: int
) -> None:
    law = skellam_law(3 * float(variance))
    inside = np.isfinite(law) & np.isfinite(shifted(law, shift))
    law, moved = law[inside], shifted(law, shift)[inside]
    mixture = mixed(q, law, moved)
    event = TruncatedPoissonSampledEvent(1000, q, 1000, skellam_sum(shift, variance, 3, 3), dropout=0.0)
    for order, bound in zip(SMALL_ORDERS, sampled_curve(event, SMALL_ORDERS), strict=True):
        assert max(renyi(mixture, law, order), renyi(law, mixture, order)) <= bound * (1 + 1e-9) + 1e-12


def test_what_a_client_sends_with_its_own_noise_has_no_tau() -> None:
    """One discrete Gaussian, however coarse, against the server; many shares in what is released."""
    vector = NoisyVector("delta", 1000, 2.0, Fraction(1, 4))
    event = LocalDiscreteGaussianEvent((vector,), 50, 40, 60)
    alpha = np.array(SMALL_ORDERS)
    np.testing.assert_allclose(sum_curve(event, 1, SMALL_ORDERS), alpha / 2 * 4 / 0.25)
    assert (sum_curve(event, 50, SMALL_ORDERS) > alpha / 2 * 4 / (50 * 0.25)).all()


@pytest.mark.parametrize("q", [0.01, 1 / 3, 0.9])
@pytest.mark.parametrize("variance", [Fraction(1, 2), Fraction(2), Fraction(12)])
@pytest.mark.parametrize("shift", [1, 4])
def test_the_sampled_curve_is_above_both_exact_directions(q: float, variance: Fraction, shift: int) -> None:
    law = noise_law(variance, 3)
    mixture = mixed(q, law, shifted(law, shift))
    event = everybody(noisy_sum(shift, variance, shares=3, released=3), q)
    for order, bound in zip(SMALL_ORDERS, sampled_curve(event, SMALL_ORDERS), strict=True):
        forwards, backwards = renyi(mixture, law, order), renyi(law, mixture, order)
        assert backwards <= forwards * (1 + 1e-9) + 1e-12
        assert forwards <= bound * (1 + 1e-9) + 1e-12


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-12, 12), min_size=2, max_size=12),
    st.floats(0.001, 0.999),
    st.floats(1.001, 40),
)
def test_a_swapped_pair_diverges_more_towards_the_mixture(logs: list[float], q: float, order: float) -> None:
    """The theorem behind the missing factor 3, on arbitrary laws that an involution swaps."""
    p = np.array(logs) - logsumexp(logs)
    mixture = mixed(q, p, p[::-1])
    assert renyi(p, mixture, order) <= renyi(mixture, p, order) * (1 + 1e-9) + 1e-9


# --- A whole round, enumerated: truncated Poisson sampling, quorum, dropouts that can't matter


def round_law(
    values: tuple[int, ...], probability: float, cap: int, quorum: int, noise: np.ndarray
) -> np.ndarray:
    """The exact law of what a round releases, given that it is; its noise does not depend on the cohort."""
    law = np.full(len(noise), -np.inf)
    for drawn in itertools.product((False, True), repeat=len(values)):
        chosen = [value for value, taken in zip(values, drawn, strict=True) if taken]
        chance = probability ** len(chosen) * (1 - probability) ** (len(values) - len(chosen))
        cohorts = list(itertools.combinations(chosen, min(cap, len(chosen))))
        for total, count in Counter(sum(cohort) for cohort in cohorts if len(cohort) >= quorum).items():
            law = np.logaddexp(law, math.log(chance * count / len(cohorts)) + shifted(noise, total))
    return law - logsumexp(law)


@pytest.mark.parametrize(("cap", "quorum"), [(4, 0), (4, 2), (2, 0), (3, 1), (2, 2)])
@pytest.mark.parametrize("probability", [0.2, 0.6])
def test_the_account_covers_an_enumerated_round(cap: int, quorum: int, probability: float) -> None:
    variance = Fraction(3, 2)
    noise = noise_law(variance, 4)
    event = TruncatedPoissonSampledEvent(
        4, probability, cap, noisy_sum(1, variance, shares=2, released=4, quorum=quorum), dropout=0.0
    )
    curve = sampled_curve(event, SMALL_ORDERS)
    for others in itertools.product((-1, 0, 1), repeat=3):
        for value in (-1, 1):
            with_it = round_law((value, *others), probability, cap, quorum, noise)
            without = round_law((0, *others), probability, cap, quorum, noise)
            for order, bound in zip(SMALL_ORDERS, curve, strict=True):
                assert renyi(with_it, without, order) <= bound * (1 + 1e-9) + 1e-12
                assert renyi(without, with_it, order) <= bound * (1 + 1e-9) + 1e-12


def test_without_the_top_up_the_account_would_be_wrong() -> None:
    """Noise of as many shares as took part tells how many did, and then a member's part is not hidden by
    sampling.

    A lower bound on the exact divergence (by data processing): all that is looked at is the member's own
    coordinate, and whether the empirical variance of the others is above the middle between those of 3 and 4
    shares.
    """
    q, variance, dimension = 0.1, Fraction(4), 50_000
    x = np.arange(-REACH, REACH + 1)
    fewer, more = noise_law(variance, 3), noise_law(variance, 4)
    gap = float(variance) / 2
    spread = [np.exp(law) @ (x**2 - n * float(variance)) ** 2 for law, n in [(fewer, 3), (more, 4)]]
    wrong = [value / dimension / gap**2 for value in spread]
    assert max(wrong) < 0.01  # Chebyshev: how often the level of the noise misleads

    def seen(member: int) -> np.ndarray:
        absent = np.concatenate([fewer + math.log(wrong[0]), fewer + math.log1p(-wrong[0])])
        present = shifted(more, member)
        return mixed(
            q, absent, np.concatenate([present + math.log1p(-wrong[1]), present + math.log(wrong[1])])
        )

    event = noisy_sum(4, variance, dimension=dimension, shares=3, released=3)
    claimed = sampled_curve(everybody(event, q), (2,))[0]
    assert renyi(seen(4), seen(0), 2) > 2 * claimed


# --- Edges and monotonicity


def test_the_edges_of_a_cohort_have_their_probability() -> None:
    inner = noisy_sum(1, Fraction(4), quorum=2)
    sampled = TruncatedPoissonSampledEvent(4, 0.5, 3, inner, dropout=0.0)
    full, short = 1 / 8, 4 / 8  # three others: P(all), P(at most one)
    assert edge_probability(sampled) == pytest.approx(0.5 * (full + short) / (1 - short - full))
    no_edge = TruncatedPoissonSampledEvent(4, 0.5, 4, noisy_sum(1, Fraction(4), quorum=0), dropout=0.0)
    assert edge_probability(no_edge) == 0


def test_a_round_that_is_nearly_never_released_is_not_amplified() -> None:
    inner = noisy_sum(1, Fraction(4), quorum=90)
    event = TruncatedPoissonSampledEvent(100, 0.5, 100, inner)
    np.testing.assert_allclose(released_curve(event), sum_curve(inner, inner.released_shares))


def test_a_certain_draw_is_not_amplified() -> None:
    inner = noisy_sum(1, Fraction(4))
    np.testing.assert_allclose(sampled_curve(everybody(inner, 1.0)), sum_curve(inner, inner.released_shares))


def demo(**changes: float) -> TruncatedPoissonSampledEvent:
    values = {"population": 300, "probability": 1 / 3, "cap": 140, "dropout": 0.1, **changes}
    inner = noisy_sum(5000, Fraction(1_500_000), dimension=1024, shares=67, released=134, quorum=70)
    return TruncatedPoissonSampledEvent(
        int(values["population"]), values["probability"], int(values["cap"]), inner, values["dropout"]
    )


def test_the_curve_grows_with_probability_dropout_and_a_smaller_cap() -> None:
    base = sampled_curve(demo())
    without_quorum = replace(demo().event, quorum=0)
    curves = [sampled_curve(replace(demo(probability=q), event=without_quorum)) for q in (0.3, 1 / 3, 0.35)]
    assert (np.diff(curves, axis=0) >= -1e-12).all()
    assert (sampled_curve(demo(dropout=0.2)) >= base - 1e-12).all()
    assert (sampled_curve(demo(cap=115)) >= base - 1e-12).all()
    noisier = replace(demo().event, vectors=(NoisyVector("delta", 1024, 5000, Fraction(3_000_000)),))
    assert (sampled_curve(replace(demo(), event=noisier)) <= base).all()
    assert (base <= sum_curve(demo().event, demo().event.released_shares) + 1e-12).all()


def test_orders_between_integers_are_bounded_by_the_chord() -> None:
    moments = sampled_curve(demo()) * (np.array(ORDERS) - 1)
    slopes = np.diff(moments) / np.diff(ORDERS)
    assert (np.diff(slopes) >= -1e-9).all()


def test_the_server_sees_the_clients_noise_only() -> None:
    np.testing.assert_allclose(server_curve(demo()), sum_curve(demo().event, 67))


def test_independent_vectors_add_up() -> None:
    one = noisy_sum(5000, Fraction(10**6))
    two = replace(one, vectors=(*one.vectors, NoisyVector("control", 8, 300.0, Fraction(10**5))))
    control = replace(one, vectors=two.vectors[1:])
    np.testing.assert_allclose(sum_curve(two, 3), sum_curve(one, 3) + sum_curve(control, 3))
