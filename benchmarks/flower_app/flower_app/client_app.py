"""Softmax regression on a part of the digits."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quorate.simulations import datasets

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    config = context.node_config
    data = datasets.digits().partition("iid", clients=config["num-partitions"], seed=0)
    own = data.clients[config["partition-id"]]
    weight, bias = message.content["arrays"].to_numpy_ndarrays()
    order = np.random.default_rng().permutation(len(own))
    for start in range(0, len(order), 20):
        batch = order[start : start + 20]
        x, y = own.x[batch], own.y[batch]
        z = x @ weight + bias
        error = np.exp(z - z.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(len(y)), y] -= 1
        weight = weight - 0.5 * x.T @ error / len(y)
        bias = bias - 0.5 * error.mean(axis=0)
    content = RecordDict(
        {"arrays": ArrayRecord([weight, bias]), "metrics": MetricRecord({"num-examples": len(own)})}
    )
    return Message(content, reply_to=message)
