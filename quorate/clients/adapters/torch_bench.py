"""One client of a PyTorch model: a copy of the module that is trained and evaluated with its parameters and data.

Parameters and gradients are views into two flat tensors, so that a step is one operation, and the local rules see the
vectors that they are written for.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quorate.clients.adapters.batches import Batches
from quorate.clients.adapters.dp_sgd import clipped_sum
from quorate.errors import DataError

if TYPE_CHECKING:
    from quorate.clients.adapters.torch_models import TorchModel

__all__ = ["Bench", "seeded"]

_ROWS = 1024  # examples that are evaluated at once


class Bench:
    """A copy of the module to train and evaluate with: a `Trainer`, for one client after the other.

    Args:
        model: whose module it copies.
    """

    def __init__(self, model: TorchModel):
        self._model = model
        self._module = copy.deepcopy(model.module)
        named = dict(self._module.named_parameters())
        self._device = next(iter(named.values())).device
        self.weights = torch.empty(model.trained.size, device=self._device)
        self._gradient = torch.zeros_like(self.weights)
        for name, shape in model.trained.entries:
            place = model.trained.slice(name)
            named[name].data = self.weights[place].view(shape)
            named[name].grad = self._gradient[place].view(shape)
        self._buffers = [self._module.get_buffer(name) for name in model.buffers.names]
        self._first_buffers = self.buffers().cpu().numpy()
        self.data: Batches | None = None

    def load(self, vector: np.ndarray, buffers: np.ndarray | None = None) -> None:
        """Sets parameters and buffers, those of an earlier client included.

        Args:
            vector: of the model's layout.
            buffers: of a client that keeps its own; None: those that the module came with.

        Raises:
            DataError: the client's own buffers are not of this model.
        """
        model = self._model
        self.weights.copy_(self.array(vector[: model.trained.size]))
        if model.shares_buffers:
            values = vector[model.trained.size :]
        else:
            values = self._first_buffers if buffers is None else buffers
        if values.shape != (model.buffers.size,):
            raise DataError(f"{model.buffers.size} values of buffers are needed, got shape {values.shape}")
        for name, buffer in zip(model.buffers.names, self._buffers, strict=True):
            buffer.copy_(self.array(values[model.buffers.slice(name)]).view(buffer.shape))

    def array(self, values: np.ndarray) -> Any:
        """A tensor on the module's device."""
        return torch.tensor(values, device=self._device)

    def numpy(self, array: Any) -> np.ndarray:
        """A copy on this side."""
        made: np.ndarray = array.detach().cpu().numpy()
        return made

    def gradient(self, rows: np.ndarray) -> tuple[Any, Sequence[Any]]:
        """By back-propagation, in training mode."""
        assert self.data is not None
        x, y = (self._placed(part) for part in self.data.take(rows))
        self._gradient.zero_()
        outputs = self._module.train()(x)
        loss = self._model.loss(outputs, y)
        loss.backward()
        with torch.no_grad():
            return self._gradient, [loss.detach(), *(of(outputs, y) for of in self._model.measures.values())]

    def clipped_sum(self, rows: np.ndarray, clip_norm: float) -> np.ndarray:
        """By `torch.func`: the gradients of a batch's examples, each of a batch of one, in training mode."""
        if self._model.buffers.size:
            raise DataError(
                f"training.dp_sgd protects what follows a gradient, and the model {self._model.name!r} has buffers "
                "that are computed from examples otherwise; accepted: a normalisation without statistics (GroupNorm)"
            )
        assert self.data is not None
        x, y = (self._placed(part) for part in self.data.take(rows))
        module = self._module.train()
        trained = self._model.trained
        weights = {name: self.weights[trained.slice(name)].view(shape) for name, shape in trained.entries}
        fixed = {name: p for name, p in module.named_parameters() if name not in weights}

        def one(weights: dict[str, Any], x: Any, y: Any) -> Any:
            outputs = torch.func.functional_call(module, {**fixed, **weights}, (x[None],))
            return self._model.loss(outputs, y[None])

        each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0), randomness="different")
        try:
            gradients = each(weights, x, y)
        except RuntimeError as error:
            raise DataError(
                f"training.dp_sgd needs the gradient of every single example of {self._model.name!r}, and PyTorch has "
                f"none: {error}"
            ) from error
        flat = torch.cat([gradients[name].flatten(1) for name in trained.names], dim=1)
        return clipped_sum(self.numpy(flat), clip_norm)

    def values(self) -> Any:
        """Parameters, and buffers if they are shared."""
        return (
            torch.cat([self.weights, self.buffers()])
            if self._model.shares_buffers and self._buffers
            else self.weights
        )

    def buffers(self) -> Any:
        """The floating-point buffers as one vector."""
        return torch.cat(
            [torch.empty(0, device=self._device), *(b.detach().flatten() for b in self._buffers)]
        )

    def evaluate(self, data: Batches) -> dict[str, float]:
        """The metrics, averaged over the examples."""
        if not len(data):
            raise DataError(f"the model {self._model.name!r} needs at least one example")
        totals = np.zeros(len(self._model.metrics))
        with torch.no_grad():
            self._module.eval()
            for start in range(0, len(data), _ROWS):
                rows = np.arange(start, min(start + _ROWS, len(data)))
                x, y = (self._placed(part) for part in data.take(rows))
                outputs = self._module(x)
                measures = [self._model.loss, *self._model.measures.values()]
                totals += [len(rows) * float(of(outputs, y)) for of in measures]
        return dict(zip(self._model.metrics, (totals / len(data)).tolist(), strict=True))

    def outputs(self, x: Any) -> np.ndarray:
        """What the module gives for a batch."""
        with torch.no_grad():
            return self.numpy(self._module.eval()(self._placed(np.asarray(x))))

    def _placed(self, part: Any) -> Any:
        tensor = torch.from_numpy(part) if isinstance(part, np.ndarray) else part
        return tensor.to(self._device)


@contextlib.contextmanager
def seeded(seed: int | None, device: Any = None) -> Iterator[None]:
    """PyTorch's generators with a seed, and afterwards as they were; None leaves them alone."""
    if seed is None:
        yield
        return
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
