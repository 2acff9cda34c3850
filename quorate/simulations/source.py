"""What a simulated fleet is made of: data, dropouts, traces, an engine; bound in Python, or as `[fleet]` of a plan."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.errors import PlanError
from quorate.parts import find_part, make_part
from quorate.plan import FleetSection, Plan
from quorate.simulations.datasets import Dataset, FederatedDataset
from quorate.simulations.engines.choice import ENGINES
from quorate.simulations.fleet import SimulatedFleet
from quorate.simulations.traces import Diurnal, Traces, recorded

__all__ = ["Simulation", "simulation"]


@dataclass(frozen=True)
class Simulation:
    """What a simulated fleet is made of.

    Args:
        data: the clients' data, and the server's held-out data.
        drop_before_masking: the probability that a member of a cohort falls silent before its masked input.
        drop_before_unmasking: … and after it, before the unmasking.
        seed: makes a run repeatable, and its ε a simulated one; None draws from the operating system.
        engine: how the clients are trained: `sequential`, `vectorised`, `processes`, `ray`, or `auto`, which picks one
            of the first three and says why in the log. It changes a seeded model by the order of floating-point sums
            only.
        workers: of `processes` and `ray`; None: one a core.
        traces: when members are there, and how fast: rounds take simulated time, which the metric `simulated_hours`
            tells. Without, everybody is always there.
        present: with traces, how many members a round waits for: privacy is accounted for a population of this size,
            since each of those who are there is drawn with the probability cohort / `present`. None: a tenth of all.
        address: of a Ray cluster, as `ray.init` takes it; None: the engine `ray` starts one on this machine.
    """

    data: FederatedDataset
    drop_before_masking: float = 0.0
    drop_before_unmasking: float = 0.0
    seed: int | None = None
    engine: str = "auto"
    workers: int | None = None
    traces: Traces | None = None
    present: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise PlanError(f"engine: found {self.engine!r}, accepted: {', '.join(ENGINES)}")
        if self.workers is not None and self.workers < 1:
            raise PlanError(f"workers: found {self.workers}, accepted: at least 1")
        if self.present is not None and not 1 <= self.present <= len(self.data):
            raise PlanError(f"present: found {self.present}, accepted: 1 to {len(self.data)}, the population")
        if self.present is not None and self.traces is None:
            raise PlanError("present: without traces, everybody is there; accepted: no value, or traces")
        for name in ("drop_before_masking", "drop_before_unmasking"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(f"{name}: found {getattr(self, name)}, accepted: at least 0 and below 1")

    @property
    def size(self) -> int:
        """How many clients a cohort is drawn from, at least."""
        if self.traces is None:
            return len(self.data)
        return self.present or math.ceil(len(self.data) / 10)

    def section(self) -> FleetSection:
        """How the fleet stands in a plan."""
        return FleetSection(kind="simulation", seed=self.seed)

    def open(self, plan: Plan, directory: Path | None) -> SimulatedFleet:
        """The fleet, ready for the rounds of a plan.

        Args:
            plan: resolved.
            directory: where clients' states are kept; None keeps them in memory.
        """
        return SimulatedFleet(self, plan, directory)


def simulation(
    dataset: str,
    clients: int | None = None,
    partition: str | None = None,
    alpha: float | None = None,
    per_client: int | None = None,
    partition_seed: int = 0,
    options: Mapping[str, Any] | None = None,
    drop_before_masking: float = 0.0,
    drop_before_unmasking: float = 0.0,
    seed: int | None = None,
    engine: str = "auto",
    workers: int | None = None,
    traces: Mapping[str, Any] | None = None,
    present: int | None = None,
    address: str | None = None,
) -> Simulation:
    """`[fleet] kind = "simulation"`.

    Args:
        dataset: an installed dataset, such as `digits`.
        clients: how many there are; not for data that have their own clients.
        partition: of data in one place: `dirichlet` (the default), `iid`, `quantity` or `shards`.
        alpha: of a Dirichlet or quantity partition.
        per_client: of a partition by shards: how many a client gets.
        partition_seed: the partition's own seed.
        options: the dataset's own settings.
        drop_before_masking: see `Simulation`.
        drop_before_unmasking: see `Simulation`.
        seed: see `Simulation`.
        engine: see `Simulation`.
        workers: see `Simulation`.
        traces: the settings of `traces.Diurnal`, or `availability` and `capacity`, the files of `traces.recorded`.
        present: see `Simulation`.
        address: see `Simulation`.
    """
    data = _data(
        dataset,
        clients,
        partition,
        {"alpha": alpha, "per_client": per_client},
        partition_seed,
        dict(options or {}),
    )
    followed = None if traces is None else _traces(dict(traces))
    return Simulation(
        data, drop_before_masking, drop_before_unmasking, seed, engine, workers, followed, present, address
    )


def _traces(settings: dict[str, Any]) -> Traces:
    factory: Callable[..., Traces] = recorded if "availability" in settings else Diurnal
    return make_part("traces", factory, settings)


def _data(
    dataset: str,
    clients: int | None,
    partition: str | None,
    partition_options: Mapping[str, Any],
    partition_seed: int,
    options: dict[str, Any],
) -> FederatedDataset:
    """The dataset that a plan names: partitioned if it is in one place, with its own clients otherwise."""
    factory = find_part("dataset", "quorate.datasets", dataset)
    if clients is not None and "clients" in inspect.signature(factory).parameters:
        options, clients = {**options, "clients": clients}, None
    made: Dataset | FederatedDataset = make_part("options", factory, options)
    chosen = {name: value for name, value in partition_options.items() if value is not None}
    if isinstance(made, Dataset):
        if clients is None:
            raise PlanError(
                f"clients: missing; {dataset!r} is in one place; accepted: over how many clients it is partitioned"
            )
        return made.partition(partition or "dirichlet", clients=clients, seed=partition_seed, **chosen)
    given = {"clients": clients, "partition": partition, **chosen}
    surplus = [name for name, value in given.items() if value is not None]
    if surplus:
        raise PlanError([f"{name}: {dataset!r} has {len(made)} clients of its own" for name in surplus])
    return made
