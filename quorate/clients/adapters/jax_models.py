"""JAX: a pure loss over a pytree of parameters as a model whose clients run every local rule.

    def loss(parameters, x, y):                       # the mean over a batch's examples
        return optax.softmax_cross_entropy_with_integer_labels(apply(parameters, x), y).mean()

    model = quorate.clients.jax(parameters, loss)

The layout holds the pytree's leaves, named by their paths (`layer1.weight`). Clients are trained in blocks: their steps
are one compiled loop (`lax.fori_loop`) over one batched computation (`vmap`), and blocks run on all cores. Batches that
are short of examples are padded, and so are blocks, so that a loss is compiled for few shapes; what is padded weighs
nothing. Where something is, the loss is taken apart by examples: it is called with batches of one under `vmap`, and has
to be a mean over examples. Rules act value by value, so that each leaf is treated by itself.

What it leaves out: losses that draw random numbers, and state beside the parameters.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quorate.clients.adapters.batches import Batches, batches
from quorate.clients.adapters.dp_sgd import ABILITY, asks, clipped_sum
from quorate.clients.adapters.local_training import (
    Schedule,
    TrainingNumbers,
    fit_one,
    stack_states,
    with_rate,
)
from quorate.errors import DataError, MissingExtra, PlanError
from quorate.fleets import Client
from quorate.parameters import Layout, Parameters
from quorate.rounds import Instruction, State, Update, Updates
from quorate.strategies import local_rules
from quorate.strategies.contract import LocalRule
from quorate.task import DenseLayer

try:
    import jax as xla
    import jax.numpy as jnp
except ImportError as missing:
    raise MissingExtra("jax", "training a JAX model") from missing

__all__ = ["JaxClient", "JaxModel", "jax"]

_ROWS = 1024  # examples that are evaluated at once
_BLOCK_BYTES = 1 << 18  # weights of a block, its gradients and batches stay in a core's cache

Loss = Callable[[Any, Any, Any], Any]


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
        if not data or not len(data) == len(instructions) == len(states):
            found = f"{len(data)} clients, {len(instructions)} instructions, {len(states)} states"
            raise DataError(f"training needs an instruction and a state for each client, got {found}")
        job = _Job.of(self, parameters, [batches(one) for one in data], instructions, states)
        if len(job.blocks) == 1:
            job.train(job.blocks[0])
        else:
            list(_pool().map(job.train, job.blocks))
        return job.updates(), job.states()

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
            rows = np.arange(start, start + _power_of_two(min(_ROWS, len(held) - start)))
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
            [(_each(of, tree, x, y) * counted).sum() for of in (self.loss, *self.measures.values())]
        ))  # fmt: skip

    @cached_property
    def _steps(self) -> Any:
        """A block's steps: compiled once for each rule and shape."""
        return functools.partial(
            xla.jit(_block, static_argnums=(0, 1, 2, 3)), self.loss, tuple(self.measures.values())
        )

    @cached_property
    def each_gradient(self) -> Any:
        """The loss's gradients of a batch's examples, each as a batch of one."""
        of_one = xla.grad(lambda tree, x, y: self.loss(tree, x[None], y[None]))
        return xla.jit(xla.vmap(of_one, in_axes=(None, 0, 0)))

    def __getstate__(self) -> dict[str, Any]:
        compiled = ("_sums", "_steps", "each_gradient")
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
        model, width = self._model, _power_of_two(len(rows))  # so that few shapes are compiled
        x, y = self._data.take(np.concatenate([rows, np.full(width - len(rows), rows[0])]))
        tree = model.pytree(model.layout.unflatten(self.weights))
        leaves = xla.tree.leaves(model.each_gradient(tree, x, y))
        flat = np.concatenate([np.asarray(leaf).reshape(width, -1) for leaf in leaves], axis=1)
        return clipped_sum(flat[: len(rows)], clip_norm)


