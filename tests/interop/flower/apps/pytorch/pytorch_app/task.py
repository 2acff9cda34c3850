"""A small network on handwritten digits, in PyTorch."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

torch.set_num_threads(1)  # for so small a network threads cost more than they give


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def load_data(partition: int, of: int):
    x, y = load_digits(return_X_y=True)
    own = np.arange(partition, len(y), of)
    return torch.tensor(x[own] / 16, dtype=torch.float32), torch.tensor(y[own])


def train(net: nn.Module, x, y, epochs: int, lr: float) -> float:
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    loss = torch.tensor(0.0)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(32):
            if len(batch) < 2:
                continue
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            loss.backward()
            optimiser.step()
    return float(loss.detach())


@torch.no_grad()
def test(net: nn.Module, x, y) -> tuple[float, float]:
    net.eval()
    told = net(x)
    return float(nn.functional.cross_entropy(told, y)), float((told.argmax(dim=1) == y).float().mean())
