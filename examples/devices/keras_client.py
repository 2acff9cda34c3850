"""A device's application with a Keras model, on the backend that KERAS_BACKEND names: torch or jax.

quorate agent run --task keras_client:task
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from digits_of_this_device import examples

import quorate as q

network = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
task = q.Task(
    q.clients.keras(network, keras.losses.SparseCategoricalCrossentropy(from_logits=True)), data=examples
)
