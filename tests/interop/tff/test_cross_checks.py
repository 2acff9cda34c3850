"""Our algorithms against TFF's, on the same updates. What differs is written up in docs/interop.md."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import quorate as q
from quorate.clients.adapters.examples import Examples
from quorate.codecs import Clip
from quorate.interop.tff.job import Job
from quorate.interop.tff.learning import Learning
from quorate.randomness import Randomness
from quorate.rounds import Instruction
from quorate.strategies import aggregators, local_rules, server_rules
from quorate.strategies.local_rules import Proximal

pytestmark = pytest.mark.interop

RNG = np.random.default_rng(7)
UPDATES = RNG.normal(size=(6, 20)).astype(np.float32) * np.arange(1, 7)[:, None].astype(np.float32)
WEIGHTS = np.array([1, 5, 2, 40, 3, 9], np.float32)
LENGTH = tff.TensorType(np.float32, [20])


def aggregated(factory, *values, weight=False):
    """What a factory's process makes of clients' values in one round."""
    types = (LENGTH, tff.TensorType(np.float32)) if weight else (LENGTH,)
    process = factory.create(*types)
    return process.next(process.initialize(), *[list(value) for value in values])


def test_the_weighted_mean_is_tffs():
    theirs = aggregated(tff.aggregators.MeanFactory(), UPDATES, WEIGHTS, weight=True).result
    np.testing.assert_allclose(aggregators.mean().reduce(UPDATES, WEIGHTS), theirs, rtol=1e-5, atol=1e-6)


def test_clipping_is_tffs():
    factory = tff.aggregators.clipping_factory(5.0, tff.aggregators.UnweightedMeanFactory())
    theirs = aggregated(factory, UPDATES).result
    ours = Clip(5.0).encode(UPDATES, Randomness(bytes(32))).mean(axis=0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(UPDATES, axis=1).max() > 5.0 > np.linalg.norm(UPDATES, axis=1).min()


def stepped(optimizer, deltas):
    """The weights after a TFF optimiser took the negative deltas for gradients."""
    weights = np.zeros(deltas.shape[1], np.float32)
    state = optimizer.initialize(tf.TensorSpec(weights.shape, tf.float32))
    for delta in deltas:
        state, weights = optimizer.next(state, tf.constant(weights), tf.constant(-delta))
        weights = np.asarray(weights)
    return weights


def updated(rule, deltas):
    layout = q.Layout((("x", (deltas.shape[1],)),))
    state, x = rule.init(layout), np.zeros(layout.size, np.float32)
    for delta in deltas:
        state, x = rule.update(state, x, {"delta": delta}, fraction_of_population=1.0)
    return x


def test_server_sgd_with_momentum_is_tffs():
    theirs = stepped(tff.learning.optimizers.build_sgdm(0.3, 0.9), UPDATES)
    np.testing.assert_allclose(updated(server_rules.sgd(0.3, 0.9), UPDATES), theirs, rtol=1e-5, atol=1e-5)


def adam(deltas, eta, beta1, beta2, tau, *, corrected):
    """Kingma and Ba 2015, algorithm 1, in the form before section 2.1; or Reddi et al. 2021, algorithm 2."""
    x = m = np.zeros(deltas.shape[1])
    v = np.zeros(deltas.shape[1]) if corrected else np.full(deltas.shape[1], tau**2)
    for t, delta in enumerate(deltas.astype(np.float64), 1):
        m = beta1 * m + (1 - beta1) * delta
        v = beta2 * v + (1 - beta2) * delta**2
        rate = eta * np.sqrt(1 - beta2**t) / (1 - beta1**t) if corrected else eta
        x = x + rate * m / (np.sqrt(v) + tau)
    return x


def test_server_adam_is_the_papers_and_tffs_has_a_bias_correction():
    theirs = stepped(tff.learning.optimizers.build_adam(0.1, 0.9, 0.99, 1e-3), UPDATES)
    ours = updated(server_rules.adam(0.1, 0.9, 0.99, 1e-3), UPDATES)
    np.testing.assert_allclose(
        ours, adam(UPDATES, 0.1, 0.9, 0.99, 1e-3, corrected=False), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        theirs, adam(UPDATES, 0.1, 0.9, 0.99, 1e-3, corrected=True), rtol=1e-4, atol=1e-6
    )
    assert np.abs(ours - theirs).max() > 0.01


def yogi(deltas, eta, beta1, beta2, tau, start):
    """Zaheer et al. 2018, algorithm 2, with the bias correction of Kingma and Ba that TFF adds."""
    x = m = np.zeros(deltas.shape[1])
    v = np.full(deltas.shape[1], start)
    for t, delta in enumerate(deltas.astype(np.float64), 1):
        m = beta1 * m + (1 - beta1) * delta
        v = v - (1 - beta2) * np.sign(v - delta**2) * delta**2
        x = x + eta * np.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + tau)
    return x


def test_server_yogi_is_the_papers_and_tffs_has_a_bias_correction():
    start = 1e-3**2  # theirs takes any, ours is tau squared
    theirs = stepped(
        tff.learning.optimizers.build_yogi(0.1, 0.9, 0.99, 1e-3, initial_preconditioner_value=start), UPDATES
    )
    np.testing.assert_allclose(theirs, yogi(UPDATES, 0.1, 0.9, 0.99, 1e-3, start), rtol=1e-4, atol=1e-6)

    rounds = iter(range(1, len(UPDATES) + 1))

    def corrected(_):
        t = next(rounds)
        return 0.1 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)

    ours = updated(server_rules.yogi(0.1, 0.9, 0.99, 1e-3), UPDATES)
    np.testing.assert_allclose(
        updated(server_rules.yogi(corrected, 0.9, 0.99, 1e-3), UPDATES), theirs, rtol=1e-4, atol=1e-6
    )
    assert np.abs(ours - theirs).max() > 0.01


def test_server_adagrad_is_tffs_but_for_where_the_small_constant_stands():
    # Duchi et al. 2011, section 1.1, and Reddi et al. 2021: η·Δ / (√v + τ). TFF: η·Δ / √(v + ε).
    tau, start = 1e-3, 1e-3**2
    build = tff.learning.optimizers.build_adagrad
    theirs = stepped(build(0.1, initial_preconditioner_value=start, epsilon=0.0), UPDATES)
    ours = updated(server_rules.adagrad(0.1, 0.0, tau), UPDATES)
    v = start + np.cumsum(UPDATES.astype(np.float64) ** 2, axis=0)
    np.testing.assert_allclose(theirs, (0.1 * UPDATES / np.sqrt(v)).sum(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours, (0.1 * UPDATES / (np.sqrt(v) + tau)).sum(axis=0), rtol=1e-4, atol=1e-6)
    # On updates that are large beside τ the two are one.
    np.testing.assert_allclose(
        updated(server_rules.adagrad(0.1, 0.0, tau), 1e4 * UPDATES),
        stepped(build(0.1, initial_preconditioner_value=start, epsilon=0.0), 1e4 * UPDATES),
        atol=1e-4,
    )


DATA = [
    Examples(RNG.normal(size=(size, 5)).astype(np.float32), RNG.integers(0, 3, size)) for size in (7, 12, 9)
]
MODEL = q.models.softmax(5, 3)
START = RNG.normal(size=MODEL.layout.size).astype(np.float32)


def one_round(process, **settings):
    """The weights after a round of a TFF process from `START`, every client with its data in order, twice over."""
    job = Job(f"{__name__}:{process}", settings, MODEL.layout.entries, MODEL.program_spec(), 0.1)
    learning = Learning(job)
    datasets = [learning.dataset(d.x, d.y, np.tile(np.arange(len(d)), 2), 4) for d in DATA]
    return learning.vector(learning.step(learning.initial(START), datasets)[0])


def in_order(gradient_of):
    """The mean delta of our own clients, who take the same steps: twice over their data in order, batches of four."""
    deltas = []
    for data in DATA:
        weights = START.copy()
        for _ in range(2):
            for first in range(0, len(data), 4):
                batch = data.take(np.arange(first, min(first + 4, len(data))))
                gradient = MODEL.gradient(weights, batch.x, batch.y)
                weights = weights - np.float32(0.1) * gradient_of(gradient, weights)
        deltas.append(weights - START)
    return np.mean(deltas, axis=0)


def fed_prox(job, mu):
    from quorate.interop.tff.processes import functional_model

    build = tff.learning.optimizers.build_sgdm
    return tff.learning.algorithms.build_unweighted_fed_prox(
        functional_model(job),
        mu,
        client_optimizer_fn=build(job.learning_rate),
        server_optimizer_fn=build(1.0),
    )


def fed_avg(job):
    from quorate.interop.tff.processes import unweighted_fed_avg

    return unweighted_fed_avg(job)


def test_fedavg_of_unequal_clients_is_tffs():
    ours = START + in_order(lambda gradient, weights: gradient)
    np.testing.assert_allclose(one_round("fed_avg"), ours, atol=1e-6)


def test_fedprox_pulls_back_and_tffs_pushes_away():
    # Li et al. 2020, equation 2: the gradient of F(w) + μ/2 ‖w - x‖² is ∇F(w) + μ (w - x).
    rule = Proximal(2.0)
    context = rule.begin(START, {}, {})
    ours = START + in_order(lambda g, w: rule.gradient(g, w, context))
    reversed_sign = START + in_order(lambda g, w: g - 2.0 * (w - START))
    plain = START + in_order(lambda g, w: g)
    theirs = one_round("fed_prox", mu=2.0)
    np.testing.assert_allclose(theirs, reversed_sign, atol=2e-6)
    assert np.linalg.norm(theirs - START) > np.linalg.norm(plain - START) > np.linalg.norm(ours - START)


def test_our_clients_take_these_steps():
    """That `in_order` is what our clients do is shown with one batch a pass, whose order does not matter."""
    data = DATA[0]
    instruction = Instruction("proximal", {"learning_rate": 0.1, "epochs": 2, "batch_size": 7, "mu": 2.0})
    update, _ = MODEL.client(data).fit(MODEL.layout.unflatten(START), instruction, {})
    rule = local_rules.proximal(2.0)
    context, weights = rule.begin(START, {}, {}), START.copy()
    for _ in range(2):
        gradient = MODEL.gradient(weights, data.x, data.y)
        weights = weights - np.float32(0.1) * rule.gradient(gradient, weights, context)
    np.testing.assert_allclose(update.vectors["delta"], weights - START, atol=1e-6)


def test_a_process_takes_batches_by_name_and_of_other_shapes():
    element = tff.to_type(
        collections.OrderedDict(
            x=tff.TensorType(np.float32, [None, 2, 2]), y=tff.TensorType(np.int32, [None, 1])
        )
    )
    from quorate.interop.tff.learning import client_dataset

    x, y = np.arange(20, dtype=np.float32).reshape(5, 4), np.arange(5)
    batches = list(client_dataset(element, x, y, np.array([4, 3, 2, 1, 0, 0, 1, 2, 3, 4]), 3))
    assert [batch["y"].numpy().ravel().tolist() for batch in batches] == [
        [4, 3, 2],
        [1, 0],
        [0, 1, 2],
        [3, 4],
    ]
    assert batches[0]["x"].shape == (3, 2, 2)
    assert batches[0]["y"].dtype == tf.int32
