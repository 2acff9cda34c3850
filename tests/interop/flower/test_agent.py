"""`quorate agent run` with Flower: a Flower app that takes part over gRPC, and an agent as a SuperLink's node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate import assembly
from quorate.clients.agent.state import AgentState
from quorate.interop.flower import clients
from quorate.interop.flower.by_path import names_of
from quorate.interop.flower.fleet import Flower
from quorate.interop.flower.models import FlowerModel, Partition
from quorate.parameters import Parameters
from quorate.plan import FleetSection, Plan
from quorate.plugins import find
from quorate.result import FinishedRun
from quorate.rounds import Instruction
from quorate.task import Task
from tests.cli.commands import quorate
from tests.interop.flower.federations import NODES, NUMPY_APP, plan
from tests.interop.flower.processes import Processes
from tests.sockets import free_port


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as started:
        yield started


@pytest.fixture
def model() -> FlowerModel:
    return clients.app(str(NUMPY_APP))


def start(processes: Processes, directory: Path, number: int, *arguments: str) -> None:
    """An agent whose task is the Flower app."""
    processes.start(
        "quorate",
        *("agent", "run", "--insecure", "--state", str(directory / f"state-{number}")),
        *("--flower-app", str(NUMPY_APP)),
        *("--node-config", f"partition-id={number} num-partitions={NODES}"),
        *arguments,
    )


def accuracy(model: FlowerModel, parameters: Parameters) -> float:
    instruction = Instruction("sgd", {"learning_rate": 0.5, "epochs": 1.0})
    return model.client(Partition(0, 1)).evaluate(parameters, instruction, {}).metrics["accuracy"]


def run(plan: Plan, fleet: Any = None) -> FinishedRun:
    return assembly.run(plan, fleet=fleet, watch=lambda report: None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_agents_take_part_over_grpc_with_a_flower_app(
    processes: Processes, tmp_path: Path, model: FlowerModel
) -> None:
    port = free_port()
    for number in range(NODES):
        start(
            processes,
            tmp_path,
            number,
            *("--coordinator", f"127.0.0.1:{port}", "--device", f"agent-{number}"),
        )
    section = FleetSection(kind="devices", listen=f"localhost:{port}", population=NODES, insecure=True)
    found = run(plan(3, task=Task(model), fleet=section))
    assert [round.survivors for round in found.committed] == [NODES] * 3, processes.log("quorate")
    assert found.epsilon is not None
    assert accuracy(model, found.model) > 0.8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_agents_are_nodes_of_a_superlink_and_keep_to_their_policies(
    processes: Processes, tmp_path: Path, model: FlowerModel
) -> None:
    superlink = processes.superlink()
    (tmp_path / "policy.toml").write_text("[accept]\nmin_survivors = 50\n")
    for number in range(NODES):
        policy = ["--policy", str(tmp_path / "policy.toml")] if number == 0 else []
        start(processes, tmp_path, number, "--flower", superlink, *policy)
    fleet = Flower(superlink, NODES, training_s=120.0, phase_s=60.0)
    found = run(plan(3, task=Task(model)), fleet)
    assert [round.survivors for round in found.committed] == [NODES - 1] * 3, processes.log("quorate")
    assert accuracy(model, found.model) > 0.8
    for number in range(NODES):
        state = AgentState(tmp_path / f"state-{number}")
        past, refusals = state.past(10), state.refusals()
        state.close()
        if number == 0:
            assert sum(refusals.values()) == 3
        else:
            assert [one.outcome.value for one in past if one.outcome] == ["committed"] * 3
            assert not refusals


def test_an_app_s_task_is_found_by_a_name_that_holds_its_path() -> None:
    (name,) = names_of([NUMPY_APP], "partition-id=2 num-partitions=5 site='north'")
    task = find("quorate.tasks", name)
    assert isinstance(task, Task)
    assert task.name == "flower-app"
    assert task.model.node_config == {"partition-id": 2, "num-partitions": 5, "site": "north"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--flower", "127.0.0.1:1"],
            "--flower: found without TLS; accepted: --root-certificates, or --insecure",
        ),
        (["--flower", "127.0.0.1:1", "--coordinator", "127.0.0.1:2"], "one way to take part"),
        (["--node-config", "partition-id:1"], "--node-config: found 'partition-id:1'; accepted: key=value"),
    ],
)
def test_what_can_t_be_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = quorate("agent", "run", "--flower-app", NUMPY_APP, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
