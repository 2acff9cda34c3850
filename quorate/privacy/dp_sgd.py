"""Example-level differential privacy: what DP-SGD on a client protects, and what a participation costs.

Abadi et al. 2016 (CCS), algorithm 1: in every step each example is drawn independently with probability q, the gradient
of each is clipped to an L2 norm of C, and noise of standard deviation z·C is added to their sum, which is divided by
the *expected* size of the batch. What leaves the device is a function of these noisy sums.

**Neighbours.** Two data sets of one client that differ in one example, which counts as zero in one of them: its
gradient is replaced by zero whenever it is drawn (zero-out, as Kairouz et al. 2021, *Practical and private (deep)
learning without sampling*, section 2, define it). The number of the client's examples is the same in both, so that q,
the number of steps, and the client's weight in a mean tell nothing.

**Against whom.** Everybody but the device itself, the coordinator included: the noise is the device's own, added before
anything leaves it, and which examples it draws, nobody else learns. So sampling amplifies against the coordinator, too,
and no sum has to hide anything. The secrecy and independence of the draw are what the theorems for Poisson sampling
need; batches of a fixed size, in the order of a shuffle, are accounted by neither and are not used.

**On the integers.** Sums are rounded to a grid and the noise is discrete Gaussian (Canonne, Kamath, Steinke 2020), so
that floating point leaks nothing (Mironov 2012). Examples are summed in blocks of at most `LARGEST_BLOCK`, in float64,
and each block's sum is rounded to the nearest whole steps; blocks are added as integers. One example is in one block.
Without it, the block's sum moves by at most S = C in steps, but for what floating point adds: with b examples in a
block, the rounding errors of the sums on both sides have an L2 norm of at most 2·b²·2^-53·S < 2^-31·S (Higham 2002,
section 4.2, in every coordinate), and the factors that clip, computed in float64, are right to 2^-21 in up to 2^32
coordinates. Rounding moves every coordinate by less than one step in the difference of two sums. So the sensitivity is

    Δ ≤ S·(1 + 2^-20) + √d       in d coordinates,

and the noise has a standard deviation of z·Δ: rounding costs a little accuracy, and no privacy. The grid is so fine
that √d is below 2^-14 of S.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from quorate.errors import DataError, PlanError
from quorate.privacy.asked import check_asked, limit
from quorate.privacy.noise import NoiseLaw, add_noise
from quorate.randomness import Randomness
from quorate.sections import Section

__all__ = [
    "EXAMPLE_RELATION",
    "LARGEST_BLOCK",
    "LARGEST_MULTIPLIER",
    "MOST_COORDINATES",
    "PREFIX",
    "SMALLEST_DEVIATION",
    "SMALLEST_MULTIPLIER",
    "DpSgd",
    "ExampleEvent",
    "Grid",
    "decode_example_event",
    "encode_example_event",
]

EXAMPLE_RELATION = "zero-out of one example of one client"
"""Neighbouring data: in one of them one example of one client counts as zero, in every step of every round."""
LARGEST_BLOCK = 1024
"""Examples whose gradients are summed in floating point."""
SMALLEST_DEVIATION = 2.0**15
"""Of the noise in a coordinate, in steps, at least."""
MOST_COORDINATES = 2**32
"""Of a gradient."""
SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 0.01, 1000.0
"""Of the noise, over the clip norm."""
PREFIX = "dp_sgd."
"""Of the names of its numbers in an instruction."""
_FLOATING = 2.0**-20
_TYPE = "dp-sgd"


class DpSgd(Section):
    """`[training.dp_sgd]`: every client trains by DP-SGD, so that single examples are protected.

    Args:
        clip_norm: C, the L2 norm that the gradient of an example is clipped to.
        noise_multiplier: z, the noise's standard deviation over the clip norm.
        epsilon: instead of the noise multiplier: the ε for one example of a client that takes part in every round that
            it can be in, from which `calibrate_examples` finds it.
        sampling_rate: q, the probability of each example to be in a step's batch, whatever the client's number of
            examples; a pass over the data is 1/q steps.
        delta: of the ε for one example.
        budget: the ε for one example that the coordinator lets no client's participations pass; `epsilon` is one as
            well.
    """

    clip_norm: float = Field(gt=0)
    noise_multiplier: float | None = Field(default=None, ge=SMALLEST_MULTIPLIER, le=LARGEST_MULTIPLIER)
    epsilon: float | None = Field(default=None, gt=0)
    sampling_rate: float = Field(ge=1e-6, le=1)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    budget: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_target(self) -> DpSgd:
        check_asked(self)
        return self

    @property
    def limit(self) -> float | None:
        """The ε for one example that no client's participations pass; None: no limit."""
        return limit(self)

    @property
    def calibrated(self) -> float:
        """The noise multiplier.

        Raises:
            PlanError: it is not known yet.
        """
        if self.noise_multiplier is None:
            raise PlanError(
                "training.dp_sgd.epsilon: the noise for this target is not calibrated yet; resolve the plan for a "
                "population first"
            )
        return self.noise_multiplier

    def steps(self, epochs: int) -> int:
        """How many steps so many passes over the data are: ⌈epochs/q⌉."""
        return math.ceil(epochs / self.sampling_rate * (1 - 1e-12))

    def settings(self, epochs: int) -> dict[str, float]:
        """The numbers of an instruction."""
        return {
            PREFIX + "clip_norm": self.clip_norm,
            PREFIX + "noise_multiplier": self.calibrated,
            PREFIX + "sampling_rate": self.sampling_rate,
            PREFIX + "steps": float(self.steps(epochs)),
        }

    def event(self, epochs: int) -> ExampleEvent:
        """What one participation costs an example."""
        return ExampleEvent(self.calibrated, self.sampling_rate, self.steps(epochs))


