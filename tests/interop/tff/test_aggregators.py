"""Our aggregators in TFF's processes."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

import quorate as q
from quorate.errors import PlanError
from quorate.interop.tff.aggregators import factory
from quorate.interop.tff.job import Job
from quorate.interop.tff.processes import functional_model
from quorate.strategies import aggregators

pytestmark = pytest.mark.interop

UPDATES = np.random.default_rng(1).normal(size=(7, 12)).astype(np.float32)


@pytest.mark.parametrize(
    "aggregator", [aggregators.mean(), aggregators.coordinate_median()], ids=lambda a: a.name
)
@pytest.mark.parametrize("clients", [6, 7])
def test_a_process_of_tffs_aggregates_as_ours_do(aggregator, clients):
    process = factory(aggregator, largest_cohort=10).create(tff.TensorType(np.float32, [12]))
    updates = UPDATES[:clients]
    theirs = process.next(process.initialize(), list(updates)).result
    np.testing.assert_allclose(theirs, aggregator.reduce(updates, np.ones(clients)), atol=1e-6)


def test_a_learning_process_takes_it_and_an_outlier_does_not_move_it():
    model = q.models.softmax(4, 2)
    job = Job("", {}, model.layout.entries, model.program_spec(), 0.1)
    learned = {}
    for name, aggregator in (("mean", aggregators.mean()), ("median", aggregators.coordinate_median())):
        process = tff.learning.algorithms.build_unweighted_fed_avg(
            functional_model(job),
            client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
            server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
            model_aggregator=factory(aggregator, largest_cohort=3),
        )
        rng = np.random.default_rng(0)
        x = [rng.normal(size=(8, 4)).astype(np.float32) for _ in range(3)]
        x[2] *= 1000
        y = [np.arange(8) % 2 for _ in range(3)]
        data = [tf.data.Dataset.from_tensor_slices(pair).batch(8) for pair in zip(x, y, strict=True)]
        weights = process.get_model_weights(process.next(process.initialize(), data).state)
        learned[name] = np.abs(weights.trainable[0]).max()
    assert learned["mean"] > 10 * learned["median"] > 0


def test_an_aggregator_without_a_formula_is_refused():
    class Krum:
        name, linear = "krum", False

    with pytest.raises(PlanError, match="accepted: mean, coordinate-median"):
        factory(Krum(), largest_cohort=3)
