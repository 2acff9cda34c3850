"""`fleet.kind = "flower-simulation"`: Flower's simulation, which runs clients in Ray's workers.

The rounds are ours, with the frames of real members: it shows what a plan does on Flower's nodes without any. For
simulating many clients quickly, `simulation` is the fleet to take.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from quorate.errors import MissingExtra, PlanError, QuorateError
from quorate.interop.flower import nodes
from quorate.interop.flower.fleet import FlowerFleet
from quorate.plan import FleetSection, Plan
from quorate.rounds import Deadlines
from quorate.simulations.datasets import FederatedDataset
from quorate.simulations.source import simulation

__all__ = ["FlowerSimulation", "flower_simulation"]

log = logging.getLogger(__name__)

_START_S = 120.0


@dataclass(frozen=True)
class FlowerSimulation:
    """Virtual nodes of Flower, one a client of a dataset.

    Args:
        data: the clients' data, and the server's held-out data.
        cpus: how many of Ray's workers there are; None: one a core.
    """

    data: FederatedDataset
    cpus: int | None = None

    @property
    def size(self) -> int:
        """How many clients there are."""
        return len(self.data)

    def section(self) -> FleetSection:
        """How the fleet stands in a plan."""
        return FleetSection(kind="flower-simulation")

    def open(self, plan: Plan, directory: Path | None) -> FlowerFleet:
        """Starts the simulation.

        Raises:
            MissingExtra: Ray is not installed.
            QuorateError: it does not start.
        """
        run = _Simulated(self.data, self.cpus)
        return FlowerFleet(run.grid, self.size, self.data.test, Deadlines(), run, simulated=True)


def flower_simulation(
    dataset: str,
    clients: int | None = None,
    partition: str | None = None,
    alpha: float | None = None,
    per_client: int | None = None,
    partition_seed: int = 0,
    options: Mapping[str, Any] | None = None,
    cpus: int | None = None,
    seed: int | None = None,
) -> FlowerSimulation:
    """`[fleet] kind = "flower-simulation"`; the data are those of `simulation`.

    Args:
        dataset: see `quorate.simulations.source.simulation`, as for those that follow.
        clients: how many there are.
        partition: of data in one place.
        alpha: of a partition.
        per_client: of a partition.
        partition_seed: the partition's own seed.
        options: the dataset's own settings.
        cpus: see `FlowerSimulation`.
        seed: not accepted: clients in Ray's workers draw from the operating system.

    Raises:
        PlanError: there is a seed.
    """
    if seed is not None:
        raise PlanError(f"seed: found {seed}; Flower's simulation can't be repeated, accepted: none")
    return FlowerSimulation(
        simulation(dataset, clients, partition, alpha, per_client, partition_seed, options).data, cpus
    )


class _Simulated:
    """Flower's simulation in a thread, whose ServerApp hands its grid out and waits."""

    def __init__(self, data: FederatedDataset, cpus: int | None):
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise MissingExtra("ray", "Flower's simulation") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._done, self._failure = threading.Event(), ""
        grids: queue.SimpleQueue[Grid] = queue.SimpleQueue()
        server_app = ServerApp()

        @server_app.main()
        def wait(grid: Grid, context: Context) -> None:
            grids.put(grid)
            self._done.wait()

        def examples(context: Context) -> Any:
            return data.clients[int(context.node_config["partition-id"])]

        def simulate() -> None:
            try:
                run_simulation(
                    server_app,
                    nodes.client_app(nodes.on(examples)),
                    len(data),
                    backend_config={
                        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                        "init_args": {
                            "address": "local",
                            "num_cpus": cpus or os.cpu_count() or 1,
                            "include_dashboard": False,
                        },
                    },
                )
            except Exception as error:  # of whatever kind: whoever waits for the grid is told
                self._failure = f"{type(error).__name__}: {error}"

        self._thread = threading.Thread(target=simulate, name="flower-simulation", daemon=True)
        self._thread.start()
        try:
            self.grid = grids.get(timeout=_START_S)
        except queue.Empty:
            raise QuorateError(
                f"Flower's simulation does not start: {self._failure or f'nothing in {_START_S:g} seconds'}"
            ) from None

    def close(self, failure: BaseException | None = None) -> None:
        """Ends the simulation, and Ray with it."""
        self._done.set()
        self._thread.join(_START_S)
        if self._failure:
            log.warning("Flower's simulation ended with %s", self._failure)
