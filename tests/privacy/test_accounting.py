"""The two ε of a run, the calibration of its noise, and what both need installed."""

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting.rdp import compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import MissingExtra, PlanError
from quorate.privacy import (
    DistributedDiscreteGaussianEvent,
    DistributedGaussian,
    Event,
    NoisyVector,
    Spend,
    TruncatedPoissonSampledEvent,
    calibrate,
    default_delta,
    forecast,
)
from quorate.privacy.accounting import released_epsilon, server_epsilon, to_epsilon
from quorate.privacy.curves import ORDERS, released_curve, server_curve
from quorate.rounds import CohortBounds, SumShape, Vector, VectorSpec

BOUNDS = CohortBounds(largest=140, min_survivors=70, honest=67, denominator=100.0)
ALONE = VectorSpec((Vector("delta", 650),))
SHAPE = SumShape(ALONE, BOUNDS, 32)
DELTA = default_delta(300)


def noisy(multiplier: float) -> Event:
    return DistributedGaussian(clip_norm=0.5, noise_multiplier=multiplier).event(SHAPE)


def sampled(multiplier: float, probability: float = 1 / 3) -> TruncatedPoissonSampledEvent:
    mechanism = DistributedGaussian(clip_norm=0.5, noise_multiplier=multiplier)
    return TruncatedPoissonSampledEvent(300, probability, 140, mechanism.event(SHAPE))


def test_delta_is_below_one_member_in_expectation() -> None:
    assert default_delta(300) == pytest.approx(300**-1.1)
    assert 10**6 * default_delta(10**6) < 1


# --- Two epsilons


def test_nothing_charged_is_nothing_spent() -> None:
    spent = Spend().epsilons(DELTA, simulated=False)
    assert (spent.released, spent.server, spent.simulated) == (0.0, 0.0, False)
    assert "zero-out" in spent.relation


def test_the_server_is_charged_for_the_most_frequent_participant() -> None:
    spend, event = Spend(), sampled(2.0)
    for number in range(30):
        spend.add(event, ["often", f"once-{number}"] if number < 17 else [f"once-{number}"])
    spent = spend.epsilons(DELTA, simulated=False)
    assert spent.server == pytest.approx(server_epsilon({event: 17}, DELTA))
    assert spent.released == pytest.approx(forecast(event, 30, DELTA))


def test_the_smaller_of_two_bounds_is_said() -> None:
    event = sampled(2.0)
    assert forecast(event, 30, DELTA) < 0.95 * to_epsilon(30 * released_curve(event), DELTA)
    assert server_epsilon({event: 17}, DELTA) < 0.95 * to_epsilon(17 * server_curve(event), DELTA)
    narrow = DistributedDiscreteGaussianEvent((NoisyVector("delta", 4, 1.0, Fraction(1, 4)),), 2, 2, 1)
    assert server_epsilon({narrow: 1}, DELTA) == to_epsilon(server_curve(narrow), DELTA)


@given(
    st.lists(st.floats(0, 50), min_size=len(ORDERS), max_size=len(ORDERS)),
    st.floats(-12, 2),
    st.floats(-12, -0.01),
)
def test_a_curve_has_the_epsilon_that_dp_accounting_gives_it(
    divergences: list[float], scale: float, log_delta: float
) -> None:
    curve, delta = 10**scale * np.array(divergences), 10**log_delta
    assert to_epsilon(curve, delta) == pytest.approx(compute_epsilon(ORDERS, curve, delta)[0], rel=1e-12)


def test_orders_at_which_a_curve_is_infinite_say_nothing() -> None:
    curve = server_curve(noisy(2.0)).copy()
    epsilon = to_epsilon(curve, DELTA)
    curve[-1] = math.inf
    assert to_epsilon(curve, DELTA) == epsilon
    curve[:] = math.inf
    assert to_epsilon(curve, DELTA) == math.inf
    assert to_epsilon(np.zeros_like(curve), DELTA) == 0


