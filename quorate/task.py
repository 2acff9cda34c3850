"""A task: what is learned. It needs no server and no data, so the same task runs on a device and in a simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from quorate.fleets import Client
from quorate.parameters import Layout, Parameters

__all__ = ["DenseLayer", "Model", "Task"]


@dataclass(frozen=True)
class DenseLayer:
    """One dense layer of a servable network: activation(x · weight + bias).

    Args:
        weight: the parameter that holds the matrix, shape (inputs, outputs).
        bias: the parameter that holds the vector, shape (outputs,).
        inputs: the number of inputs.
        outputs: the number of outputs.
        activation: `relu`, `tanh`, `sigmoid`, `softmax` or `identity`.
    """

    weight: str
    bias: str
    inputs: int
    outputs: int
    activation: str


class Model(Protocol):
    """What an adapter makes of a user's model: everything a task needs to know of it."""

    @property
    def name(self) -> str:
        """The name under which it is installed (entry points `quorate.tasks`)."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The numbers it was made from, such as `inputs` and `classes`."""
        ...

    @property
    def layout(self) -> Layout:
        """Its parameters' names and shapes."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what its clients measure while they train."""
        ...

    def initial(self, rng: np.random.Generator) -> Parameters:
        """Parameters to start from."""
        ...

    def client(self, data: Any) -> Client:
        """A client with the given local data."""
        ...

    def evaluate(self, parameters: Parameters, data: Any) -> Mapping[str, float]:
        """Metrics of the parameters on the server's own data."""
        ...

    def program_spec(self) -> tuple[DenseLayer, ...]:
        """The layers of the program that serves it."""
        ...


@dataclass(frozen=True)
class Task:
    """A named model, ready to be learned.

    Args:
        model: what an adapter made, such as `quorate.models.softmax(64, 10)`.
    """

    model: Model

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @cached_property
    def layout(self) -> Layout:
        """The model's layout."""
        return self.model.layout

    def description(self) -> dict[str, Any]:
        """What identifies the task in the terms: its name, its settings, and the digest of its layout."""
        return {"name": self.name, **self.model.settings, "layout": self.layout.digest.hex()}
