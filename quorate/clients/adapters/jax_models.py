"""JAX: a pure loss over a pytree of parameters as a model whose clients run every local rule.

    def loss(parameters, x, y):                       # the mean over a batch's examples
        return optax.softmax_cross_entropy_with_integer_labels(apply(parameters, x), y).mean()

    model = quorate.clients.jax(parameters, loss)

The layout holds the pytree's leaves, named by their paths (`layer1.weight`). Clients are trained together, one alone
as a block of one; see `jax_training`. The loss is called with batches of one, too, and has to be a mean over examples.

What it leaves out: losses that draw random numbers, and state beside the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quorate.clients.adapters.batches import Batches, batches
from quorate.clients.adapters.dp_sgd import ABILITY, asks, clipped_sum
from quorate.clients.adapters.local_training import fit_one, with_rate
from quorate.errors import DataError, MissingExtra, PlanError
from quorate.fleets import Client
from quorate.parameters import Layout, Parameters
from quorate.rounds import Instruction, State, Update, Updates
from quorate.strategies import local_rules
from quorate.task import DenseLayer

try:
    import jax as xla
    import jax.numpy as jnp
except ImportError as missing:
    raise MissingExtra("jax", "training a JAX model") from missing

from quorate.clients.adapters import jax_training
from quorate.clients.adapters.jax_training import Loss

__all__ = ["JaxClient", "JaxModel", "jax"]

_ROWS = 1024  # examples that are evaluated at once


def jax(
    parameters: Any,
    loss: Loss,
    train_data: Any = None,
    *,
    learning_rate: float | None = None,
    metrics: Mapping[str, Loss] | None = None,
    layers: Sequence[DenseLayer] | None = None,
    name: str = "jax",
    settings: Mapping[str, Any] | None = None,
) -> JaxModel:
    """A pure loss as a model.

    Args:
        parameters: a pytree of float32 arrays, where learning starts; or a function of a PRNG key that makes one, which
            is called with a key drawn from the plan's seed.
        loss: of parameters, features and targets of a batch; a scalar, the mean over the batch's examples.
        train_data: a client's own: `Examples`, a pair of arrays, or a map-style dataset. In a simulation the fleet's
            data take its place.
        learning_rate: a client's own, in the place of the plan's.
        metrics: what is measured beside the loss, by name: functions as `loss` is one.
        layers: what the model is as a chain of dense layers, by the names of its leaves: then it can be served.
        name: of the task.
        settings: what a plan has to say to get this model again from an installed task.

    Raises:
        PlanError: a leaf is not float32, or there is none.
    """
    make = parameters if callable(parameters) else None
    tree = xla.tree.map(np.asarray, parameters if make is None else make(xla.random.key(0)))
    leaves = xla.tree_util.tree_flatten_with_path(tree)[0]
    entries = tuple((_name(path), tuple(leaf.shape)) for path, leaf in leaves)
    others = {entry[0]: str(leaf.dtype) for entry, (_, leaf) in zip(entries, leaves, strict=True)}
    others = {leaf: dtype for leaf, dtype in others.items() if dtype != "float32"}
    if others or not leaves:
        raise PlanError(f"parameters: {others or 'none'} were found; a pytree of float32 arrays is accepted")
    return JaxModel(
        tree=tree,
        make=make,
        loss=loss,
        measures=dict(metrics or {}),
        layout=Layout(entries),
        data=None if train_data is None else batches(train_data),
        learning_rate=learning_rate,
        layers=None if layers is None else tuple(layers),
        name=name,
        settings=dict(settings or {}),
    )


@dataclass(frozen=True, eq=False)
class JaxModel:
    """A pure loss: made by `jax`.

    Args:
        tree: the parameters as a pytree of NumPy arrays.
        make: makes fresh ones from a key; None: learning starts from `tree`.
        loss: of parameters, features and targets.
        measures: what is measured beside it, by name.
        layout: of the leaves, in the pytree's order.
        data: of this client; None: it is given to `client`.
        learning_rate: of this client; None: the plan's.
        layers: of the servable program; None: it can't be served.
        name: of the task.
        settings: of the task.
    """

    tree: Any
    make: Callable[[Any], Any] | None
    loss: Loss
    measures: Mapping[str, Loss]
    layout: Layout
    data: Batches | None
    learning_rate: float | None
    layers: tuple[DenseLayer, ...] | None
    name: str
    settings: Mapping[str, Any]
    together = True
    survives_fork = False  # JAX has threads of its own

    @property
    def metrics(self) -> tuple[str, ...]:
        """The loss, and what is measured beside it."""
        return ("loss", *self.measures)

    def initial(self, rng: np.random.Generator) -> Parameters:
        """The given parameters, or fresh ones with a key from `rng`."""
        tree = self.tree if self.make is None else self.make(xla.random.key(int(rng.integers(2**32))))
        return self.layout.unflatten(np.concatenate([np.ravel(leaf) for leaf in xla.tree.leaves(tree)]))

    def pytree(self, parameters: Mapping[str, np.ndarray]) -> Any:
        """Named parameters as the pytree that the loss takes."""
        vector = self.layout.flatten(parameters)
        leaves = [vector[self.layout.slice(name)].reshape(shape) for name, shape in self.layout.entries]
        return xla.tree.unflatten(xla.tree.structure(self.tree), leaves)

    def client(self, data: Any = None) -> Client:
        """A client that trains this model on its data, or on those that the model was made with.

        Raises:
            DataError: there are no data, or no example.
        """
        own = self.data if data is None else batches(data)
        if own is None or not len(own):
            raise DataError(f"a client of {self.name!r} needs data with at least one example")
        return JaxClient(self, own)

    def fit_many(
        self,
        parameters: Parameters,
        data: Sequence[Any],
        instructions: Sequence[Instruction],
        states: Sequence[State],
    ) -> tuple[Updates, list[State]]:
        """Trains many clients: gives what each one's `fit` gives, up to rounding.

        Args:
            parameters: where all of them start.
            data: of each client, at least one example each.
            instructions: for each client; they may differ in the seed only.
            states: of each client.

        Raises:
            DataError: there is no client, an instruction lacks a number, instructions differ, or a state does not fit.
        """
        told = [with_rate(instruction, self.learning_rate) for instruction in instructions]
        start = self.layout.flatten(parameters)
        return jax_training.fit_many(self, start, [batches(one) for one in data], told, states)

    def evaluate(self, parameters: Mapping[str, np.ndarray], data: Any) -> dict[str, float]:
        """The metrics, averaged over the examples.

        Raises:
            DataError: there is no example.
        """
        held = batches(data)
        if not len(held):
            raise DataError(f"the model {self.name!r} needs at least one example")
        tree, total = self.pytree(parameters), np.zeros(len(self.metrics))
        for start in range(0, len(held), _ROWS):
            rows = np.arange(start, start + jax_training.power_of_two(min(_ROWS, len(held) - start)))
            counted = (rows < len(held)).astype(np.float32)
            x, y = held.take(np.minimum(rows, len(held) - 1))
            total += np.asarray(self._sums(tree, x, y, counted), np.float64)
        return dict(zip(self.metrics, (total / len(held)).tolist(), strict=True))

    def program_spec(self) -> tuple[DenseLayer, ...]:
        """The layers that the model was said to be.

        Raises:
            PlanError: it was said to be none.
        """
        if self.layers is None:
            raise PlanError(
                f"task: {self.name!r} is a function, which can't be written as a servable program; accepted: layers=, "
                "where it is a chain of dense layers, or no [publish]"
            )
        return self.layers

    @cached_property
    def _sums(self) -> Any:
        """Sums of the metrics over the examples that count."""
        return xla.jit(lambda tree, x, y, counted: jnp.stack(
            [(jax_training.each(of, tree, x, y) * counted).sum() for of in (self.loss, *self.measures.values())]
        ))  # fmt: skip

    @cached_property
    def steps(self) -> Any:
        """The steps of a block of clients, see `jax_training`."""
        return jax_training.compiled_steps(self.loss, tuple(self.measures.values()))

    @cached_property
    def each_gradient(self) -> Any:
        """The loss's gradients of a batch's examples, each as a batch of one."""
        of_one = xla.grad(lambda tree, x, y: self.loss(tree, x[None], y[None]))
        return xla.jit(xla.vmap(of_one, in_axes=(None, 0, 0)))

    def __getstate__(self) -> dict[str, Any]:
        compiled = ("_sums", "steps", "each_gradient")
        return {name: value for name, value in self.__dict__.items() if name not in compiled}


class JaxClient:
    """A client that trains a pure loss on its own data.

    Args:
        model: what is trained.
        data: at least one example.
    """

    def __init__(self, model: JaxModel, data: Batches):
        self.rules = frozenset({*local_rules.names(), ABILITY})
        self._model, self._data = model, data

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """Trains, as a block of one client; by DP-SGD if the instruction asks for it."""
        if asks(instruction):
            start, told = (
                self._model.layout.flatten(parameters),
                with_rate(instruction, self._model.learning_rate),
            )
            done = fit_one(
                _ExampleTrainer(self._model, start, self._data), start, len(self._data), told, state
            )
            return Update(done.vectors, len(self._data), {}), done.state
        updates, states = self._model.fit_many(parameters, [self._data], [instruction], [state])
        vectors = {name: vector[0] for name, vector in updates.vectors.items()}
        metrics = {name: float(values[0]) for name, values in updates.metrics.items()}
        return Update(vectors, len(self._data), metrics), states[0]

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """The model's metrics on the client's data."""
        return Update({}, len(self._data), self._model.evaluate(parameters, self._data))


class _ExampleTrainer:
    """A `PrivateTrainer` on NumPy's flat vectors; JAX computes the gradients."""

    def __init__(self, model: JaxModel, start: np.ndarray, data: Batches):
        self._model, self._data = model, data
        self.weights = start.copy()

    def array(self, values: np.ndarray) -> np.ndarray:
        return values

    def numpy(self, array: Any) -> np.ndarray:
        return np.array(array, np.float32)

    def values(self) -> np.ndarray:
        return self.weights

    def clipped_sum(self, rows: np.ndarray, clip_norm: float) -> np.ndarray:
        model, width = self._model, jax_training.power_of_two(len(rows))  # so that few shapes are compiled
        x, y = self._data.take(np.concatenate([rows, np.full(width - len(rows), rows[0])]))
        tree = model.pytree(model.layout.unflatten(self.weights))
        leaves = xla.tree.leaves(model.each_gradient(tree, x, y))
        flat = np.concatenate([np.asarray(leaf).reshape(width, -1) for leaf in leaves], axis=1)
        return clipped_sum(flat[: len(rows)], clip_norm)


def _name(path: Sequence[Any]) -> str:
    """A leaf's path, such as `layer1.weight`; `parameters` for a pytree that is one array."""
    words = (str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
    return ".".join(words) or "parameters"
