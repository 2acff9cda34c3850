"""W1 on Flower's simulation: its FedAvg over NumPy clients, on Ray, an actor a processor."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks._w1 import BATCH, CLIENTS, COHORT, EXAMPLES, RATE, WIDTHS, Orders, examples, start

ROUNDS = 1000  # more than anybody waits for
client, server = ClientApp(), ServerApp()
_held: dict[str, Any] = {}


@client.train()
def train(message: Message, context: Context) -> Message:
    from benchmarks._w1_flower import _held, trained  # one copy a process of Ray's, not one a message

    if not _held:
        _held["x"], _held["y"] = examples()
    rows = slice(
        EXAMPLES * int(context.node_config["partition-id"]),
        EXAMPLES * (int(context.node_config["partition-id"]) + 1),
    )
    arrays = trained(message.content["arrays"].to_numpy_ndarrays(), _held["x"][rows], _held["y"][rows])
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": EXAMPLES})})
    return Message(content, reply_to=message)


def trained(arrays: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """One epoch by hand; weights and biases by turns."""
    arrays = [array.copy() for array in arrays]
    order = np.random.default_rng().permutation(EXAMPLES)
    for first in range(0, EXAMPLES, BATCH):
        chosen = order[first : first + BATCH]
        values = [x[chosen]]
        for i in range(0, len(arrays), 2):
            out = values[-1] @ arrays[i] + arrays[i + 1]
            values.append(np.maximum(out, 0) if i + 2 < len(arrays) else out)
        error = np.exp(values[-1] - values[-1].max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(BATCH), y[chosen]] -= 1
        error *= RATE / BATCH
        for i in range(len(arrays) - 2, -1, -2):
            before = (error @ arrays[i].T) * (values[i // 2] > 0)
            arrays[i] -= values[i // 2].T @ error
            arrays[i + 1] -= error.sum(axis=0)
            error = before
    return arrays


class Ended(Exception):
    """No more rounds are wanted."""


@server.main()
def main(grid: Grid, context: Context) -> None:
    orders, name = _held["orders"], _held["name"]
    last: list[np.ndarray] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round:
            last[:] = arrays.to_numpy_ndarrays()
            orders.done()
            if not orders.next():
                orders.end(list(zip(last[::2], last[1::2], strict=True)))
                raise Ended
        return MetricRecord({})

    strategy = FedAvg(
        fraction_train=COHORT / CLIENTS,
        fraction_evaluate=0.0,
        min_train_nodes=COHORT,
        min_available_nodes=CLIENTS,
    )
    begun = ArrayRecord([array for layer in start(WIDTHS[name]) for array in layer])
    strategy.start(grid=grid, initial_arrays=begun, num_rounds=ROUNDS, evaluate_fn=evaluate)


if __name__ == "__main__":
    _held.update(orders=Orders(), name=sys.argv[1])
    _held["orders"].next()
    run_simulation(
        server,
        client,
        CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count() or 1, "include_dashboard": False},
        },
    )
