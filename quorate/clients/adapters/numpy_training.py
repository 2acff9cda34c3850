"""Local training in NumPy: minibatch SGD under any local rule, for one client or for many at once.

The clients of a block take their steps together: step t of all of them is one batched matrix product. They
are sorted by their number of steps, so that those still at work are always the first ones; a batch that is
short of examples is padded, and what is padded weighs nothing. What comes out is what each client alone would
give, up to rounding. A rule that leaves the gradient as it is takes its steps without ever holding one (`descend`),
and, where that is less work, without the first layer's weights (`dual_layer`).

An instruction's settings: `learning_rate`, `epochs` (passes over the client's data), `batch_size` (examples a
step; the last of an epoch may be smaller), and those of the local rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from quorate.clients.adapters.dense import Network, Views, Workspace, backward, clipped, descend, forward
from quorate.clients.adapters.dual_layer import DualLayer, is_less_work
from quorate.clients.adapters.examples import Examples
from quorate.clients.adapters.local_training import Schedule, Trained, fit_one
from quorate.clients.adapters.together import Together
from quorate.rounds import Instruction, Rows, State, Updates
from quorate.strategies import local_rules
from quorate.strategies.contract import LocalRule

__all__ = ["fit_many", "fit_private"]

_BLOCK_BYTES = 1 << 23  # a step of many clients costs fewer calls; more than this leaves the outer caches


@np.errstate(
    over="ignore", invalid="ignore"
)  # what diverges is not finite, and is refused where it is summed
def fit_many(
    network: Network,
    start: np.ndarray,
    data: Sequence[Examples],
    instructions: Sequence[Instruction],
    states: Sequence[State],
) -> tuple[Updates, list[State]]:
    """Trains each client from `start` on its own data.

    Args:
        network: layers and loss.
        start: the flat parameters, float32, shape (network.size,).
        data: of each client, at least one example each.
        instructions: for each client; they may differ in the seed only.
        states: of each client; empty for one that never took part.

    Raises:
        DataError: there is no client, or one without an example, an instruction lacks a number, instructions differ,
            or a state does not fit.
        PlanError: there is no such local rule.
    """
    job = Together.of(start, data, instructions, states, network.head.metrics)
    most, training = int(job.sizes.max()), job.training
    plain = isinstance(job.rule, local_rules.Sgd)  # the gradient as it is: it need not be seen as a whole
    dual = plain and is_less_work(network, most, training.epochs)
    each = _bytes_each(network, most, training.batch_size, plain, dual)
    workspace = Workspace()
    for chosen in job.blocks(max(1, _BLOCK_BYTES // each)):
        context, schedule = job.begin(chosen)
        held = [data[c] for c in chosen]
        if plain:
            make = _Dual if dual else _Plain
            steps: _Steps = make(network, start, held, schedule, training.learning_rate, workspace)
            measured = _train(network, held, schedule, steps)
            job.keep(chosen, {"delta": steps.ways()}, {}, measured)
            continue
        ruled = _Ruled(network, start, held, schedule, training.learning_rate, workspace, job.rule, context)
        measured = _train(network, held, schedule, ruled)
        taken = schedule.steps.astype(np.float32)
        made, kept = job.rule.finish(start, ruled.weights, taken, training.learning_rate, context)
        job.keep(chosen, made, kept, measured)
    return job.made()


def fit_private(
    network: Network, start: np.ndarray, data: Examples, instruction: Instruction, state: State
) -> Trained:
    """Trains one client by DP-SGD; see `local_training.fit_one`.

    Raises:
        DataError: the instruction lacks a number, or the state does not fit.
        PlanError: there is no such local rule.
    """
    return fit_one(_ExampleTrainer(network, start, data), start, len(data), instruction, state)


class _ExampleTrainer:
    """A `PrivateTrainer` on NumPy's flat vectors."""

    def __init__(self, network: Network, start: np.ndarray, data: Examples):
        self._network, self._data, self._workspace = network, data, Workspace()
        self.weights = start.copy()

    def array(self, values: np.ndarray) -> np.ndarray:
        return values

    def numpy(self, array: np.ndarray) -> np.ndarray:
        return np.array(array, np.float32)

    def values(self) -> np.ndarray:
        return self.weights

    def clipped_sum(self, rows: np.ndarray, clip_norm: float) -> np.ndarray:
        views = Views(self._network, self.weights[None])
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite counts as zero
            values = forward(views, self._data.x[rows][None], self._workspace)
            self._network.head.error(values[-1][0], self._data.y[rows])
            return clipped(views, values, values[-1], clip_norm, self._workspace)


def _bytes_each(network: Network, examples: int, batch_size: int, plain: bool, dual: bool) -> int:
    """What a step of one client touches."""
    batch = min(batch_size, examples) * 2 * sum(network.widths[dual:])
    if dual:
        return 4 * (batch + DualLayer.values(network, examples) + network.rest.size)
    return 4 * (batch + (1 if plain else 2) * network.size)


class _Steps(Protocol):
    """How the clients of a block take their steps."""

    def outputs(self, t: int, clients: int, batch: int) -> np.ndarray:
        """What the network gives for the batches of step t, (clients, batch, outputs)."""
        ...

    def take(self, error: np.ndarray) -> None:
        """Takes the step for the gradients with respect to these outputs, which may be overwritten."""
        ...

    def ways(self) -> np.ndarray | Rows:
        """The ways that the clients have come, at the end: shape (clients, network.size)."""
        ...


