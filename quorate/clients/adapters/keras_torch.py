"""A Keras model on the PyTorch backend as a `torch.nn.Module`, whose parameters and buffers are its variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from quorate.clients.adapters.torch_models import TorchModel
from quorate.clients.adapters.torch_models import torch as adapted
from quorate.task import DenseLayer

__all__ = ["on_torch"]


def on_torch(
    model: Any,
    loss: Any,
    metrics: Mapping[str, Any],
    train_data: Any,
    *,
    layers: tuple[DenseLayer, ...] | None,
    **options: Any,
) -> TorchModel:
    """The model of the PyTorch adapter.

    Args:
        model: built.
        loss: of targets and outputs.
        metrics: of targets and outputs, by name.
        train_data: of this client, or None.
        layers: what the model is as a chain of dense layers, if it is one: its servable program.
        options: as of `torch_models.torch`.
    """
    measures = {name: _Turned(function) for name, function in metrics.items()}
    return adapted(Stateless(model), _Turned(loss), train_data, metrics=measures, layers=layers, **options)


class Stateless(torch.nn.Module):
    """Calls a Keras model with variables of its own.

    Args:
        model: built; it is not changed, and copies of this module share it.
    """

    def __init__(self, model: Any):
        from quorate.clients.adapters.keras_models import numbered

        super().__init__()
        self._model = _Shared(model)
        trained, fixed = model.trainable_variables, model.non_trainable_variables
        self._trained, self._fixed = [], []
        for name, variable in zip(numbered(trained), trained, strict=True):
            self._trained.append(name)
            self.register_parameter(self._trained[-1], torch.nn.Parameter(_values(variable)))
        for name, variable in zip(numbered(fixed), fixed, strict=True):
            self._fixed.append(f"fixed_{name}")
            self.register_buffer(self._fixed[-1], _values(variable))
        self.draws = any(not buffer.is_floating_point() for buffer in self.buffers())

    def forward(self, x: Any) -> Any:
        """The outputs; in training mode the variables that are not trained become what the call leaves."""
        trained = [getattr(self, name) for name in self._trained]
        fixed = [self._drawn(getattr(self, name)) for name in self._fixed]
        outputs, left = self._model.whole.stateless_call(trained, fixed, x, training=self.training)
        if self.training:
            with torch.no_grad():
                for name, value in zip(self._fixed, left, strict=True):
                    getattr(self, name).copy_(value)
        return outputs

    def _drawn(self, value: Any) -> Any:
        """A seed generator's state is drawn anew from PyTorch's, which follows the instruction's seed."""
        if value.is_floating_point() or not self.training:
            return value
        return torch.randint(0, 2**31, value.shape, device=value.device).to(value.dtype)


class _Shared:
    """Holds a Keras model, so that neither a copy nor PyTorch looks into it."""

    def __init__(self, whole: Any):
        self.whole = whole

    def __deepcopy__(self, memo: Any) -> _Shared:
        return self


class _Turned:
    """A function of targets and outputs as one of outputs and targets, averaged."""

    def __init__(self, function: Any):
        self._function = function

    def __call__(self, outputs: Any, y: Any) -> Any:
        return self._function(y, outputs).mean()


def _values(variable: Any) -> Any:
    value = variable.value
    return (value.detach() if isinstance(value, torch.Tensor) else torch.as_tensor(value)).clone().cpu()
