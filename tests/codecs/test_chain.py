"""Whole chains keep their bounds, and give sums back."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quorate.codecs import Chain, Clip, Discretise, Rotate, Wrap, rounded_norm_bound
from quorate.randomness import Randomness
from tests.codecs.arrays import RANDOMNESS, norms, shapes


@settings(deadline=None)
@given(hnp.arrays(np.float32, shapes, elements=st.floats(width=32)), st.floats(1, 1e5))
def test_the_whole_chain_is_within_its_bound_for_any_float32_update(values: np.ndarray, scale: float) -> None:
    rotate = Rotate(bytes(32))
    bound = rounded_norm_bound(scale * (1 + 2.0**-20), rotate.length(values.shape[1]))
    chain = Chain.of(Clip(1.0), rotate, Discretise(scale, bound))
    assert (norms(chain.encode(values, RANDOMNESS).astype(float)) <= bound).all()


@settings(deadline=None)
@given(hnp.arrays(np.float64, shapes, elements=st.floats(-2, 2)), st.integers(0, 2**32))
def test_the_decoded_sum_is_within_one_step_a_client_of_the_true_sum(values: np.ndarray, seed: int) -> None:
    n, scale = values.shape[1], 1000.0
    rotate = Rotate(seed.to_bytes(32, "big"))
    bound = rounded_norm_bound(scale, rotate.length(n))
    chain = Chain.of(Clip(1.0), rotate, Discretise(scale, bound), Wrap(32))
    encoded = chain.encode(values, Randomness.from_seed(seed))
    assert encoded.shape == (len(values), chain.length(n))
    decoded = chain.decode(encoded.sum(axis=0, dtype=np.uint32), n)
    truth = Clip(1.0).encode(values, RANDOMNESS).sum(axis=0)
    # Each rotated coordinate is off by less than a step a client, and turning back keeps the L2 norm of that.
    assert np.linalg.norm(decoded - truth) <= len(values) * math.sqrt(chain.length(n)) / scale


def test_a_chain_runs_forwards_and_back() -> None:
    chain = Chain.of(Rotate(bytes(32)), Rotate(bytes([1] * 32)))
    values = np.arange(10.0)[None, :]
    assert chain.length(10) == 16
    np.testing.assert_allclose(chain.decode(chain.encode(values, RANDOMNESS)[0], 10), values[0], atol=1e-4)
