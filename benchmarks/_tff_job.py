"""The same job in TensorFlow Federated, as its user would write it: `python _tff_job.py ROUNDS`."""

import collections
import json
import sys
import time

import tensorflow as tf
import tensorflow_federated as tff

from quorate.simulations import datasets

digits = datasets.digits().partition("iid", clients=4, seed=0)


def columns(data):
    return tf.data.Dataset.from_tensor_slices(collections.OrderedDict(x=data.x, y=data.y))


def model():
    layers = [tf.keras.layers.Input(shape=(64,)), tf.keras.layers.Dense(10, kernel_initializer="zeros")]
    return tff.learning.models.from_keras_model(
        tf.keras.Sequential(layers),
        input_spec=clients[0].element_spec,
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
    )


clients = [columns(client).shuffle(len(client)).batch(20) for client in digits]
test = [columns(digits.test).batch(1000)]
process = tff.learning.algorithms.build_weighted_fed_avg(
    model,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.5),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
)
evaluation = tff.learning.algorithms.build_fed_eval(model)
state, evaluated = process.initialize(), evaluation.initialize()
ends, accuracy = [time.perf_counter()], 0.0
for _ in range(int(sys.argv[1])):
    state = process.next(state, clients).state
    evaluated = evaluation.set_model_weights(evaluated, process.get_model_weights(state))
    metrics = evaluation.next(evaluated, test).metrics["client_work"]["eval"]["current_round_metrics"]
    accuracy = metrics["sparse_categorical_accuracy"]
    ends.append(time.perf_counter())
print(json.dumps({"ends": ends, "accuracy": float(accuracy)}))
