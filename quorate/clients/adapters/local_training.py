"""What of a client's training is the same in every framework: its numbers, the order of its data, its steps, its state.

An adapter brings a `Trainer`, which knows the gradient of a batch and nothing else; `fit_one` takes the steps, with the
local rule on flat vectors. A client with the same seed sees the same examples in the same order in every framework.

An instruction's settings: `learning_rate`, `epochs` (passes over the client's data), `batch_size` (examples a
step; the last of an epoch may be smaller), and those of the local rule. With those of DP-SGD the gradients come from
`dp_sgd`, and no metrics: they would tell of examples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from quorate.clients.adapters.dp_sgd import ExampleNumbers, ExampleTrainer, asks, noisy_gradients, plain
from quorate.errors import DataError
from quorate.rounds import Instruction, State
from quorate.strategies import local_rules
from quorate.strategies.contract import LocalRule

__all__ = [
    "PrivateTrainer",
    "Schedule",
    "Trained",
    "Trainer",
    "TrainingNumbers",
    "Weights",
    "fit_one",
    "stack_states",
    "with_rate",
]


_WORD = (1 << 64) - 1


class Weights(Protocol):
    """What a client trains, in a framework. Its arrays are of any kind that has the arithmetic operators.

    The flat vector has the trained parameters first; behind them may stand values that training changes but no gradient
    does, such as the statistics of a normalisation.
    """

    weights: Any
    """The trained parameters, shape (trained,), as the model holds them: changing them changes the model."""

    def array(self, values: np.ndarray) -> Any:
        """Values as an array of the framework's own; they are not changed afterwards."""
        ...

    def values(self) -> Any:
        """The whole flat vector after training, shape (n,)."""
        ...

    def numpy(self, array: Any) -> np.ndarray:
        """An array of the framework's as a float32 array of its own."""
        ...


class Trainer(Weights, Protocol):
    """A framework's side of training one client."""

    def gradient(self, rows: np.ndarray) -> tuple[Any, Sequence[Any]]:
        """The gradient of the mean loss over some rows, shape (trained,), which may be overwritten; and the metrics.

        Args:
            rows: of the client's data, int64, shape (batch,).
        """
        ...


class PrivateTrainer(Weights, ExampleTrainer, Protocol):
    """A framework's side of training one client by DP-SGD."""


@dataclass(frozen=True)
class Trained:
    """What came of a client's training.

    Args:
        vectors: of the update, by name, float32.
        state: of the rule.
        metrics: averages over the examples as they were met, in the trainer's order; none with DP-SGD.
    """

    vectors: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    metrics: tuple[float, ...]

    def named(self, metrics: Sequence[str]) -> dict[str, float]:
        """The metrics by name, if there are any."""
        return dict(zip(metrics, self.metrics, strict=True)) if self.metrics else {}


def fit_one(
    trainer: Trainer | PrivateTrainer,
    start: np.ndarray,
    examples: int,
    instruction: Instruction,
    state: State,
) -> Trained:
    """Takes one client's steps of SGD under the instruction's local rule.

    Args:
        trainer: its weights are those of `start` already; a `PrivateTrainer` where the instruction asks for DP-SGD.
        start: the flat parameters, float32, shape (n,).
        examples: how many the client has, at least one.
        instruction: what to do.
        state: the rule's; empty for a client that never took part.

    Raises:
        DataError: the instruction lacks a number, or asks for DP-SGD of another trainer, or the state does not fit.
        PlanError: there is no such local rule.
    """
    if not examples:
        raise DataError("training needs at least one example")
    private = ExampleNumbers.of(instruction)
    training = TrainingNumbers.of([plain(instruction)])
    rule = local_rules.by_name(instruction.rule, instruction.settings)
    kept = {name: trainer.array(value[0]) for name, value in stack_states([state], rule, len(start)).items()}
    extras = {name: trainer.array(np.asarray(v, np.float32)) for name, v in instruction.extras.items()}
    begun = trainer.array(start)
    context = rule.begin(begun, extras, kept)
    trained = len(trainer.weights)
    here = {name: value[:trained] for name, value in context.items()}
    seen = _Seen([], [])
    if private is None:
        gradients = _gradients(trainer, Schedule.of(np.array([examples]), training, [instruction.seed]), seen)
    else:
        gradients = _private(trainer, examples, trained, private, training.batch_size, instruction.seed)
    steps = 0
    for gradient in gradients:
        step = rule.gradient(gradient, trainer.weights, here)
        step *= training.learning_rate
        trainer.weights -= step
        steps += 1
    vectors, new = rule.finish(begun, trainer.values(), steps, training.learning_rate, context)
    return Trained(
        vectors={name: trainer.numpy(value) for name, value in vectors.items()},
        state={name: trainer.numpy(value) for name, value in new.items()},
        metrics=seen.means(),
    )


