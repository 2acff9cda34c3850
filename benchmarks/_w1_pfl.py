"""W1 on pfl-research: its federated averaging over PyTorch, one process."""

from __future__ import annotations

import logging
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks._w1 import BATCH, CLIENTS, COHORT, EXAMPLES, RATE, SEED, WIDTHS, Orders, examples, start

ROUNDS = 1000  # more than anybody waits for


class Network(torch.nn.Module):
    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairwise(widths))
        with torch.no_grad():
            for layer, (weights, biases) in zip(self.layers, start(widths), strict=True):
                layer.weight.copy_(torch.from_numpy(weights.T))
                layer.bias.copy_(torch.from_numpy(biases))

    def forward(self, x: Any) -> Any:
        for i, layer in enumerate(self.layers):
            x = layer(torch.relu(x) if i else x)
        return x

    def loss(self, x: Any, y: Any, eval: bool = False) -> Any:
        self.eval() if eval else self.train()
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: Any, y: Any, eval: bool = False) -> Any:
        return {"loss": Weighted(self.loss(x, y, eval).item() * len(x), len(x))}


class Told(TrainingProcessCallback):
    def __init__(self, orders: Orders):
        self.orders = orders

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        self.orders.done()
        return not self.orders.next(), Metrics()


def main(name: str) -> None:
    orders = Orders()
    orders.next()
    logging.disable(logging.INFO)
    np.random.seed(SEED)
    x, y = map(torch.from_numpy, examples())
    rng = np.random.default_rng(SEED)

    def made(client: int) -> Any:
        rows = torch.from_numpy(client * EXAMPLES + rng.permutation(EXAMPLES))
        return Dataset(raw_data=[x[rows], y[rows]], user_id=str(client))

    data = FederatedDataset(made, get_user_sampler("minimize_reuse", list(range(CLIENTS))))
    network = Network(WIDTHS[name])
    model = PyTorchModel(
        model=network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), 1.0),
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=ROUNDS,
            evaluation_frequency=ROUNDS,
            train_cohort_size=COHORT,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=EXAMPLES),
        callbacks=[Told(orders)],
        send_metrics_to_platform=False,
    )
    orders.end([(one.weight.detach().numpy().T, one.bias.detach().numpy()) for one in network.layers])


if __name__ == "__main__":
    main(sys.argv[1])
