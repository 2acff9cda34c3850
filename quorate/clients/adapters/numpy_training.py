"""Local training in NumPy: minibatch SGD under any local rule, for one client or for many at once.

The clients of a block take their steps together: step t of all of them is one batched matrix product. They
are sorted by their number of steps, so that those still at work are always the first ones; a batch that is
short of examples is padded, and what is padded weighs nothing. What comes out is what each client alone would
give, up to rounding. A rule that leaves the gradient as it is takes its steps without ever holding one (`descend`).

An instruction's settings: `learning_rate`, `epochs` (passes over the client's data), `batch_size` (examples a
step; the last of an epoch may be smaller), and those of the local rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quorate.clients.adapters.dense import Network, Views, Workspace, backward, descend, forward
from quorate.clients.adapters.examples import Examples
from quorate.clients.adapters.local_training import Schedule, TrainingNumbers, stack_states
from quorate.errors import DataError
from quorate.rounds import Instruction, State
from quorate.strategies import local_rules
from quorate.strategies.contract import LocalRule

__all__ = ["Updates", "fit_many"]

_BLOCK_BYTES = 1 << 20  # weights, gradients and batches of a block stay in a core's cache


@dataclass(frozen=True)
class Updates:
    """The updates of several clients.

    Args:
        vectors: by name, float32, shape (clients, length).
        examples: how many each was computed from, int64, shape (clients,).
        metrics: by name, float64, shape (clients,): averages over the examples as they were met in training.
    """

    vectors: Mapping[str, np.ndarray]
    examples: np.ndarray
    metrics: Mapping[str, np.ndarray]


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
        DataError: there is no client, an instruction lacks a number, instructions differ, or a state does not
            fit.
        PlanError: there is no such local rule.
    """
    if not data or not len(data) == len(instructions) == len(states):
        found = f"{len(data)} clients, {len(instructions)} instructions, {len(states)} states"
        raise DataError(f"training needs an instruction and a state for each client, got {found}")
    training = TrainingNumbers.of(instructions)
    rule = local_rules.by_name(instructions[0].rule, instructions[0].settings)
    stacked = stack_states(states, rule, network.size)
    sizes = np.array([len(one) for one in data])
    steps = training.epochs * -(-sizes // training.batch_size)
    order = np.argsort(-steps, kind="stable")

    vectors = {
        v.name: np.empty((len(data), v.length), np.float32) for v in rule.vectors(network.size).vectors
    }
    kept = {name: np.empty_like(value) for name, value in stacked.items()}
    measured = np.empty((2, len(data)))
    extras = {name: np.asarray(vector, np.float32) for name, vector in instructions[0].extras.items()}
    bytes_each = 4 * (2 * network.size + min(training.batch_size, int(sizes.max())) * 2 * max(network.widths))
    block = max(1, _BLOCK_BYTES // bytes_each)
    workspace = Workspace()
    for i in range(0, len(data), block):
        chosen = order[i : i + block]
        context = rule.begin(start, extras, {name: value[chosen] for name, value in stacked.items()})
        schedule = Schedule.of(sizes[chosen], training, [instructions[c].seed for c in chosen])
        weights = workspace.array("weights", len(chosen), network.size)
        weights[:] = start
        measured[:, chosen] = _train(
            network, weights, rule, context, [data[c] for c in chosen], schedule, training, workspace
        )
        taken = schedule.steps.astype(np.float32)
        made, state = rule.finish(start, weights, taken, training.learning_rate, context)
        for name, vector in vectors.items():
            vector[chosen] = made[name]
        for name, value in kept.items():
            value[chosen] = state[name]
    metrics = dict(zip(network.head.metrics, measured, strict=True))
    new_states: list[State] = [
        {name: value[i].copy() for name, value in kept.items()} for i in range(len(data))
    ]
    return Updates(vectors, sizes, metrics), new_states


def _train(
    network: Network,
    weights: np.ndarray,
    rule: LocalRule,
    context: Mapping[str, np.ndarray],
    data: Sequence[Examples],
    schedule: Schedule,
    training: TrainingNumbers,
    workspace: Workspace,
) -> np.ndarray:
    """Trains a block in place, most steps first; returns each client's metrics, shape (2, clients)."""
    x_all = data[0].x if len(data) == 1 else np.concatenate([one.x for one in data])
    y_all = data[0].y if len(data) == 1 else np.concatenate([one.y for one in data])
    plain = isinstance(rule, local_rules.Sgd)  # the gradient as it is, so that it need not be seen as a whole
    gradients = weights if plain else workspace.array("gradients", *weights.shape)
    seen = np.ones((2, *schedule.rows.shape), np.float32)
    rate = np.float32(training.learning_rate)
    active = 0
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what diverges is not finite, and is refused where it is summed
        for t in range(len(schedule.rows)):
            clients, batch = int(schedule.active[t]), int(schedule.widths[t])
            if clients != active:
                active = clients
                w, g = weights[:clients], gradients[:clients]
                w_views, g_views = Views(network, w), Views(network, g)
                here = {name: a[:clients] if a.ndim == 2 else a for name, a in context.items()}
            rows = schedule.rows[t, :clients, :batch]
            x = workspace.array("x", clients, batch, x_all.shape[1])
            np.take(x_all, rows, axis=0, out=x, mode="clip")  # any other mode buffers the output
            values = forward(w_views, x, workspace)
            error = values[-1].reshape(clients * batch, -1)
            first, second = network.head.error(error, y_all[rows.ravel()])
            seen[0, t, :clients, :batch] = first.reshape(clients, batch)
            seen[1, t, :clients, :batch] = second.reshape(clients, batch)
            values[-1] *= schedule.shares(t, clients, batch)
            if plain:
                values[-1] *= rate
                descend(w_views, values, values[-1], workspace)
                continue
            backward(w_views, g_views, values, values[-1], workspace)
            step = rule.gradient(g, w, here)
            step *= rate
            w -= step
        each = np.stack(network.head.measure(*seen)).astype(np.float64)
    each *= schedule.filled()
    return np.asarray(each.sum(axis=(1, 3)) / schedule.counts.sum(axis=0))