def _train(network: Network, data: Sequence[Examples], schedule: Schedule, steps: _Steps) -> np.ndarray:
    """Trains a block, most steps first; returns each client's metrics, shape (2, clients)."""
    y_all = data[0].y if len(data) == 1 else np.concatenate([one.y for one in data])
    seen = np.ones((2, *schedule.rows.shape), np.float32)
    for t in range(len(schedule.rows)):
        clients, batch = int(schedule.active[t]), int(schedule.widths[t])
        outputs = steps.outputs(t, clients, batch)
        y = y_all[schedule.rows[t, :clients, :batch].ravel()]
        first, second = network.head.error(outputs.reshape(clients * batch, -1), y)
        seen[0, t, :clients, :batch] = first.reshape(clients, batch)
        seen[1, t, :clients, :batch] = second.reshape(clients, batch)
        outputs *= schedule.shares(t, clients, batch)
        steps.take(outputs)
    each = np.stack(network.head.measure(*seen)).astype(np.float64)
    each *= schedule.filled()
    return np.asarray(each.sum(axis=(1, 3)) / schedule.counts.sum(axis=0))


class _Plain:
    """Plain gradient descent: the weights of a block's clients, which take their steps in place."""

    def __init__(
        self,
        network: Network,
        start: np.ndarray,
        data: Sequence[Examples],
        schedule: Schedule,
        rate: float,
        workspace: Workspace,
    ):
        self._network, self._start, self._data, self._rate = network, start, data, np.float32(rate)
        self._rows = schedule.rows - schedule.offsets[:, None]
        self._workspace = workspace
        self.weights = np.repeat(start[None], len(data), axis=0)  # what comes of them is kept
        self._active = 0

    def outputs(self, t: int, clients: int, batch: int) -> np.ndarray:
        """By the weights as they are."""
        if clients != self._active:
            self._active = clients
            self._look(clients)
        x = self._workspace.array("x", clients, batch, self._network.widths[0])
        for one, rows, own in zip(self._data, self._rows[t, :clients, :batch], x, strict=False):
            np.take(one.x, rows, axis=0, out=own, mode="clip")  # any other mode buffers the output
        self._values = forward(self._views, x, self._workspace)
        return self._values[-1]

    def take(self, error: np.ndarray) -> None:
        """Down the gradient."""
        error *= self._rate
        descend(self._views, self._values, error, self._workspace)

    def ways(self) -> np.ndarray:
        """From the start to the weights, in their place."""
        self.weights -= self._start
        return self.weights

    def _look(self, clients: int) -> None:
        self._views = Views(self._network, self.weights[:clients])


class _Ruled(_Plain):
    """Descent under a local rule, which sees whole gradients.

    Args of its own:
        rule: what becomes of a gradient.
        context: of the rule, by name: for all clients, or a row for each.
    """

    def __init__(
        self,
        network: Network,
        start: np.ndarray,
        data: Sequence[Examples],
        schedule: Schedule,
        rate: float,
        workspace: Workspace,
        rule: LocalRule,
        context: Mapping[str, np.ndarray],
    ):
        super().__init__(network, start, data, schedule, rate, workspace)
        self._rule, self._context = rule, context
        self._gradients = workspace.array("gradients", *self.weights.shape)

    def take(self, error: np.ndarray) -> None:
        """Along what the rule makes of the gradient."""
        backward(self._views, self._gradient_views, self._values, error, self._workspace)
        weights = self.weights[: self._active]
        step = self._rule.gradient(self._gradients[: self._active], weights, self._here)
        step *= self._rate
        weights -= step

    def _look(self, clients: int) -> None:
        super()._look(clients)
        self._gradient_views = Views(self._network, self._gradients[:clients])
        self._here = {name: a[:clients] if a.ndim == 2 else a for name, a in self._context.items()}


class _Dual:
    """Plain gradient descent without the first layer's weights; those of the others take their steps in place."""

    def __init__(
        self,
        network: Network,
        start: np.ndarray,
        data: Sequence[Examples],
        schedule: Schedule,
        rate: float,
        workspace: Workspace,
    ):
        self._rest, self._rate, self._workspace = network.rest, np.float32(rate), workspace
        outputs = network.widths[1]
        behind = np.empty((len(data), outputs + self._rest.size), np.float32)
        self._first = DualLayer(network, start, [one.x for one in data], schedule, behind, workspace)
        self._start, self._weights = start[network.size - self._rest.size :], behind[:, outputs:]
        self._weights[:] = self._start
        self._active = 0

    def outputs(self, t: int, clients: int, batch: int) -> np.ndarray:
        """By the rest of the network, from what its first layer would give."""
        if clients != self._active:
            self._active = clients
            self._views = Views(self._rest, self._weights[:clients])
        hidden = self._first.outputs(t, clients, batch)
        if self._views.weights:
            np.maximum(hidden, 0, out=hidden)
        self._values = forward(self._views, hidden, self._workspace)
        return self._values[-1]

    def take(self, error: np.ndarray) -> None:
        """Down the gradient."""
        error *= self._rate
        self._first.take(descend(self._views, self._values, error, self._workspace, through=True))

    def ways(self) -> Rows:
        """Of the first layer, and of the rest."""
        self._weights -= self._start
        return self._first.ways()