@dataclass(frozen=True)
class _Seen:
    """What was measured in each step, and over how many examples."""

    metrics: list[list[float]]
    counts: list[int]

    def means(self) -> tuple[float, ...]:
        if not self.counts:
            return ()
        return tuple((np.array(self.counts) @ np.array(self.metrics) / sum(self.counts)).tolist())


def _gradients(trainer: Any, schedule: Schedule, seen: _Seen) -> Iterator[Any]:
    """The gradient of each step, at the weights of the moment."""
    for rows, count in zip(schedule.rows[:, 0], schedule.counts[:, 0].tolist(), strict=True):
        gradient, metrics = trainer.gradient(rows[:count])
        seen.metrics.append([float(value) for value in metrics])
        seen.counts.append(count)
        yield gradient


def _private(
    trainer: Any, examples: int, dimension: int, numbers: ExampleNumbers, block: int, seed: int | None
) -> Iterator[Any]:
    """The noisy gradient of each step, as an array of the trainer's.

    Raises:
        DataError: the trainer has no gradients of single examples.
    """
    if not hasattr(trainer, "clipped_sum"):
        raise DataError(
            "training.dp_sgd needs the gradient of every single example, and this client has none; accepted: clients "
            "of the reference models, PyTorch, JAX and Keras"
        )
    for gradient in noisy_gradients(trainer, examples, dimension, numbers, block, seed):
        yield trainer.array(gradient)


def with_rate(instruction: Instruction, learning_rate: float | None) -> Instruction:
    """The instruction with a client's own learning rate, if it has one, in the place of the plan's."""
    if learning_rate is None:
        return instruction
    settings = {**instruction.settings, "learning_rate": learning_rate}
    return dataclasses.replace(instruction, settings=settings)


@dataclass(frozen=True)
class TrainingNumbers:
    """What an instruction says of a client's training.

    Args:
        learning_rate: of each step.
        epochs: passes over the client's data.
        batch_size: examples a step; the last of an epoch may be smaller.
    """

    learning_rate: float
    epochs: int
    batch_size: int

    @classmethod
    def of(cls, instructions: Sequence[Instruction]) -> TrainingNumbers:
        """The numbers that all of the instructions have.

        Raises:
            DataError: a number is missing or makes no sense, the instructions differ in more than the seed, or they ask
                for DP-SGD.
        """
        first = instructions[0]
        if asks(first):
            raise DataError(
                "training.dp_sgd clips the gradient of every example, which is not done here; accepted: clients that "
                "are trained one at a time, of the reference models, PyTorch, JAX and Keras"
            )
        if any(i.rule != first.rule or i.settings != first.settings for i in instructions[1:]):
            raise DataError("clients that train together need the same local rule and settings")
        values = {}
        for name in ("learning_rate", "epochs", "batch_size"):
            value = first.settings.get(name)
            whole = name != "learning_rate"
            if value is None or not (0 < value < math.inf) or (whole and value != int(value)):
                accepted = "a whole number of at least 1" if whole else "a number above 0"
                raise DataError(f"the instruction's {name}: {value!r} was found; {accepted} is accepted")
            values[name] = value
        return cls(float(values["learning_rate"]), int(values["epochs"]), int(values["batch_size"]))


