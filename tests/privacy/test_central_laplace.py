"""The central Laplace mechanism: sensitivity, the law of its noise, and what it costs, alone and beside others."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_discrete_laplace_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from scipy.special import logsumexp

from quorate.errors import DataError, PlanError
from quorate.privacy import (
    CentralDiscreteLaplaceEvent,
    CentralGaussian,
    CentralLaplace,
    LaplaceVector,
    TruncatedPoissonSampledEvent,
    calibrate,
    forecast,
    forecast_server,
)
from quorate.privacy.accounting import released_epsilon
from quorate.privacy.curves import ORDERS, released_curve, sampled_curve, sum_curve
from quorate.privacy.device_bound import device_epsilon
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, SumShape, Vector, VectorSpec

BOUNDS = CohortBounds(largest=50, min_survivors=20, honest=20, denominator=40.0)
CELLS = Vector("delta", 6)
SHAPE = SumShape(VectorSpec((CELLS,)), BOUNDS, 32)
FEW = CohortBounds(largest=10, min_survivors=5, honest=5, denominator=10.0)
NARROW = SumShape(VectorSpec((CELLS,)), FEW, 16)
PUBLIC = PublicValues(1.0, bytes(32))
LAPLACE = CentralLaplace(clip_norm=1.0, noise_multiplier=1.0)
DELTA = 1e-5
ALPHAS = (1.25, 2, 3, 8, 32)


def event(bound: int, scale: Fraction | int, *more: tuple[int, int]) -> CentralDiscreteLaplaceEvent:
    given = [(bound, scale), *more]
    vectors = tuple(LaplaceVector(f"v{i}", 3, d, Fraction(b)) for i, (d, b) in enumerate(given))
    return CentralDiscreteLaplaceEvent(vectors, 0)


def law(scale: float, moved: int = 0, reach: int = 400) -> np.ndarray:
    """log P(X = k - moved) for k = -reach … reach."""
    distance = np.abs(np.arange(-reach, reach + 1) - moved)
    return math.log(math.tanh(1 / (2 * scale))) - distance / scale


def divergence(first: np.ndarray, second: np.ndarray, alpha: float) -> float:
    return float(logsumexp(alpha * first + (1 - alpha) * second)) / (alpha - 1)


def encoded(values: np.ndarray, shape: SumShape = SHAPE, seed: int = 1) -> np.ndarray:
    """The integers that a client adds, before they are reduced."""
    ring = LAPLACE.codec(CELLS, shape, PUBLIC).encode(values[None, :], Randomness.from_seed(seed))[0]
    return ring.view(np.int32 if shape.ring_bits == 32 else np.int16).astype(np.int64)


# --- Sensitivity


@settings(deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64]),
        6,
        elements=st.floats(width=32) | st.sampled_from([1e30, -1e30, 1e-40, 1 / 6, 1.0]),
    ),
    st.integers(0, 1000),
    st.sampled_from([SHAPE, NARROW]),
)
def test_any_input_stays_within_the_sensitivity(values: np.ndarray, seed: int, shape: SumShape) -> None:
    bound = LAPLACE.event(shape).vectors[0].size_bound
    whole = encoded(values, shape, seed)
    assert np.abs(whole).sum() <= bound
    if not np.isfinite(values).all():
        assert not whole.any()


def test_rounding_has_no_bias_and_adds_little_to_the_sensitivity() -> None:
    steps = LAPLACE.event(NARROW).vectors[0].size_bound - CELLS.length
    assert steps > 200
    mean = np.mean([encoded(np.full(6, 1 / 6), NARROW, seed) for seed in range(2000)], axis=0)
    np.testing.assert_allclose(mean, steps / 6, atol=5 * 0.5 / math.sqrt(2000))


@pytest.mark.parametrize("shape", [SHAPE, NARROW], ids=["32 bits", "16 bits"])
def test_a_full_cohort_s_sum_comes_back_from_the_ring(shape: SumShape) -> None:
    codec, members = LAPLACE.codec(CELLS, shape, PUBLIC), shape.bounds.largest
    one = np.array([[1.0, 0, 0, 0, 0, 0]]).repeat(members, axis=0)
    ring = codec.encode(one, Randomness.from_seed(3))
    total = ring.sum(axis=0, dtype=ring.dtype)
    np.testing.assert_allclose(codec.decode(total, 6), [members, 0, 0, 0, 0, 0], atol=1e-2 * members)
    noisy, _ = LAPLACE.release(total, CELLS, shape, members, Randomness.from_seed(4), {})
    np.testing.assert_allclose(codec.decode(noisy, 6), [members, 0, 0, 0, 0, 0], atol=32)


def test_what_does_not_fit_the_ring_is_refused() -> None:
    wide = SumShape(VectorSpec((Vector("delta", 1000),)), BOUNDS, 16)
    with pytest.raises(PlanError, match=r"does not fit the 16-bit ring.*ring_bits = 32"):
        LAPLACE.event(wide)


def test_a_round_with_another_clip_norm_is_refused() -> None:
    with pytest.raises(PlanError, match=r"the round says 2\.0, the plan 1\.0"):
        LAPLACE.codec(CELLS, SHAPE, PublicValues(2.0, bytes(32)))


# --- The law of the noise


def p_value(scale: float, drawn: np.ndarray) -> float:
    """χ² of samples against the discrete Laplace law, in 14 cells; P(X > k) = p^(k+1) / (1+p) for k ≥ 0."""
    edges = np.round(scale * np.arange(-3, 3.5, 0.5)).astype(np.int64)
    p = math.exp(-1 / scale)
    below = [p ** (-k) / (1 + p) if k < 0 else 1 - p ** (k + 1) / (1 + p) for k in edges.tolist()]
    expected = np.diff([0.0, *below, 1.0]) * len(drawn)
    observed = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=14)
    return float(stats.chisquare(observed, expected).pvalue)


def test_what_is_added_has_the_law_of_the_event() -> None:
    long = Vector("delta", 20_000)
    shape = SumShape(VectorSpec((long,)), BOUNDS, 32)
    scale = float(LAPLACE.event(shape).vectors[0].scale)
    zero = np.zeros(20_000, np.uint32)
    noisy, state = LAPLACE.release(zero, long, shape, 30, Randomness.from_seed(5), {})
    drawn = noisy.view(np.int32).astype(np.int64)
    assert state == {}
    assert p_value(scale, drawn) > 1e-3
    assert p_value(1.1 * scale, drawn) < 1e-6  # the test notices a scale that is wrong by a tenth
    assert not zero.any()


def test_several_vectors_share_the_budget() -> None:
    both = VectorSpec((Vector("delta", 6), Vector("control", 3, 2.0)))
    charged = LAPLACE.event(SumShape(both, BOUNDS, 32))
    assert [vector.epsilon for vector in charged.vectors] == pytest.approx([0.5, 0.5])
    assert charged.epsilon == pytest.approx(1.0)


# --- What it costs


@pytest.mark.parametrize(("bound", "scale"), [(1, Fraction(1)), (4, Fraction(5, 2)), (3, Fraction(1, 2))])
def test_pure_epsilon_is_sensitivity_over_scale_exactly(bound: int, scale: Fraction) -> None:
    """Every integer vector within the sensitivity, in two coordinates, and every output nearby."""
    still = law(float(scale), reach=40)
    worst = 0.0
    for v in itertools.product(range(-bound, bound + 1), repeat=2):
        if sum(map(abs, v)) <= bound:
            losses = [law(float(scale), k, reach=40) - still for k in v]
            worst = max(worst, float(losses[0].max() + losses[1].max()))
    assert event(bound, scale).epsilon == pytest.approx(worst, rel=1e-9)
    assert forecast(event(bound, scale), 1, 1e-12) == pytest.approx(worst, rel=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("bound", "scale"), [(1, 1.0), (4, 2.5), (6, 12.0)])
def test_the_curve_is_the_exact_divergence(bound: int, scale: float, alpha: float) -> None:
    exact = divergence(law(scale, bound), law(scale), alpha)
    assert sum_curve(event(bound, Fraction(scale)), 1, (alpha,))[0] == pytest.approx(exact, rel=1e-6)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=5), st.sampled_from(ALPHAS))
@settings(deadline=None, max_examples=50)
def test_one_coordinate_is_the_worst_case(vector: list[int], alpha: float) -> None:
    size = max(1, sum(map(abs, vector)))
    split = sum(divergence(law(3.0, k), law(3.0), alpha) for k in vector)
    assert split <= sum_curve(event(size, 3), 1, (alpha,))[0] + 1e-9


@pytest.mark.parametrize("alpha", [2, 4, 16])
def test_with_fine_steps_it_costs_what_is_published_for_laplace_noise(alpha: float) -> None:
    """Mironov 2017, table II: λ = 2 sensitivities."""
    first = alpha / (2 * alpha - 1) * math.exp((alpha - 1) / 2)
    second = (alpha - 1) / (2 * alpha - 1) * math.exp(-alpha / 2)
    published = math.log(first + second) / (alpha - 1)
    assert sum_curve(event(10**6, 2 * 10**6), 1, (alpha,))[0] == pytest.approx(published, rel=1e-5)


@pytest.mark.parametrize("alpha", [2, 3, 8])
@pytest.mark.parametrize("q", [0.05, 0.4])
def test_sampling_is_bounded_in_both_directions(q: float, alpha: float) -> None:
    sampled = TruncatedPoissonSampledEvent(1000, q, 1000, event(3, 2), dropout=0.0)
    still, moved = law(2.0), law(2.0, 3)
    mixed = np.logaddexp(math.log1p(-q) + still, math.log(q) + moved)
    bound = sampled_curve(sampled, (alpha,))[0]
    assert divergence(mixed, still, alpha) == pytest.approx(bound, rel=1e-4)
    assert divergence(still, mixed, alpha) <= bound * (1 + 1e-9)
    assert bound < released_curve(event(3, 2))[ORDERS.index(alpha)]


@pytest.mark.parametrize("rounds", [1, 4, 100])
def test_rounds_cost_no_less_than_their_loss_distribution_says(rounds: int) -> None:
    """dp-accounting's distribution, in one coordinate of sensitivity 2; of ten scales' noise."""
    exact = from_discrete_laplace_mechanism(1 / 20, sensitivity=2).self_compose(rounds)
    least = exact.get_epsilon_for_delta(DELTA)
    found = forecast(event(2, 20), rounds, DELTA)
    assert least - 1e-6 <= found <= min(rounds * 0.1 + 1e-9, 1.2 * least + 1e-3)


def test_it_adds_to_what_other_mechanisms_cost() -> None:
    gaussian = CentralGaussian(clip_norm=1.0, noise_multiplier=4.0).event(SHAPE)
    laplace = event(1, 10)
    alone = forecast(gaussian, 3, DELTA)
    together = released_epsilon({gaussian: 3, laplace: 1}, DELTA)
    assert alone < together <= alone + 0.1 + 1e-9
    assert released_epsilon({laplace: 1, gaussian: 3}, DELTA) == together


def test_epsilon_falls_with_noise_and_grows_with_rounds() -> None:
    by_scale = [forecast(event(4, scale), 5, DELTA) for scale in (2, 4, 8, 16)]
    by_rounds = [forecast(event(4, 8), rounds, DELTA) for rounds in (1, 2, 10, 50)]
    assert by_scale == sorted(by_scale, reverse=True)
    assert by_rounds == sorted(by_rounds)


def test_sampling_never_costs_more_than_no_sampling() -> None:
    sampled = TruncatedPoissonSampledEvent(1000, 0.1, 150, event(1, 1), dropout=0.1)
    assert forecast(sampled, 1, 1e-3) < forecast(event(1, 1), 1, 1e-3)
    assert forecast(sampled, 1, 1e-300) <= 1.0 + 1e-9


def test_nothing_is_claimed_against_the_server() -> None:
    assert math.isinf(forecast_server(event(1, 1), 1, DELTA))
    assert math.isinf(device_epsilon({event(1, 1): 1}, DELTA))


@pytest.mark.parametrize(("epsilon", "rounds"), [(0.5, 1), (1.0, 4), (2.0, 40)])
def test_noise_is_calibrated_to_a_target(epsilon: float, rounds: int) -> None:
    target = CentralLaplace(clip_norm=1.0, epsilon=epsilon, delta=DELTA)
    found = calibrate(target, SHAPE, rounds=rounds, delta=DELTA, population=1000, probability=None)
    assert found.limit == epsilon
    assert found.noise_multiplier is not None
    assert found.noise_multiplier <= rounds / epsilon + 1e-3
    assert 0.99 * epsilon < forecast(found.event(SHAPE), rounds, DELTA) <= epsilon


def test_a_wrong_event_is_refused() -> None:
    for bound, scale in ((0, 1), (1, 0)):
        with pytest.raises(DataError, match="size bound ≥ 1 and scale > 0"):
            event(bound, scale)
