"""A process of its own for each backend of Keras: `python -m tests.clients.adapters.keras_case`."""

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.artifacts.programs import OnnxRuntime
from quorate.clients.adapters import numpy_models
from quorate.errors import PlanError
from quorate.server.publishing import program
from quorate.simulations.source import Simulation
from tests.clients.adapters.frameworks import PRIVATE, RULES, blobs, some, told
from tests.federations import wine

import keras  # isort: skip

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(features=5, extra=()):
    layers = [
        keras.Input((features,)),
        keras.layers.Dense(8, activation="relu"),
        *extra,
        keras.layers.Dense(3),
    ]
    return keras.Sequential(layers)


def renamed(made, mapping):
    """The reference's named values under the model's names: both are in the order of the layers."""
    return {
        name: mapping[other] for name, other in zip(made.layout.names, REFERENCE.layout.names, strict=True)
    }


def flat(made, vector):
    return made.layout.flatten(renamed(made, REFERENCE.layout.unflatten(vector)))


REFERENCE = numpy_models.mlp(5, (8,), 3)


def trains_as_the_reference_does():
    keras_model = network()
    before = [np.array(v) for v in keras_model.get_weights()]
    made, data = q.clients.keras(keras_model, LOSS), blobs()
    assert made.layout.names == ("0_kernel", "1_bias", "2_kernel", "3_bias")
    start = some(REFERENCE.layout)[0]
    for rule in RULES:
        ins, state = told(rule, REFERENCE.layout)
        expected, kept = REFERENCE.client(data).fit(start, ins, state)
        update, new = made.client(data).fit(made.layout.unflatten(start.vector), ins, state)
        for name, vector in expected.vectors.items():
            np.testing.assert_allclose(update.vectors[name], vector, rtol=1e-3, atol=1e-5)
        for name, vector in kept.items():
            np.testing.assert_allclose(new[name], vector, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(update.metrics["accuracy"], expected.metrics["accuracy"], rtol=1e-4)
        np.testing.assert_allclose(update.metrics["loss"], expected.metrics["loss"], rtol=1e-4)
    for one, other in zip(before, keras_model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def trains_by_example_as_the_reference_does():
    """With next to no noise; without a hidden layer its order is that of the reference."""
    keras_model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    made, data = q.clients.keras(keras_model, LOSS), blobs()
    reference, section = numpy_models.softmax(5, 3), PRIVATE.settings(1)
    start = some(reference.layout)[0]
    for rule in RULES:
        ins, state = told(rule, reference.layout, **section)
        expected, _ = reference.client(data).fit(start, ins, state)
        update, _ = made.client(data).fit(made.layout.unflatten(start.vector), ins, state)
        np.testing.assert_allclose(update.vectors["delta"], expected.vectors["delta"], rtol=1e-3, atol=2e-5)
        assert update.metrics == {}


def starts_where_the_model_is_and_is_served():
    keras_model = network()
    made, x = q.clients.keras(keras_model, LOSS), blobs().x
    start = made.initial(np.random.default_rng(0))
    served = OnnxRuntime(program(q.Task(made)), start).predict({"inputs": x})["probabilities"]
    expected = np.array(keras.ops.convert_to_numpy(keras.ops.softmax(keras_model(x))))
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-6)


def runs_and_can_be_repeated():
    plan = q.Plan(
        task=q.Task(q.clients.keras(network(13), LOSS)),
        rounds=q.Rounds(count=3, cohort=12, sampling="fixed"),
        training=q.Training(learning_rate=0.3),
        strategy=q.strategies.fedprox(0.1),
    )
    runs = [
        assembly.run(plan, fleet=Simulation(wine(), seed=1, engine=engine), watch=lambda report: None)
        for engine in ("auto", "auto", "sequential")
    ]
    assert runs[0].model.vector.tobytes() == runs[1].model.vector.tobytes()
    np.testing.assert_allclose(runs[0].model.vector, runs[2].model.vector, rtol=1e-3, atol=2e-5)
    assert runs[0].committed[-1].metrics["loss"] < 0.8 * runs[0].committed[0].metrics["loss"]


def statistics_and_dropout():
    layers = (keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    if keras.backend.backend() == "jax":
        with pytest.raises(PlanError, match="accepted: KERAS_BACKEND=torch"):
            q.clients.keras(network(extra=layers), LOSS)
        return
    shared = q.clients.keras(network(extra=layers), LOSS)
    local = q.clients.keras(network(extra=layers), LOSS, buffers="local")
    assert shared.layout.size == local.layout.size + 16
    assert not shared.together
    start = shared.initial(np.random.default_rng(0))
    ins, _ = told(RULES[0], shared.layout)
    one, two = (shared.client(blobs()).fit(start, ins, {})[0].vectors["delta"] for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert np.abs(one[-16:]).min() > 0
    other, _ = shared.client(blobs()).fit(start, told(RULES[0], shared.layout, seed=1)[0], {})
    assert not np.array_equal(other.vectors["delta"], one)
    _, state = local.client(blobs()).fit(local.initial(np.random.default_rng(0)), ins, {})
    assert state["buffers"].shape == (16,)


def refuses_what_is_not_built():
    for wrong in (keras.Sequential([keras.layers.Dense(3)]), 3):
        with pytest.raises(PlanError, match=r"a built keras\.Model"):
            q.clients.keras(wrong, LOSS)


if __name__ == "__main__":
    trains_as_the_reference_does()
    trains_by_example_as_the_reference_does()
    starts_where_the_model_is_and_is_served()
    runs_and_can_be_repeated()
    statistics_and_dropout()
    refuses_what_is_not_built()
    print(f"all of it holds on {keras.backend.backend()}")
