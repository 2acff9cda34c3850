"""DP-SGD in every adapter: what a loop over examples gives, with the same draws and the same noise."""

import dataclasses

import numpy as np
import pytest

import quorate as q
from quorate.clients.adapters import dp_sgd, numpy_models
from quorate.clients.adapters.dp_sgd import ExampleNumbers, noisy_gradients
from quorate.clients.adapters.examples import Examples
from quorate.clients.participation import check_training
from quorate.errors import DataError, PolicyRefused
from quorate.privacy import DpSgd
from tests.clients.adapters.frameworks import PRIVATE, RULES, blobs, by_example, some, told

REFERENCES = {
    "softmax": numpy_models.softmax(5, 3),
    "mlp": numpy_models.mlp(5, (8,), 3),
    "linear": numpy_models.linear(5),
}


def private(rule, layout, section=PRIVATE, **training):
    """An instruction that asks for DP-SGD, and a state."""
    return told(rule, layout, **section.settings(2), **training)


def reference(name="mlp"):
    model, data = REFERENCES[name], blobs()
    return model, Examples(data.x, data.y.astype(np.float32)) if name == "linear" else data


def check(expected, update, state):
    vectors, kept = expected
    assert update.metrics == {}
    for name, vector in vectors.items():
        np.testing.assert_allclose(update.vectors[name], vector, rtol=1e-3, atol=2e-5)
    for name, vector in kept.items():
        np.testing.assert_allclose(state[name], vector, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_model_trains_as_a_loop_over_examples_does(name, rule):
    model, data = reference(name)
    start = some(model.layout)[0]
    ins, state = private(rule, model.layout)
    expected = by_example(
        start.vector,
        len(data),
        ins,
        rule,
        state,
        lambda w, i: model.gradient(w, data.x[i : i + 1], data.y[i : i + 1]),
    )
    check(expected, *model.client(data).fit(start, ins, state))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_pytorch_module_trains_as_a_loop_over_examples_does(rule):
    torch = pytest.importorskip("torch")
    data, nn = blobs(), torch.nn
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    made = q.clients.torch(net, nn.functional.cross_entropy)
    start = some(made.layout)[0]
    ins, state = private(rule, made.layout)

    def gradient_of(weights, row):
        with torch.no_grad():
            for name, value in made.layout.unflatten(weights).items():
                net.get_parameter(name).copy_(torch.from_numpy(np.array(value)))
        net.zero_grad()
        nn.functional.cross_entropy(
            net(torch.from_numpy(data.x[row : row + 1])), torch.from_numpy(data.y[row : row + 1])
        ).backward()
        return made.layout.flatten({name: net.get_parameter(name).grad.numpy() for name in made.layout.names})

    expected = by_example(start.vector, len(data), ins, rule, state, gradient_of)
    check(expected, *made.client(data).fit(start, ins, state))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_jax_loss_trains_as_a_loop_over_examples_does(rule):
    jax = pytest.importorskip("jax")
    jnp = jax.numpy

    def loss(parameters, x, y):
        hidden = jax.nn.relu(x @ parameters["a"] + parameters["b"])
        log = jax.nn.log_softmax(hidden @ parameters["c"])
        return -jnp.take_along_axis(log, y[:, None], axis=1).mean()

    shapes = {"a": (5, 8), "b": (8,), "c": (8, 3)}
    made = q.clients.jax({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, loss)
    data, start = blobs(), some(made.layout)[0]
    ins, state = private(rule, made.layout)
    gradient = jax.jit(jax.grad(loss))

    def gradient_of(weights, row):
        tree = made.pytree(made.layout.unflatten(weights))
        found = gradient(tree, data.x[row : row + 1], data.y[row : row + 1])
        return made.layout.flatten({name: np.asarray(found[name]) for name in made.layout.names})

    expected = by_example(start.vector, len(data), ins, rule, state, gradient_of)
    check(expected, *made.client(data).fit(start, ins, state))


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_how_many_gradients_are_computed_at_once_does_not_matter(block):
    model, data = reference()
    start, rule = some(model.layout)[0], RULES[0]
    ins, _ = private(rule, model.layout)
    blocks = dataclasses.replace(ins, settings={**ins.settings, "batch_size": block})
    one, other = (model.client(data).fit(start, each, {})[0].vectors["delta"] for each in (ins, blocks))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_an_example_whose_gradient_is_not_finite_counts_as_zero():
    model, data = reference()
    start = some(model.layout)[0]
    ins, _ = private(RULES[0], model.layout, DpSgd(clip_norm=1.0, noise_multiplier=0.1, sampling_rate=1.0))
    spoilt = Examples(np.where(np.arange(len(data))[:, None] == 3, np.inf, data.x), data.y)
    found = model.client(spoilt).fit(start, ins, {})[0].vectors["delta"]
    assert np.isfinite(found).all()

    def gradient_of(weights, row):
        each = model.gradient(weights, data.x[row : row + 1], data.y[row : row + 1])
        return each * 0 + 1e-30 if row == 3 else each

    expected = by_example(start.vector, len(data), ins, RULES[0], {}, gradient_of)[0]["delta"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)


def test_draws_and_noise_are_the_operating_systems_unless_a_seed_is_given():
    model, data = reference()
    start = some(model.layout)[0]
    ins, _ = private(RULES[0], model.layout)
    fresh = dataclasses.replace(ins, seed=None)
    one, same, other, another = (
        model.client(data).fit(start, each, {})[0].vectors["delta"] for each in (ins, ins, fresh, fresh)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(other, another)


class Counting:
    """Notes who was drawn."""

    def __init__(self):
        self.drawn = []

    def clipped_sum(self, rows, clip_norm):
        self.drawn.append(rows)
        return np.zeros(1)


def test_every_example_is_drawn_independently_with_the_stated_probability():
    counting, numbers = Counting(), ExampleNumbers(1.0, 1.0, 0.25, 2000)
    steps = sum(1 for _ in noisy_gradients(counting, 40, 1, numbers, 1024, seed=5))
    assert steps == 2000
    sizes = np.array([len(rows) for rows in counting.drawn])
    counts = np.bincount(np.concatenate(counting.drawn), minlength=40)
    assert abs(counts / 2000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)
    assert abs(sizes.var() / (40 * 0.25 * 0.75) - 1) < 0.2  # a fixed size has no variance
    pairs = sum(1 for rows in counting.drawn if {0, 1} <= set(rows.tolist()))
    assert abs(pairs / 2000 - 0.0625) < 5 * np.sqrt(0.0625 / 2000)


def test_a_step_that_draws_nobody_is_noise_alone():
    counting, numbers = Counting(), ExampleNumbers(1.0, 1.0, 1e-6, 3)
    noise = [float(gradient[0]) for gradient in noisy_gradients(counting, 2, 1, numbers, 8, seed=0)]
    assert counting.drawn == []
    assert all(noise)


def test_many_clients_at_once_refuse_what_is_done_for_one():
    model, data = reference()
    ins, _ = private(RULES[0], model.layout)
    with pytest.raises(DataError, match="one at a time"):
        model.fit_many(some(model.layout)[0], [data], [ins], [{}])


@pytest.mark.parametrize("missing", ["clip_norm", "steps", "sampling_rate"])
def test_an_instruction_that_lacks_a_number_is_refused(missing):
    model, data = reference()
    ins, _ = private(RULES[0], model.layout)
    settings = {name: value for name, value in ins.settings.items() if name != f"dp_sgd.{missing}"}
    with pytest.raises(DataError, match=missing):
        model.client(data).fit(some(model.layout)[0], dataclasses.replace(ins, settings=settings), {})


# --- Who can't


def test_a_scikit_learn_estimator_is_refused_with_what_is_accepted():
    pytest.importorskip("sklearn")
    from sklearn.linear_model import SGDClassifier

    made = q.clients.sklearn(SGDClassifier(loss="log_loss"), features=5, classes=3)
    client, (ins, _) = made.client(blobs()), private(RULES[0], made.layout)
    with pytest.raises(PolicyRefused, match=r"reference models, PyTorch .* JAX and Keras") as refused:
        check_training(client, ins)
    assert refused.value.code == "dp-sgd"
    with pytest.raises(DataError, match="gradient of every example"):
        client.fit(some(made.layout)[0], ins, {})


def test_a_module_with_statistics_of_its_batches_is_refused():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    for buffers in ("shared", "local"):
        made = q.clients.torch(net, nn.functional.cross_entropy, buffers=buffers)
        client, (ins, _) = made.client(blobs()), private(RULES[0], made.layout)
        assert dp_sgd.ABILITY not in client.rules
        with pytest.raises(PolicyRefused, match="buffers"):
            check_training(client, ins)
        with pytest.raises(DataError, match="GroupNorm"):
            client.fit(made.initial(np.random.default_rng(0)), ins, {})