@pytest.mark.parametrize(("participations", "epsilon"), [(5, 3.38), (7, 4.18), (10, 5.27), (17, 7.48)])
def test_the_server_epsilon_is_the_published_one(participations: int, epsilon: float) -> None:
    """Noise multiplier 2, δ = 300^-1.1."""
    assert server_epsilon({sampled(2.0): participations}, DELTA) == pytest.approx(epsilon, abs=6e-3)


def test_without_a_secret_sampler_nothing_is_amplified() -> None:
    spend = Spend()
    for _ in range(5):
        spend.add(noisy(2.0), ["a"])
    spend.add(noisy(2.0), ["b"])
    spent = spend.epsilons(DELTA, simulated=False)
    assert spent.released == pytest.approx(forecast(noisy(2.0), 5, DELTA))
    assert spent.released < spent.server  # what is released holds the noise of a full cohort


def test_rounds_of_different_kinds_are_composed_for_each_member() -> None:
    spend = Spend()
    spend.add(sampled(2.0), ["a", "b"])
    spend.add(noisy(3.0), ["a"])
    spend.add(noisy(1.5), ["b"])
    expected = max(released_epsilon({sampled(2.0): 1, noisy(z): 1}, DELTA) for z in (3.0, 1.5))
    assert spend.epsilons(DELTA, simulated=False).released == pytest.approx(expected)


