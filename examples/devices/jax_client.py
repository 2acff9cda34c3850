"""A device's application with a pure JAX loss.

quorate agent run --task jax_client:task
"""

import jax
import jax.numpy as jnp
from digits_of_this_device import examples

import quorate as q


def initial(key):
    return {"weight": 0.01 * jax.random.normal(key, (64, 10)), "bias": jnp.zeros(10)}


def loss(parameters, x, y):
    outputs = jax.nn.log_softmax(x @ parameters["weight"] + parameters["bias"])
    return -jnp.take_along_axis(outputs, y[:, None], axis=1).mean()


task = q.Task(q.clients.jax(initial, loss), data=examples)
