"""PyTorch modules: trained as the reference models are, with what only modules have treated as said."""

import pickle

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.artifacts.programs import OnnxRuntime
from quorate.clients.adapters import numpy_models
from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError, PlanError
from quorate.server.publishing import program
from quorate.simulations.source import Simulation
from tests.clients.adapters.frameworks import RULES, blobs, instruction, some, told
from tests.federations import digits, wine

torch = pytest.importorskip("torch")
F = torch.nn.functional
nn = torch.nn


def network(features=5, hidden=8, classes=3):
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def normalised():
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def model(module=None, loss=F.cross_entropy, data=None, **options):
    return q.clients.torch(module or network(), loss, data, **options)


def transposed(reference, vector):
    """The reference's flat vector as PyTorch lays it out: weights of shape (outputs, inputs)."""
    named = reference.layout.unflatten(vector)
    return np.concatenate([named[name].T.ravel() for name in reference.layout.names])


# --- Training


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_module_trains_as_the_same_network_of_the_reference_models(rule):
    reference, made, data = numpy_models.mlp(5, (8,), 3), model(), blobs()
    start, _, _ = some(reference.layout)
    ins, state = told(rule, reference.layout)
    expected, kept = reference.client(data).fit(start, ins, state)
    extras = {name: transposed(reference, v) for name, v in ins.extras.items()}
    ins = instruction(rule, 0, extras)
    state = {name: transposed(reference, v) for name, v in state.items()}
    parameters = made.layout.unflatten(transposed(reference, start.vector))
    update, new = made.client(data).fit(parameters, ins, state)
    assert update.examples == 14
    assert update.metrics == pytest.approx(expected.metrics, rel=1e-4)
    for name, vector in expected.vectors.items():
        assert update.vectors[name].dtype == np.float32
        np.testing.assert_allclose(update.vectors[name], transposed(reference, vector), rtol=1e-3, atol=1e-5)
    for name, vector in kept.items():
        np.testing.assert_allclose(new[name], transposed(reference, vector), rtol=1e-3, atol=1e-5)


def test_a_client_s_own_learning_rate_takes_the_place_of_the_plan_s():
    data, start = blobs(), model().layout.zeros()
    own, _ = model(learning_rate=0.3).client(data).fit(start, instruction(), {})
    planned, _ = model().client(data).fit(start, instruction(learning_rate=0.3), {})
    assert own.vectors["delta"].tobytes() == planned.vectors["delta"].tobytes()


def test_the_user_s_module_is_not_changed():
    module = normalised()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    made = model(module)
    made.client(blobs()).fit(some(made.layout)[0], instruction(), {})
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_frozen_parameters_stay_what_they_are():
    module = network()
    module[0].requires_grad_(False)
    made = model(module)
    assert made.layout.names == ("2.weight", "2.bias")
    hidden = F.relu(module[0](torch.ones(1, 5)))
    start = some(made.layout)[0]
    expected = hidden.detach().numpy() @ start["2.weight"].T + start["2.bias"]
    np.testing.assert_allclose(made.predict(start, np.ones((1, 5), np.float32)), expected, rtol=1e-5)


