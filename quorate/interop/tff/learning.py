"""A `tff.learning` LearningProcess, driven with arrays: its state as named arrays, its weights as one flat vector.

A process is a pair of computations, `initialize` and `next`, with two more to read and set the model's weights in the
state (`tff.learning.templates.LearningProcess`). The state is any nest of tensors: it is flattened in the order of
`tf.nest`, and packed again into the nest that `initialize` gave. What is text in it (the name of an event's class) is
constant, and stays here.

Runs where TensorFlow Federated is installed.
"""

from __future__ import annotations

import collections
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from quorate import plugins
from quorate.errors import DataError, PlanError
from quorate.interop.tff.job import Job
from quorate.privacy import external

__all__ = ["Learning", "client_dataset", "with_local_execution"]

_UNWANTED = ("num_examples", "num_batches")


def with_local_execution() -> None:
    """The runtime that `tff.backends.native` sets up, and one process of TensorFlow's in it."""
    tff.backends.native.set_sync_local_cpp_execution_context()


class Learning:
    """A learning process, made for a job.

    Args:
        job: what it is for.

    Raises:
        PlanError: there is no such factory, what it makes is no learning process, or its model is not the task's.
    """

    def __init__(self, job: Job):
        self._job = job
        self._process = _made(job)
        self._element = self._process.next.type_signature.parameter[1].member.element
        self._first = self._process.initialize()
        self._template = tf.nest.flatten(self._first)
        self._check_shapes()

    def initial(self, vector: np.ndarray | None) -> dict[str, np.ndarray]:
        """The state before the first round.

        Args:
            vector: the weights to start from, float32; None: the process's own.
        """
        if vector is None:
            return self._arrays(self._first)
        return self._arrays(self._process.set_model_weights(self._first, self._weights(vector)))

    def vector(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """The model's weights in a state, float32, flat."""
        weights = self._process.get_model_weights(self._state(state))
        leaves = [*weights.trainable, *weights.non_trainable]
        return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in leaves])

    def step(
        self, state: Mapping[str, np.ndarray], datasets: Sequence[tf.data.Dataset]
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The state after a round, and what its clients measured while they trained."""
        output = self._process.next(self._state(state), list(datasets))
        return self._arrays(output.state), _metrics(output.metrics)

    def event(self, state: Mapping[str, np.ndarray]) -> str | None:
        """What a round from this state releases, as `quorate.privacy.external` writes it.

        A `tff.aggregators.DifferentiallyPrivateFactory` keeps the event of its query in its state, from the start on.
        Without one in the process's aggregator, or with several, or with an event that can't be accounted, nothing is
        claimed.
        """
        found = list(_dp_states(self._state(state).aggregator))
        if len(found) != 1:
            return None
        import dp_accounting

        event = dp_accounting.DpEvent.from_named_tuple(found[0].dp_event)
        return external.write(event) if external.is_accounted(event) else None

    def dataset(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray, batch_size: int) -> tf.data.Dataset:
        """A client's data as the process takes them, see `client_dataset`."""
        return client_dataset(self._element, x, y, rows, batch_size)

    def _check_shapes(self) -> None:
        weights = self._process.get_model_weights(self._first)
        found = [tuple(np.shape(w)) for w in (*weights.trainable, *weights.non_trainable)]
        needed = [shape for _, shape in self._job.shapes]
        if found != needed:
            raise PlanError(
                f"engine.process: the weights of {self._job.process!r} have the shapes {found}, the task's parameters "
                f"{needed}; accepted: a process that learns the task's model"
            )

    def _weights(self, vector: np.ndarray) -> Any:
        first = self._process.get_model_weights(self._first)
        pieces, start = [], 0
        for leaf in (*first.trainable, *first.non_trainable):
            stop = start + int(np.size(leaf))
            pieces.append(np.asarray(vector[start:stop].reshape(np.shape(leaf)), np.asarray(leaf).dtype))
            start = stop
        cut = len(first.trainable)
        return tff.learning.models.ModelWeights(pieces[:cut], pieces[cut:])

    def _arrays(self, state: Any) -> dict[str, np.ndarray]:
        leaves = tf.nest.flatten(state)
        return {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves) if not _is_text(leaf)}

    def _state(self, arrays: Mapping[str, np.ndarray]) -> Any:
        leaves = []
        for i, leaf in enumerate(self._template):
            name = f"{i:04d}"
            if _is_text(leaf):
                leaves.append(leaf)
            elif name not in arrays:
                raise DataError(f"the state has no value {name}: it is of another process")
            else:
                leaves.append(arrays[name])
        return tf.nest.pack_sequence_as(self._first, leaves)


