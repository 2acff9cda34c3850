"""Our mechanisms against tensorflow-privacy's queries, and our accounting against its statements."""

import re

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_privacy as tfp
from tensorflow_privacy.privacy.analysis.compute_dp_sgd_privacy_lib import (
    compute_dp_sgd_privacy_statement,
)

from quorate.privacy import (
    CentralGaussian,
    DistributedGaussian,
    ExternalEvent,
    TruncatedPoissonSampledEvent,
    forecast,
)
from quorate.privacy.external import gaussian_mean, is_accounted, write
from quorate.privacy.mechanisms.rounded_noise import WITHIN
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, SumShape, Vector, VectorSpec

pytestmark = pytest.mark.interop

CLIENTS, LENGTH, CLIP, MULTIPLIER = 6, 4096, 2.0, 1.5
BOUNDS = CohortBounds(CLIENTS, CLIENTS, CLIENTS, float(CLIENTS))
VECTOR = Vector("delta", LENGTH)
SHAPE = SumShape(VectorSpec((VECTOR,)), BOUNDS, 32)
RECORDS = np.random.default_rng(3).normal(size=(CLIENTS, LENGTH)).astype(np.float32)


def clipped_sum():
    norms = np.linalg.norm(RECORDS, axis=1, keepdims=True)
    return (RECORDS * np.minimum(1, CLIP / norms)).sum(axis=0)


def our_sum(mechanism, seed=5):
    """A sum of the records under a mechanism, as it is released."""
    codec = mechanism.codec(VECTOR, SHAPE, PublicValues(CLIP, bytes(32)))
    stream = Randomness.from_seed(seed)
    encoded = [codec.encode(r[None], stream.spawn("client", i))[0] for i, r in enumerate(RECORDS)]
    total = np.sum(encoded, axis=0, dtype=np.uint32)
    state = mechanism.init(SHAPE.vectors)
    released, _ = mechanism.release(total, VECTOR, SHAPE, CLIENTS, stream.spawn("server"), state)
    return codec.decode(released, LENGTH)


def their_sum(query):
    """The same under a query of theirs, and its event."""
    state = query.initial_global_state()
    params = query.derive_sample_params(state)
    sample = query.initial_sample_state(tf.zeros(LENGTH))
    for record in RECORDS:
        sample = query.accumulate_record(params, sample, tf.constant(record))
    result, _, event = query.get_noised_result(sample, state)
    return result.numpy(), event


def check_moments(errors, deviation):
    """Of 4,096 independent errors: mean zero, and this standard deviation, each within five of its own deviations."""
    assert abs(errors.mean()) < 5 * deviation / np.sqrt(errors.size)
    assert abs(errors.std() / deviation - 1) < 5 / np.sqrt(2 * errors.size)


def test_central_noise_has_the_moments_of_their_gaussian_sum():
    theirs, event = their_sum(tfp.GaussianSumQuery(CLIP, MULTIPLIER * CLIP))
    ours = our_sum(CentralGaussian(clip_norm=CLIP, noise_multiplier=MULTIPLIER))
    check_moments(theirs - clipped_sum(), MULTIPLIER * CLIP)
    check_moments(ours - clipped_sum(), MULTIPLIER * CLIP)
    assert event == dp_accounting.GaussianDpEvent(MULTIPLIER)


def test_the_epsilon_of_their_event_is_that_of_ours():
    _, event = their_sum(tfp.GaussianSumQuery(CLIP, MULTIPLIER * CLIP))
    ours = CentralGaussian(clip_norm=CLIP, noise_multiplier=MULTIPLIER).event(SHAPE)
    theirs = forecast(ExternalEvent(write(event)), 20, 1e-6)
    # What ours costs more is for the discrete noise's distance from a Gaussian's.
    assert forecast(ours, 20, 1e-6) == pytest.approx(theirs, rel=1e-4)


def test_shares_of_discrete_noise_add_up_alike():
    deviation = 7.0  # theirs is rounded up to a whole number of steps, ours is any
    records = (RECORDS * 3).astype(np.int32)
    query = tfp.DistributedDiscreteGaussianSumQuery(
        float(np.linalg.norm(records, axis=1).max() + 1), deviation
    )
    state = query.initial_global_state()
    params = query.derive_sample_params(state)
    sample = query.initial_sample_state(tf.zeros(LENGTH, tf.int32))
    for record in records:
        sample = query.accumulate_record(params, sample, tf.constant(record))
    theirs, _, event = query.get_noised_result(sample, state)
    check_moments(theirs.numpy() - records.sum(axis=0), deviation * np.sqrt(CLIENTS))
    ours = our_sum(DistributedGaussian(clip_norm=CLIP, noise_multiplier=MULTIPLIER))
    check_moments(ours - clipped_sum(), MULTIPLIER * CLIP)
    # Theirs leaves the account to whoever uses it; ours names it.
    assert not is_accounted(event)
    assert DistributedGaussian(clip_norm=CLIP, noise_multiplier=MULTIPLIER).event(SHAPE).shares == CLIENTS


