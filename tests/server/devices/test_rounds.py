"""Rounds over gRPC: the real coordinator and service, and devices at the other end of real streams."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from quorate import assembly
from quorate.plan import Plan
from quorate.planfile import format_plan, make_plan
from quorate.result import FinishedRun
from quorate.rounds import Kind, Member
from quorate.server.coordinator import RoundReport
from quorate.server.devices import (
    SERVICE,
    DeviceService,
    Hosted,
    Limits,
    Listener,
    LocalDoor,
    Servers,
    WaitingRoom,
)
from quorate.server.metrics import Metrics
from quorate.server.store import opened
from quorate.simulations import datasets
from quorate.simulations.datasets import FederatedDataset
from tests.server.devices.device import Device, honest

COUNT = 8


@cache
def digits() -> FederatedDataset:
    return datasets.digits().partition("iid", clients=COUNT, seed=0)


NAMES = tuple(digits().member(i) for i in range(COUNT))


def make(rounds: int, **sections: Any) -> Plan:
    """A plan in which every device takes part in every round."""
    content: dict[str, Any] = {
        "task": {"name": "softmax", "inputs": 64, "classes": 10},
        "rounds": {"count": rounds, "cohort": COUNT, "sampling": "fixed"},
        "training": {"learning_rate": 0.5, "epochs": 2},
        "privacy": {
            "mechanism": "distributed-discrete-gaussian",
            "clip_norm": 1.0,
            "noise_multiplier": 0.2,
        },
        "secure_aggregation": {"protocol": "secagg+", "min_survivors": 5},
        "fleet": {"kind": "devices", "listen": "localhost:0", "population": COUNT, "insecure": True},
    }
    return make_plan({**content, **sections})


@dataclass
class Served:
    """A service that listens, and devices that check in."""

    servers: Servers
    service: DeviceService
    devices: list[Device]
    threads: list[threading.Thread]

    @property
    def port(self) -> int:
        return self.servers.ports[0]

    def start(self, *names: Member, said: Callable[[int, bytes], bytes | None] = honest) -> None:
        for name in names:
            device = Device(self.port, name, digits().clients[digits().index(name)], said=said)
            thread = threading.Thread(target=device.run, daemon=True)
            thread.start()
            self.devices.append(device)
            self.threads.append(thread)

    def run(
        self,
        plan: Plan,
        state: Path | None = None,
        watch: Callable[[RoundReport], None] = lambda report: None,
        population: int = COUNT,
    ) -> FinishedRun:
        source = Hosted(self.service, plan.fleet, population)
        return assembly.run(plan, fleet=source, state=state, watch=watch)


@contextmanager
def serving(limits: Limits | None = None) -> Iterator[Served]:
    service = DeviceService(LocalDoor(), WaitingRoom(), Metrics(), limits=limits)
    listener = Listener("127.0.0.1:0", {SERVICE: {"Participate": service.handler}})
    with Servers([listener]) as servers:
        served = Served(servers, service, [], [])
        try:
            yield served
        finally:
            for device in served.devices:
                device.stopped = True
    for thread in served.threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as started:
        yield started


def test_devices_learn_a_model_that_only_their_noisy_sums_made(served: Served, tmp_path: Path) -> None:
    served.start(*NAMES)
    found = served.run(make(rounds=3), tmp_path)
    assert [round.status for round in found.history] == ["committed"] * 3
    assert [round.survivors for round in found.history] == [COUNT] * 3
    assert found.epsilon is not None
    assert found.epsilon.server > 0


def test_a_model_is_measured_on_devices_and_only_the_sum_of_what_they_found_is_told(
    served: Served, tmp_path: Path
) -> None:
    """The plan claims no privacy, so that the answers can be compared with those of each device."""
    served.start(*NAMES)
    asked = {
        "metrics": {"accuracy": [0, 1], "loss": [0, 4], "examples": [0, 400]},
        "every": 2,
        "quantiles": [0.5],
        "slices": {"label": [0, 1]},
    }
    found = served.run(
        make(rounds=3, privacy={"mechanism": "none", "clip_norm": 10.0}, evaluation=asked), tmp_path
    )
    assert [(round.kind, round.base_version, round.survivors) for round in found.history] == [
        (Kind.FIT, 0, COUNT),
        (Kind.FIT, 1, COUNT),
        (Kind.EVALUATE, 2, COUNT),
        (Kind.FIT, 2, COUNT),
        (Kind.EVALUATE, 3, COUNT),
    ]
    model = found.task.model
    own = [model.evaluate(found.model, data) for data in digits().clients]
    said = found.evaluations[-1].metrics
    for metric in ("accuracy", "loss"):
        mean = sum(each[metric] for each in own) / COUNT
        assert said[f"federated/{metric}"] == pytest.approx(mean, abs=1e-3)
    assert said["federated/examples"] == pytest.approx(digits().mean_examples, abs=0.1)
    assert {"federated/loss/p50", "federated/accuracy/label=0", "federated/accuracy/label=1"} <= set(said)


def test_devices_that_took_part_are_left_alone_in_the_rounds_after(served: Served, tmp_path: Path) -> None:
    served.start(*NAMES)
    content = tomllib.loads(format_plan(make(rounds=3)))
    content["rounds"] |= {"cohort": COUNT // 2, "sampling": "separated", "separation": 2}
    content["secure_aggregation"] |= {"min_survivors": 3, "corrupt": 0.0}
    found = served.run(make_plan(content), tmp_path)
    with opened(tmp_path) as store:
        first, second, third = (set(store.outcomes(found.record.id, round.number)) for round in found.history)
    assert not first & second
    assert first == third
    assert first | second == set(NAMES)