@dataclass(frozen=True)
class ExampleEvent:
    """One client's training in one round: Poisson-sampled sums with discrete Gaussian noise.

    The sums are integer vectors that one example moves by an L2 norm of Δ at most; the noise of a coordinate has a
    standard deviation of z·Δ and of `SMALLEST_DEVIATION` steps at least; there are at most `MOST_COORDINATES` of them.

    Args:
        noise_multiplier: z.
        sampling_rate: the largest probability of an example to be in a sum.
        steps: how many sums there are.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)):
            raise DataError(f"a noise multiplier is above 0 and finite, got {self.noise_multiplier}")
        if not 0 < self.sampling_rate <= 1:
            raise DataError(f"a sampling rate is in (0, 1], got {self.sampling_rate}")
        if self.steps < 1:
            raise DataError(f"a training has at least one step, got {self.steps}")


def encode_example_event(event: ExampleEvent) -> str:
    """The event as canonical JSON; `decode_example_event` gives the same event back."""
    content = {
        "type": _TYPE,
        "noise_multiplier": event.noise_multiplier,
        "sampling_rate": event.sampling_rate,
        "steps": event.steps,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def decode_example_event(text: str) -> ExampleEvent:
    """The event that `encode_example_event` wrote.

    Raises:
        DataError: it is none.
    """
    try:
        content: Mapping[str, Any] = json.loads(text)
        fields = {name: value for name, value in content.items() if name != "type"}
        if content["type"] != _TYPE:
            raise DataError(f"an event of type {content['type']!r} is not known to this version")
        return ExampleEvent(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"an example's event can't be read: {error}; found {text}") from error


@dataclass(frozen=True)
class Grid:
    """The grid that a client's sums are rounded to, and the noise on it.

    Args:
        step: of the grid, in the gradient's units.
        norm_bound: Δ, in steps.
        variance: of the noise in a coordinate, in steps².
    """

    step: float
    norm_bound: float
    variance: Fraction

    @classmethod
    def of(cls, clip_norm: float, noise_multiplier: float, dimension: int) -> Grid:
        """The grid for gradients of so many coordinates.

        Raises:
            DataError: the numbers are beyond what the sampler takes.
        """
        if not 1 <= dimension <= MOST_COORDINATES:
            raise DataError(f"a gradient has 1 to {MOST_COORDINATES} coordinates, got {dimension}")
        root = math.sqrt(dimension)
        steps = SMALLEST_DEVIATION * root / min(1.0, noise_multiplier)
        norm_bound = steps * (1 + _FLOATING) + root
        variance = Fraction(math.ceil((noise_multiplier * norm_bound) ** 2 * (1 + 2.0**-50)))
        if variance > 1 << 81 or LARGEST_BLOCK * steps > 2.0**51:
            raise DataError(
                f"noise of {noise_multiplier:g} times the clip norm on {dimension} coordinates is beyond the sampler"
            )
        return cls(clip_norm / steps, norm_bound, variance)

    def rounded(self, total: np.ndarray) -> np.ndarray:
        """A block's sum of clipped gradients, float64, in whole steps: int64, shape (d,)."""
        steps: np.ndarray = np.rint(total / self.step).astype(np.int64)
        return steps

    def noisy(self, total: np.ndarray, randomness: Randomness) -> np.ndarray:
        """The sum of the blocks, int64, with noise, in the gradient's units: float64, shape (d,)."""
        with_noise = np.ascontiguousarray(total, np.int64).copy()
        add_noise(NoiseLaw.DISCRETE_GAUSSIAN, self.variance, with_noise, randomness)
        return np.asarray(with_noise * self.step)
