"""Keras models of TensorFlow 2.14, and TFF's functional models, as tasks.

    model = keras_model(build, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model = keras_model(build, loss, dp_optimizer=make_optimizer)     # with tensorflow-privacy's clipping and noise
    model = functional_model(tff_model, layers)

Clients train by steps of SGD under any local rule, on flat vectors, as those of the other adapters do. A plan with
`[training.dp_sgd]` has a Keras model trained by DP-SGD as every adapter does it (`quorate.clients.adapters.dp_sgd`),
with discrete noise and an ε for single examples. With a DP optimiser of tensorflow-privacy in its place the gradient of
a step is the one that the optimiser makes of the examples': each clipped, with noise (Abadi et al. 2016, algorithm 1);
what the optimiser does with gradients beyond that (momentum) is left out, and no ε is claimed for it here: its noise is
in floating point, and its batches, of a fixed size in the order of a shuffle, are no Poisson samples.

What training changes without a gradient (the statistics of a BatchNormalization) is refused. Runs where TensorFlow is
installed; the Keras 3 of a modern environment has an adapter of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from quorate.clients.adapters.batches import Batches, batches
from quorate.clients.adapters.dp_sgd import ABILITY, clipped_sum
from quorate.clients.adapters.local_training import fit_one, with_rate
from quorate.errors import DataError, PlanError
from quorate.fleets import Client
from quorate.parameters import Layout, Parameters
from quorate.rounds import Instruction, State, Update
from quorate.strategies import local_rules
from quorate.task import DenseLayer

__all__ = ["TensorFlowModel", "functional_model", "keras_model"]

_ACTIVATIONS = {
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "linear": "identity",
}


def keras_model(
    build: Callable[[], Any],
    loss: Any,
    train_data: Any = None,
    *,
    dp_optimizer: Callable[[], Any] | None = None,
    learning_rate: float | None = None,
    name: str = "keras-tensorflow",
    settings: Mapping[str, Any] | None = None,
) -> TensorFlowModel:
    """A Keras model.

    Args:
        build: makes the model, built (with an input shape).
        loss: a `tf.keras.losses.Loss`.
        train_data: a client's own, see `quorate.clients.adapters.batches`.
        dp_optimizer: makes an optimiser of tensorflow-privacy, such as `DPKerasSGDOptimizer`, whose clipping and noise
            each step's gradient gets; its number of microbatches is that of the batch (`num_microbatches=None`).
        learning_rate: a client's own, in the place of the plan's.
        name: of the task.
        settings: what a plan has to say to get this model again from an installed task.

    Raises:
        PlanError: training would change something without a gradient.
    """
    made = build()
    if made.non_trainable_weights:
        changed = ", ".join(weight.name for weight in made.non_trainable_weights)
        raise PlanError(
            f"model: its weights {changed} follow no gradient; accepted: models whose weights all do"
        )
    classifies = isinstance(loss, tf.keras.losses.SparseCategoricalCrossentropy)

    def example_losses(outputs: Any, y: Any) -> Any:
        return loss.call(tf.reshape(y, tf.shape(outputs)) if not classifies else y, outputs)

    return TensorFlowModel(
        variables=list(made.trainable_weights),
        outputs=lambda x, training: made(x, training=training),
        losses=example_losses,
        by_example=True,
        classifies=classifies,
        fresh=lambda: [weight.numpy() for weight in build().trainable_weights],
        layers=lambda: _dense_layers(made, loss),
        data=None if train_data is None else batches(train_data),
        dp_optimizer=None if dp_optimizer is None else dp_optimizer(),
        learning_rate=learning_rate,
        name=name,
        settings=dict(settings or {}),
    )


def functional_model(
    model: Any,
    layers: Sequence[DenseLayer] = (),
    train_data: Any = None,
    *,
    classifies: bool = True,
    name: str = "functional-tff",
    settings: Mapping[str, Any] | None = None,
) -> TensorFlowModel:
    """A `tff.learning.models.FunctionalModel`.

    Args:
        model: whose weights are all trained.
        layers: of the program that serves it, with this model's parameters in order; none: it can't be served.
        train_data: a client's own.
        classifies: whether its outputs are the logits of classes.
        name: of the task.
        settings: what a plan has to say to get this model again from an installed task.

    Raises:
        PlanError: it has weights that are not trained.
    """
    trainable, others = model.initial_weights
    if others:
        raise PlanError(
            f"model: {len(others)} of its weights are not trained; accepted: models whose weights all are"
        )
    variables = [tf.Variable(weight) for weight in trainable]

    def given_layers() -> tuple[DenseLayer, ...]:
        if not layers:
            raise PlanError("model: the layers of a functional model can't be told; accepted: `layers`")
        return tuple(layers)

    return TensorFlowModel(
        variables=variables,
        outputs=lambda x, training: model.predict_on_batch((tuple(variables), ()), x, training),
        losses=lambda outputs, y: model.loss(outputs, y, None),
        by_example=False,
        classifies=classifies,
        fresh=lambda: [np.asarray(weight) for weight in trainable],
        layers=given_layers,
        data=None if train_data is None else batches(train_data),
        dp_optimizer=None,
        learning_rate=None,
        name=name,
        settings=dict(settings or {}),
    )


@dataclass(frozen=True, eq=False)
class TensorFlowModel:
    """A model in TensorFlow: made by `keras_model` or `functional_model`.

    Args:
        variables: what is trained.
        outputs: of a batch, in training or not.
        losses: of outputs and targets: one number an example, or their mean.
        by_example: whether they are one number an example.
        classifies: whether the outputs are of classes, so that there is an accuracy.
        fresh: values to start from.
        layers: of the servable program.
        data: of this client; None: they are given to `client`.
        dp_optimizer: clips and noises gradients; None: they are what they are.
        learning_rate: of this client; None: the plan's.
        name: of the task.
        settings: of the task.
    """

    variables: list[Any]
    outputs: Callable[[Any, bool], Any]
    losses: Callable[[Any, Any], Any]
    by_example: bool
    classifies: bool
    fresh: Callable[[], list[np.ndarray]]
    layers: Callable[[], tuple[DenseLayer, ...]]
    data: Batches | None
    dp_optimizer: Any
    learning_rate: float | None
    name: str
    settings: Mapping[str, Any]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The loss, and the accuracy of a classifier."""
        return ("loss", "accuracy") if self.classifies else ("loss",)

    @property
    def clips_examples(self) -> bool:
        """Whether DP-SGD can be had: there is the gradient of every example, and no optimiser noises it before."""
        return self.by_example and self.dp_optimizer is None

    @cached_property
    def layout(self) -> Layout:
        """By position and kind, such as `0.kernel`: Keras numbers the layers of every new model on."""
        kinds = [str(getattr(v, "name", "")).split("/")[-1].split(":")[0] or "weight" for v in self.variables]
        return Layout(
            tuple(
                (f"{i}.{kind}", tuple(v.shape))
                for i, (kind, v) in enumerate(zip(kinds, self.variables, strict=True))
            )
        )

    def initial(self, rng: np.random.Generator) -> Parameters:
        """The values of a model made anew, with TensorFlow's seed drawn from `rng`."""
        tf.keras.utils.set_random_seed(int(rng.integers(2**31)))
        arrays = dict(zip(self.layout.names, self.fresh(), strict=True))
        return self.layout.unflatten(self.layout.flatten(arrays).copy())

    def client(self, data: Any = None) -> Client:
        """A client that trains this model on its data, or on those that the model was made with.

        Raises:
            DataError: there are no data, or no example.
        """
        own = self.data if data is None else batches(data)
        if own is None or not len(own):
            raise DataError(f"a client of {self.name!r} needs data with at least one example")
        return TensorFlowClient(self, own)

    def evaluate(self, parameters: Mapping[str, np.ndarray], data: Any) -> dict[str, float]:
        """The metrics, averaged over the examples."""
        self.load(self.layout.flatten(parameters))
        x, y = batches(data).take(np.arange(len(data)))
        found = self.measured(self.outputs(tf.constant(x), False), tf.constant(y))
        return dict(zip(self.metrics, (float(value) for value in found), strict=True))

    def predict(self, parameters: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        """The model's outputs as an array."""
        self.load(self.layout.flatten(parameters))
        return np.asarray(self.outputs(tf.constant(np.asarray(x, np.float32)), False))

    def program_spec(self) -> tuple[DenseLayer, ...]:
        """The model as a chain of dense layers.

        Raises:
            PlanError: it is none.
        """
        names = iter(self.layout.names)
        return tuple(
            DenseLayer(next(names), next(names), layer.inputs, layer.outputs, layer.activation)
            for layer in self.layers()
        )

    def load(self, vector: np.ndarray) -> None:
        """Sets the variables from a flat vector."""
        for name, variable in zip(self.layout.names, self.variables, strict=True):
            variable.assign(vector[self.layout.slice(name)].reshape(variable.shape))

    def measured(self, outputs: Any, y: Any) -> list[Any]:
        """The metrics of a batch."""
        values = [tf.reduce_mean(self.losses(outputs, y))]
        if self.classifies:
            hits = tf.equal(tf.argmax(outputs, -1), tf.cast(tf.reshape(y, [-1]), tf.int64))
            values.append(tf.reduce_mean(tf.cast(hits, tf.float32)))
        return values

    def step(self, x: Any, y: Any) -> tuple[np.ndarray, list[float]]:
        """The gradient to step along, flat, and the batch's metrics."""
        with tf.GradientTape(persistent=self.dp_optimizer is not None) as tape:
            outputs = self.outputs(tf.constant(x), True)
            losses = self.losses(outputs, tf.constant(y))
        if self.dp_optimizer is None:
            with tape:
                mean = tf.reduce_mean(losses)
            gradients = tape.gradient(mean, self.variables)
        else:
            pairs = self.dp_optimizer._compute_gradients(losses, self.variables, tape=tape)
            gradients = [gradient for gradient, _ in pairs]
        flat = np.concatenate([np.ravel(np.asarray(tf.convert_to_tensor(g))) for g in gradients])
        return flat.astype(np.float32), [float(value) for value in self.measured(outputs, tf.constant(y))]

    def each_gradient(self, x: Any, y: Any) -> np.ndarray:
        """The gradient of every example's loss, float32, shape (batch, parameters)."""
        with tf.GradientTape() as tape:
            losses = self.losses(self.outputs(tf.constant(x), True), tf.constant(y))
        jacobians = tape.jacobian(losses, self.variables)
        flat = [np.asarray(tf.convert_to_tensor(j)).reshape(len(x), -1) for j in jacobians]
        return np.concatenate(flat, axis=1).astype(np.float32)


class TensorFlowClient:
    """A client that trains a model on its own data.

    Args:
        model: what is trained.
        data: at least one example.
    """

    def __init__(self, model: TensorFlowModel, data: Batches):
        self.rules = frozenset({*local_rules.names(), *({ABILITY} if model.clips_examples else ())})
        self._model, self._data = model, data

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """Trains, see `local_training`; what the model and the noise draw follows the instruction's seed."""
        model = self._model
        start = model.layout.flatten(parameters)
        if instruction.seed is not None:
            tf.random.set_seed(instruction.seed % 2**31)
        trainer = _Trainer(model, self._data, start)
        done = fit_one(trainer, start, len(self._data), with_rate(instruction, model.learning_rate), state)
        return Update(done.vectors, len(self._data), done.named(model.metrics)), done.state

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """The model's metrics on the client's data."""
        x, y = self._data.take(np.arange(len(self._data)))
        return Update({}, len(self._data), self._model.evaluate(parameters, (x, y)))


class _Trainer:
    """A `Trainer` on NumPy's flat vectors; TensorFlow computes the gradient."""

    def __init__(self, model: TensorFlowModel, data: Batches, start: np.ndarray):
        self._model, self._data = model, data
        self.weights = start.copy()

    def array(self, values: np.ndarray) -> np.ndarray:
        return values

    def numpy(self, array: Any) -> np.ndarray:
        return np.array(array, np.float32)

    def values(self) -> np.ndarray:
        return self.weights

    def gradient(self, rows: np.ndarray) -> tuple[np.ndarray, Sequence[Any]]:
        self._model.load(self.weights)
        return self._model.step(*self._data.take(rows))

    def clipped_sum(self, rows: np.ndarray, clip_norm: float) -> np.ndarray:
        if not self._model.clips_examples:
            raise DataError(
                "training.dp_sgd needs the loss of every single example, and gradients that no optimiser has noised "
                "before; accepted: a keras_model without dp_optimizer"
            )
        self._model.load(self.weights)
        return clipped_sum(self._model.each_gradient(*self._data.take(rows)), clip_norm)


def _dense_layers(model: Any, loss: Any) -> tuple[DenseLayer, ...]:
    """A Sequential model's dense layers; the parameters' names are filled in by whoever knows them."""
    found: list[DenseLayer] = []
    keras = tf.keras.layers
    for layer in model.layers:
        if isinstance(layer, keras.Flatten | keras.Dropout | keras.InputLayer):
            continue
        activation = getattr(getattr(layer, "activation", None), "__name__", None)
        if isinstance(layer, keras.Dense) and layer.use_bias and activation in _ACTIVATIONS:
            found.append(
                DenseLayer("", "", int(layer.input_spec.axes[-1]), layer.units, _ACTIVATIONS[activation])
            )
            continue
        raise PlanError(
            f"model: its layer {layer.name!r} is a {type(layer).__name__}; accepted where a model is served: Dense "
            f"with a bias and an activation of {', '.join(_ACTIVATIONS)}, Flatten, Dropout"
        )
    if not found:
        raise PlanError("model: it has no Dense layer, so that nothing can be served")
    if getattr(loss, "_fn_kwargs", {}).get("from_logits") and found[-1].activation == "identity":
        last = found[-1]
        kind = "softmax" if last.outputs > 1 else "sigmoid"
        found[-1] = DenseLayer("", "", last.inputs, last.outputs, kind)
    return tuple(found)