def test_an_adaptive_clip_splits_the_noise_between_the_sum_and_the_count():
    # Andrew et al. 2021, theorem 1: z_Δ = (z^-2 - (2 σ_b)^-2)^-1/2, so that both together cost what z does.
    deviation = 5.0
    query = tfp.QuantileAdaptiveClipSumQuery(
        initial_l2_norm_clip=1.0,
        noise_multiplier=(1 - (2 * deviation) ** -2) ** -0.5,
        target_unclipped_quantile=0.5,
        learning_rate=0.2,
        clipped_count_stddev=deviation,
        expected_num_records=100,
    )
    _, event = their_sum(query)
    assert gaussian_mean(ExternalEvent(write(event))) == pytest.approx(1.0, rel=1e-5)


def test_after_equal_updates_an_adaptive_clip_norm_is_theirs():
    # Andrew et al. 2021, algorithm 1, without noise on the count: C ← C·exp(-η(b - γ)).
    mechanism = CentralGaussian(
        clip_norm=1.0, noise_multiplier=MULTIPLIER, adaptive_clip={"quantile": 0.7, "learning_rate": 0.4}
    )
    query = tfp.QuantileAdaptiveClipSumQuery(1.0, 0.0, 0.7, 0.4, 0.0, CLIENTS)
    ours, theirs = mechanism.init(SHAPE.vectors), query.initial_global_state()
    rng, norms = np.random.default_rng(7), []
    for _ in range(25):
        records = rng.normal(size=(CLIENTS, LENGTH)).astype(np.float32) / np.sqrt(LENGTH)
        records *= rng.uniform(0.2, 8, (CLIENTS, 1)).astype(np.float32)  # of these norms, about
        params, sample = query.derive_sample_params(theirs), query.initial_sample_state(tf.zeros(LENGTH))
        for record in records:
            sample = query.accumulate_record(params, sample, tf.constant(record))
        _, theirs, _ = query.get_noised_result(sample, theirs)
        public = PublicValues(mechanism.clip(ours), bytes(32))
        told = [mechanism.measured({"delta": record}, SHAPE.vectors, public) for record in records]
        means = {name: np.mean([one[name] for one in told], axis=0) for name in told[0]}
        ours, _ = mechanism.update(ours, means)
        norms.append(mechanism.clip(ours))
        assert norms[-1] == pytest.approx(float(query.derive_metrics(theirs)["clip"]), rel=1e-5)
    assert max(norms) > 3 * norms[0]  # it moved, and back and forth
    assert (np.diff(norms) < 0).any()


def test_a_noisy_count_beyond_all_members_moves_our_clip_norm_on_and_theirs_to_a_limit():
    # b̃ = 1.5: algorithm 1 takes it as it is; theirs cuts it to [0, 1], which no member's data decide either.
    mechanism = CentralGaussian(clip_norm=1.0, noise_multiplier=MULTIPLIER, adaptive_clip={})
    ours, _ = mechanism.update(mechanism.init(SHAPE.vectors), {WITHIN: np.array([1.0])})
    assert mechanism.clip(ours) == pytest.approx(np.exp(-0.2 * (1.5 - 0.5)))
    query = tfp.QuantileEstimatorQuery(1.0, 0.5, 0.2, 0.0, 1.0, geometric_update=True)
    state = query.initial_global_state()
    sample = query.initial_sample_state()
    for _ in range(2):  # of one that is expected
        sample = query.accumulate_record(query.derive_sample_params(state), sample, tf.constant(0.5))
    estimate, _, _ = query.get_noised_result(sample, state)
    assert float(estimate) == pytest.approx(np.exp(-0.2 * (1.0 - 0.5)))


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "multiplier"), [(60_000, 250, 15, 1.3), (10_000, 100, 20, 1.0)]
)
def test_sampled_rounds_cost_what_their_statement_says(examples, batch, epochs, multiplier):
    said = compute_dp_sgd_privacy_statement(
        examples, batch, epochs, multiplier, 1e-5, used_microbatching=False
    )
    theirs = float(re.search(r"Poisson sampling \(\*\):\s+([0-9.]+)", said).group(1))
    bounds = CohortBounds(examples, 1, 1, float(batch))
    event = CentralGaussian(clip_norm=1.0, noise_multiplier=multiplier).event(
        SumShape(VectorSpec((Vector("delta", 1000),)), bounds, 32)
    )
    rounds = int(np.ceil(epochs * examples / batch))
    ours = forecast(TruncatedPoissonSampledEvent(examples, batch / examples, examples, event), rounds, 1e-5)
    # Theirs is by Rényi divergences, ours by privacy loss distributions: tighter, by a tenth at most.
    assert 0.85 * theirs < ours < 1.001 * theirs
