"""A task: what is learned. It needs no server and no data, so the same task runs on a device and in a simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from quorate.fleets import Client
from quorate.parameters import Layout, Parameters

__all__ = ["LABEL", "DenseLayer", "Model", "OnnxGraph", "ProgramSpec", "Task", "Tensor"]

LABEL = "label"
"""The key of slices by the targets of a classification."""


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


@dataclass(frozen=True)
class Tensor:
    """What a servable network takes or gives.

    Args:
        name: as its users write it.
        dtype: NumPy's name of it, such as `float32`.
        shape: the first dimension is the batch, -1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """A servable network that its framework has written as ONNX.

    Args:
        model: the serialised model. The task's parameters are initialisers, under their names; their data are ignored.
        inputs: what it takes.
        output: what it gives.
        activation: what makes predictions of that, as in `DenseLayer`.
    """

    model: bytes
    inputs: tuple[Tensor, ...]
    output: Tensor
    activation: str


ProgramSpec = tuple[DenseLayer, ...] | OnnxGraph
"""What a servable program is made of: layers, first to last, or a graph."""


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
        """A client with the given local data; None for those that the model was made with.

        Raises:
            DataError: there are none.
        """
        ...

    def evaluate(self, parameters: Parameters, data: Any) -> Mapping[str, float]:
        """Metrics of the parameters on the server's own data."""
        ...

    def program_spec(self) -> ProgramSpec:
        """What the program that serves it is made of.

        Raises:
            PlanError: it can't be served, and why.
        """
        ...


@dataclass(frozen=True)
class Task:
    """A named model, ready to be learned.

    Args:
        model: what an adapter made, such as `quorate.models.softmax(64, 10)`.
        data: on a device, gives what the device trains on; it is called where training happens, and nowhere else. None:
            the model has its data, or the fleet has them, as in a simulation.
        slices: by the key under which an `[evaluation]` may ask for it: of a client's data, what each example is, shape
            (examples,), or one value for all of them; whole numbers or strings.
    """

    model: Model
    data: Callable[[], Any] | None = None
    slices: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @cached_property
    def layout(self) -> Layout:
        """The model's layout."""
        return self.model.layout

    @property
    def keys(self) -> tuple[str, ...]:
        """What metrics can be sliced by: `label`, where accuracy is measured, and what the task declares."""
        own = (LABEL,) if "accuracy" in self.model.metrics and LABEL not in self.slices else ()
        return (*own, *self.slices)

    def description(self) -> dict[str, Any]:
        """What identifies the task in the terms: its name, its settings, and the digest of its layout."""
        return {"name": self.name, **self.model.settings, "layout": self.layout.digest.hex()}
