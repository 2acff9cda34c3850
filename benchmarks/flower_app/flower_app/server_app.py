"""FedAvg over all nodes, evaluated on the test set after each round."""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quorate.simulations import datasets

NODES = 4
app = ServerApp()
ends: list[float] = []
accuracy = 0.0


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    global accuracy
    ends.append(time.perf_counter())
    weight, bias = arrays.to_numpy_ndarrays()
    test = datasets.digits().test
    accuracy = float(((test.x @ weight + bias).argmax(axis=1) == test.y).mean())
    return MetricRecord({"accuracy": accuracy})


def run(grid: Grid, rounds: int) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=NODES, min_available_nodes=NODES)
    start = ArrayRecord([np.zeros((64, 10), np.float32), np.zeros(10, np.float32)])
    strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, evaluate_fn=evaluate)


@app.main()
def main(grid: Grid, context: Context) -> None:
    run(grid, 3)