@dataclass(frozen=True)
class Schedule:
    """Which rows of the concatenated data each client takes in each step.

    Args:
        rows: shape (steps, clients, batch); where nothing is to be taken, the client's first row.
        offsets: of each client's first row, shape (clients,).
        counts: how many of them count, shape (steps, clients).
        steps: of each client, shape (clients,), descending.
        active: how many clients take a step, shape (steps,).
        widths: the largest count of a step, shape (steps,).
    """

    rows: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray
    steps: np.ndarray
    active: np.ndarray
    widths: np.ndarray

    @classmethod
    def of(cls, sizes: np.ndarray, training: TrainingNumbers, seeds: Sequence[int | None]) -> Schedule:
        """The schedule of clients with so many examples, each in an order of its own in every epoch.

        Args:
            sizes: examples of each client, most steps first; int64, shape (clients,).
            training: epochs and batch size.
            seeds: of each client's order; None for a fresh one.
        """
        batch = min(training.batch_size, int(sizes.max()))
        each = -(-sizes // batch)  # steps of an epoch
        steps = each * training.epochs
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        taken = np.repeat(offsets, int(steps.max()) * batch).reshape(len(sizes), -1)
        for own, size, length, rng in zip(
            taken, sizes.tolist(), (steps * batch).tolist(), _generators(seeds), strict=True
        ):
            for epoch in own[:length].reshape(training.epochs, -1):
                epoch[:size] += rng.permutation(size)
        rows = np.ascontiguousarray(taken.reshape(len(sizes), -1, batch).swapaxes(0, 1))
        t = np.arange(len(rows))[:, None]
        counts = np.where(t % each == each - 1, sizes - (each - 1) * batch, batch) * (t < steps)
        return cls(rows, offsets, counts, steps, (counts > 0).sum(axis=1), counts.max(axis=1))

    def shares(self, t: int, clients: int, batch: int) -> np.ndarray | np.float32:
        """What an example weighs in the mean of its batch: (clients, batch, 1), or one number for all."""
        counts = self.counts[t, :clients]
        if counts.min() == batch:
            return np.float32(1 / batch)
        filled = np.arange(batch) < counts[:, None]
        return np.asarray((filled / counts[:, None])[:, :, None], np.float32)

    def filled(self) -> np.ndarray:
        """Which rows count; shape (steps, clients, batch)."""
        return np.asarray(np.arange(self.rows.shape[2]) < self.counts[:, :, None])


def _generators(seeds: Sequence[int | None]) -> Iterator[np.random.Generator]:
    """What draws each client's order: Philox (Salmon et al. 2011) keyed by its seed, which keys nothing else.

    All of them are one generator that is set anew, since it takes longer to make one than to draw an order from it.
    """
    fresh, philox = np.random.default_rng(), np.random.Philox(key=0)
    keyed, begun = np.random.Generator(philox), philox.state
    for seed in seeds:
        if seed is None:
            yield fresh
            continue
        begun["state"]["key"][:] = seed & _WORD, seed >> 64 & _WORD
        philox.state = begun
        yield keyed


def stack_states(states: Sequence[State], rule: LocalRule, n: int) -> dict[str, np.ndarray]:
    """The states of clients as arrays of shape (clients, …), by name; the rule's initial one where there is none.

    Raises:
        DataError: a state is not one that the rule keeps for `n` parameters.
    """
    initial = rule.initial(n)
    expected = {name: value.shape for name, value in initial.items()}
    for state in states:
        found = {name: value.shape for name, value in state.items()}
        if found and found != expected:
            raise DataError(
                f"the local rule {rule.name!r} keeps {expected or 'nothing'} between rounds, got {found}"
            )
    return {name: np.stack([(state or initial)[name] for state in states]) for name in initial}
