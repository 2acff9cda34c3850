"""Clip norms that follow a quantile, with their noise in the account; and clipping layer by layer."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate import pipeline
from quorate.codecs import ClipParts
from quorate.errors import PlanError
from quorate.plan import Terms
from quorate.privacy import DistributedGaussian, forecast, forecast_server
from quorate.privacy.gaussian_rounds import gaussian_epsilon
from quorate.privacy.mechanisms.clipping import AdaptiveClip, is_within
from quorate.privacy.mechanisms.rounded_noise import WITHIN
from quorate.randomness import Randomness
from quorate.rounds import PublicValues, Update, Vector
from tests.federations import GAUSSIAN, SECAGG, plan

POPULATION = 40
LINEAR = {"name": "linear", "inputs": 4}  # arrays of 4 and 1
ADAPTIVE = {**GAUSSIAN, "clip_norm": 0.1, "noise_multiplier": 0.5, "adaptive_clip": {"count_noise": 0.2}}


def terms(**privacy) -> Terms:
    made = plan(task=LINEAR, privacy={**ADAPTIVE, **privacy}, secure_aggregation=SECAGG)
    return made.resolved(POPULATION).terms()


def build(made: Terms, clip_norm: float) -> pipeline.Pipeline:
    return pipeline.build(made, made.bounds(POPULATION), PublicValues(clip_norm, bytes(32)))


def one_round(made: Terms, clip_norm: float, vectors: list[np.ndarray], seed: int = 0):
    """The mechanism's next state, and the means without its own."""
    encoding, randomness = build(made, clip_norm), Randomness.from_seed(seed)
    sink = encoding.sink()
    for i, vector in enumerate(vectors):
        update = Update({"delta": vector.astype(np.float32)}, 1)
        sink.add(encoding.encode(update, randomness.spawn(i))[None], [f"client-{i}"])
    means, _, _ = encoding.decode(sink.result(), randomness.spawn("server"), {})
    return made.privacy.update({"clip_norm": np.array([clip_norm])}, means)


# --- The published numbers


@pytest.mark.parametrize(
    ("multiplier", "count_deviation", "published"), [(1.0, 5.0, 1.005038), (0.5, 2.5, 0.502519)]
)
def test_the_noise_is_split_as_is_published(
    multiplier: float, count_deviation: float, published: float
) -> None:
    adaptive = AdaptiveClip(count_noise=0.05)
    assert adaptive.update_multiplier(multiplier, count_deviation / 0.05) == pytest.approx(
        published, abs=1e-6
    )


def test_the_defaults_are_the_papers() -> None:
    assert AdaptiveClip().model_dump() == {"quantile": 0.5, "learning_rate": 0.2, "count_noise": 0.05}


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0.05, 0.5), st.floats(0.1, 10))
def test_without_noise_the_clip_norm_finds_the_quantile(quantile: float, rate: float, start: float) -> None:
    norms = np.exp(np.random.default_rng(0).normal(size=2001))
    adaptive, clip_norm = AdaptiveClip(quantile=quantile, learning_rate=rate), start
    for _ in range(3000):
        clip_norm = adaptive.next_norm(clip_norm, float((norms <= clip_norm).mean()))
    assert (norms <= clip_norm).mean() == pytest.approx(quantile, abs=0.02)


# --- In a round


def test_the_count_rides_in_the_sum_with_its_own_noise_and_place_in_the_account() -> None:
    made = terms()
    bounds = made.bounds(POPULATION)
    event = made.privacy.event(made.shape(bounds))
    delta, within = event.vectors
    assert (delta.name, within.name, within.dimension) == ("delta", WITHIN, 1)
    # Σ Δ²/(honest σ²) = 1/z², of which the count has (2σ_b)^-2.
    parts = [v.norm_bound**2 / (event.shares * float(v.share_variance)) for v in event.vectors]
    assert parts[1] == pytest.approx((2 * 0.2 * 8) ** -2, rel=1e-3)
    assert sum(parts) == pytest.approx(0.5**-2, rel=1e-4)
    assert forecast_server(event, 1, 1e-3) == pytest.approx(gaussian_epsilon(2.0, 1e-3), rel=1e-2)


def test_the_event_does_not_depend_on_the_rounds_clip_norm() -> None:
    """So the ledger charges every round alike, and noise follows the clip norm through the scale."""
    made = terms()
    lengths = {build(made, norm).length for norm in (1e-3, 0.1, 50.0)}
    assert len(lengths) == 1
    deviations = []
    for norm in (0.1, 10.0):
        _, means = one_round(made, norm, [np.zeros(5)] * 8)
        deviations.append(float(np.abs(means["delta"]).mean()) / norm)
    assert deviations[0] == pytest.approx(deviations[1], rel=1e-6)  # the same noise, at another scale


