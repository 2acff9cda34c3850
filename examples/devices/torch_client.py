"""A device's application with a PyTorch module.

quorate agent run --task torch_client:task
"""

import torch
from digits_of_this_device import examples

import quorate as q


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


task = q.Task(q.clients.torch(network, torch.nn.functional.cross_entropy), data=examples)
