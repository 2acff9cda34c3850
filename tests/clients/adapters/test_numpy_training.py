"""Local training, and the strategies with it, in a federated loop without any server."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate import strategies
from quorate.clients.adapters import numpy_models as models
from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError, PlanError
from quorate.rounds import Instruction
from quorate.strategies import local_rules

ALL = {
    "fedavg": strategies.fedavg(),
    "fedadam": strategies.fedadam(0.1),
    "fedprox": strategies.fedprox(0.1),
    "scaffold": strategies.scaffold(),
    "median": strategies.median(),
}
MODELS = {
    "softmax": models.softmax(3, 3),
    "mlp": models.mlp(3, (8,), 3),
    "linear": models.linear(3),
}


def blobs(rng, examples, model=None, classes=3):
    """Three classes that a line tells apart; or, for a regression, a plane."""
    y = rng.integers(0, classes, examples)
    x = (2 * np.eye(3)[y] + 0.3 * rng.standard_normal((examples, 3))).astype(np.float32)
    return Examples(x, x @ [1.0, -2.0, 0.5] + 1 if model is not None and model.name == "linear" else y)


def instruction(rule=None, seed=0, extras=None, **training):
    rule = rule or local_rules.sgd()
    numbers = {"learning_rate": 0.1, "epochs": 1, "batch_size": 4, **training, **rule.settings}
    return Instruction(rule.name, numbers, extras or {}, seed)


def by_hand(model, start, data, ins, rule, state):
    """A client's training, step by step, with nothing but the model's gradient."""
    assert ins.seed is not None
    rng, n, size = (
        np.random.Generator(np.random.Philox(key=ins.seed)),
        len(data),
        int(ins.settings["batch_size"]),
    )
    context, w, steps = rule.begin(start, ins.extras, state or rule.initial(len(start))), start.copy(), 0
    for _ in range(int(ins.settings["epochs"])):
        order = rng.permutation(n)
        for first in range(0, n, size):
            batch = order[first : first + size]
            gradient = model.gradient(w, data.x[batch], data.y[batch])
            w -= np.float32(ins.settings["learning_rate"]) * rule.gradient(gradient, w, context)
            steps += 1
    return rule.finish(start, w, steps, ins.settings["learning_rate"], context)


def rounds(strategy, model, clients, count, participation=1.0, seed=0, **training):
    """Federated learning without a server: yields the parameters and every state after each round."""
    rng = np.random.default_rng(seed)
    server, x = strategy.server.init(model.layout), model.initial(rng).vector
    states = [{} for _ in clients]
    for _ in range(count):
        cohort = np.sort(rng.choice(len(clients), round(participation * len(clients)), replace=False))
        ins = [
            instruction(strategy.local, int(rng.integers(2**62)), strategy.server.extras(server), **training)
            for _ in cohort
        ]
        updates, new = model.fit_many(
            model.layout.unflatten(x), [clients[i] for i in cohort], ins, [states[i] for i in cohort]
        )
        for i, state in zip(cohort, new, strict=True):
            states[i] = state
        weights = np.ones(len(cohort))
        mean = {name: strategy.aggregator.reduce(v, weights) for name, v in updates.vectors.items()}
        server, x = strategy.server.update(server, x, mean, len(cohort) / len(clients))
        yield model.layout.unflatten(x), server, states


# --- One client, and many -----------------------------------------------------------------------------------

RULES = [local_rules.sgd(), local_rules.proximal(0.5), local_rules.control_variate()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=6),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 15),
    seed=st.integers(0, 2**32),
)
def test_many_clients_at_once_train_as_each_does_alone_and_by_hand(
    model, rule, sizes, epochs, batch_size, seed
):
    rng = np.random.default_rng(seed)
    n = model.layout.size
    start = model.layout.unflatten(0.3 * rng.standard_normal(n))
    data = [blobs(rng, size, model) for size in sizes]
    extras = {"control": (0.01 * rng.standard_normal(n)).astype(np.float32)}
    numbers = {"epochs": epochs, "batch_size": batch_size, "learning_rate": 0.05}
    ins = [instruction(rule, seed + i, extras, **numbers) for i in range(len(sizes))]
    kept = {name: (0.01 * rng.standard_normal(n)).astype(np.float32) for name in rule.initial(n)}
    states = [kept if i % 2 else {} for i in range(len(sizes))]

    together, new = model.fit_many(start, data, ins, states)
    assert together.examples.tolist() == sizes
    for i, one in enumerate(data):
        alone, state = model.client(one).fit(start, ins[i], states[i])
        vectors, expected = by_hand(model, start.vector, one, ins[i], rule, states[i])
        assert alone.examples == sizes[i]
        assert alone.vectors.keys() == together.vectors.keys() == vectors.keys()
        for name, vector in vectors.items():
            assert together.vectors[name].dtype == alone.vectors[name].dtype == np.float32
            np.testing.assert_allclose(alone.vectors[name], vector, rtol=1e-3, atol=2e-5)
            np.testing.assert_allclose(together.vectors[name][i], alone.vectors[name], rtol=1e-3, atol=2e-5)
        for name, value in expected.items():
            np.testing.assert_allclose(state[name], value, rtol=1e-3, atol=2e-5)
            np.testing.assert_allclose(new[i][name], value, rtol=1e-3, atol=2e-5)
        for name, metric in alone.metrics.items():
            assert together.metrics[name][i] == pytest.approx(metric, rel=1e-3, abs=1e-5)


def test_more_clients_than_fit_a_block_are_each_trained_once():
    model, rng = models.softmax(200, 10), np.random.default_rng(0)
    data = [
        Examples(rng.random((1 + i % 7, 200), np.float32), rng.integers(0, 10, 1 + i % 7)) for i in range(150)
    ]
    ins = [instruction(seed=i) for i in range(150)]
    start = model.layout.zeros()
    together, _ = model.fit_many(start, data, ins, [{}] * 150)
    for i in (0, 6, 77, 149):
        alone, _ = model.client(data[i]).fit(start, ins[i], {})
        np.testing.assert_allclose(together.vectors["delta"][i], alone.vectors["delta"], rtol=1e-4, atol=1e-7)


def test_the_same_seed_gives_the_same_bits_and_none_a_fresh_order():
    model, rng = MODELS["softmax"], np.random.default_rng(0)
    client, start = model.client(blobs(rng, 50)), model.layout.zeros()
    one, two, other = (client.fit(start, instruction(seed=s), {})[0].vectors["delta"] for s in (1, 1, 2))
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != other.tobytes()
    fresh = [client.fit(start, instruction(seed=None), {})[0].vectors["delta"].tobytes() for _ in range(2)]
    assert fresh[0] != fresh[1]


def test_training_changes_neither_the_parameters_nor_the_state():
    model, rng = MODELS["softmax"], np.random.default_rng(0)
    start, state = model.layout.zeros(), {"control": np.ones(model.layout.size, np.float32)}
    ins = instruction(local_rules.control_variate(), extras={"control": np.zeros(model.layout.size)})
    model.client(blobs(rng, 9)).fit(start, ins, state)
    assert not start.vector.any()
    assert (state["control"] == 1).all()


def test_metrics_are_averages_over_the_examples_as_they_are_met():
    model, data = MODELS["softmax"], blobs(np.random.default_rng(0), 20)
    start = model.layout.unflatten(np.random.default_rng(1).standard_normal(model.layout.size))
    update, _ = model.client(data).fit(start, instruction(batch_size=100), {})
    assert update.metrics == pytest.approx(model.evaluate(start, data), rel=1e-5)
    linear = MODELS["linear"]
    values = blobs(np.random.default_rng(0), 20, linear)
    start = linear.layout.unflatten(np.ones(4))
    update, _ = linear.client(values).fit(start, instruction(batch_size=100), {})
    assert update.metrics == pytest.approx(linear.evaluate(start, values), rel=1e-5)


def test_what_diverges_is_given_back_as_it_is():
    model, rng = MODELS["linear"], np.random.default_rng(0)
    update, _ = model.client(blobs(rng, 9, model)).fit(
        model.layout.zeros(), instruction(learning_rate=1e30, epochs=5), {}
    )
    assert not np.isfinite(update.vectors["delta"]).all()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"learning_rate": 0}, "learning_rate: 0 was found; a number above 0"),
        ({"learning_rate": np.inf}, "learning_rate: inf"),
        ({"epochs": 0}, "epochs: 0 was found; a whole number"),
        ({"epochs": 1.5}, "epochs: 1.5"),
        ({"batch_size": np.inf}, "batch_size: inf"),
        ({"batch_size": np.nan}, "batch_size: nan"),
        ({"batch_size": None}, "batch_size: None"),
    ],
)
def test_training_numbers_that_make_no_sense_are_refused(numbers, said):
    client = MODELS["softmax"].client(blobs(np.random.default_rng(0), 4))
    with pytest.raises(DataError, match=said):
        client.fit(MODELS["softmax"].layout.zeros(), instruction(**numbers), {})


def test_an_unknown_rule_is_refused_and_known_ones_are_offered():
    client = MODELS["softmax"].client(blobs(np.random.default_rng(0), 4))
    assert {"sgd", "proximal", "control-variate"} <= client.rules
    with pytest.raises(PlanError, match="no local rule 'magic'"):
        client.fit(MODELS["softmax"].layout.zeros(), dataclasses.replace(instruction(), rule="magic"), {})


def test_a_state_of_another_rule_or_model_is_refused():
    client = MODELS["softmax"].client(blobs(np.random.default_rng(0), 4))
    start = MODELS["softmax"].layout.zeros()
    with pytest.raises(DataError, match="'sgd' keeps nothing between rounds"):
        client.fit(start, instruction(), {"control": np.zeros(12, np.float32)})
    ins = instruction(local_rules.control_variate(), extras={"control": start.vector})
    with pytest.raises(DataError, match="'control-variate' keeps"):
        client.fit(start, ins, {"control": np.zeros(5, np.float32)})


def test_clients_that_train_together_are_told_the_same():
    model, rng = MODELS["softmax"], np.random.default_rng(0)
    data = [blobs(rng, 4), blobs(rng, 4)]
    with pytest.raises(DataError, match="the same local rule and settings"):
        model.fit_many(model.layout.zeros(), data, [instruction(), instruction(epochs=2)], [{}, {}])
    with pytest.raises(DataError, match="got 0 clients"):
        model.fit_many(model.layout.zeros(), [], [], [])
    with pytest.raises(DataError, match="2 clients"):
        model.fit_many(model.layout.zeros(), data, [instruction()], [{}, {}])


# --- The strategies in a federated loop ---------------------------------------------------------------------


def test_fedavg_with_one_full_batch_step_on_equal_clients_is_centralised_gradient_descent():
    model, rng = MODELS["softmax"], np.random.default_rng(0)
    everything = blobs(rng, 60)
    clients = [everything.take(part) for part in np.split(rng.permutation(60), 6)]
    central = model.layout.zeros().vector.copy()
    for parameters, _, _ in rounds(
        strategies.fedavg(), model, clients, 10, batch_size=100, learning_rate=0.5
    ):
        central -= np.float32(0.5) * model.gradient(central, everything.x, everything.y)
        np.testing.assert_allclose(parameters.vector, central, rtol=1e-4, atol=1e-6)


def test_fedprox_without_the_proximal_term_is_fedavg():
    model, rng = MODELS["mlp"], np.random.default_rng(0)
    clients = [blobs(rng, size) for size in (5, 8, 13)]
    prox = rounds(strategies.fedprox(mu=0.0), model, clients, 5, epochs=3)
    for (a, _, _), (b, _, _) in zip(
        prox, rounds(strategies.fedavg(), model, clients, 5, epochs=3), strict=True
    ):
        np.testing.assert_allclose(a.vector, b.vector, atol=1e-5)  # plain descent rounds in another order


def test_a_larger_mu_keeps_clients_nearer_to_the_start():
    model, rng = MODELS["softmax"], np.random.default_rng(0)
    client, start = model.client(blobs(rng, 12)), model.layout.zeros()
    travelled = [
        np.linalg.norm(
            client.fit(start, instruction(local_rules.proximal(mu), epochs=50), {})[0].vectors["delta"]
        )
        for mu in (0.0, 0.1, 1.0)
    ]
    assert travelled[0] > travelled[1] > travelled[2]


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_scaffold_s_server_control_variate_is_the_mean_of_the_clients(participation):
    model, rng = MODELS["softmax"], np.random.default_rng(0)
    clients = [blobs(rng, 7) for _ in range(8)]
    for _, server, states in rounds(strategies.scaffold(), model, clients, 6, participation, epochs=2):
        own = [state.get("control", np.zeros(model.layout.size)) for state in states]
        np.testing.assert_allclose(server["control"], np.mean(own, axis=0), rtol=1e-4, atol=1e-6)


def test_scaffold_in_the_first_round_takes_the_steps_of_fedavg():
    model, rng = MODELS["softmax"], np.random.default_rng(0)
    clients = [blobs(rng, size) for size in (5, 8, 13)]
    (one, _, _), (two, _, _) = (
        next(rounds(ALL[name], model, clients, 1, epochs=3)) for name in ("scaffold", "fedavg")
    )
    np.testing.assert_allclose(one.vector, two.vector, rtol=1e-5, atol=1e-7)


def test_scaffold_reaches_the_optimum_where_fedavg_with_many_local_steps_stops_short():
    model, rng = MODELS["linear"], np.random.default_rng(0)
    clients = []
    for scale in (0.3, 1.0, 3.0):  # clients that differ in curvature and in what they want
        x = (scale * rng.standard_normal((30, 3))).astype(np.float32)
        clients.append(Examples(x, x @ rng.standard_normal(3) + rng.standard_normal()))
    everything = Examples(np.concatenate([c.x for c in clients]), np.concatenate([c.y for c in clients]))
    numbers = {"epochs": 20, "batch_size": 30, "learning_rate": 0.02}

    def gradient_norm(strategy):
        *_, (parameters, _, _) = rounds(strategy, model, clients, 150, **numbers)
        return np.linalg.norm(model.gradient(parameters.vector, everything.x, everything.y))

    assert gradient_norm(ALL["scaffold"]) < 1e-3
    assert gradient_norm(ALL["fedavg"]) > 1e-2


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("model", [MODELS["softmax"], MODELS["mlp"]], ids=lambda model: model.name)
def test_every_strategy_learns(name, model):
    rng = np.random.default_rng(0)
    clients, test = [blobs(rng, int(size)) for size in rng.integers(5, 20, 12)], blobs(rng, 300)
    *_, (parameters, _, _) = rounds(ALL[name], model, clients, 40, 0.5, epochs=2)
    assert model.evaluate(parameters, test)["accuracy"] > 0.97


def test_a_regression_learns_too():
    model, rng = MODELS["linear"], np.random.default_rng(0)
    clients = [blobs(rng, 10, model) for _ in range(8)]
    *_, (parameters, _, _) = rounds(strategies.fedavg(), model, clients, 150, epochs=2)
    np.testing.assert_allclose(parameters["weight"][:, 0], [1.0, -2.0, 0.5], atol=0.05)
    np.testing.assert_allclose(parameters["bias"], [1.0], atol=0.1)


def test_the_median_learns_among_liars_and_the_mean_does_not():
    model, rng = MODELS["softmax"], np.random.default_rng(0)
    test = blobs(rng, 300)
    liars = [Examples(100 * b.x, (b.y + 1) % 3) for b in (blobs(rng, 10) for _ in range(3))]
    clients = [*(blobs(rng, 10) for _ in range(9)), *liars]

    def accuracy(name):
        *_, (parameters, _, _) = rounds(ALL[name], model, clients, 30, epochs=2)
        return model.evaluate(parameters, test)["accuracy"]

    assert accuracy("median") > 0.95
    assert accuracy("fedavg") < 0.5
