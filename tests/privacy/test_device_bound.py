"""The device's own count: never below what the server's accounting says, and close to it."""

import math
import subprocess
import sys
from fractions import Fraction

import pytest

from quorate.clients.agent.judgement import event_of
from quorate.privacy import DistributedDiscreteGaussianEvent, NoisyVector, TruncatedPoissonSampledEvent
from quorate.privacy.accounting import server_epsilon, to_epsilon
from quorate.privacy.curves import server_curve
from quorate.privacy.device_bound import device_epsilon
from quorate.privacy.events import CentralDiscreteGaussianEvent
from tests.federations import plan


def noisy(multiplier: float, *, steps: float = 1000.0, shares: int = 60, dimension: int = 1 << 12):
    """A sum whose fewest honest shares have the multiplier's noise together."""
    variance = Fraction((multiplier * steps) ** 2).limit_denominator(1000) / shares
    vector = NoisyVector("delta", dimension, steps, variance)
    return DistributedDiscreteGaussianEvent((vector,), shares, shares, shares, shares + 40)


def test_one_round_at_unit_noise_has_the_epsilon_of_the_analytic_gaussian_mechanism():
    assert device_epsilon({noisy(1.0): 1}, 1e-5) == pytest.approx(4.3772, rel=2e-3)


@pytest.mark.parametrize(("participations", "published"), [(5, 3.38), (7, 4.18), (10, 5.27), (17, 7.48)])
def test_a_devices_rounds_at_noise_two_compose_to_the_published_values(participations, published):
    assert device_epsilon({noisy(2.0): participations}, 300**-1.1) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("steps", [2.0, 16.0, 1000.0])
@pytest.mark.parametrize("count", [1, 20, 300])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_the_devices_bound_is_at_least_the_servers_and_within_five_percent(multiplier, steps, count, delta):
    event = noisy(multiplier, steps=steps, shares=4)
    own, theirs = device_epsilon({event: count}, delta), server_epsilon({event: count}, delta)
    assert own >= theirs * (1 - 1e-9)
    assert own <= theirs * 1.05 + 1e-9 or math.isinf(theirs)


def test_the_bound_by_renyi_curves_alone_is_the_published_one():
    assert to_epsilon(server_curve(noisy(1.0)), 1e-5) == pytest.approx(4.7285, rel=5e-3)


def test_rounds_of_different_kinds_add_up():
    a, b = noisy(2.0), noisy(3.0)
    both = device_epsilon({a: 5, b: 5}, 1e-5)
    assert both >= server_epsilon({a: 5, b: 5}, 1e-5) * (1 - 1e-9)
    assert both > device_epsilon({a: 5}, 1e-5)


def test_the_draw_of_the_cohort_does_not_amplify_a_devices_own_count():
    event = noisy(2.0)
    sampled = TruncatedPoissonSampledEvent(1000, 0.1, 140, event)
    assert device_epsilon({sampled: 7}, 1e-5) == device_epsilon({event: 7}, 1e-5)


def test_noise_that_the_server_adds_is_no_protection_against_it():
    vector = NoisyVector("delta", 10, 100.0, Fraction(10_000))
    assert device_epsilon({CentralDiscreteGaussianEvent((vector,), 10): 1}, 1e-5) == math.inf


def test_nothing_was_spent_without_a_participation():
    assert device_epsilon({}, 1e-5) == 0.0


def test_the_bound_needs_neither_scipy_nor_dp_accounting():
    program = """
import sys
sys.modules['scipy'] = sys.modules['dp_accounting'] = None
from fractions import Fraction
from quorate.clients.agent.judgement import event_of
from quorate.privacy import DistributedDiscreteGaussianEvent, NoisyVector
from quorate.privacy.device_bound import device_epsilon
event = DistributedDiscreteGaussianEvent((NoisyVector('delta', 10, 100.0, Fraction(10_000)),), 4, 4, 4, 6)
print(device_epsilon({event: 3}, 1e-5))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 10


@pytest.mark.parametrize(
    ("mechanism", "summing"),
    [
        ("distributed-discrete-gaussian", {"protocol": "secagg+"}),
        ("distributed-skellam", {"protocol": "secagg+"}),
        ("local-discrete-gaussian", {"protocol": "none"}),
        ("local-discrete-gaussian", {"protocol": "secagg+"}),
    ],
)
@pytest.mark.parametrize("count", [1, 30])
def test_the_devices_bound_holds_for_every_mechanism_whose_noise_is_not_the_servers(
    mechanism, summing, count
):
    privacy = {"mechanism": mechanism, "clip_norm": 1.0, "noise_multiplier": 2.0}
    terms = plan(privacy=privacy, secure_aggregation=summing).resolved(40).terms()
    event = event_of(terms, terms.bounds(40))
    assert event is not None
    own, theirs = device_epsilon({event: count}, 1e-5), server_epsilon({event: count}, 1e-5)
    assert 0 < theirs * (1 - 1e-9) <= own <= theirs * 1.05
