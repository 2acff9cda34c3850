"""A client that also measures slices of its data: the examples that have a value of a key, such as a label.

A slice is measured as if it were all that the client has. So every adapter can do it, with nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quorate.clients.adapters.batches import batches
from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError, PolicyRefused
from quorate.evaluation import EXAMPLES, sliced
from quorate.fleets import Client
from quorate.parameters import Parameters
from quorate.rounds import Instruction, State, Update
from quorate.task import LABEL, Task

__all__ = ["SlicingClient", "check_keys", "client_of"]


def client_of(task: Task, data: Any = None) -> Client:
    """A client of a task that can measure slices, where it is known what it has.

    Args:
        task: as it is installed here.
        data: the client's; None: the task's own, or those that the model was made with.

    Raises:
        DataError: there are none.
    """
    held = task.data() if data is None and task.data is not None else data
    client = task.model.client(held)
    return SlicingClient(client, task, held) if held is not None and task.keys else client


def check_keys(client: Client, instruction: Instruction) -> None:
    """Refuses slices that the client can't measure; they are never ignored.

    Raises:
        PolicyRefused: with what it can.
    """
    known = getattr(client, "keys", ())
    missing = [key for key in instruction.slices if key not in known]
    if missing:
        raise PolicyRefused(
            f"the plan asks for metrics by {missing[0]!r}; this client has {', '.join(known) or 'no slices'}",
            "slices",
        )


@dataclass(frozen=True)
class SlicingClient:
    """A client, the task whose model it trains, and the data that it has.

    Args:
        client: of all the data.
        task: says what each example is by each key.
        data: of any kind that rows can be taken of.
    """

    client: Client
    task: Task
    data: Any

    @property
    def rules(self) -> frozenset[str]:
        """The client's."""
        return self.client.rules

    @property
    def keys(self) -> tuple[str, ...]:
        """The task's."""
        return self.task.keys

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """The client's."""
        return self.client.fit(parameters, instruction, state)

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """The client's metrics, and under their names those of each slice that is asked for and is not empty.

        Raises:
            DataError: data and task do not say what each example is.
        """
        whole = self.client.evaluate(parameters, instruction, state)
        metrics = dict(whole.metrics)
        for key, values in instruction.slices.items():
            own = self._values(key)
            for value in values:
                rows = np.flatnonzero(own == value)
                if not len(rows):
                    continue
                part = self.task.model.client(_take(self.data, rows)).evaluate(parameters, instruction, state)
                metrics[sliced(EXAMPLES, key, value)] = float(len(rows))
                metrics |= {sliced(name, key, value): number for name, number in part.metrics.items()}
        return Update(whole.vectors, whole.examples, metrics)

    def _values(self, key: str) -> np.ndarray:
        """What each example is, shape (examples,)."""
        count = len(self.data if isinstance(self.data, Examples) else batches(self.data))
        say: Mapping[str, Callable[[Any], Any]] = {LABEL: _labels, **self.task.slices}
        values = np.asarray(say[key](self.data))
        if values.ndim == 0:
            return np.full(count, values)
        if values.shape != (count,):
            raise DataError(
                f"slices by {key!r}: found values of shape {values.shape} for {count} examples; accepted: one for each "
                "example, or one for all"
            )
        return values


def _labels(data: Any) -> np.ndarray:
    held = batches(data)
    labels = held.take(np.arange(len(held)))[1]
    return np.asarray(labels)


def _take(data: Any, rows: np.ndarray) -> Any:
    return data.take(rows) if isinstance(data, Examples) else batches(data).take(rows)
