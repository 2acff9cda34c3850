"""tensorflow-privacy's queries in a TFF process, and what they release in our ledger."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_privacy as tfp

import quorate as q
from quorate.interop.tff.job import Job
from quorate.interop.tff.learning import Learning
from quorate.privacy import ExternalEvent
from quorate.privacy.external import gaussian_mean

pytestmark = pytest.mark.interop

MODEL = q.models.softmax(5, 3)
PROCESSES = "quorate.interop.tff.processes"


def adaptive():
    return tfp.NormalizedQuery(
        tfp.QuantileAdaptiveClipSumQuery(
            initial_l2_norm_clip=0.1,
            noise_multiplier=2.0,
            target_unclipped_quantile=0.5,
            learning_rate=0.2,
            clipped_count_stddev=1.0,
            expected_num_records=4,
            geometric_update=True,
        ),
        4.0,
    )


def trees():
    return tfp.NormalizedQuery(
        tfp.TreeResidualSumQuery.build_l2_gaussian_query(
            1.0, 2.0, (tf.TensorSpec((5, 3)), tf.TensorSpec((3,)))
        ),
        4.0,
    )


def learning(process: str, **settings) -> Learning:
    return Learning(Job(f"{PROCESSES}:{process}", settings, MODEL.layout.entries, MODEL.program_spec(), 0.5))


def data(process: Learning):
    rng = np.random.default_rng(2)
    return [
        process.dataset(rng.normal(size=(6, 5)).astype(np.float32), rng.integers(0, 3, 6), np.arange(6), 6)
        for _ in range(4)
    ]


def test_a_query_that_adapts_its_clip_norm_says_the_same_event_in_every_round():
    process = learning("dp_query", query=f"{__name__}:adaptive")
    state = process.initial(None)
    events = [process.event(state)]
    for _ in range(3):
        before = state
        state, _ = process.step(state, data(process))
        events.append(process.event(state))
        assert any(not np.array_equal(state[name], before[name]) for name in state)
    assert len(set(events)) == 1
    # Andrew et al. 2021, theorem 1: z = 2 for the sum, and 2 · 1.0 for the count, are one Gaussian of 1/√(1/4 + 1/4).
    assert gaussian_mean(ExternalEvent(events[0])) == pytest.approx(np.sqrt(0.5), rel=1e-5)


def test_a_query_whose_event_can_not_be_accounted_claims_nothing():
    process = learning("dp_query", query=f"{__name__}:trees")
    assert process.event(process.initial(None)) is None


def test_a_process_without_a_query_claims_nothing():
    process = learning("fed_adam", learning_rate=0.1)
    state, metrics = process.step(process.initial(None), data(process))
    assert process.event(state) is None
    assert set(metrics) == {"train_loss", "train_accuracy"}
    # The first step of Adam moves every weight by the learning rate, but for what tau adds to the root.
    assert 0.05 < np.abs(process.vector(state)).max() <= 0.1 + 1e-6
