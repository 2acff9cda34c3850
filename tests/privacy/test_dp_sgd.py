"""DP-SGD: what a training costs an example, and that no example moves a sum by more than it says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quorate.clients.adapters.dp_sgd import clipped_sum
from quorate.errors import DataError, PlanError
from quorate.privacy import DpSgd, ExampleEvent, example_epsilon, losses
from quorate.privacy.curves import ORDERS, example_curve
from quorate.privacy.device_bound import device_example_epsilon
from quorate.privacy.dp_sgd import SMALLEST_DEVIATION, Grid, decode_example_event, encode_example_event
from quorate.randomness import Randomness

MNIST = DpSgd(clip_norm=1.0, noise_multiplier=1.1, sampling_rate=256 / 60000).event(60)
"""The tutorial of tensorflow-privacy: batches of 256 of 60,000 examples, 60 epochs."""


# --- What it costs


def test_the_tutorials_training_costs_the_published_epsilon_by_the_conversion_of_its_time():
    assert MNIST.steps == 14_063
    by_mironov = example_curve(MNIST) + math.log(1e5) / (np.array(ORDERS) - 1)
    assert by_mironov.min() == pytest.approx(3.01, abs=0.005)


@pytest.mark.parametrize(
    ("multiplier", "rate", "steps", "delta", "by_moments", "published"),
    [
        (1.0, 0.01, 1000, 1e-5, 2.1014, 1.8282),
        (1.1, 0.01, 10_000, 1e-5, 5.6320, 5.1926),
        (1.1, 256 / 60000, 14_100, 1e-5, 2.6003, 2.3852),
        (2.0, 0.1, 100, 1e-6, 2.9142, 2.6750),
        (1.0, 1.0, 1, 1e-5, 4.7285, 4.3772),
    ],
)
def test_a_training_costs_the_published_epsilon(multiplier, rate, steps, delta, by_moments, published):
    event = ExampleEvent(multiplier, rate, steps)
    assert example_epsilon(event, 1, delta) == pytest.approx(published, abs=1e-3)
    own = device_example_epsilon({event: 1}, delta)
    assert published - 1e-4 <= own <= by_moments * 1.005


def test_participations_add_up_as_steps_do():
    once, twice = ExampleEvent(1.0, 0.05, 40), ExampleEvent(1.0, 0.05, 80)
    assert example_epsilon(once, 2, 1e-5) == example_epsilon(twice, 1, 1e-5)
    assert device_example_epsilon({once: 2}, 1e-5) == pytest.approx(device_example_epsilon({twice: 1}, 1e-5))
    assert device_example_epsilon({once: 1, twice: 1}, 1e-5) == pytest.approx(
        device_example_epsilon({once: 3}, 1e-5)
    )


def test_trainings_of_different_kinds_add_up_by_either_account():
    a, b = ExampleEvent(1.0, 0.05, 40), ExampleEvent(2.0, 1.0, 5)
    both = losses.example_epsilon([(a, 2), (b, 1)], 1e-5)
    assert max(losses.example_epsilon([(a, 2)], 1e-5), losses.example_epsilon([(b, 1)], 1e-5)) < both
    assert both <= device_example_epsilon({a: 2, b: 1}, 1e-5) <= 1.2 * both


@given(
    st.floats(0.5, 4), st.floats(0.01, 0.9), st.integers(1, 50), st.sampled_from(["noise", "rate", "steps"])
)
@settings(max_examples=25, deadline=None)
def test_epsilon_falls_with_noise_and_grows_with_sampling_and_steps(multiplier, rate, steps, which):
    less = ExampleEvent(multiplier, rate, steps)
    more = {
        "noise": ExampleEvent(multiplier * 0.9, rate, steps),
        "rate": ExampleEvent(multiplier, min(1.0, rate * 1.1), steps),
        "steps": ExampleEvent(multiplier, rate, steps + 1),
    }[which]
    assert device_example_epsilon({less: 1}, 1e-5) < device_example_epsilon({more: 1}, 1e-5)


def test_a_device_that_trained_without_protection_has_no_bound_left():
    assert device_example_epsilon({}, 1e-5) == 0
    assert device_example_epsilon({None: 0}, 1e-5) == 0
    assert math.isinf(device_example_epsilon({MNIST: 1, None: 1}, 1e-5))


def test_the_draw_of_a_sampled_training_amplifies_in_both_directions_as_the_curve_says():
    event, mean, q = ExampleEvent(1.0, 0.2, 1), 1.0, 0.2
    x = np.linspace(-30, 30, 400_001)
    without = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    drawn = (1 - q) * without + q * np.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi)
    curve = dict(zip(ORDERS, example_curve(event), strict=True))
    for order in (1.5, 2, 2.5, 4, 16):
        for p, r in ((drawn, without), (without, drawn)):
            moment = np.trapezoid(np.exp(order * np.log(p + 1e-300) + (1 - order) * np.log(r + 1e-300)), x)
            assert math.log(moment) / (order - 1) <= curve[order] * (1 + 1e-6)


def test_an_event_is_written_and_read_as_it_is_and_nothing_else_is_read():
    assert decode_example_event(encode_example_event(MNIST)) == MNIST
    for text in (
        '{"type":"other"}',
        "[]",
        "{",
        '{"type":"dp-sgd","noise_multiplier":1,"sampling_rate":2,"steps":1}',
    ):
        with pytest.raises(DataError):
            decode_example_event(text)


def test_a_section_says_what_is_wrong():
    with pytest.raises(PlanError) as refused:
        DpSgd(clip_norm=0.0, noise_multiplier=0.001, sampling_rate=1.5)
    assert len(refused.value.problems) == 3


# --- What one example can do


def rounded(gradients, clip_norm, grid, block):
    """The sum of all blocks, in steps."""
    total = np.zeros(gradients.shape[1], np.int64)
    for start in range(0, len(gradients), block):
        total += grid.rounded(clipped_sum(gradients[start : start + block], clip_norm))
    return total


@given(
    gradients=arrays(np.float32, (7, 5), elements=st.floats(width=32)),
    place=st.integers(0, 6),
    clip_norm=st.floats(1e-3, 1e3),
    multiplier=st.floats(0.01, 100),
    block=st.integers(1, 7),
)
@settings(deadline=None)
def test_no_example_moves_the_sum_by_more_than_the_bound(gradients, place, clip_norm, multiplier, block):
    grid = Grid.of(clip_norm, multiplier, 5)
    zeroed = gradients.copy()
    zeroed[place] = 0
    with_it, without = (rounded(each, clip_norm, grid, block) for each in (gradients, zeroed))
    moved = [int(a) - int(b) for a, b in zip(with_it, without, strict=True)]
    assert math.sqrt(sum(m * m for m in moved)) <= grid.norm_bound


@pytest.mark.parametrize("examples", [1, 300, 1024])
def test_many_long_gradients_that_almost_cancel_keep_the_bound(examples):
    rng = np.random.default_rng(0)
    gradients = (rng.standard_normal((examples, 1000)) * 10.0 ** rng.integers(-3, 8, (examples, 1))).astype(
        np.float32
    )
    gradients[1::2] = -gradients[: len(gradients) // 2 * 2 : 2][: len(gradients[1::2])]
    grid = Grid.of(1.0, 1.0, 1000)
    zeroed = gradients.copy()
    zeroed[0] = 0
    moved = rounded(gradients, 1.0, grid, 1024) - rounded(zeroed, 1.0, grid, 1024)
    assert np.linalg.norm(moved.astype(float)) <= grid.norm_bound
    assert np.linalg.norm(moved.astype(float)) >= grid.norm_bound * 0.999  # the bound is nearly reached


@given(multiplier=st.floats(0.01, 1000), dimension=st.integers(1, 10**8))
def test_the_noise_is_the_multiplier_times_the_bound_and_rounding_costs_next_to_nothing(
    multiplier, dimension
):
    grid = Grid.of(2.0, multiplier, dimension)
    deviation = math.sqrt(grid.variance)
    assert deviation >= multiplier * grid.norm_bound * (1 - 1e-15)
    assert deviation >= SMALLEST_DEVIATION
    assert grid.norm_bound * grid.step <= 2.0 * (1 + 2**-14)
    assert deviation * grid.step <= multiplier * 2.0 * (1 + 2**-14)


def test_noise_beyond_the_sampler_is_refused():
    with pytest.raises(DataError, match="beyond the sampler"):
        Grid.of(1.0, 1e12, 1)
    with pytest.raises(DataError, match="coordinates"):
        Grid.of(1.0, 1.0, 0)


def test_the_noise_is_whole_steps_of_the_stated_deviation():
    grid, count = Grid.of(0.5, 1.1, 20_000), 20_000
    noise = grid.noisy(np.zeros(count, np.int64), Randomness.from_seed(1))
    steps = noise / grid.step
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)
    scaled = noise / (1.1 * 0.5)
    assert abs(scaled.mean()) < 5 / math.sqrt(count)
    assert abs(np.square(scaled).mean() - 1) < 5 * math.sqrt(2 / count)
    assert abs(scaled**4 @ np.ones(count) / count - 3) < 5 * math.sqrt(96 / count)
    assert abs((np.abs(scaled) > 1.959964).mean() - 0.05) < 5 * math.sqrt(0.05 * 0.95 / count)
