"""The task of the soak's devices: softmax regression on a part of the digits, by the device's number."""

import os

import quorate as q
from quorate.clients.adapters.examples import Examples
from quorate.simulations import datasets


def _part() -> Examples:
    """What this device trains on."""
    number, devices = int(os.environ["SOAK_DEVICE"]), int(os.environ["SOAK_DEVICES"])
    return datasets.digits().partition("iid", clients=devices, seed=0).clients[number]


task = q.Task(q.models.softmax(64, 10), data=_part)
