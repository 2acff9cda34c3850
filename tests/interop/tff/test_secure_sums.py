"""Our ring sums against TFF's secure sums, which it runs in its test mode only: plain sums behind the same types."""

import numpy as np
import pytest
import tensorflow_federated as tff

from quorate.privacy import DistributedGaussian, NoPrivacy
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, SumShape, Vector, VectorSpec

pytestmark = pytest.mark.interop

CLIENTS, LENGTH, CLIP = 8, 1000, 3.0
UPDATES = np.random.default_rng(2).normal(size=(CLIENTS, LENGTH)).astype(np.float32)
TYPE = tff.TensorType(np.float32, [LENGTH])
CLIPPED = UPDATES * np.minimum(1, CLIP / np.linalg.norm(UPDATES, axis=1, keepdims=True))


@pytest.fixture(autouse=True)
def _in_test_mode():
    from google._upb import _message

    _message.SetAllowOversizeProtos(True)
    tff.backends.test.set_sync_test_cpp_execution_context()
    yield
    tff.backends.native.set_sync_local_cpp_execution_context()


def aggregated(factory):
    process = factory.create(TYPE)
    return process.next(process.initialize(), list(UPDATES)).result


def our_sum(mechanism):
    shape = SumShape(
        VectorSpec((Vector("delta", LENGTH),)), CohortBounds(CLIENTS, CLIENTS, CLIENTS, float(CLIENTS)), 32
    )
    vector = shape.vectors.vectors[0]
    codec, stream = mechanism.codec(vector, shape, PublicValues(CLIP, bytes(32))), Randomness.from_seed(1)
    encoded = [codec.encode(u[None], stream.spawn("client", i))[0] for i, u in enumerate(UPDATES)]
    total = np.sum(encoded, axis=0, dtype=np.uint32)
    state = mechanism.init(shape.vectors)
    released, _ = mechanism.release(total, vector, shape, CLIENTS, stream.spawn("server"), state)
    return codec.decode(released, LENGTH)


def test_clipped_updates_have_the_same_secure_mean():
    secure = tff.aggregators.UnweightedMeanFactory(tff.aggregators.SecureSumFactory(CLIP))
    theirs = aggregated(tff.aggregators.clipping_factory(CLIP, secure))
    exact = CLIPPED.mean(axis=0)
    ours = our_sum(NoPrivacy(clip_norm=CLIP)) / CLIENTS
    np.testing.assert_allclose(theirs, exact, atol=1e-6)
    np.testing.assert_allclose(ours, exact, atol=1e-6)


def test_distributed_noise_is_of_the_same_size():
    """Kairouz, Liu, Steinke 2021: both clip, rotate, round, and add shares of discrete Gaussian noise."""
    multiplier = 0.4
    theirs = aggregated(
        tff.learning.ddp_secure_aggregator(
            noise_multiplier=multiplier,
            expected_clients_per_round=CLIENTS,
            bits=20,
            zeroing=False,
            rotation_type="hd",
        )
    )
    # TFF adapts its clip norm, and begins at 0.1; a part of the noise is for the count of the unclipped, which has a
    # deviation of 0.05 clients (Andrew et al. 2021, theorem 1).
    start = 0.1
    theirs_of_the_sum = (multiplier**-2 - (2 * 0.05 * CLIENTS) ** -2) ** -0.5
    clipped = UPDATES * np.minimum(1, start / np.linalg.norm(UPDATES, axis=1, keepdims=True))
    their_error = (np.asarray(theirs) - clipped.mean(axis=0)).std() * CLIENTS / start
    our_error = (
        our_sum(DistributedGaussian(clip_norm=CLIP, noise_multiplier=multiplier)) - CLIPPED.sum(axis=0)
    ).std() / CLIP
    # Of 1,000 coordinates, five standard deviations of a standard deviation are 11 %; theirs is in whole steps.
    assert our_error == pytest.approx(multiplier, rel=0.12)
    assert their_error == pytest.approx(theirs_of_the_sum, rel=0.15)