def test_what_a_module_draws_follows_the_seed_and_leaves_pytorch_s_own_alone():
    made = model(nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    before, start = torch.get_rng_state(), some(made.layout)[0]
    one, two, other = (
        made.client(blobs()).fit(start, instruction(seed=seed), {})[0].vectors["delta"] for seed in (1, 1, 2)
    )
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != other.tobytes()
    assert torch.equal(torch.get_rng_state(), before)


# --- Buffers


def statistics(made, update):
    """The shared buffers' part of a delta."""
    return update.vectors["delta"][made.trained.size :]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_shared_buffers_ride_in_the_delta_and_no_rule_touches_them(rule):
    made, data = model(normalised()), blobs()
    assert made.layout.names[-2:] == ("1.running_mean", "1.running_var")
    start = made.initial(np.random.default_rng(0))
    ins, state = told(rule, made.layout, epochs=1, batch_size=14)
    update, _ = made.client(data).fit(start, ins, state)
    hidden = data.x @ start["0.weight"].T + start["0.bias"]
    mean = 0.1 * hidden.mean(axis=0)
    variance = 0.1 * (hidden.var(axis=0, ddof=1) - 1)
    np.testing.assert_allclose(
        statistics(made, update), np.concatenate([mean, variance]), rtol=1e-3, atol=1e-5
    )


def test_local_buffers_stay_in_the_client_s_state_and_go_on_from_there():
    shared, local, data = model(normalised()), model(normalised(), buffers="local"), blobs()
    assert local.layout == shared.trained
    start = some(local.layout)[0]
    update, state = local.client(data).fit(start, instruction(), {})
    assert update.vectors["delta"].shape == (local.layout.size,)
    assert state["buffers"].shape == (16,)
    _, later = local.client(data).fit(start, instruction(), state)
    assert not np.array_equal(later["buffers"], state["buffers"])
    _, fresh = local.client(data).fit(start, instruction(), {})
    np.testing.assert_array_equal(fresh["buffers"], state["buffers"])


def test_a_client_evaluates_with_its_own_buffers():
    made, data = model(normalised(), buffers="local"), blobs()
    start = some(made.layout)[0]
    client = made.client(data)
    _, state = client.fit(start, instruction(), {})
    own, common = (client.evaluate(start, instruction(), s).metrics for s in (state, {}))
    assert own != common
    assert common == made.evaluate(start, data)


def test_a_state_of_another_model_is_refused():
    made = model(normalised(), buffers="local")
    with pytest.raises(DataError, match="16 values of buffers"):
        made.client(blobs()).fit(some(made.layout)[0], instruction(), {"buffers": np.zeros(3, np.float32)})


# --- The model


def test_learning_starts_where_the_module_is():
    module = network()
    start = model(module).initial(np.random.default_rng(0))
    np.testing.assert_array_equal(start["2.weight"], module[2].weight.detach().numpy())


def test_a_function_makes_parameters_that_follow_the_plan_s_seed():
    made = model(network)
    one, two, other = (made.initial(np.random.default_rng(seed)).vector for seed in (1, 1, 2))
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != other.tobytes()


def test_metrics_are_the_loss_the_accuracy_of_a_classifier_and_what_is_asked_for():
    assert model().metrics == ("loss", "accuracy")
    assert model(loss=nn.CrossEntropyLoss()).metrics == ("loss", "accuracy")
    assert model(loss=F.mse_loss).metrics == ("loss",)
    made = model(metrics={"confidence": lambda z, y: z.softmax(1).amax(1).mean()})
    found = made.evaluate(some(made.layout)[0], blobs(3000))
    expected = torch.tensor(made.predict(some(made.layout)[0], blobs(3000).x)).softmax(1).amax(1).mean()
    assert found["confidence"] == pytest.approx(float(expected), rel=1e-4)


class Lines(torch.utils.data.Dataset):
    def __len__(self):
        return 14

    def __getitem__(self, i):
        return torch.tensor(blobs().x[i]), int(blobs().y[i])


def test_data_are_examples_arrays_tensors_or_a_dataset():
    data, start = blobs(), model().layout.zeros()
    kinds = [data, (data.x, data.y), (torch.tensor(data.x), torch.tensor(data.y)), Lines()]
    deltas = [
        model().client(kind).fit(start, instruction(), {})[0].vectors["delta"].tobytes() for kind in kinds
    ]
    assert len(set(deltas)) == 1
    with pytest.raises(DataError, match="of type int were found; accepted: Examples"):
        model().client(3)


def test_a_model_with_data_of_its_own_makes_a_client_without_being_given_any():
    assert model(data=blobs()).client().fit(model().layout.zeros(), instruction(), {})[0].examples == 14
    with pytest.raises(DataError, match="needs data"):
        model().client()


def test_what_is_no_module_or_not_float32_is_refused():
    with pytest.raises(PlanError, match=r"int was found; a torch.nn.Module, or a function"):
        model(lambda: 3)
    with pytest.raises(PlanError, match="float32 is accepted"):
        _ = model(network().double()).layout
    with pytest.raises(PlanError, match="no parameter that asks for a gradient"):
        _ = model(nn.ReLU()).layout
    with pytest.raises(PlanError, match="'shared' and 'local' are accepted"):
        model(buffers="mine")


def test_a_model_can_be_sent_to_another_process():
    made, data = model(), blobs()
    start = some(made.layout)[0]
    here, _ = made.client(data).fit(start, instruction(), {})
    there, _ = pickle.loads(pickle.dumps(made)).client(data).fit(start, instruction(), {})
    assert here.vectors["delta"].tobytes() == there.vectors["delta"].tobytes()


# --- Serving


def test_the_program_predicts_as_the_module_does():
    made = model(normalised())
    start = some(made.layout)[0]
    positive = start.vector.copy()
    positive[made.layout.slice("1.running_var")] = 0.7
    start, x = made.layout.unflatten(positive), blobs().x
    served = OnnxRuntime(program(q.Task(made)), start).predict({"inputs": x})
    assert [*served] == ["probabilities"]
    expected = torch.softmax(torch.tensor(made.predict(start, x)), 1)
    np.testing.assert_allclose(served["probabilities"], expected, rtol=1e-4, atol=1e-6)


def test_images_are_served_in_their_own_shape():
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 1))
    made = model(convolution, F.mse_loss, example=np.zeros((1, 8, 8), np.float32))
    start, x = some(made.layout)[0], np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    written = program(q.Task(made))
    assert written.inputs[0].shape == (-1, 1, 8, 8)
    served = OnnxRuntime(written, start).predict({"inputs": x})["values"]
    np.testing.assert_allclose(served, made.predict(start, x), rtol=1e-4, atol=1e-6)


