"""The reference models in NumPy: softmax regression, a multilayer perceptron, linear regression.

A model is a chain of dense layers over one flat float32 vector, with gradients in closed form (`dense`).
How it is trained is in `numpy_training`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from quorate.clients.adapters.dense import Network, Softmax, Squared, Views, Workspace, backward, forward
from quorate.clients.adapters.dp_sgd import ABILITY, asks
from quorate.clients.adapters.examples import Examples
from quorate.clients.adapters.numpy_training import fit_many, fit_private
from quorate.errors import DataError, PlanError
from quorate.fleets import Client
from quorate.parameters import Layout, Parameters
from quorate.rounds import Instruction, State, Update, Updates
from quorate.strategies import local_rules
from quorate.task import DenseLayer

__all__ = ["DenseModel", "NumpyClient", "linear", "mlp", "softmax"]


def softmax(inputs: int, classes: int) -> DenseModel:
    """Softmax regression: multinomial logistic regression with the cross-entropy loss; it starts at zero.

    Args:
        inputs: features of an example.
        classes: labels are 0 … classes - 1.

    Raises:
        PlanError: a size is not a whole number of at least 1 (of classes: 2).
    """
    _check(inputs=inputs)
    _check(2, classes=classes)
    return DenseModel(
        "softmax", {"inputs": inputs, "classes": classes}, Network((inputs, classes), Softmax())
    )


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> DenseModel:
    """A multilayer perceptron with ReLU between its layers and the cross-entropy loss.

    The 2NN of McMahan et al. 2017 is `mlp(784, (200, 200), 10)`. Weights start as He et al. 2015 say
    (equation 10), biases at zero.

    Args:
        inputs: features of an example.
        hidden: the widths of the hidden layers, at least one.
        classes: labels are 0 … classes - 1.

    Raises:
        PlanError: a size is not a whole number of at least 1 (of classes: 2), or there is no hidden layer.
    """
    given: Any = hidden
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise PlanError(f"hidden: {hidden!r} was found; a list of at least one layer's width is accepted")
    _check(inputs=inputs, **{f"hidden[{i}]": width for i, width in enumerate(hidden)})
    _check(2, classes=classes)
    settings = {"inputs": inputs, "hidden": list(hidden), "classes": classes}
    return DenseModel("mlp", settings, Network((inputs, *hidden, classes), Softmax()))


def linear(inputs: int) -> DenseModel:
    """Linear regression with the mean squared error; it starts at zero.

    Args:
        inputs: features of an example.

    Raises:
        PlanError: `inputs` is not a whole number of at least 1.
    """
    _check(inputs=inputs)
    return DenseModel("linear", {"inputs": inputs}, Network((inputs, 1), Squared()))


@dataclass(frozen=True)
class DenseModel:
    """A reference model: made by `softmax`, `mlp` or `linear`.

    Args:
        name: of the function that made it.
        settings: its arguments: name and settings can be written into a plan.
        network: its layers and loss.
    """

    name: str
    settings: Mapping[str, Any]
    network: Network
    together = True

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured in training and evaluation: `loss`, and `accuracy` or `mean_absolute_error`."""
        return self.network.head.metrics

    @cached_property
    def layout(self) -> Layout:
        """Names and shapes: `weight` and `bias`, with the layer's number in front if there are several."""
        entries: list[tuple[str, tuple[int, ...]]] = []
        for layer in self.program_spec():
            entries += [(layer.weight, (layer.inputs, layer.outputs)), (layer.bias, (layer.outputs,))]
        return Layout(tuple(entries))

    def program_spec(self) -> tuple[DenseLayer, ...]:
        """The layers of the servable program, first to last."""
        shapes = list(pairwise(self.network.widths))
        prefixes = [f"layer{i}." for i in range(1, len(shapes) + 1)] if len(shapes) > 1 else [""]
        activations = ["relu"] * (len(shapes) - 1) + [self.network.head.activation]
        return tuple(
            DenseLayer(f"{prefix}weight", f"{prefix}bias", *shape, activation)
            for prefix, shape, activation in zip(prefixes, shapes, activations, strict=True)
        )

    def initial(self, rng: np.random.Generator) -> Parameters:
        """Parameters to start from."""
        arrays: dict[str, np.ndarray] = {
            name: np.zeros(shape, np.float32) for name, shape in self.layout.entries
        }
        if (
            len(self.network.widths) > 2
        ):  # with one layer nothing has to be told apart, and the loss is convex
            for layer in self.program_spec():
                spread = np.sqrt(2 / layer.inputs)
                arrays[layer.weight] = spread * rng.standard_normal((layer.inputs, layer.outputs), np.float32)
        return self.layout.unflatten(self.layout.flatten(arrays))

    def client(self, data: Examples | None) -> Client:
        """A client that trains this model on its data.

        Raises:
            DataError: there is no example, or the data do not fit the model.
        """
        if data is None:
            raise DataError(
                f"{self.name!r} has no data of its own; accepted: quorate.Task(model, data=function), where the "
                "function gives the device's examples"
            )
        return NumpyClient(self, data)

    def fit_many(
        self,
        parameters: Parameters,
        data: Sequence[Examples],
        instructions: Sequence[Instruction],
        states: Sequence[State],
    ) -> tuple[Updates, list[State]]:
        """Trains many clients as batched matrix products: gives what each one's `fit` gives, up to rounding.

        Args:
            parameters: where all of them start.
            data: of each client.
            instructions: for each client; they may differ in the seed only.
            states: of each client.

        Raises:
            DataError: the data do not fit the model, or the instructions differ.
        """
        for one in data:
            self.check(one)
        return fit_many(self.network, self.layout.flatten(parameters), data, instructions, states)

    def predict(self, parameters: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        """Class probabilities, shape (examples, classes), or values, shape (examples, 1); float32."""
        return self.network.head.predict(self._outputs(parameters, np.asarray(x, np.float32)))

    def evaluate(self, parameters: Mapping[str, np.ndarray], data: Examples) -> dict[str, float]:
        """The metrics, averaged over the examples, in float64.

        Args:
            parameters: named arrays of this layout.
            data: at least one example.

        Raises:
            DataError: there is no example, or the data do not fit the model.
        """
        self.check(data)
        outputs = self._outputs(parameters, data.x).astype(np.float64)
        return dict(zip(self.metrics, self.network.head.evaluate(outputs, data.y), strict=True))

    def gradient(self, weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The gradient of the mean loss over a batch, in closed form; float32, shape (layout.size,).

        Args:
            weights: the flat parameters, float32, shape (layout.size,).
            x: float32, shape (batch, inputs).
            y: labels (int64) or values (float32), shape (batch,).
        """
        gradient: np.ndarray = np.empty((1, self.layout.size), np.float32)
        views, workspace = Views(self.network, weights[None]), Workspace()
        values = forward(views, x[None], workspace)
        error = values[-1]
        self.network.head.error(error[0], y)
        error *= np.float32(1 / len(x))
        backward(views, Views(self.network, gradient), values, error, workspace)
        return np.asarray(gradient[0])

    def check(self, data: Examples) -> None:
        """Refuses data that do not fit.

        Raises:
            DataError: what was found, and what is accepted.
        """
        if not len(data):
            raise DataError(f"the model {self.name!r} needs at least one example")
        if data.x.shape[1:] != (self.network.widths[0],):
            found = "×".join(map(str, data.x.shape[1:]))
            raise DataError(f"the model {self.name!r} takes {self.network.widths[0]} features, got {found}")
        self.network.head.check(data.y, self.network.widths[-1])

    def _outputs(self, parameters: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        views = Views(self.network, self.layout.flatten(parameters)[None])
        return np.asarray(forward(views, x[None], Workspace())[-1][0])


class NumpyClient:
    """A client that trains a reference model on its own data.

    Args:
        model: what is trained.
        data: at least one example.

    Raises:
        DataError: the data do not fit the model.
    """

    def __init__(self, model: DenseModel, data: Examples):
        model.check(data)
        self.rules = frozenset({*local_rules.names(), ABILITY})
        self._model, self._data = model, data

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """Trains as the instruction says, see `numpy_training`."""
        start = self._model.layout.flatten(parameters)
        if asks(instruction):
            done = fit_private(self._model.network, start, self._data, instruction, state)
            return Update(done.vectors, len(self._data), {}), done.state
        updates, states = fit_many(self._model.network, start, [self._data], [instruction], [state])
        vectors = {name: vector[0] for name, vector in updates.vectors.items()}
        metrics = {name: float(values[0]) for name, values in updates.metrics.items()}
        return Update(vectors, len(self._data), metrics), states[0]

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """The model's metrics on the client's data."""
        return Update({}, len(self._data), self._model.evaluate(parameters, self._data))


def _check(least: int = 1, **sizes: Any) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise PlanError(f"{name}: {size!r} was found; a whole number of at least {least} is accepted")
