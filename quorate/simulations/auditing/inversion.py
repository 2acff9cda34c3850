"""What a server could read of clients' examples in a round: from one update, from the sum, from the noisy sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quorate import pipeline
from quorate.errors import MissingExtra, PlanError
from quorate.plan import Plan
from quorate.privacy.audits.inversion import inverted, likeness
from quorate.randomness import Randomness, generator
from quorate.rounds import Instruction, PublicValues
from quorate.simulations.source import Simulation
from quorate.sums import RunningSum
from quorate.task import DenseLayer, Model

__all__ = ["Leak", "draw_leaks", "leaks"]


@dataclass(frozen=True)
class Leak:
    """What an inversion finds in something that a server sees.

    Args:
        seen: what the server sees.
        cosine: the largest likeness with an example that is in it; 1 is the example itself.
        found: what was found, shape (inputs,).
        example: the example that it is likest to, shape (inputs,).
    """

    seen: str
    cosine: float
    found: np.ndarray
    example: np.ndarray


def leaks(plan: Plan, fleet: Simulation, seed: int = 0) -> list[Leak]:
    """What a server would see of one client in the first round: its update, the cohort's sum, and the noisy sum.

    Args:
        plan: resolved; its task's first layer is dense.
        fleet: its clients.
        seed: of everything that is drawn.

    Raises:
        PlanError: the task has no dense first layer.
    """
    model, rng = plan.task.resolve().model, generator(seed, "inversion")
    layers = model.program_spec()
    if not isinstance(layers, tuple):
        raise PlanError(f"task.name: {model.name!r} has no dense first layer that could be inverted")
    first = layers[0]
    start = model.initial(generator(seed, "initial parameters"))
    bounds = plan.bounds(fleet.size)
    cohort = rng.choice(len(fleet.data), bounds.largest, replace=False)
    settings = {**plan.training.settings(), **plan.strategy.resolve().local.settings}
    updates = [
        model.client(fleet.data.clients[index]).fit(
            start,
            Instruction(plan.strategy.resolve().local.name, settings, seed=int(rng.integers(2**62))),
            {},
        )[0]
        for index in cohort
    ]
    victim = fleet.data.clients[int(cohort[0])].x
    everybody = np.concatenate([fleet.data.clients[int(index)].x for index in cohort])
    deltas = np.stack([update.vectors["delta"] for update in updates])
    found = [
        _leak("one client's update", model, first, deltas[0], victim),
        _leak(f"the sum of {len(cohort)} clients", model, first, deltas.sum(axis=0), everybody),
    ]
    if plan.privacy.private:
        state = plan.privacy.init(plan.terms().shape(bounds).vectors)
        public = PublicValues(plan.privacy.clip(state), bytes(32))
        encoding, stream = pipeline.build(plan.terms(), bounds, public), Randomness.from_seed(seed)
        total = RunningSum(encoding.length, encoding.dtype)
        for index, update in zip(cohort, updates, strict=True):
            total.add(encoding.encode(update, stream.spawn("encoding", int(index))), [str(index)])
        means, _, _ = encoding.decode(total.result(), stream.spawn("decoding"), state)
        found.append(_leak("… with the plan's noise", model, first, means["delta"], everybody))
    return found


def draw_leaks(found: Sequence[Leak], path: Path) -> None:
    """Draws what was found beside the examples that it is likest to, as square pictures where they are square.

    Raises:
        MissingExtra: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("simulation", "drawing what was found") from error
    figure = Figure(figsize=(2.4 * len(found), 5.2), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, leak in enumerate(found):
        side = round(len(leak.found) ** 0.5)
        shape = (side, side) if side**2 == len(leak.found) else (1, len(leak.found))
        for row, (picture, title) in enumerate(
            [(leak.example, "an example in it"), (leak.found, f"{leak.seen}\ncosine {leak.cosine:.2f}")]
        ):
            axes[row, column].imshow(picture.reshape(shape), cmap="gray_r")
            axes[row, column].set_title(title, fontsize="small")
            axes[row, column].set_axis_off()
    figure.savefig(path, dpi=144)


def _leak(seen: str, model: Model, first: DenseLayer, delta: np.ndarray, examples: np.ndarray) -> Leak:
    moved = model.layout.unflatten(np.asarray(delta, np.float32))
    found = inverted(np.asarray(moved[first.weight]), np.asarray(moved[first.bias]))
    cosine, row, column = likeness(found, examples)
    return Leak(seen, cosine, found[row], examples[column])
