"""Keras 3: a built model on the backend that Keras runs on, PyTorch or JAX, as a model of that adapter's.

    model = quorate.clients.keras(network, keras.losses.SparseCategoricalCrossentropy(from_logits=True))

Everything goes through `Model.stateless_call`: the Keras model itself is never changed. Variables are numbered in the
model's order (`0_kernel`, `1_bias`), since Keras' own names count the layers of the whole process.

On PyTorch, the floating-point variables that are not trained (the statistics of a BatchNormalization) are buffers,
shared or local as `torch_models` says, and what a Dropout draws follows the seed. On JAX a model with either is
refused. TensorFlow as a backend is refused: `KERAS_BACKEND` names the backend before Keras is imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quorate.errors import MissingExtra, PlanError
from quorate.task import DenseLayer

try:
    import keras as framework
except ImportError as missing:
    raise MissingExtra("keras", "training a Keras model") from missing

if TYPE_CHECKING:
    from quorate.clients.adapters.jax_models import JaxModel
    from quorate.clients.adapters.torch_models import TorchModel

__all__ = ["keras"]

_ACTIVATIONS = {
    "linear": "identity",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "tanh": "tanh",
}


def keras(
    model: Any,
    loss: Any,
    train_data: Any = None,
    *,
    learning_rate: float | None = None,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    buffers: Literal["shared", "local"] = "shared",
    name: str = "keras",
    settings: Mapping[str, Any] | None = None,
) -> TorchModel | JaxModel:
    """A Keras model as a model.

    Args:
        model: built, so that it has its variables; learning starts where they are.
        loss: a Keras loss, or its name: of targets and outputs of a batch, the mean over its examples.
        train_data: a client's own: `Examples`, a pair of arrays, or a map-style dataset. In a simulation the fleet's
            data take its place.
        learning_rate: a client's own, in the place of the plan's.
        metrics: means over a batch of something that targets and outputs tell, by name, beside the loss; None: the
            accuracy, if the loss is a sparse categorical cross-entropy.
        buffers: what becomes of variables that are not trained, see the module.
        name: of the task.
        settings: what a plan has to say to get this model again from an installed task.

    Raises:
        PlanError: the backend is neither PyTorch nor JAX, the model is not built, or JAX can't train it.
    """
    if not isinstance(model, framework.Model) or not model.built:
        raise PlanError("model: a built keras.Model is accepted (keras.Input as its first layer builds one)")
    of = framework.losses.get(loss)
    if metrics is None:
        sparse = isinstance(of, framework.losses.SparseCategoricalCrossentropy) or (
            of is framework.losses.sparse_categorical_crossentropy
        )
        metrics = {"accuracy": framework.metrics.sparse_categorical_accuracy} if sparse else {}
    options: dict[str, Any] = {"learning_rate": learning_rate, "name": name, "settings": settings}
    backend = framework.backend.backend()
    if backend == "torch":
        from quorate.clients.adapters.keras_torch import on_torch

        return on_torch(model, of, metrics, train_data, buffers=buffers, layers=_layers(model, of), **options)
    if backend == "jax":
        return _on_jax(model, of, metrics, train_data, **options)
    raise PlanError(f"KERAS_BACKEND: {backend!r} was found; 'torch' and 'jax' are accepted")


def _on_jax(model: Any, loss: Any, metrics: Mapping[str, Any], train_data: Any, **options: Any) -> JaxModel:
    from quorate.clients.adapters.jax_models import jax

    if model.non_trainable_variables:
        held = ", ".join(variable.path for variable in model.non_trainable_variables)
        raise PlanError(
            f"model: on JAX only what is trained can be held, and this has {held}; accepted: KERAS_BACKEND=torch, or a "
            "model without BatchNormalization and Dropout"
        )
    names = numbered(model.trainable_variables)

    def means(function: Any) -> Callable[[Any, Any, Any], Any]:
        def mean(parameters: Any, x: Any, y: Any) -> Any:
            values = [parameters[name] for name in names]
            outputs, _ = model.stateless_call(values, [], x, training=True)
            return framework.ops.mean(function(y, outputs))

        return mean

    layers = _layers(model, loss)
    parameters = {
        name: np.asarray(v.numpy(), np.float32)
        for name, v in zip(names, model.trainable_variables, strict=True)
    }
    measures = {key: means(function) for key, function in metrics.items()}
    return jax(parameters, means(loss), train_data, metrics=measures, layers=layers, **options)


def numbered(variables: Sequence[Any]) -> list[str]:
    """Names that are the same in every process: the place in the model, and what it is there."""
    return [f"{i}_{variable.name}" for i, variable in enumerate(variables)]


def _layers(model: Any, loss: Any) -> tuple[DenseLayer, ...] | None:
    """The model as a chain of dense layers, if it is one; Dropout does nothing when it is served."""
    kept = [
        layer
        for layer in model.layers
        if not isinstance(layer, framework.layers.InputLayer | framework.layers.Dropout)
    ]
    if not isinstance(model, framework.Sequential) or not kept:
        return None
    names, chain = iter(numbered(model.trainable_variables)), []
    for layer in kept:
        activation = getattr(getattr(layer, "activation", None), "__name__", "")
        usable = isinstance(layer, framework.layers.Dense) and layer.use_bias and layer.trainable
        if not usable or activation not in _ACTIVATIONS:
            return None
        weight, bias = itertools.islice(names, 2)
        inputs, outputs = layer.kernel.shape
        chain.append(DenseLayer(weight, bias, int(inputs), int(outputs), _ACTIVATIONS[activation]))
    last = chain[-1]
    if getattr(loss, "from_logits", False) and last.activation == "identity":
        sort = "sigmoid" if isinstance(loss, framework.losses.BinaryCrossentropy) else "softmax"
        chain[-1] = DenseLayer(last.weight, last.bias, last.inputs, last.outputs, sort)
    return tuple(chain)
