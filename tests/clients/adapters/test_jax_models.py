"""JAX: a pure loss, trained as the reference models are, alone and many at once, whatever is padded."""

import pickle

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.artifacts.programs import OnnxRuntime
from quorate.clients.adapters import numpy_models
from quorate.errors import DataError, PlanError
from quorate.server.publishing import program
from quorate.simulations.source import Simulation
from quorate.task import DenseLayer
from tests.clients.adapters.frameworks import RULES, blobs, instruction, some, told
from tests.federations import wine

jax = pytest.importorskip("jax")
cases = pytest.importorskip("tests.clients.adapters.jax_case")
accuracy, loss, model, network, outputs = (
    cases.accuracy,
    cases.loss,
    cases.model,
    cases.network,
    cases.outputs,
)

REFERENCE = numpy_models.mlp(5, (8,), 3)


def in_order(made, vector):
    """The reference's flat vector in the order of the pytree's leaves, which is that of their names."""
    named = REFERENCE.layout.unflatten(vector)
    return np.concatenate([named[name].ravel() for name in made.layout.names])


def test_the_layout_names_leaves_by_their_paths():
    assert model().layout.entries == (
        ("layer1.bias", (8,)),
        ("layer1.weight", (5, 8)),
        ("layer2.bias", (3,)),
        ("layer2.weight", (8, 3)),
    )
    assert q.clients.jax([np.zeros(2, np.float32), (np.ones(1, np.float32),)], loss).layout.names == (
        "0",
        "1.0",
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_loss_trains_as_the_same_network_of_the_reference_models(rule):
    made, data = model(), blobs()
    start = some(REFERENCE.layout)[0]
    ins, state = told(rule, REFERENCE.layout)
    expected, kept = REFERENCE.client(data).fit(start, ins, state)
    extras = {name: in_order(made, v) for name, v in ins.extras.items()}
    state = {name: in_order(made, v) for name, v in state.items()}
    parameters = made.layout.unflatten(in_order(made, start.vector))
    update, new = made.client(data).fit(parameters, instruction(rule, 0, extras), state)
    assert update.examples == 14
    assert update.metrics == pytest.approx(expected.metrics, rel=1e-4)
    for name, vector in expected.vectors.items():
        assert update.vectors[name].dtype == np.float32
        np.testing.assert_allclose(update.vectors[name], in_order(made, vector), rtol=1e-3, atol=1e-5)
    for name, vector in kept.items():
        np.testing.assert_allclose(new[name], in_order(made, vector), rtol=1e-3, atol=1e-5)


MODEL = model()


def test_metrics_are_those_of_all_examples():
    start = some(MODEL.layout)[0]
    for examples in (1, 3, 2000):
        data = blobs(examples)
        found = MODEL.evaluate(start, data)
        tree = MODEL.pytree(start)
        assert found["loss"] == pytest.approx(float(loss(tree, data.x, data.y)), rel=1e-4)
        assert found["accuracy"] == pytest.approx(float(accuracy(tree, data.x, data.y)), rel=1e-5)


def test_learning_starts_at_the_given_parameters_or_at_some_that_follow_the_seed():
    given = jax.tree.map(np.asarray, network()(jax.random.key(3)))
    start = model(given).initial(np.random.default_rng(0))
    np.testing.assert_array_equal(start["layer2.weight"], given["layer2"]["weight"])
    one, two, other = (MODEL.initial(np.random.default_rng(seed)).vector for seed in (1, 1, 2))
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != other.tobytes()


def test_a_client_has_its_own_data_and_learning_rate_if_it_says_so():
    start = some(MODEL.layout)[0]
    own, _ = model(data=blobs(), learning_rate=0.3).client().fit(start, instruction(), {})
    planned, _ = MODEL.client(blobs()).fit(start, instruction(learning_rate=0.3), {})
    assert own.vectors["delta"].tobytes() == planned.vectors["delta"].tobytes()
    with pytest.raises(DataError, match="needs data"):
        MODEL.client()


def test_parameters_that_are_not_float32_are_refused():
    with pytest.raises(PlanError, match=r"'w': 'int64'.* a pytree of float32 arrays"):
        q.clients.jax({"w": np.zeros(2, np.int64)}, loss)
    with pytest.raises(PlanError, match="none were found"):
        q.clients.jax({}, loss)


def test_a_model_can_be_sent_to_another_process():
    start, data = some(MODEL.layout)[0], blobs()
    here, _ = MODEL.client(data).fit(start, instruction(), {})
    sent = q.clients.jax(MODEL.pytree(start), loss, metrics={"accuracy": accuracy})
    there, _ = pickle.loads(pickle.dumps(sent)).client(data).fit(start, instruction(), {})
    assert here.vectors["delta"].tobytes() == there.vectors["delta"].tobytes()


def test_a_chain_of_dense_layers_is_served_and_any_other_function_is_refused():
    layers = [
        DenseLayer("layer1.weight", "layer1.bias", 5, 8, "relu"),
        DenseLayer("layer2.weight", "layer2.bias", 8, 3, "softmax"),
    ]
    start, x = some(MODEL.layout)[0], blobs().x
    served = OnnxRuntime(program(q.Task(model(layers=layers))), start).predict({"inputs": x})
    expected = jax.nn.softmax(outputs(MODEL.pytree(start), x))
    np.testing.assert_allclose(served["probabilities"], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(PlanError, match="accepted: layers="):
        program(q.Task(MODEL))


def test_processes_which_fork_are_refused():
    plan = q.Plan(task=q.Task(model(network(13, 16, 3))), rounds=q.Rounds(count=1, cohort=8))
    with pytest.raises(PlanError, match=r"fleet.engine: 'processes' forks.* 'jax' does not survive"):
        assembly.run(plan, fleet=Simulation(wine(), seed=1, engine="processes"), watch=lambda report: None)
