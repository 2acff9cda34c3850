"""Ways that are products: their sums and norms are those of the vectors, of which none is made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.clients.adapters import numpy_models as models
from quorate.clients.adapters import numpy_training
from quorate.clients.adapters.examples import Examples
from quorate.clients.adapters.products import Products
from quorate.rounds import Instruction

NETWORK = models.mlp(30, (12, 7), 3).network


def trained(sizes, seed, batch_size=4, rate=0.1, block_bytes=1 << 23):
    """What `fit_many` gives for clients of so many examples, with the first layer in its dual form."""
    rng = np.random.default_rng(seed)
    numbers = {"learning_rate": rate, "epochs": 2, "batch_size": batch_size}
    data = [Examples(rng.standard_normal((n, 30), np.float32), rng.integers(0, 3, n)) for n in sizes]
    told = [Instruction("sgd", numbers, seed=seed + i) for i in range(len(sizes))]
    start = (0.3 * rng.standard_normal(NETWORK.size)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numpy_training, "is_less_work", lambda *_: True)
        patch.setattr(numpy_training, "_BLOCK_BYTES", block_bytes)
        return numpy_training.fit_many(NETWORK, start, data, told, [{}] * len(data))[0]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=6),
    weights=st.lists(st.floats(0, 50), min_size=6, max_size=6),
    block_bytes=st.sampled_from([1, 20_000, 1 << 23]),
    seed=st.integers(0, 2**32),
)
def test_sums_and_norms_are_those_of_the_vectors(sizes, weights, block_bytes, seed):
    updates = trained(sizes, seed, block_bytes=block_bytes)
    rows, scales = updates.rows["delta"], np.array(weights[: len(sizes)])
    assert rows.shape == (len(sizes), NETWORK.size)
    total, norms = rows.weighed(scales), rows.norms()
    vectors = updates.vectors["delta"]
    assert vectors.shape == rows.shape
    assert total.dtype == vectors.dtype == np.float32
    np.testing.assert_allclose(total, scales @ vectors.astype(np.float64), atol=2e-6 * (1 + scales.sum()))
    known = ~np.isnan(norms)
    np.testing.assert_allclose(
        norms[known], np.linalg.norm(vectors.astype(np.float64), axis=1)[known], rtol=1e-5
    )


def test_vectors_are_made_once_and_only_when_they_are_asked_for():
    updates = trained([5, 3], seed=0)
    assert list(updates.vectors) == ["delta"]
    assert "delta" in updates.vectors
    assert "control" not in updates.vectors
    assert updates.vectors["delta"] is updates.vectors["delta"]
    np.testing.assert_array_equal(updates.one(1).vectors["delta"], updates.vectors["delta"][1])


def test_a_norm_that_has_lost_its_digits_is_not_told():
    """Two examples that are nearly the same pull in opposite directions: what is left is rounding."""
    inputs = np.array([[1, 1], [1, 1.0001], [1, 0], [0, 1]], np.float32)
    errors = np.array([[1, 1], [-1, -1], [1, 1], [1, 1]], np.float32)
    gram = np.stack([x @ x.T for x in inputs.reshape(2, 2, 2)])
    made = Products(inputs, errors, np.array([2, 2]), gram, np.zeros((2, 1), np.float32))
    assert np.isnan(made.norms()).tolist() == [True, False]
    np.testing.assert_allclose(made.norms()[1], 2)


def test_what_diverged_has_no_norm_and_no_finite_sum():
    rows = trained([5, 4], seed=1, rate=1e30).rows["delta"]
    assert np.isnan(rows.norms()).all()
    assert not np.isfinite(rows.weighed(np.ones(2))).all()
