"""DP-SGD on a client (Abadi et al. 2016, algorithm 1): the rule for every framework, on flat vectors.

In each step every example is drawn with probability q, the drawn examples' gradients are clipped and summed, discrete
Gaussian noise is added to the sum, and it is divided by the expected number of drawn examples, q·n. What is proven of
that, and why it is on a grid, is in `quorate.privacy.dp_sgd`. A framework brings the sum of the clipped gradients of
some rows (`ExampleTrainer`). The local rule is applied to the noisy gradient, which costs nothing: it looks at nothing
else that was computed from examples.

Draws and noise are protocol randomness: from the operating system, and from the instruction's seed in a seeded
simulation only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from quorate.errors import DataError
from quorate.privacy.dp_sgd import LARGEST_BLOCK, PREFIX, Grid
from quorate.randomness import Randomness
from quorate.rounds import Instruction

__all__ = ["ABILITY", "ExampleNumbers", "ExampleTrainer", "asks", "clipped_sum", "noisy_gradients", "plain"]

ABILITY = "dp-sgd"
"""Among a client's `rules`, if it can do this."""


class ExampleTrainer(Protocol):
    """A framework's side of DP-SGD, beside what `local_training.Weights` says."""

    def clipped_sum(self, rows: np.ndarray, clip_norm: float) -> np.ndarray:
        """Σ g·min(1, C/‖g‖₂) over the gradients g of the losses of some examples, float64, shape (trained,).

        The gradient of an example depends on that example and the weights only; one that is not finite counts as zero.

        Args:
            rows: of the client's data, int64; at least one, and `LARGEST_BLOCK` at most.
            clip_norm: C.
        """
        ...


@dataclass(frozen=True)
class ExampleNumbers:
    """What an instruction says of DP-SGD.

    Args:
        clip_norm: of an example's gradient.
        noise_multiplier: the noise's standard deviation over the clip norm.
        sampling_rate: the probability of each example to be in a step's batch.
        steps: how many there are.
    """

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    steps: int

    @classmethod
    def of(cls, instruction: Instruction) -> ExampleNumbers | None:
        """The numbers; None where single examples are not protected.

        Raises:
            DataError: a number is missing or makes no sense.
        """
        if not asks(instruction):
            return None
        values = []
        for field in dataclasses.fields(cls):
            value = instruction.settings.get(PREFIX + field.name)
            whole, most = field.name == "steps", 1.0 if field.name == "sampling_rate" else math.inf
            if (
                value is None
                or not (0 < value <= most and math.isfinite(value))
                or (whole and value != int(value))
            ):
                accepted = "a whole number of at least 1" if whole else "a finite number above 0"
                accepted += " and at most 1" if most == 1 else ""
                raise DataError(
                    f"the instruction's {PREFIX}{field.name}: {value!r} was found; {accepted} is accepted"
                )
            values.append(value)
        clip_norm, noise_multiplier, sampling_rate, steps = values
        return cls(clip_norm, noise_multiplier, sampling_rate, int(steps))


def asks(instruction: Instruction) -> bool:
    """Whether an instruction asks for DP-SGD."""
    return any(name.startswith(PREFIX) for name in instruction.settings)


def plain(instruction: Instruction) -> Instruction:
    """The instruction without its numbers of DP-SGD."""
    settings = {name: value for name, value in instruction.settings.items() if not name.startswith(PREFIX)}
    return dataclasses.replace(instruction, settings=settings)


def noisy_gradients(
    trainer: ExampleTrainer,
    examples: int,
    dimension: int,
    numbers: ExampleNumbers,
    block: int,
    seed: int | None,
) -> Iterator[np.ndarray]:
    """The gradient of each step, float32, shape (dimension,), computed when it is asked for.

    Args:
        trainer: with the weights of the moment.
        examples: how many the client has.
        dimension: of the gradient.
        numbers: of the instruction.
        block: how many examples' gradients are computed at once, at most `LARGEST_BLOCK`.
        seed: of a seeded simulation; None draws from the operating system.

    Raises:
        DataError: the noise is beyond the sampler.
    """
    randomness = Randomness.system() if seed is None else Randomness.from_seed(seed)
    draws, noise = randomness.spawn(ABILITY, "batches"), randomness.spawn(ABILITY, "noise")
    grid = Grid.of(numbers.clip_norm, numbers.noise_multiplier, dimension)
    block = min(block, LARGEST_BLOCK)
    threshold = np.uint64(
        int(numbers.sampling_rate * 2.0**53)
    )  # rounded down, so that q is never more than it says
    for _ in range(numbers.steps):
        words = draws.words(examples, np.dtype(np.uint64)) >> np.uint64(11)
        rows = np.flatnonzero(words < threshold)
        total = np.zeros(dimension, np.int64)
        for start in range(0, len(rows), block):
            total += grid.rounded(trainer.clipped_sum(rows[start : start + block], numbers.clip_norm))
        noisy = grid.noisy(total, noise)
        yield np.asarray(noisy / (numbers.sampling_rate * examples), np.float32)


def clipped_sum(gradients: np.ndarray, clip_norm: float) -> np.ndarray:
    """Σ g·min(1, C/‖g‖₂) over the rows g of a block; a row that is not finite counts as zero. float64, shape (d,).

    Args:
        gradients: of examples, float32, shape (examples, d).
        clip_norm: C.
    """
    squares = np.array([_square(row) for row in gradients])
    scales = factors(squares, clip_norm)
    kept = scales > 0
    if not kept.all():  # 0 · inf is NaN
        gradients, scales = gradients[kept], scales[kept]
    total: Any = scales @ gradients.astype(np.float64)
    return np.asarray(total)


def factors(squares: np.ndarray, clip_norm: float) -> np.ndarray:
    """min(1, C/‖g‖) from ‖g‖², and 0 where that is not finite; float64."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scales = np.minimum(1.0, clip_norm / np.sqrt(squares))
    return np.where(np.isfinite(squares), scales, 0.0)


def _square(row: np.ndarray) -> float:
    wide = row.astype(np.float64)
    return float(wide @ wide)