def test_a_program_whose_input_is_not_known_is_refused_before_the_first_round(tmp_path):
    made = model(nn.Sequential(nn.Flatten(), nn.Linear(13, 3)))
    plan = q.Plan(
        task=q.Task(made),
        rounds=q.Rounds(count=1, cohort=8),
        publish=q.Publish(registry=str(tmp_path / "registry"), model="m"),
    )
    told = []
    with pytest.raises(PlanError, match="accepted: example=, the features of one"):
        assembly.run(plan, fleet=Simulation(wine(), seed=0), watch=told.append)
    assert not told


# --- A run


@pytest.mark.parametrize("strategy", [q.strategies.fedavg(), q.strategies.scaffold()])
@pytest.mark.parametrize("engine", ["sequential", "vectorised"])
def test_a_seeded_run_learns_and_can_be_repeated(strategy, engine):
    plan = q.Plan(
        task=q.Task(model(lambda: network(64, 16, 10))),
        rounds=q.Rounds(count=6, cohort=20, sampling="fixed"),
        training=q.Training(learning_rate=0.3, epochs=2),
        strategy=strategy,
        privacy=q.privacy.NoPrivacy(clip_norm=5.0),
        secure_aggregation=q.IdealSum(),
    )
    source = Simulation(digits(), seed=1, engine=engine)
    one, two = (assembly.run(plan, fleet=source, watch=lambda report: None) for _ in range(2))
    assert one.model.vector.tobytes() == two.model.vector.tobytes()
    first, last = one.committed[0].metrics["loss"], one.committed[-1].metrics["loss"]
    assert last < 0.8 * first


def test_processes_which_fork_are_refused():
    plan = q.Plan(task=q.Task(model(network(64, 16, 10))), rounds=q.Rounds(count=1, cohort=8))
    with pytest.raises(PlanError, match=r"fleet.engine: 'processes' forks.* 'torch' does not survive"):
        assembly.run(plan, fleet=Simulation(digits(), seed=1, engine="processes"), watch=lambda report: None)


def test_examples_of_any_shape_are_taken_and_the_reference_models_say_what_they_need():
    images = Examples(np.zeros((4, 2, 3)), np.zeros(4, int))
    made = model(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)))
    made.client(images).fit(made.layout.zeros(), instruction(), {})
    with pytest.raises(DataError, match="takes 6 features, got 2×3"):
        numpy_models.softmax(6, 3).client(images)
