"""Keras models of TensorFlow's, and TFF's functional models, as tasks."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_privacy as tfp

import quorate as q
from quorate.clients.adapters.examples import Examples
from quorate.clients.participation import check_training
from quorate.errors import DataError, PlanError, PolicyRefused
from quorate.interop.tff.job import Job
from quorate.interop.tff.keras_models import functional_model, keras_model
from quorate.interop.tff.processes import functional_model as tff_functional_model
from quorate.rounds import Instruction
from quorate.simulations import datasets
from tests.clients.adapters.frameworks import RULES
from tests.clients.adapters.frameworks import told as ruled

pytestmark = pytest.mark.interop

LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(4)
DATA = Examples(RNG.normal(size=(30, 64)).astype(np.float32), RNG.integers(0, 10, 30))


def build():
    dense = tf.keras.layers.Dense
    return tf.keras.Sequential([tf.keras.layers.Input((64,)), dense(16, "relu"), dense(10)])


def instruction(rule="sgd", **settings):
    return Instruction(rule, {"learning_rate": 0.1, "epochs": 2, "batch_size": 8, **settings}, seed=5)


OURS = q.models.mlp(64, (16,), 10)
START = OURS.initial(np.random.default_rng(1))


@pytest.mark.parametrize("rule", [("sgd", {}), ("proximal", {"mu": 0.5})])
def test_a_keras_client_takes_the_steps_of_ours(rule):
    model = keras_model(build, LOSS)
    name, settings = rule
    expected, _ = OURS.client(DATA).fit(START, instruction(name, **settings), {})
    start = model.layout.unflatten(START.vector)
    update, _ = model.client(DATA).fit(start, instruction(name, **settings), {})
    np.testing.assert_allclose(update.vectors["delta"], expected.vectors["delta"], atol=2e-6)
    assert update.metrics == pytest.approx(expected.metrics, abs=1e-4)


def test_a_functional_model_of_tffs_is_a_task():
    job = Job("", {}, OURS.layout.entries, OURS.program_spec(), 0.1)
    model = functional_model(tff_functional_model(job), OURS.program_spec())
    expected, _ = OURS.client(DATA).fit(START, instruction(), {})
    update, _ = model.client(DATA).fit(model.layout.unflatten(START.vector), instruction(), {})
    np.testing.assert_allclose(update.vectors["delta"], expected.vectors["delta"], atol=2e-6)
    with pytest.raises(PlanError, match="accepted: `layers`"):
        functional_model(tff_functional_model(job)).program_spec()


def test_a_keras_task_is_learned_published_and_predicts_as_keras_does(tmp_path):
    digits = datasets.digits().partition("iid", clients=10, seed=0)
    task = q.Task(keras_model(build, LOSS))
    plan = q.Plan(
        task=task,
        rounds=q.Rounds(count=2, cohort=5, sampling="fixed"),
        training=q.Training(learning_rate=0.3, batch_size=20),
        privacy=q.privacy.DistributedGaussian(clip_norm=1.0, noise_multiplier=0.1),
        secure_aggregation=q.SecAggPlus(),
    )
    run = q.run(plan, fleet=q.Simulation(digits, seed=1, engine="sequential"), watch=lambda report: None)
    run.publish(tmp_path / "registry", "digits")
    pulled = q.pull(
        tmp_path / "registry",
        "digits",
        trust=tmp_path / "registry" / "root.json",
        directory=tmp_path / "held",
    )
    x = digits.test.x[:50]
    keras = tf.nn.softmax(task.model.predict(run.model, x)).numpy()
    np.testing.assert_allclose(pulled.predict(x), keras, atol=1e-5)


def dp_optimizer(multiplier):
    return lambda: tfp.DPKerasSGDOptimizer(
        l2_norm_clip=0.5, noise_multiplier=multiplier, num_microbatches=None, learning_rate=1.0
    )


def one_step(multiplier, seed=1):
    model = keras_model(build, LOSS, dp_optimizer=dp_optimizer(multiplier))
    settings = {"learning_rate": 1.0, "epochs": 1, "batch_size": 30}
    told = Instruction("sgd", settings, seed=seed)
    update, _ = model.client(DATA).fit(model.layout.unflatten(START.vector), told, {})
    return update.vectors["delta"]


def test_a_dp_optimiser_clips_each_example_and_adds_its_noise():
    # Abadi et al. 2016, algorithm 1: the mean of clipped gradients, and N(0, (z C / B)²).
    gradients = np.stack(
        [OURS.gradient(START.vector, DATA.x[i : i + 1], DATA.y[i : i + 1]) for i in range(30)]
    )
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    clipped = (gradients * np.minimum(1, 0.5 / norms)).mean(axis=0)
    assert norms.max() > 0.5
    np.testing.assert_allclose(one_step(0.0), -clipped, atol=1e-6)
    noise = one_step(3.0) + clipped
    assert noise.std() == pytest.approx(3.0 * 0.5 / 30, rel=0.11)  # 1,210 coordinates: five deviations
    assert np.array_equal(one_step(3.0), one_step(3.0))
    assert not np.array_equal(one_step(3.0), one_step(3.0, seed=2))


PRIVATE = q.privacy.DpSgd(clip_norm=0.5, noise_multiplier=0.7, sampling_rate=0.4)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_keras_client_trains_by_dp_sgd_as_ours_does(rule):
    model = keras_model(build, LOSS)
    told, state = ruled(rule, OURS.layout, **PRIVATE.settings(2))
    expected, kept = OURS.client(DATA).fit(START, told, state)
    update, new = model.client(DATA).fit(model.layout.unflatten(START.vector), told, state)
    assert update.metrics == {}
    for name, vector in expected.vectors.items():
        np.testing.assert_allclose(update.vectors[name], vector, rtol=1e-3, atol=2e-5)
    for name, vector in kept.items():
        np.testing.assert_allclose(new[name], vector, rtol=1e-3, atol=2e-5)


def test_our_clipped_sum_is_that_of_tensorflow_privacys_optimiser():
    everybody = q.privacy.DpSgd(clip_norm=0.5, noise_multiplier=0.01, sampling_rate=1.0)
    told = Instruction(
        "sgd", {"learning_rate": 1.0, "epochs": 1, "batch_size": 8, **everybody.settings(1)}, seed=2
    )
    model = keras_model(build, LOSS)
    ours = model.client(DATA).fit(model.layout.unflatten(START.vector), told, {})[0].vectors["delta"]
    noise = ours - one_step(0.0)
    assert noise.std() == pytest.approx(0.01 * 0.5 / 30, rel=0.11)


def test_dp_sgd_is_refused_where_an_optimiser_makes_its_own_or_losses_are_means():
    job = Job("", {}, OURS.layout.entries, OURS.program_spec(), 0.1)
    for model in (
        keras_model(build, LOSS, dp_optimizer=dp_optimizer(1.0)),
        functional_model(tff_functional_model(job), OURS.program_spec()),
    ):
        client, told = model.client(DATA), instruction(**PRIVATE.settings(1))
        with pytest.raises(PolicyRefused, match="can't clip and noise"):
            check_training(client, told)
        with pytest.raises(DataError, match="accepted: a keras_model without dp_optimizer"):
            client.fit(model.layout.unflatten(START.vector), told, {})


def test_what_follows_no_gradient_or_can_not_be_served_is_refused():
    layers = tf.keras.layers

    def normalised():
        return tf.keras.Sequential([layers.Input((4,)), layers.BatchNormalization(), layers.Dense(2)])

    with pytest.raises(PlanError, match="follow no gradient"):
        keras_model(normalised, LOSS)
    convolved = tf.keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(2)]
    )
    with pytest.raises(PlanError, match="is a Conv2D"):
        keras_model(lambda: convolved, LOSS).program_spec()
