"""Many clients of a JAX model at once: their steps as one compiled loop over one batched computation.

Clients are trained in blocks: their steps are one compiled loop (`lax.fori_loop`) over one batched computation
(`vmap`). While XLA trains a block, the batches of the next ones are gathered. Batches that are short of examples are
padded, and so are blocks, so that a loss is compiled for few shapes; what is padded weighs nothing. Where something is,
the loss is taken apart by examples: it is called with batches of one under `vmap`, and has to be a mean over examples.
Rules act value by value, so that each leaf is treated by itself.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax as xla
import jax.numpy as jnp
import numpy as np

from quorate.clients.adapters.batches import Batches
from quorate.clients.adapters.local_training import Schedule
from quorate.clients.adapters.together import Together
from quorate.rounds import Instruction, State, Updates
from quorate.strategies.contract import LocalRule

if TYPE_CHECKING:
    from quorate.clients.adapters.jax_models import JaxModel

__all__ = ["Loss", "compiled_steps", "each", "fit_many", "power_of_two"]

_BLOCK_BYTES = 1 << 18  # weights of a block, its gradients and batches stay in a core's cache
_AHEAD = 4  # blocks that are gathered while XLA trains others

Loss = Callable[[Any, Any, Any], Any]
"""Of parameters, features and targets of a batch."""


def fit_many(
    model: JaxModel,
    start: np.ndarray,
    data: Sequence[Batches],
    instructions: Sequence[Instruction],
    states: Sequence[State],
) -> tuple[Updates, list[State]]:
    """Trains each client from `start` on its own data.

    Args:
        model: whose loss is trained.
        start: the flat parameters, float32, shape (n,).
        data: of each client, at least one example each.
        instructions: for each client; they may differ in the seed only.
        states: of each client; empty for one that never took part.

    Raises:
        DataError: there is no client, an instruction lacks a number, instructions differ, or a state does not fit.
    """
    job = Together.of(start, data, instructions, states, model.metrics)
    tree = xla.tree.map(jnp.asarray, model.pytree(model.layout.unflatten(start)))
    under_way = deque[Callable[[], None]]()
    for chosen in job.blocks(max(1, _BLOCK_BYTES // (4 * len(start)))):
        under_way.append(_begun(model, tree, data, job, chosen))
        if len(under_way) > _AHEAD:
            under_way.popleft()()
    for end in under_way:
        end()
    return job.made()


def _begun(
    model: JaxModel, tree: Any, data: Sequence[Batches], job: Together, chosen: np.ndarray
) -> Callable[[], None]:
    """Has XLA begin to train a block of clients, most steps first; what waits for it, and keeps what it has made."""
    context, schedule = job.begin(chosen)
    x, y, counts = _gathered([data[c] for c in chosen], schedule, job.training.batch_size)
    own = {name: _padded(v, len(counts)) for name, v in context.items() if v.ndim == 2}
    common = {name: v for name, v in context.items() if v.ndim == 1}
    rate = np.float32(job.training.learning_rate)
    # What is padded beyond is not run, or thrown away.
    whole = bool((schedule.counts == x.shape[2]).all())
    steps = len(schedule.rows)
    made, state, sums = model.steps(job.rule, whole, tree, own, common, x, y, counts, steps, rate)

    def flat(parts: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        shaped = {
            name: [np.asarray(leaf)[: len(chosen)].reshape(len(chosen), -1) for leaf in leaves]
            for name, leaves in parts.items()
        }
        return {name: np.concatenate(leaves, axis=1) for name, leaves in shaped.items()}

    def end() -> None:
        measured = np.asarray(sums).T[:, : len(chosen)] / schedule.counts.sum(axis=0)
        job.keep(chosen, flat(made), flat(state), measured)

    return end


def _gathered(
    data: Sequence[Batches], schedule: Schedule, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, shape (clients, steps, batch, …), targets, and how many rows count, padded to few different shapes.

    Clients and steps are padded to powers of two, and so are batches that no client fills. Padding repeats a row of the
    client's own; a padded client or step has a count of 0.
    """
    steps, clients, batch = schedule.rows.shape
    width = min(most, power_of_two(batch))
    shape = (power_of_two(clients), power_of_two(steps), width)
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


def power_of_two(count: int) -> int:
    """The next one."""
    return 1 << (count - 1).bit_length()


def compiled_steps(loss: Loss, measures: Sequence[Loss]) -> Any:
    """A block's steps: compiled once for each rule and shape."""
    return functools.partial(xla.jit(_block, static_argnums=(0, 1, 2, 3)), loss, tuple(measures))


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
                sums = jnp.stack([(each(of, tree, *batch) * counted).sum() for of in (loss, *measures)])
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


def each(of: Loss, tree: Any, x: Any, y: Any) -> Any:
    """A mean over a batch, example by example; shape (batch,)."""
    return xla.vmap(lambda a, b: of(tree, a[None], b[None]))(x, y)
