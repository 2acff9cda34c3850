"""What the agent knows of an installed task, whose code it never imports.

It takes a model's place where terms are verified and updates are encoded. Importing this takes no NumPy: an agent that
waits does without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from quorate.fleets import Client
    from quorate.parameters import Layout, Parameters
    from quorate.task import DenseLayer

__all__ = ["Description"]


@dataclass(frozen=True)
class Description:
    """A task's model as the agent knows it without importing it: enough to verify terms and to encode updates.

    Args:
        name: of the task.
        settings: of the model.
        entries: names and shapes of its parameters.
        metrics: that its clients measure.
        rules: the local rules that its client implements.
        keys: what its client can slice its metrics by.
        said: all of this as the application's process said it.
    """

    name: str
    settings: Mapping[str, Any]
    entries: tuple[tuple[str, tuple[int, ...]], ...]
    metrics: tuple[str, ...]
    rules: frozenset[str]
    keys: tuple[str, ...]
    said: Mapping[str, Any]

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Description:
        """From what the application's process said.

        Raises:
            KeyError, TypeError, ValueError: it does not describe a task.
        """
        return cls(
            name=str(said["name"]),
            settings=dict(said["settings"]),
            entries=tuple((str(name), tuple(map(int, shape))) for name, shape in said["layout"]),
            metrics=tuple(map(str, said["metrics"])),
            rules=frozenset(map(str, said["rules"])),
            keys=tuple(map(str, said["keys"])),
            said=said,
        )

    @property
    def values(self) -> int:
        """How many there are in all parameters."""
        return sum(math.prod(shape) for _, shape in self.entries)

    @cached_property
    def layout(self) -> Layout:
        """Of its parameters."""
        from quorate.parameters import Layout

        return Layout(self.entries)

    def initial(self, rng: np.random.Generator) -> Parameters:
        """A device starts from what it is sent."""
        raise NotImplementedError("a device makes no parameters to start from")

    def client(self, data: Any) -> Client:
        """Clients are in the child process."""
        raise NotImplementedError("a device trains in a child process")

    def evaluate(self, parameters: Parameters, data: Any) -> Mapping[str, float]:
        """A device has no data of the server's."""
        raise NotImplementedError("a device has no held-out data")

    def program_spec(self) -> tuple[DenseLayer, ...]:
        """A device serves nothing here."""
        raise NotImplementedError("a device does not publish")
