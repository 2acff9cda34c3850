"""W1 on FedJAX: its federated averaging over its in-memory data, one process."""

from __future__ import annotations

import sys
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._w1 import BATCH, CLIENTS, COHORT, EXAMPLES, RATE, SEED, WIDTHS, Orders, examples, start


def loss(layers: Any, batch: Any, rng: Any) -> Any:
    x = batch["x"]
    for i, (weights, biases) in enumerate(layers):
        x = (jax.nn.relu(x) if i else x) @ weights + biases
    return -jnp.take_along_axis(jax.nn.log_softmax(x), batch["y"][:, None], axis=1).mean()


def main(name: str) -> None:
    orders = Orders()
    orders.next()
    x, y = examples()
    y = y.astype(np.int32)
    parts = {
        b"%d" % i: {"x": x[i * EXAMPLES : (i + 1) * EXAMPLES], "y": y[i * EXAMPLES : (i + 1) * EXAMPLES]}
        for i in range(CLIENTS)
    }
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        jax.grad(loss),
        client_optimizer=fedjax.optimizers.sgd(RATE),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=1, seed=SEED),
    )
    sampler = fedjax.client_samplers.UniformGetClientSampler(
        fedjax.InMemoryFederatedData(parts), num_clients=COHORT, seed=SEED
    )
    state = algorithm.init([tuple(map(jnp.asarray, layer)) for layer in start(WIDTHS[name])])
    number, more = 0, True
    while more:
        sampler.set_round_num(number)
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)
        orders.done()
        number, more = number + 1, orders.next()
    orders.end([(np.asarray(weights), np.asarray(biases)) for weights, biases in state.params])


if __name__ == "__main__":
    main(sys.argv[1])