def client_dataset(
    element: Any, x: np.ndarray, y: np.ndarray, rows: np.ndarray, batch_size: int
) -> tf.data.Dataset:
    """A client's examples as batches of a process's type.

    Args:
        element: the type of a batch: a pair, or a structure of two; the first is the features, the second the targets.
        x: features, shape (examples, …); they are reshaped to what the type says of one example.
        y: targets, shape (examples,).
        rows: the order in which they are met, one pass over the data after the other; int64.
        batch_size: the last batch of a pass may be smaller.

    Raises:
        PlanError: the type is another one.
    """
    names = (
        [name for name, _ in tff.structure.iter_elements(element)]
        if isinstance(element, tff.StructType)
        else []
    )
    if len(names) != 2:
        raise PlanError(
            f"engine.process: it takes batches of {element}; accepted: pairs of features and targets"
        )
    arrays = [_as(part, element[i]) for i, part in enumerate((x, y))]

    def structured(first: Any, second: Any) -> Any:
        return (
            (first, second)
            if names[0] is None
            else collections.OrderedDict(zip(names, (first, second), strict=True))
        )

    passes = rows.reshape(-1, len(x)) if len(x) else rows.reshape(0, 0)
    made: tf.data.Dataset | None = None
    for order in passes:
        one = tf.data.Dataset.from_tensor_slices(tuple(part[order] for part in arrays)).batch(batch_size)
        made = one if made is None else made.concatenate(one)
    if made is None:
        made = tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size)
    return made.map(structured)


def _as(values: np.ndarray, kind: Any) -> np.ndarray:
    shape = kind.shape
    inner = list(shape[1:]) if shape is not None else list(values.shape[1:])
    if all(size is not None for size in inner):
        values = values.reshape(len(values), *inner)
    return values.astype(kind.dtype)


def _made(job: Job) -> Any:
    factory = plugins.find("engine.process", job.process)
    settings: dict[str, Any] = dict(job.settings)
    accepted = inspect.signature(factory).parameters
    unknown = [name for name in settings if name not in accepted]
    if unknown:
        raise PlanError(
            [
                f"engine.{name}: unknown key; {job.process!r} takes {', '.join(accepted) or 'none'}"
                for name in unknown
            ]
        )
    if "job" in accepted:
        settings["job"] = job
    made = factory(**settings)
    if not isinstance(made, tff.learning.templates.LearningProcess):
        raise PlanError(
            f"engine.process: {job.process!r} made a {type(made).__name__}; accepted: a function that returns a "
            "tff.learning.templates.LearningProcess"
        )
    return made


def _dp_states(value: Any) -> Iterator[Any]:
    if hasattr(value, "dp_event") and hasattr(value, "query_state"):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _dp_states(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _dp_states(item)


def _metrics(metrics: Any) -> dict[str, float]:
    """Single numbers that clients measured, as `train_` and their name; of what a process says of itself, nothing."""
    found: dict[str, float] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                visit(item, str(key))
        elif np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu" and name not in _UNWANTED:
            found.setdefault(f"train_{name}", float(value))

    visit(metrics.get("client_work", {}) if isinstance(metrics, Mapping) else {}, "")
    return found


def _is_text(leaf: Any) -> bool:
    return np.asarray(leaf).dtype.kind in "SUO"
