"""The cases of `benchmarks.peers` that need Flower: its own runtimes, and our rounds over its nodes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.app import Context

from benchmarks._peers import NODES, PLAN, Outcome, between, lines, ours
from quorate.clients.adapters.examples import Examples
from quorate.clients.adapters.numpy_models import softmax
from quorate.interop.flower import internals
from quorate.interop.flower.fleet import Flower
from quorate.simulations import datasets
from quorate.task import Task

APP = Path(__file__).with_name("flower_app")
_BIN = Path(sys.prefix) / "bin"


def part() -> Examples:
    """What the agent trains on, by the environment."""
    return _part(int(os.environ["PART"]))


def part_of(context: Context) -> Examples:
    """What a SuperNode trains on, by its config."""
    return _part(int(context.node_config["partition-id"]))


def _part(index: int) -> Examples:
    return datasets.digits().partition("iid", clients=NODES, seed=0).clients[index]


def __getattr__(name: str) -> Task:
    if name != "task":
        raise AttributeError(name)
    return Task(softmax(64, 10), data=part)


# --- Flower's own rounds


def flower_simulation(rounds: int) -> Outcome:
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    app, server = internals.load(APP, {}), ServerApp()
    import flower_app.server_app as theirs  # type: ignore[import-not-found]

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        theirs.run(grid, rounds)

    run_simulation(
        server,
        app.client,
        NODES,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"address": "local", "num_cpus": os.cpu_count() or 1, "include_dashboard": False},
        },
    )
    return _theirs(theirs)


def flower_superlink(rounds: int) -> Outcome:
    app = internals.load(APP, {})
    assert app.server is not None
    import flower_app.server_app as theirs

    with superlink() as (address, start), internals.Run(address, internals.build(APP)) as run:
        for number in range(NODES):
            supernode(start, address, f"partition-id={number} num-partitions={NODES}")
        theirs.run(run.grid, rounds)
    return _theirs(theirs)


def _theirs(module: Any) -> Outcome:
    return Outcome(between(module.ends), module.accuracy, lines(*APP.rglob("*.py"), APP / "pyproject.toml"))


# --- our rounds over Flower's nodes


def over_supernodes(rounds: int) -> Outcome:
    with superlink() as (address, start):
        for number in range(NODES):
            data = "benchmarks._peers_flower:part_of"
            supernode(start, address, f'quorate-data="{data}" partition-id={number}')
        return ours(rounds, Flower(address, NODES, held_out="digits"), lines(PLAN, part_of, _part))


def over_nodes_of_ours(rounds: int) -> Outcome:
    with superlink() as (address, start), tempfile.TemporaryDirectory() as states:
        for number in range(NODES):
            start(
                "quorate", "agent", "run", "--insecure", "--flower", address,
                *("--task", "benchmarks._peers_flower:task", "--state", f"{states}/{number}"),
                *("--policy", str(_open_policy(Path(states)))),
                environment={"PART": str(number)},
            )  # fmt: skip
        return ours(rounds, Flower(address, NODES, held_out="digits"), lines(PLAN, part, _part))


def _open_policy(directory: Path) -> Path:
    """The plan sums in the open, as Flower's FedAvg does."""
    path = directory / "policy.toml"
    path.write_text("[accept]\nsecure_aggregation = false\nmin_survivors = 1\n")
    return path


# --- processes


def supernode(start: Any, superlink: str, config: str) -> None:
    start(
        "flower-supernode", "--insecure", "--superlink", superlink, "--node-config", config,
        *("--host", "127.0.0.1", "--port", str(_free_port())),
    )  # fmt: skip


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def superlink() -> Iterator[tuple[str, Any]]:
    """A SuperLink's address, and what starts other processes; all of them end with it."""
    groups: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as home:

        def start(command: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
            given = {
                **os.environ,
                "FLWR_HOME": home,
                "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
                "PYTHONPATH": str(Path(__file__).parents[1]),
                **(environment or {}),
            }
            with open(os.devnull, "wb") as nowhere:
                groups.append(
                    subprocess.Popen(
                        [_BIN / command, *arguments], env=given, stdout=nowhere, stderr=nowhere,
                        start_new_session=True,
                    )
                )  # fmt: skip

        port = _free_port()
        try:
            start(
                "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port),
                *("--isolation", "process", "--disable-runtime-dependency-installation"),
            )  # fmt: skip
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield f"127.0.0.1:{port}", start
        finally:
            for process in groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
