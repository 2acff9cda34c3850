"""FedAvg over all nodes; when each round ended is kept."""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
ends: list[float] = []


def run(grid: Grid, nodes: int, parameters: int, rounds: int) -> None:
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        ends.append(time.perf_counter())
        return MetricRecord({})

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    start = ArrayRecord([np.zeros(parameters, np.float32)])
    strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, evaluate_fn=evaluate, timeout=600)


@app.main()
def main(grid: Grid, context: Context) -> None:
    run(grid, 4, 20_000, 3)
