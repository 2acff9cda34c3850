"""Learning processes for tasks that are chains of dense layers, so that a plan needs no code of TFF's.

    [engine]
    name = "tff"
    process = "quorate.interop.tff.processes:weighted_fed_avg"

Each is one of `tff.learning.algorithms`, on a functional model with the task's layers and loss. The clients' learning
rate is that of the plan's `[training]`. Its FedProx is not among them: the sign of its proximal term is wrong
(docs/interop.md). Runs where TensorFlow Federated is installed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from quorate import plugins
from quorate.errors import PlanError
from quorate.interop.tff.job import Job
from quorate.task import DenseLayer

__all__ = ["dp_fed_avg", "dp_query", "fed_adam", "functional_model", "unweighted_fed_avg", "weighted_fed_avg"]

_ACTIVATIONS = {"relu": tf.nn.relu, "tanh": tf.tanh, "sigmoid": tf.sigmoid, "identity": tf.identity}


def weighted_fed_avg(job: Job, learning_rate: float = 1.0, momentum: float = 0.0) -> Any:
    """FedAvg (McMahan et al. 2017), clients weighted by their examples.

    Args:
        job: the plan.
        learning_rate: the server's.
        momentum: the server's.
    """
    return tff.learning.algorithms.build_weighted_fed_avg(
        functional_model(job), **_optimizers(job, learning_rate, momentum)
    )


def unweighted_fed_avg(
    job: Job, learning_rate: float = 1.0, momentum: float = 0.0, clip_norm: float | None = None
) -> Any:
    """FedAvg with clients that all count the same.

    Args:
        job: the plan.
        learning_rate: the server's.
        momentum: the server's.
        clip_norm: of an update; None clips nothing.
    """
    aggregator = tff.aggregators.UnweightedMeanFactory()
    if clip_norm is not None:
        aggregator = tff.aggregators.clipping_factory(clip_norm, aggregator)
    return tff.learning.algorithms.build_unweighted_fed_avg(
        functional_model(job), model_aggregator=aggregator, **_optimizers(job, learning_rate, momentum)
    )


def fed_adam(
    job: Job, learning_rate: float = 0.1, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Any:
    """FedAvg with TFF's Adam on the server.

    Args:
        job: the plan.
        learning_rate: the server's.
        beta1: of the first moment.
        beta2: of the second moment.
        tau: what is added to the root of the second moment.
    """
    optimizers = _optimizers(job, learning_rate, 0.0)
    optimizers["server_optimizer_fn"] = tff.learning.optimizers.build_adam(learning_rate, beta1, beta2, tau)
    return tff.learning.algorithms.build_unweighted_fed_avg(functional_model(job), **optimizers)


def dp_fed_avg(
    job: Job, clip_norm: float, noise_multiplier: float, clients_per_round: float, learning_rate: float = 1.0
) -> Any:
    """DP-FedAvg (McMahan et al. 2018): a fixed clip norm, Gaussian noise on the sum, a fixed denominator.

    The noise is TensorFlow's, in single precision: the ε does not cover what floating point leaks (Mironov 2012).

    Args:
        job: the plan.
        clip_norm: of an update.
        noise_multiplier: the noise's deviation over the clip norm.
        clients_per_round: what the sum is divided by.
        learning_rate: the server's.
    """
    aggregator = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
        noise_multiplier, clients_per_round, clip_norm
    )
    return tff.learning.algorithms.build_unweighted_fed_avg(
        functional_model(job), model_aggregator=aggregator, **_optimizers(job, learning_rate, 0.0)
    )


def dp_query(job: Job, query: str, learning_rate: float = 1.0) -> Any:
    """FedAvg whose aggregator is any sum query of tensorflow-privacy, such as one that adapts its clip norm.

    Args:
        job: the plan.
        query: `module:attribute` of a function that returns a `tensorflow_privacy.SumAggregationDPQuery`.
        learning_rate: the server's.
    """
    aggregator = tff.aggregators.DifferentiallyPrivateFactory(plugins.find("engine.query", query)())
    return tff.learning.algorithms.build_unweighted_fed_avg(
        functional_model(job), model_aggregator=aggregator, **_optimizers(job, learning_rate, 0.0)
    )


def functional_model(job: Job) -> Any:
    """The task's network and loss as a `tff.learning.models.FunctionalModel`, whose weights start at zero.

    Raises:
        PlanError: the task is no chain of dense layers.
    """
    if job.layers is None:
        raise PlanError(
            f"engine.process: {job.process!r} makes its model of a task's dense layers, and this task has none; "
            "accepted: a function of your own that returns the learning process"
        )
    layers = job.layers
    classes = layers[-1].activation == "softmax"
    zeros = tuple(tf.zeros(shape).numpy() for _, shape in job.shapes)

    def predict_on_batch(model_weights: Any, x: Any, training: bool = True) -> Any:
        return _outputs(layers, model_weights[0], x)

    def loss(predicted: Any, y: Any, sample_weight: Any = None) -> Any:
        if classes:
            return tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(y, [-1]), predicted)
            )
        return tf.reduce_mean(tf.square(tf.reshape(predicted, [-1]) - tf.reshape(y, [-1])))

    spec = (
        tf.TensorSpec([None, layers[0].inputs], tf.float32),
        tf.TensorSpec([None], tf.int64 if classes else tf.float32),
    )
    return tff.learning.models.FunctionalModel(
        initial_weights=(zeros, ()),
        predict_on_batch_fn=tf.function(predict_on_batch),
        loss_fn=loss,
        metrics_fns=tff.learning.metrics.create_functional_metric_fns(lambda: _metrics(classes)),
        input_spec=spec,
    )


def _metrics(classes: bool) -> Any:
    keras = tf.keras.metrics
    if classes:
        loss = keras.SparseCategoricalCrossentropy(from_logits=True)
        return OrderedDict(loss=loss, accuracy=keras.SparseCategoricalAccuracy())
    return OrderedDict(loss=keras.MeanSquaredError())


def _outputs(layers: Sequence[DenseLayer], weights: Sequence[Any], x: Any) -> Any:
    """Logits of a classifier, values of a regression."""
    value = x
    for i, layer in enumerate(layers):
        value = tf.matmul(value, weights[2 * i]) + weights[2 * i + 1]
        if layer.activation != "softmax":
            value = _ACTIVATIONS[layer.activation](value)
    return value


def _optimizers(job: Job, learning_rate: float, momentum: float) -> dict[str, Any]:
    build = tff.learning.optimizers.build_sgdm
    return {
        "client_optimizer_fn": build(job.learning_rate),
        "server_optimizer_fn": build(learning_rate, momentum),
    }