charges = st.lists(
    st.tuples(
        st.sampled_from([1.0, 2.0, 3.0]),
        st.booleans(),
        st.lists(st.sampled_from("abc"), unique=True).map(tuple),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=12)
@given(charges, st.randoms(use_true_random=False))
def test_the_order_of_charges_does_not_matter_and_each_adds(
    drawn: list[tuple[float, bool, tuple[str, ...]]], shuffler: object
) -> None:
    forwards, other = Spend(), Spend()
    order = list(drawn)
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    last = forwards.epsilons(DELTA, simulated=False)
    for z, secret, members in drawn:
        forwards.add(sampled(z) if secret else noisy(z), members)
        now = forwards.epsilons(DELTA, simulated=False)
        assert now.released >= last.released
        assert now.server >= last.server
        last = now
    for z, secret, members in order:
        other.add(sampled(z) if secret else noisy(z), members)
    assert other.epsilons(DELTA, simulated=False) == last


@settings(deadline=None, max_examples=12)
@given(charges, charges)
def test_a_charge_that_is_taken_back_leaves_no_trace(
    kept: list[tuple[float, bool, tuple[str, ...]]], taken: list[tuple[float, bool, tuple[str, ...]]]
) -> None:
    spend, expected = Spend(), Spend()
    for z, secret, members in kept:
        expected.add(sampled(z) if secret else noisy(z), members)
    for z, secret, members in itertools.chain(kept, taken):
        spend.add(sampled(z) if secret else noisy(z), members)
    for z, secret, members in taken:
        spend.remove(sampled(z) if secret else noisy(z), members)
    assert spend.epsilons(DELTA, simulated=False) == expected.epsilons(DELTA, simulated=False)


@settings(deadline=None, max_examples=6)
@given(st.floats(0.5, 5), st.integers(1, 40), st.floats(0.05, 0.4))
def test_epsilon_grows_with_rounds_and_falls_with_noise(multiplier: float, rounds: int, q: float) -> None:
    event = sampled(multiplier, q)
    epsilon = forecast(event, rounds, DELTA)
    assert epsilon <= forecast(event, rounds + 1, DELTA)
    assert epsilon >= forecast(sampled(multiplier * 1.1, q), rounds, DELTA) - 1e-9
    assert epsilon >= forecast(event, rounds, 2 * DELTA)


# --- Calibration


@pytest.mark.parametrize("probability", [1 / 3, None])
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_calibrated_noise_keeps_the_target_and_no_more(probability: float | None, epsilon: float) -> None:
    target = DistributedGaussian(clip_norm=0.5, epsilon=epsilon)
    found = calibrate(target, SHAPE, rounds=30, delta=DELTA, population=300, probability=probability)
    assert found.limit == epsilon
    assert found.epsilon is None
    assert found.noise_multiplier is not None

    def spent(multiplier: float) -> float:
        return forecast(noisy(multiplier) if probability is None else sampled(multiplier), 30, DELTA)

    assert spent(found.noise_multiplier) <= epsilon
    assert spent(found.noise_multiplier - 3e-4) > epsilon


def test_the_ring_changes_the_noise_and_not_what_it_costs() -> None:
    """Also where the largest multipliers do not fit the narrow ring."""
    found = [
        calibrate(
            DistributedGaussian(clip_norm=0.5, epsilon=3.0),
            replace(SHAPE, ring_bits=bits),
            rounds=30,
            delta=DELTA,
            population=300,
            probability=1 / 3,
        ).noise_multiplier
        for bits in (16, 32)
    ]
    assert found[0] == pytest.approx(found[1], abs=2e-4)


def test_a_multiplier_that_is_given_is_kept() -> None:
    given_one = DistributedGaussian(clip_norm=0.5, noise_multiplier=1.5)
    assert calibrate(given_one, SHAPE, rounds=3, delta=0.1, population=300, probability=None) is given_one


def test_a_target_that_can_not_be_had_is_refused_with_what_can() -> None:
    target = DistributedGaussian(clip_norm=0.5, epsilon=1e-4)
    with pytest.raises(
        PlanError, match=r"noise multiplier 64, the largest here, gives .*accepted: a larger epsilon"
    ):
        calibrate(target, SHAPE, rounds=1000, delta=1e-9, population=300, probability=None)


def test_a_looser_target_needs_less_noise() -> None:
    found = [
        calibrate(
            DistributedGaussian(clip_norm=0.5, epsilon=epsilon),
            SHAPE,
            rounds=30,
            delta=DELTA,
            population=300,
            probability=1 / 3,
        ).noise_multiplier
        for epsilon in (1.0, 2.0, 4.0, 1e6)
    ]
    assert found == sorted(found, key=lambda z: -(z or 0))
    assert found[-1] == 0.01


def test_the_published_multiplier_is_found() -> None:
    """ε 8 at q 0.01, 1,000 rounds, δ 1e-5: z = 0.58626; the mechanism's rounding costs 1e-4 of it at most."""
    bounds = CohortBounds(largest=10_000, min_survivors=1, honest=1, denominator=1.0)
    shape = SumShape(VectorSpec((Vector("delta", 1000),)), bounds, 32)
    found = calibrate(
        DistributedGaussian(clip_norm=1.0, epsilon=8.0),
        shape,
        rounds=1000,
        delta=1e-5,
        population=10_000,
        probability=0.01,
        dropout=0.0,
    )
    event = found.event(shape)
    released = math.sqrt(event.released_shares) * (found.noise_multiplier or 0)
    assert released == pytest.approx(0.58626, abs=1e-3)


# --- What must be installed


def test_importing_privacy_needs_no_server_extra() -> None:
    code = "import sys, quorate.privacy; print({'scipy', 'dp_accounting', 'sqlalchemy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_epsilon_of_curves_needs_no_dp_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    assert 0 < to_epsilon(server_curve(noisy(2.0)), 1e-5) < 10


def test_accounting_for_sampling_without_the_server_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(MissingExtra, match=r"quorate\[server\]"):
        released_epsilon({sampled(2.0, probability=0.2718): 3}, 1e-5)


def test_the_published_demo_stays_below_five() -> None:
    assert forecast(sampled(1.5), 30, DELTA) < 3.5
    tighter = replace(sampled(1.5), cap=125)
    assert math.isclose(forecast(tighter, 30, DELTA), forecast(sampled(1.5), 30, DELTA), rel_tol=0.02)
