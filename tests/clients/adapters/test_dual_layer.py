"""The dual form of a first layer: what descent on its weights gives, without them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.clients.adapters import numpy_models as models
from quorate.clients.adapters import numpy_training
from quorate.clients.adapters.dual_layer import is_less_work
from quorate.clients.adapters.examples import Examples
from quorate.rounds import Instruction

INPUTS = 30
MODELS = {
    "softmax": models.softmax(INPUTS, 3),
    "mlp": models.mlp(INPUTS, (12, 7), 3),
    "linear": models.linear(INPUTS),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=6),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 15),
    seed=st.integers(0, 2**32),
)
def test_it_is_descent_on_the_weights(model, sizes, epochs, batch_size, seed):
    rng = np.random.default_rng(seed)
    numbers = {"learning_rate": 0.02, "epochs": epochs, "batch_size": batch_size}
    data = [
        Examples(rng.standard_normal((n, INPUTS), np.float32), rng.integers(0, 3, n).astype(label(model)))
        for n in sizes
    ]
    ins = [Instruction("sgd", numbers, seed=seed + i) for i in range(len(sizes))]
    start = (0.3 * rng.standard_normal(model.layout.size)).astype(np.float32)
    found = []
    for dual in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numpy_training, "is_less_work", lambda *_, dual=dual: dual)
            found.append(numpy_training.fit_many(model.network, start, data, ins, [{}] * len(data))[0])
    by_weights, by_errors = found
    np.testing.assert_allclose(by_errors.vectors["delta"], by_weights.vectors["delta"], rtol=1e-3, atol=2e-5)
    for name, values in by_weights.metrics.items():
        np.testing.assert_allclose(by_errors.metrics[name], values, rtol=1e-3, atol=1e-5)


def test_it_is_taken_for_wide_layers_and_few_examples():
    wide, narrow = models.mlp(784, (200, 200), 10).network, models.softmax(784, 10).network
    assert is_less_work(wide, examples=100, epochs=1)
    assert not is_less_work(wide, examples=2000, epochs=1)
    assert not is_less_work(narrow, examples=100, epochs=1)
    assert is_less_work(narrow, examples=100, epochs=20)


def test_what_diverges_in_it_is_not_finite_and_says_nothing():
    model = models.mlp(784, (64,), 10)
    rng = np.random.default_rng(0)
    data = Examples(1e18 * rng.standard_normal((10, 784), np.float32), rng.integers(0, 10, 10))
    numbers = {"learning_rate": 1e18, "epochs": 2, "batch_size": 5}
    start = model.initial(rng)
    update, _ = model.client(data).fit(start, Instruction("sgd", numbers, seed=0), {})
    assert is_less_work(model.network, 10, 2)
    assert not np.isfinite(update.vectors["delta"]).all()


def label(model):
    return np.float32 if model.name == "linear" else np.int64
