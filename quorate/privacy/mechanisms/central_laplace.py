"""The central Laplace mechanism, on the integers: ε at δ = 0, for the few numbers of a statistic.

Dwork, McSherry, Nissim, Smith 2006 (TCC), with discrete noise, so that floating point leaks nothing: the geometric
mechanism of Ghosh, Roughgarden, Sundararajan 2009. An integer vector of L1 norm ≤ Δ and discrete Laplace noise of scale
b in each coordinate: the probabilities of any output differ by a factor of at most exp(Δ/b).

A vector is clipped in L1, scaled, and rounded at random, without bias: each of its d coordinates grows by one step at
most, so that Δ = s + d steps for a vector that is s steps long before. The scale is the finest at which the noisy sum
of a full cohort wraps with probability 2^-40 at most, so that d is little beside s.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from quorate.codecs import Chain, ClipL1, Codec, Discretise, Wrap
from quorate.errors import PlanError
from quorate.privacy.asked import check_asked, limit
from quorate.privacy.events import CentralDiscreteLaplaceEvent, LaplaceVector
from quorate.privacy.mechanisms.base import Stateless
from quorate.privacy.noise import discrete_laplace
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, State, SumShape, Vector, VectorSpec
from quorate.sections import Section

__all__ = ["CentralLaplace"]

_LOG_WRAP_PROBABILITY = -40 * math.log(2)
_LARGEST_INFLATION = 0.01
"""The most that rounding may add to the sensitivity."""


class CentralLaplace(Stateless, Section):
    """Discrete Laplace noise that the server adds to the sum.

    Threat model: that of `CentralGaussian`: against those who see only what is released, the coordinator is trusted to
    add the noise; against the coordinator nothing is claimed (the `server` ε is infinite): it sees the exact sum under
    secure aggregation, and every single contribution without. Unit of privacy: one member's whole contribution,
    replaced by zero, in every round. Members that send something malformed are not bounded: clipping is done by honest
    clients.

    Args:
        clip_norm: the L1 norm that a vector with `bound` 1 is clipped to.
        noise_multiplier: z, the scale of the noise over the clip norm, joint over all vectors of an update: with V
            vectors, each has z·V times its bound, so that a participation costs 1/z at δ = 0.
        epsilon: instead of the noise multiplier: the `released` ε of the whole run, from which `calibrate` finds it.
        delta: at which the ledger says ε, beside other mechanisms'; None for population^-1.1.
        budget: the `released` ε that the ledger must not pass; `epsilon` is one as well.
    """

    private: ClassVar[bool] = True
    needs_hidden_updates: ClassVar[bool] = False

    mechanism: Literal["central-laplace"] = "central-laplace"
    clip_norm: float = Field(gt=0)
    noise_multiplier: float | None = Field(default=None, gt=0)
    epsilon: float | None = Field(default=None, gt=0)
    delta: float | None = Field(default=None, gt=0, lt=1)
    budget: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_target(self) -> CentralLaplace:
        check_asked(self)
        return self

    @property
    def limit(self) -> float | None:
        """The `released` ε that the ledger must not pass."""
        return limit(self)

    def ring_bits(self, vectors: VectorSpec, bounds: CohortBounds) -> int:
        """32: a statistic is a few numbers, and a narrow ring would save next to nothing."""
        return 32

    def clipping_codec(self, vector: Vector, public: PublicValues) -> ClipL1:
        """In L1.

        Raises:
            PlanError: the round's clip norm is not the plan's.
        """
        if public.clip_norm != self.clip_norm:
            raise PlanError(
                f"privacy.clip_norm: the round says {public.clip_norm}, the plan {self.clip_norm}"
            )
        return ClipL1(self.clip_norm * vector.bound)

    def codec(self, vector: Vector, shape: SumShape, public: PublicValues) -> Codec:
        """Clip in L1 → discretise → wrap.

        Raises:
            PlanError: the round's clip norm is not the plan's, or the ring can't hold the sum.
        """
        clip, noisy = self.clipping_codec(vector, public), self._noisy(vector, shape)
        # A hair below the whole number of steps, for the rounding of floating point in the clip and the scale.
        steps = (noisy.size_bound - vector.length) * (1 - 2.0**-29)
        assert shape.ring_bits is not None
        return Chain.of(clip, Discretise(steps / clip.norm), Wrap(shape.ring_bits))

    def release(
        self,
        total: np.ndarray,
        vector: Vector,
        shape: SumShape,
        survivors: int,
        randomness: Randomness,
        state: State,
    ) -> tuple[np.ndarray, State]:
        """The sum with all the noise, in its own dtype: the same for any number of survivors."""
        noise = discrete_laplace(self._noisy(vector, shape).scale, len(total), randomness)
        return (total.astype(np.int64) + noise).astype(total.dtype), state

    def event(self, shape: SumShape) -> CentralDiscreteLaplaceEvent:
        """The sum with the server's noise."""
        vectors = tuple(self._noisy(vector, shape) for vector in shape.vectors.vectors)
        return CentralDiscreteLaplaceEvent(vectors, shape.bounds.min_survivors)

    def for_cells(
        self, questions: int, noise_multiplier: float | None, epsilon: float | None
    ) -> CentralLaplace:
        """With their L1 norm, which is as many as there are questions."""
        return CentralLaplace(
            clip_norm=questions, noise_multiplier=noise_multiplier, epsilon=epsilon, delta=self.delta
        )

    def _noisy(self, vector: Vector, shape: SumShape) -> LaplaceVector:
        """Sensitivity and scale of the noise, in steps: the largest for which n·Δ + noise stays in the ring.

        P(|X| > t) ≤ 2 exp(-t/b) for each of d coordinates, and b = z·V·Δ.

        Raises:
            PlanError: the ring can't hold the sum of such a cohort, or the noise is not calibrated yet.
        """
        if self.noise_multiplier is None:
            raise PlanError(
                "privacy.epsilon: the noise for this target is not calibrated yet; resolve the plan for a population "
                "first"
            )
        if shape.ring_bits is None:
            raise PlanError(
                f"privacy.mechanism: {self.mechanism!r} adds noise to integers, and sums in a ring"
            )
        multiplier = Fraction(self.noise_multiplier) * len(shape.vectors.vectors)
        coordinates = sum(each.length for each in shape.vectors.vectors)
        tail = float(multiplier) * (math.log(2 * coordinates) - _LOG_WRAP_PROBABILITY)
        bound = math.floor((2 ** (shape.ring_bits - 1) - 1) / (shape.bounds.largest + tail))
        if bound * _LARGEST_INFLATION < vector.length:
            raise PlanError(
                f"privacy: the noisy sum of up to {shape.bounds.largest} members in {vector.length} coordinates does "
                f"not fit the {shape.ring_bits}-bit ring at noise multiplier {self.noise_multiplier:g}, where rounding "
                f"would add more than {_LARGEST_INFLATION:.0%} to the L1 norm; accepted: a smaller cohort, fewer "
                "coordinates or less noise"
                + (", or secure_aggregation.ring_bits = 32" * (shape.ring_bits < 32))
            )
        return LaplaceVector(vector.name, vector.length, bound, multiplier * bound)
