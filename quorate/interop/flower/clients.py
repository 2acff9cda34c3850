"""Flower's clients as ours: an unmodified `NumPyClient`, `Client` or `ClientApp`, with its mods, as a Quorate model.

    task = q.Task(flower.clients.numpy_client(make, initial=arrays))          # make(data) gives a NumPyClient or Client
    task = q.Task(flower.clients.client_app(app, initial=arrays))             # data by the node's `partition-id`
    task = flower.clients.task_from_app("quickstart-pytorch")                 # the directory of a Flower app

Such a client trains by itself: it is told where to start and with which config, and what it gives back minus the start
is the update's delta. Under secure aggregation and privacy mechanisms that delta is encoded as any other. So it
implements the local rule `sgd`, plain training; `proximal` too if its author says that it heeds `proximal-mu`, as
Flower's FedProx asks; rules that must see every step (control variates) it can't, and plans that need them are refused.

What a plan's `[training]` says goes into the message's config under Flower's names (`lr`, `local-epochs`, …), and
replaces what an app's own run config holds under these; a client that reads none of them trains as it will. What a
Flower client keeps in `context.state` is its client state: kept when the round is committed, and only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.client import Client as FlowerClient
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from quorate.errors import PlanError
from quorate.interop.flower import internals
from quorate.interop.flower.models import Evaluate, FlowerModel, Partition
from quorate.simulations.datasets import FederatedDataset
from quorate.task import ProgramSpec, Task

__all__ = [
    "app",
    "client_app",
    "numpy_client",
    "partitions",
    "task_from_app",
]

Arrays = Mapping[str, np.ndarray] | Sequence[np.ndarray]


def numpy_client(
    make: Callable[[Any], NumPyClient | FlowerClient],
    initial: Arrays,
    *,
    name: str = "flower",
    settings: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
    proximal: bool = False,
    evaluate: Evaluate | None = None,
    program: ProgramSpec | None = None,
) -> FlowerModel:
    """A `NumPyClient` or `Client` as a model.

    Args:
        make: makes the client for given data; it is called for every message, as Flower calls a `client_fn`.
        initial: the arrays to start from, as `get_parameters` gives them: a list (the parameters are then called `0`,
            `1`, …, as Flower calls them), or by name.
        name: of the task.
        settings: what a plan has to say to get this model again from an installed task.
        config: goes into every message's config.
        metrics: those of a client's training that may ride in the sum, by name.
        proximal: whether the client heeds `proximal-mu` of its config.
        evaluate: gives metrics of arrays, by name, on the server's own data.
        program: what serves the model; None: it can't be served.
    """

    def client_fn_for(own: Any) -> ClientApp:
        def client_fn(context: Context) -> FlowerClient:
            made = make(own)
            return made.to_client() if isinstance(made, NumPyClient) else made

        return ClientApp(client_fn)

    return FlowerModel(
        apps=client_fn_for,
        start=_named(initial),
        name=name,
        settings=dict(settings or {}),
        config=dict(config or {}),
        metrics=tuple(metrics),
        proximal=proximal,
        measure=evaluate,
        program=program,
    )


def client_app(
    app: ClientApp,
    initial: Arrays,
    *,
    name: str = "flower",
    settings: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    run_config: Mapping[str, Any] | None = None,
    node_config: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
    proximal: bool = False,
    evaluate: Evaluate | None = None,
    program: ProgramSpec | None = None,
) -> FlowerModel:
    """A `ClientApp` as a model. It finds its data itself, by its context: in a simulation by `partition-id`.

    Args:
        app: with functions registered for `train` (and `evaluate`), or with a `client_fn`.
        initial: the arrays to start from.
        name: of the task.
        settings: see `numpy_client`, as for those below.
        config: goes into every message's config.
        run_config: the app's own.
        node_config: this node's own; in a simulation `partition-id` and `num-partitions` are added.
        metrics: those of a client's training that may ride in the sum.
        proximal: whether it heeds `proximal-mu`.
        evaluate: on the server's own data.
        program: what serves the model.
    """
    return FlowerModel(
        apps=lambda own: app,
        start=_named(initial),
        name=name,
        settings=dict(settings or {}),
        config=dict(config or {}),
        metrics=tuple(metrics),
        proximal=proximal,
        measure=evaluate,
        program=program,
        run_config=dict(run_config or {}),
        node_config=dict(node_config or {}),
    )


def app(
    path: str,
    name: str = "flower-app",
    run_config: Mapping[str, Any] | None = None,
    node_config: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
    proximal: bool = False,
) -> FlowerModel:
    """The directory of an unmodified Flower app as a model; for a plan, `name = "quorate.interop.flower.clients:app"`.

    Where learning starts, and the config of its messages, are those that its ServerApp would send first: it is run
    until it does. A device finds the app by its own path; what the terms say of it is its publisher, name and version.

    Args:
        path: the directory, with its `pyproject.toml`.
        name: of the task.
        run_config: replaces values of the app's own `[tool.flwr.app.config]`.
        node_config: this node's own, such as a `partition-id`.
        metrics: see `numpy_client`.
        proximal: see `numpy_client`.

    Raises:
        PlanError: there is no app, or its ServerApp does not come to a first message.
    """
    found = internals.load(Path(path), dict(run_config or {}))
    first = internals.first_message(found)
    made = client_app(
        found.client,
        first.arrays,
        name=name,
        settings={"app": found.id, "version": found.version},
        config=first.config,
        run_config=found.run_config,
        node_config=node_config,
        metrics=metrics,
        proximal=proximal,
    )
    return replace(made, keys=first.keys)


def task_from_app(path: str, **settings: Any) -> Task:
    """See `app`; as a task of a device, whose data the app finds itself."""
    return Task(app(path, **settings), data=lambda: None)


# --- data that a ClientApp finds itself


class _Partitions(Sequence[Partition]):
    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return Partition(range(self._count)[index], self._count)

    def size_of(self, index: int) -> int:
        return 1

    @property
    def sizes(self) -> np.ndarray:
        return np.ones(self._count, np.int64)


def partitions(count: int, test: Any = None) -> FederatedDataset:
    """The data of a simulation whose clients find theirs by `partition-id`, from 0 to `count` - 1.

    Args:
        count: how many clients there are.
        test: what the model's `evaluate` is given.
    """
    clients: Any = _Partitions(count)
    return FederatedDataset(f"{count} partitions of a Flower app", clients, test)


def _named(arrays: Arrays) -> dict[str, np.ndarray]:
    by_name = arrays if isinstance(arrays, Mapping) else {str(i): array for i, array in enumerate(arrays)}
    named = {name: np.asarray(array) for name, array in by_name.items()}
    if not named:
        raise PlanError("initial: found no array; accepted: the arrays that learning starts from")
    return named
