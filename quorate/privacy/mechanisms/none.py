"""No privacy mechanism: updates are summed as they are, clipped if the plan says so. No ε is claimed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from quorate.codecs import Chain, Clip, Codec, Digits, Discretise, Wrap
from quorate.errors import PlanError
from quorate.privacy.mechanisms.base import Stateless
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, State, SumShape, Vector, VectorSpec
from quorate.sections import Section

__all__ = ["Float32", "NoPrivacy", "numbers"]


@dataclass(frozen=True)
class Float32:
    """Values as float32, as they are: for sums outside a ring."""

    def length(self, n: int) -> int:
        """Unchanged."""
        return n

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """float32, shape (clients, n); the given array, if it is that."""
        return values.astype(np.float32, copy=False)

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """float64, shape (n,)."""
        return np.asarray(total, np.float64)


class NoPrivacy(Stateless, Section):
    """Updates without noise: whoever sees a model may learn what any client contributed.

    Threat model: none. Secure aggregation may still hide single updates from the server; the sum itself, and
    what the models tell about one client, are not protected against anybody.

    Args:
        clip_norm: the L2 norm that a vector with `bound` 1 is clipped to; needed in a ring, None otherwise
            clips nothing.
    """

    private: ClassVar[bool] = False
    needs_hidden_updates: ClassVar[bool] = False
    delta: ClassVar[None] = None
    limit: ClassVar[None] = None

    mechanism: Literal["none"] = "none"
    clip_norm: float | None = Field(default=None, gt=0)

    def ring_bits(self, vectors: VectorSpec, bounds: CohortBounds) -> int:
        """32: a clip norm that only bounds is a generous one, and a coarse step of it loses what updates say."""
        return 32

    def clipping_codec(self, vector: Vector, public: PublicValues) -> Clip | None:
        """In L2, if the plan has a clip norm."""
        return None if self.clip_norm is None else Clip(self.clip_norm * vector.bound)

    def codec(self, vector: Vector, shape: SumShape, public: PublicValues) -> Codec:
        """Clip → float32 outside a ring; clip → discretise → wrap inside, at a scale that can't wrap.

        A client's coordinate is at most ⌈clip norm · scale⌉ steps, so the sum of the largest cohort stays
        below 2^(bits-1). The error of a coordinate of the sum is at most one step a survivor, 1/scale, and 2^-21 of the
        clip norm for each that was clipped in single precision.

        Raises:
            PlanError: a ring without a clip norm, or a cohort that leaves no room for a single step.
        """
        clip, bits = self.clipping_codec(vector, public), shape.ring_bits
        if bits is None:
            return Float32() if clip is None else Chain.of(clip, Float32())
        if clip is None:
            raise PlanError("privacy.clip_norm: missing; a sum in a ring needs a bound on every update")
        return Chain.of(clip, Discretise(_steps(shape.bounds, bits) / clip.norm), Wrap(bits))

    def release(
        self,
        total: np.ndarray,
        vector: Vector,
        shape: SumShape,
        survivors: int,
        randomness: Randomness,
        state: State,
    ) -> tuple[np.ndarray, State]:
        """The sum as it is."""
        return total, state

    def event(self, shape: SumShape) -> None:
        """No privacy is claimed."""
        return None

    def for_cells(self, questions: int, noise_multiplier: float | None, epsilon: float | None) -> NoPrivacy:
        """With the bound that a ring needs."""
        return NoPrivacy(clip_norm=math.sqrt(questions))


def numbers(bound: float, shape: SumShape) -> Codec:
    """The codec of a few numbers that ride beside the vectors, without noise: as precise in any ring.

    In a narrow ring they are sent as digits.

    Args:
        bound: of their L2 norm.
        shape: of the round's sum.
    """
    bits = shape.ring_bits
    if bits is None:
        return Float32()
    steps = _steps(shape.bounds, 32)
    fixed = Clip(bound), Discretise(steps / bound)
    if bits == 32:
        return Chain.of(*fixed, Wrap(32))
    base, count = _steps(shape.bounds, bits) + 1, 1
    while base**count <= steps + 1:
        count += 1
    return Chain.of(*fixed, Digits(base, count), Wrap(bits))


def _steps(bounds: CohortBounds, bits: int) -> int:
    """The largest norm, in steps, at which a full cohort's sum can't wrap, even if every rounding goes up.

    Raises:
        PlanError: there is no room for two steps.
    """
    steps: int = (2 ** (bits - 1) - 1) // bounds.largest - 1
    if steps < 1:
        raise PlanError(f"a sum of {bounds.largest} members does not fit the {bits}-bit ring")
    return steps
