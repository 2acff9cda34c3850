"""W1 on TensorFlow Federated's own runtime: its weighted federated averaging over a Keras model."""

from __future__ import annotations

import collections
import sys
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from benchmarks._w1 import (
    BATCH,
    CLIENTS,
    COHORT,
    EXAMPLES,
    FEATURES,
    RATE,
    SEED,
    WIDTHS,
    Orders,
    examples,
    start,
)


def main(name: str) -> None:
    orders = Orders()
    orders.next()
    x, y = examples()
    rng = np.random.default_rng(SEED)
    layers = start(WIDTHS[name])

    def client(index: int) -> Any:
        rows = slice(index * EXAMPLES, (index + 1) * EXAMPLES)
        data = tf.data.Dataset.from_tensor_slices(collections.OrderedDict(x=x[rows], y=y[rows]))
        return data.shuffle(EXAMPLES).batch(BATCH)

    spec = collections.OrderedDict(
        x=tf.TensorSpec((None, FEATURES), tf.float32), y=tf.TensorSpec((None,), tf.int64)
    )

    def model() -> Any:
        network = [tf.keras.layers.InputLayer(input_shape=(FEATURES,))]
        for i, (weights, _) in enumerate(layers):
            activation = "relu" if i + 1 < len(layers) else None
            network.append(tf.keras.layers.Dense(weights.shape[1], activation=activation))
        return tff.learning.models.from_keras_model(
            tf.keras.Sequential(network),
            input_spec=spec,
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

    process = tff.learning.algorithms.build_weighted_fed_avg(
        model,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(RATE),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )
    state = process.initialize()
    flat = [array for layer in layers for array in layer]
    state = process.set_model_weights(state, tff.learning.models.ModelWeights(flat, []))

    more = True
    while more:
        cohort = rng.choice(CLIENTS, COHORT, replace=False)
        state = process.next(state, [client(int(index)) for index in cohort]).state
        orders.done()
        more = orders.next()
    trained = [np.asarray(array) for array in process.get_model_weights(state).trainable]
    orders.end(list(zip(trained[::2], trained[1::2], strict=True)))


if __name__ == "__main__":
    main(sys.argv[1])
