"""Chains of dense layers with closed-form gradients, for one or many clients at once.

Every array has a leading clients axis: weights and gradients are flat vectors, shape (clients, n), and a
batch is (clients, batch, features); one client is a block of one. Everything is float32 and computed in place
where it can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import ClassVar, Protocol

import numpy as np

from quorate.clients.adapters.dp_sgd import factors
from quorate.errors import DataError

__all__ = [
    "Head",
    "Network",
    "Softmax",
    "Squared",
    "Views",
    "Workspace",
    "backward",
    "clipped",
    "descend",
    "forward",
]

_TILE = 40_000  # values of a gradient that are made at once: 160 KB
_TINY = float(np.finfo(np.float32).tiny)


class Head(Protocol):
    """The loss, and what is made of the last layer's outputs, shape (rows, outputs): a row is an example."""

    @property
    def metrics(self) -> tuple[str, str]:
        """The names of what is measured: the loss, and one more."""
        ...

    @property
    def activation(self) -> str:
        """What turns outputs into a prediction, for the servable program."""
        ...

    def check(self, y: np.ndarray, outputs: int) -> None:
        """Refuses targets that do not fit, with a DataError."""
        ...

    def error(self, outputs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Overwrites outputs by the gradient of each row's loss; returns two values a row for `measure`."""
        ...

    def measure(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The metrics of each row, from what `error` returned."""
        ...

    def predict(self, outputs: np.ndarray) -> np.ndarray:
        """Predictions, shape (rows, outputs)."""
        ...

    def evaluate(self, outputs: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """The metrics, averaged over the rows, exactly: outputs are float64."""
        ...


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy: -log softmax(z)_y, whose gradient is softmax(z) - 1_y; and the accuracy."""

    metrics: ClassVar[tuple[str, str]] = ("loss", "accuracy")
    activation: ClassVar[str] = "softmax"

    def check(self, y: np.ndarray, outputs: int) -> None:
        """Labels are int64, from 0 to outputs - 1."""
        if y.dtype != np.int64 or y.min() < 0 or y.max() >= outputs:
            raise DataError(
                f"labels are whole numbers from 0 to {outputs - 1}, got {y.dtype} from {y.min()} to {y.max()}"
            )

    def error(self, outputs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability of the right label, and whether it is the largest."""
        rows = np.arange(len(y))
        top = outputs.argmax(axis=1)
        outputs -= outputs[rows, top][:, None]  # so that exp can't overflow
        np.exp(outputs, out=outputs)
        outputs /= np.add.reduce(outputs, axis=1)[:, None]
        right = outputs[rows, y]
        outputs[rows, y] = right - 1
        return right, top == y

    def measure(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """-log of the probability, at most 87.4; and 1 or 0."""
        return -np.log(np.maximum(first, _TINY)), second

    def predict(self, outputs: np.ndarray) -> np.ndarray:
        """Probabilities of the labels."""
        scaled = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))

    def evaluate(self, outputs: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """The mean cross-entropy and the accuracy."""
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]
        return float(losses.mean()), float((outputs.argmax(axis=1) == y).mean())


@dataclass(frozen=True)
class Squared:
    """Squared error: (z - y)², whose gradient is 2·(z - y). And the mean absolute error."""

    metrics: ClassVar[tuple[str, str]] = ("loss", "mean_absolute_error")
    activation: ClassVar[str] = "identity"

    def check(self, y: np.ndarray, outputs: int) -> None:
        """Any real number will do, if it is finite."""
        if not np.isfinite(y).all():
            raise DataError("targets are finite numbers")

    def error(self, outputs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The residual, twice."""
        residual = outputs[:, 0] - y
        outputs[:, 0] = 2 * residual
        return residual, residual

    def measure(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The residual's square and its absolute value."""
        return np.square(first), np.abs(second)

    def predict(self, outputs: np.ndarray) -> np.ndarray:
        """The outputs."""
        return outputs

    def evaluate(self, outputs: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """The mean squared and the mean absolute error."""
        residual = outputs[:, 0] - y
        return float(np.square(residual).mean()), float(np.abs(residual).mean())


@dataclass(frozen=True)
class Network:
    """Dense layers with ReLU between them.

    Args:
        widths: values before the first layer, between the layers, and after the last.
        head: the loss.
    """

    widths: tuple[int, ...]
    head: Head

    @property
    def size(self) -> int:
        """The number of parameters: of each layer the weights, shape (inputs, outputs), then the biases."""
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(self.widths))

    @property
    def rest(self) -> Network:
        """What is behind the first layer."""
        return Network(self.widths[1:], self.head)


class Views:
    """The layers' weights and biases as views into flat vectors.

    Args:
        network: whose parameters they are.
        flat: shape (clients, network.size); writing to the views writes to it.
    """

    def __init__(self, network: Network, flat: np.ndarray):
        self.weights: list[np.ndarray] = []
        self.biases: list[np.ndarray] = []
        start = 0
        for inputs, outputs in pairwise(network.widths):
            stop = start + inputs * outputs
            self.weights.append(flat[:, start:stop].reshape(len(flat), inputs, outputs))
            self.biases.append(flat[:, None, stop : stop + outputs])
            start = stop + outputs


class Workspace:
    """Arrays that are used again in every step, since fresh memory costs more than the arithmetic on it."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, *shape: int) -> np.ndarray:
        """An uninitialised float32 array; the next of the same name may overwrite it."""
        size = math.prod(shape)
        held = self._arrays.get(name)
        if held is None or held.size < size:
            held = self._arrays[name] = np.empty(size, np.float32)
        return held[:size].reshape(shape)


def forward(views: Views, x: np.ndarray, workspace: Workspace) -> list[np.ndarray]:
    """The input and every layer's output, (clients, batch, width) each; ReLU is applied to all but the last.

    Args:
        views: of the parameters.
        x: shape (clients, batch, inputs).
        workspace: holds the outputs.
    """
    clients, batch, _ = x.shape
    last = len(views.weights) - 1
    values = [x]
    for i, (weights, biases) in enumerate(zip(views.weights, views.biases, strict=True)):
        out = workspace.array(f"outputs {i}", clients, batch, weights.shape[2])
        np.matmul(values[-1], weights, out=out)
        out += biases
        if i < last:
            np.maximum(out, 0, out=out)
        values.append(out)
    return values


def backward(
    views: Views, gradients: Views, values: list[np.ndarray], error: np.ndarray, workspace: Workspace
) -> None:
    """Writes the gradient of Σ error·outputs by back-propagation.

    Args:
        views: of the parameters.
        gradients: of the flat gradients, which are overwritten.
        values: from `forward`.
        error: the gradient with respect to the last layer's outputs, (clients, batch, outputs).
        workspace: holds what is in between.
    """
    for i in range(len(views.weights) - 1, -1, -1):
        np.matmul(values[i].swapaxes(1, 2), error, out=gradients.weights[i])
        np.add.reduce(error, axis=1, out=gradients.biases[i], keepdims=True)
        if i:
            error = _before(views.weights[i], values[i], error, i, workspace)


def clipped(
    views: Views, values: list[np.ndarray], error: np.ndarray, clip_norm: float, workspace: Workspace
) -> np.ndarray:
    """Σ g·min(1, C/‖g‖₂) over the gradients g of one client's examples, float64, flat; see `dp_sgd.clipped_sum`.

    A dense layer's gradient of one example is the outer product of its inputs and its error, so that its norm is the
    product of theirs, and no example's gradient is ever made (Goodfellow 2015, arXiv 1510.01799).

    Args:
        views: of the parameters; one client.
        values: from `forward`.
        error: the gradient of each example's loss with respect to the last layer's outputs, (1, batch, outputs).
        clip_norm: C.
        workspace: holds what is in between.
    """
    squares: np.ndarray = np.zeros(error.shape[1])
    pairs = []
    for i in range(len(views.weights) - 1, -1, -1):
        inputs, outer = values[i][0].astype(np.float64), error[0].astype(np.float64)
        pairs.append((inputs, outer))
        squares += (np.square(inputs).sum(axis=1) + 1) * np.square(outer).sum(axis=1)
        if i:
            error = _before(views.weights[i], values[i], error, i, workspace)
    scales = factors(squares, clip_norm)
    kept = scales > 0
    parts: list[np.ndarray] = []
    for inputs, outer in reversed(pairs):
        scaled = outer[kept] * scales[kept, None]
        parts += [(inputs[kept].T @ scaled).ravel(), scaled.sum(axis=0)]
    return np.concatenate(parts)


def descend(
    views: Views, values: list[np.ndarray], error: np.ndarray, workspace: Workspace, *, through: bool = False
) -> np.ndarray:
    """Takes the step of plain gradient descent by back-propagation: the weights become w - ∂(Σ error·outputs)/∂w.

    No gradient is ever held as a whole: each is made in tiles that are subtracted while they are in the cache, which
    the weights then have to themselves.

    Args:
        views: of the parameters, which are overwritten.
        values: from `forward`.
        error: the gradient with respect to the last layer's outputs, times the learning rate;
            (clients, batch, outputs).
        workspace: holds what is in between.
        through: whether the input came out of a ReLU before which there are more layers.

    Returns:
        The gradient, times the learning rate, with respect to the first layer's outputs; if `through`, to what went
        into the ReLU before it, (clients, batch, inputs).
    """
    for i in range(len(views.weights) - 1, -1, -1):
        weights, inputs = views.weights[i], values[i].swapaxes(1, 2)
        before = error
        if i or through:  # of the weights before the step
            before = _before(weights, values[i], error, i, workspace)
        clients, rows, columns = weights.shape
        together, height = max(1, _TILE // (rows * columns)), max(1, _TILE // columns)
        for first, start in product(range(0, clients, together), range(0, rows, height)):
            those, part = slice(first, first + together), slice(start, start + height)
            tile = weights[those, part]
            made = workspace.array("tile", *tile.shape)
            np.matmul(inputs[those, part], error[those], out=made)
            tile -= made
        views.biases[i] -= np.add.reduce(error, axis=1, keepdims=True)
        error = before
    return error


def _before(
    weights: np.ndarray, inputs: np.ndarray, error: np.ndarray, layer: int, workspace: Workspace
) -> np.ndarray:
    """The gradient with respect to what went into the ReLU before a layer, from that behind the layer.

    It is made as (W·eᵀ)ᵀ, since BLAS takes e·Wᵀ apart for a batch that is small beside the weights.
    """
    clients, batch, outputs = error.shape
    turned = workspace.array("turned", clients, outputs, batch)
    turned[:] = error.swapaxes(1, 2)
    made = workspace.array("made", clients, inputs.shape[2], batch)
    np.matmul(weights, turned, out=made)
    before = workspace.array(f"error {layer}", *inputs.shape)
    np.multiply(made.swapaxes(1, 2), inputs > 0, out=before)
    return before