def test_the_clip_norm_moves_towards_the_quantile_and_the_count_is_not_the_strategys() -> None:
    made = terms(noise_multiplier=0.01, adaptive_clip={"count_noise": 0.02})
    long, short = np.full(5, 3.0), np.full(5, 1e-3)
    grown, means = one_round(made, 0.1, [long] * 8)
    assert set(means) == {"delta"}
    assert grown["clip_norm"][0] == pytest.approx(0.1 * math.exp(0.2 * 0.5), rel=0.05)
    shrunk, _ = one_round(made, 0.1, [short] * 8)
    assert shrunk["clip_norm"][0] == pytest.approx(0.1 * math.exp(-0.2 * 0.5), rel=0.05)
    mixed, means = one_round(made, 0.1, [long] * 4 + [short] * 4)
    assert mixed["clip_norm"][0] == pytest.approx(0.1, rel=0.05)
    assert np.linalg.norm(means["delta"]) == pytest.approx((0.1 + 1e-3 * math.sqrt(5)) / 2, rel=0.1)


def test_an_update_that_is_not_finite_is_not_within() -> None:
    made = terms(noise_multiplier=0.01, adaptive_clip={"count_noise": 0.02})
    grown, _ = one_round(made, 0.1, [np.array([np.nan, 0, 0, 0, 0]), np.array([np.inf, 0, 0, 0, 0])] * 4)
    assert grown["clip_norm"][0] > 0.105


def test_a_count_that_costs_too_much_is_refused() -> None:
    with pytest.raises(PlanError, match=r"adaptive_clip.count_noise: found 0.01.*above 0.0312"):
        terms(adaptive_clip={"count_noise": 0.01})


def test_a_target_is_calibrated_with_the_count_in_the_account() -> None:
    made = plan(
        task=LINEAR,
        rounds={"count": 3, "cohort": 8, "sampling": "fixed"},
        privacy={k: v for k, v in ADAPTIVE.items() if k != "noise_multiplier"} | {"epsilon": 8.0},
        secure_aggregation=SECAGG,
    ).resolved(POPULATION)
    event = made.privacy.event(made.shape(made.bounds(POPULATION)))
    assert len(event.vectors) == 2
    assert 7.99 < forecast(event, 3, made.privacy.delta) <= 8.0


def test_a_clip_norm_that_is_not_adaptive_stays() -> None:
    fixed = DistributedGaussian(clip_norm=0.5, noise_multiplier=1.0)
    assert fixed.init(terms().shape(terms().bounds(POPULATION)).vectors) == {}
    assert fixed.clip({}) == 0.5
    assert fixed.update({}, {"delta": np.ones(2)})[1].keys() == {"delta"}


# --- Layer by layer


lengths = st.lists(st.integers(0, 6), min_size=1, max_size=5)


@settings(deadline=None)
@given(lengths, st.floats(0.01, 100), st.randoms(use_true_random=False), st.booleans())
def test_every_part_is_within_its_share_and_the_whole_within_the_norm(
    parts: list[int], norm: float, source: object, single: bool
) -> None:
    random = np.random.default_rng(source.randrange(2**32))  # type: ignore[attr-defined]
    values = random.normal(size=(3, sum(parts))) * 10.0 ** random.integers(-3, 4)
    if single:
        values = values.astype(np.float32)
    clipped = ClipParts(norm, tuple(parts)).encode(values, Randomness.from_seed(0))
    assert clipped.shape == values.shape
    start = 0
    for length in parts:
        part, before = clipped[:, start : start + length], values[:, start : start + length]
        start += length
        share = norm / math.sqrt(len(parts))
        sizes = np.linalg.norm(part.astype(np.float64), axis=1)
        assert (sizes <= share * (1 + 1e-6)).all()
        kept = np.linalg.norm(before.astype(np.float64), axis=1) <= share
        np.testing.assert_array_equal(part[kept], before[kept])
    assert (np.linalg.norm(clipped.astype(np.float64), axis=1) <= norm * (1 + 1e-6)).all()


def test_a_long_layer_does_not_shorten_a_short_one() -> None:
    made = terms(adaptive_clip=None, clipping="per-layer", clip_norm=1.0, noise_multiplier=0.01)
    encoding = build(made, 1.0)
    assert encoding.shape.vectors.vectors[0].parts == (4, 1)
    sink = encoding.sink()
    for i in range(8):
        update = Update({"delta": np.array([100, 0, 0, 0, 0.2], np.float32)}, 1)
        sink.add(encoding.encode(update, Randomness.from_seed(i))[None], [f"client-{i}"])
    means, _, _ = encoding.decode(sink.result(), Randomness.from_seed(9), {})
    np.testing.assert_allclose(means["delta"], [math.sqrt(0.5), 0, 0, 0, 0.2], atol=0.03)


def test_layers_cost_what_the_whole_costs() -> None:
    flat, layered = (terms(clipping=clipping) for clipping in ("flat", "per-layer"))
    first, second = (made.privacy.event(made.shape(made.bounds(POPULATION))) for made in (flat, layered))
    assert first == second


def test_within_means_that_nothing_is_clipped() -> None:
    vector = Vector("delta", 4, 2.0, parts=(3, 1))
    values = np.array([1.0, 0, 0, 1.0])
    assert is_within(values, vector, 1.0, by_layer=False)
    assert is_within(values, vector, 1.0, by_layer=True)
    values = np.array([1.9, 0, 0, 0.0])
    assert is_within(values, vector, 1.0, by_layer=False)
    assert not is_within(values, vector, 1.0, by_layer=True)
    assert not is_within(np.array([np.inf, 0, 0, 0]), vector, 1.0, by_layer=False)
    assert dataclasses.replace(vector, parts=()).parts == ()
