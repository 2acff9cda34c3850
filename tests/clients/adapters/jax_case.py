"""A small network in JAX, with its loss and accuracy."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import quorate as q


def outputs(parameters, x):
    hidden = jax.nn.relu(x @ parameters["layer1"]["weight"] + parameters["layer1"]["bias"])
    return hidden @ parameters["layer2"]["weight"] + parameters["layer2"]["bias"]


def loss(parameters, x, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs(parameters, x)), y[:, None], axis=1).mean()


def accuracy(parameters, x, y):
    return (outputs(parameters, x).argmax(axis=1) == y).mean()


def network(features=5, hidden=8, classes=3):
    def make(key):
        one, two = jax.random.split(key)
        return {
            "layer1": {"weight": 0.3 * jax.random.normal(one, (features, hidden)), "bias": jnp.zeros(hidden)},
            "layer2": {"weight": 0.3 * jax.random.normal(two, (hidden, classes)), "bias": jnp.zeros(classes)},
        }

    return make


def model(parameters=None, data=None, **options):
    options = {"metrics": {"accuracy": accuracy}, **options}
    return q.clients.jax(parameters or network(), loss, data, **options)