@dataclass(frozen=True, eq=False)
class _Job:
    """The training of some clients: what they share, and where their results go."""

    model: JaxModel
    start: np.ndarray
    tree: Any
    data: Sequence[Batches]
    seeds: Sequence[int | None]
    sizes: np.ndarray
    training: TrainingNumbers
    rule: LocalRule
    extras: Mapping[str, np.ndarray]
    stacked: Mapping[str, np.ndarray]
    vectors: Mapping[str, np.ndarray]
    kept: Mapping[str, np.ndarray]
    measured: np.ndarray
    blocks: Sequence[np.ndarray]

    @classmethod
    def of(
        cls,
        model: JaxModel,
        parameters: Parameters,
        data: Sequence[Batches],
        instructions: Sequence[Instruction],
        states: Sequence[State],
    ) -> _Job:
        told = [with_rate(instruction, model.learning_rate) for instruction in instructions]
        training = TrainingNumbers.of(told)
        rule = local_rules.by_name(told[0].rule, told[0].settings)
        n, clients = model.layout.size, len(data)
        stacked = stack_states(states, rule, n)
        sizes = np.array([len(one) for one in data])
        if not sizes.all():
            raise DataError(f"a client of {model.name!r} needs at least one example")
        order = np.argsort(-(training.epochs * -(-sizes // training.batch_size)), kind="stable")
        block = max(1, min(clients, _BLOCK_BYTES // (4 * n)))
        return cls(
            model=model,
            start=model.layout.flatten(parameters),
            tree=xla.tree.map(jnp.asarray, model.pytree(parameters)),
            data=data,
            seeds=[instruction.seed for instruction in told],
            sizes=sizes,
            training=training,
            rule=rule,
            extras={name: np.asarray(v, np.float32) for name, v in told[0].extras.items()},
            stacked=stacked,
            vectors={v.name: np.empty((clients, v.length), np.float32) for v in rule.vectors(n).vectors},
            kept={name: np.empty_like(value) for name, value in stacked.items()},
            measured=np.empty((len(model.metrics), clients)),
            blocks=[order[i : i + block] for i in range(0, clients, block)],
        )

    def train(self, chosen: np.ndarray) -> None:
        """Trains a block of clients, most steps first; blocks may be trained at the same time."""
        model, training, rule = self.model, self.training, self.rule
        context = rule.begin(self.start, self.extras, {name: v[chosen] for name, v in self.stacked.items()})
        schedule = Schedule.of(self.sizes[chosen], training, [self.seeds[c] for c in chosen])
        x, y, counts = _gathered([self.data[c] for c in chosen], schedule, training.batch_size)
        padded = len(counts)
        steps = len(schedule.rows)
        own = {name: _padded(v, padded) for name, v in context.items() if v.ndim == 2}
        common = {name: v for name, v in context.items() if v.ndim == 1}
        rate = np.float32(training.learning_rate)
        whole = bool(
            (schedule.counts == x.shape[2]).all()
        )  # what is padded beyond is not run, or thrown away
        made, state, sums = model._steps(rule, whole, self.tree, own, common, x, y, counts, steps, rate)
        places = [model.layout.slice(name) for name in model.layout.names]
        for into, parts in ((self.vectors, made), (self.kept, state)):
            for name, leaves in parts.items():
                for place, leaf in zip(places, map(np.asarray, leaves), strict=True):
                    into[name][chosen, place] = leaf[: len(chosen)].reshape(len(chosen), -1)
        self.measured[:, chosen] = np.asarray(sums).T[:, : len(chosen)] / schedule.counts.sum(axis=0)

    def updates(self) -> Updates:
        """What the clients give."""
        return Updates(self.vectors, self.sizes, dict(zip(self.model.metrics, self.measured, strict=True)))

    def states(self) -> list[State]:
        """What they keep."""
        return [{name: value[i].copy() for name, value in self.kept.items()} for i in range(len(self.data))]


def _gathered(
    data: Sequence[Batches], schedule: Schedule, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, shape (clients, steps, batch, …), targets, and how many rows count, padded to few different shapes.

    Clients and steps are padded to powers of two, and so are batches that no client fills. Padding repeats a row of the
    client's own; a padded client or step has a count of 0.
    """
    steps, clients, batch = schedule.rows.shape
    width = min(most, _power_of_two(batch))
    shape = (_power_of_two(clients), _power_of_two(steps), width)
    counts = np.zeros(shape[:2], np.float32)
    counts[:clients, :steps] = schedule.counts.T
    gathered: list[np.ndarray] = []
    for c, one in enumerate(data):
        rows = np.zeros((steps, width), np.intp)
        rows[:, :batch] = schedule.rows[:, c] - schedule.offsets[c]
        own = one.take(rows.ravel())
        gathered = gathered or [np.zeros((*shape, *part.shape[1:]), part.dtype) for part in own]
        for whole, part in zip(gathered, own, strict=True):
            whole[c, :steps] = np.asarray(part).reshape(steps, width, *part.shape[1:])
    x, y = gathered
    return x, y, counts


def _padded(values: np.ndarray, clients: int) -> np.ndarray:
    padded = np.zeros((clients, *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    return padded


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _block(
    loss: Loss,
    measures: Sequence[Loss],
    rule: LocalRule,
    whole: bool,
    start: Any,
    own: Mapping[str, Any],
    common: Mapping[str, Any],
    x: Any,
    y: Any,
    counts: Any,
    steps: Any,
    rate: Any,
) -> tuple[Any, Any, Any]:
    """What each client's rule makes of its steps, by name and leaf, and sums of the metrics, (clients, metrics)."""
    leaves, structure = xla.tree.flatten(start)

    def split(vector: Any) -> list[Any]:
        places = np.cumsum([0, *(leaf.size for leaf in leaves)])
        return [
            vector[a:b].reshape(leaf.shape) for a, b, leaf in zip(places, places[1:], leaves, strict=False)
        ]

    def one(own: Mapping[str, Any], x: Any, y: Any, counts: Any) -> tuple[Any, Any, Any]:
        context = {name: split(vector) for name, vector in {**common, **own}.items()}

        def step(t: Any, carried: tuple[Any, Any]) -> tuple[Any, Any]:
            weights, sums = carried
            if not whole:
                counted = (jnp.arange(x.shape[1]) < counts[t]).astype(jnp.float32)

            def total(weights: Any) -> tuple[Any, Any]:
                tree, batch = xla.tree.unflatten(structure, weights), (x[t], y[t])
                if whole:
                    means = jnp.stack([of(tree, *batch) for of in (loss, *measures)])
                    return means[0], means * counts[t]
                sums = jnp.stack([(_each(of, tree, *batch) * counted).sum() for of in (loss, *measures)])
                return sums[0] / jnp.maximum(counts[t], 1), sums

            gradients, seen = xla.grad(total, has_aux=True)(weights)
            moved = []
            for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                here = {name: parts[i] for name, parts in context.items()}
                new = w - rate * rule.gradient(g, w, here)
                moved.append(new if whole else jnp.where(counts[t] > 0, new, w))
            return moved, sums + seen

        begun = (leaves, jnp.zeros(1 + len(measures)))
        weights, sums = xla.lax.fori_loop(0, steps, step, begun)
        taken = (counts > 0).sum().astype(jnp.float32)
        vectors: dict[str, list[Any]] = {}
        kept: dict[str, list[Any]] = {}
        for i, (before, after) in enumerate(zip(leaves, weights, strict=True)):
            here = {name: parts[i] for name, parts in context.items()}
            for parts, made in zip(
                (vectors, kept), rule.finish(before, after, taken, rate, here), strict=True
            ):
                for name, part in made.items():
                    parts.setdefault(name, []).append(part)
        return vectors, kept, sums

    if len(x) == 1:  # one client alone is faster without the axis
        alone = one(*xla.tree.map(lambda a: a[0], (own, x, y, counts)))
        widened: tuple[Any, Any, Any] = xla.tree.map(lambda a: a[None], alone)
        return widened
    trained: tuple[Any, Any, Any] = xla.vmap(one)(own, x, y, counts)
    return trained


def _each(of: Loss, tree: Any, x: Any, y: Any) -> Any:
    """A mean over a batch, example by example; shape (batch,)."""
    return xla.vmap(lambda a, b: of(tree, a[None], b[None]))(x, y)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """One thread a core: XLA alone does not keep them all busy with small products."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(cores, thread_name_prefix="quorate jax")


def _name(path: Sequence[Any]) -> str:
    """A leaf's path, such as `layer1.weight`; `parameters` for a pytree that is one array."""
    words = (str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
    return ".".join(words) or "parameters"
