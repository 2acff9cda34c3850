"""What the mechanisms with integer noise have in common: the section's numbers, and the encoding of a vector.

Clip → rotate → discretise with a norm bound → noise → wrap (Kairouz, Liu, Steinke 2021, Algorithms 1 and 2). Who adds
the noise, from which law, and how much of it is counted, is said by each mechanism.

**The scale.** A finer scale costs less: rounding inflates the sensitivity by a factor that falls towards 1. So the
scale is the finest that is of use (inflation 1.0001), or the finest at which the noisy sum of a full cohort wraps with
probability 2^-40 at most, whichever is coarser. Noise is proportional to the inflated sensitivity, so an ε does not
depend on the ring; the noise that it needs does.

**The ring.** Half the bytes are sent in Z_2^16. It is chosen where its noise, rounding included, is within
`NARROW_RING_TOLERANCE` of that in Z_2^32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from quorate.codecs import Chain, Clip, Codec, Discretise, Rotate, Wrap, rounded_norm_bound
from quorate.errors import PlanError
from quorate.privacy.asked import check_asked, limit
from quorate.privacy.events import NoisySum, NoisyVector
from quorate.privacy.mechanisms.clipping import AdaptiveClip, clip_codec, is_within
from quorate.privacy.mechanisms.wrapping import wrap_probability
from quorate.privacy.noise import NoiseLaw
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, State, SumShape, Vector, VectorSpec
from quorate.sections import Section

__all__ = ["NARROW_RING_TOLERANCE", "Encoding", "RoundedNoise", "useful_steps"]

WITHIN = "quorate.within"
"""The name of the vector that says whether an update was within the clip norm; no strategy's has a dot."""
_CLIP_NORM = "clip_norm"
NARROW_RING_TOLERANCE = 0.01
"""How much larger the standard deviation of what is released may be for half the bytes."""
_WRAP_PROBABILITY = 2.0**-40
_INFLATION = 1.0001
"""Steps are no smaller than keeps rounding's part of the sensitivity below this: more only makes sampling
slower."""
_SMOOTH_VARIANCE = 4
"""Of a share, in steps²: from there on what sets sums of shares apart from one Gaussian is below 10^-15."""


@dataclass(frozen=True)
class Encoding:
    """The numbers of one vector's encoding: both sides have the same, from terms and bounds.

    Args:
        steps: what a vector at its clip norm is scaled to, in integer steps.
        padded_length: the number of coordinates after rotation.
        norm_bound: the largest L2 norm of a client's integer vector, in steps: its sensitivity.
        local_variance: of one share of the noise in each coordinate, in steps².
        wrap_probability_bound: of any coordinate of a full cohort's noisy sum leaving the ring's range.
    """

    steps: float
    padded_length: int
    norm_bound: float
    local_variance: Fraction
    wrap_probability_bound: float

    @property
    def l2_inflation(self) -> float:
        """What rounding adds to the sensitivity, as a factor."""
        return self.norm_bound / self.steps


class RoundedNoise(Section):
    """Integer noise on sums of rounded, bounded integer vectors.

    Args:
        clip_norm: the L2 norm that a vector with `bound` 1 is clipped to, in the update's units; the first round's, if
            it is adaptive.
        clipping: `flat`: a vector as a whole; `per-layer`: each array of the model to its share, clip_norm / √K.
        adaptive_clip: how the clip norm follows a quantile of the updates' norms; None: it stays.
        noise_multiplier: standard deviation of the noise that is counted, over the clip norm, joint over all vectors of
            an update: with V vectors, each has z·√V times its bound, so that the concentrated DP of the vectors, 1/(2
            z² V) each, adds up to 1/(2 z²) (Bun and Steinke 2016, Lemma 1.7).
        epsilon: instead of the noise multiplier: the `released` ε of the whole run, from which `calibrate`
            finds it.
        delta: None for population^-1.1.
        budget: the `released` ε that the ledger must not pass; `epsilon` is one as well.
    """

    private: ClassVar[bool] = True
    law: ClassVar[NoiseLaw] = NoiseLaw.DISCRETE_GAUSSIAN
    needs_hidden_updates: ClassVar[bool] = True

    mechanism: str
    clip_norm: float = Field(gt=0)
    clipping: Literal["flat", "per-layer"] = "flat"
    adaptive_clip: AdaptiveClip | None = None
    noise_multiplier: float | None = Field(default=None, gt=0)
    epsilon: float | None = Field(default=None, gt=0)
    delta: float | None = Field(default=None, gt=0, lt=1)
    budget: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_target(self) -> RoundedNoise:
        check_asked(self)
        return self

    @property
    def limit(self) -> float | None:
        """The `released` ε that the ledger must not pass."""
        return limit(self)

    # --- What each mechanism says

    def noise_shares(self, bounds: CohortBounds) -> tuple[int, int]:
        """How many shares have the noise multiplier's noise together, and how many are in a sum at most."""
        raise NotImplementedError

    def client_noise(self, encoding: Encoding) -> tuple[Codec, ...]:
        """What a client adds to its rounded vector."""
        raise NotImplementedError

    def event(self, shape: SumShape) -> NoisySum:
        """What a round releases of its cohort."""
        raise NotImplementedError

    def impossible(self, expected_cohort: float) -> list[str]:
        """A count of updates within the clip norm that alone costs more than everything may."""
        if self.adaptive_clip is None or self.noise_multiplier is None:
            return []
        try:
            self.adaptive_clip.update_multiplier(self.noise_multiplier, expected_cohort)
        except PlanError as error:
            return list(error.problems)
        return []

    # --- The clip norm

    def riding(self, vectors: VectorSpec) -> VectorSpec:
        """The strategy's vectors, and whether an update was within an adaptive clip norm."""
        if self.adaptive_clip is None:
            return vectors
        return VectorSpec((*vectors.vectors, Vector(WITHIN, 1)))

    def measured(
        self, values: Mapping[str, np.ndarray], vectors: VectorSpec, public: PublicValues
    ) -> Mapping[str, np.ndarray]:
        """½ if nothing of the update is clipped, else -½."""
        if self.adaptive_clip is None or public.clip_norm is None:
            return {}
        by_layer = self.clipping == "per-layer"
        within = all(
            is_within(values[vector.name], vector, public.clip_norm, by_layer=by_layer)
            for vector in vectors.vectors
            if vector.name in values
        )
        return {WITHIN: np.array([0.5 if within else -0.5])}

    def init(self, vectors: VectorSpec) -> State:
        """The clip norm, if it is adaptive."""
        return {} if self.adaptive_clip is None else {_CLIP_NORM: np.array([self.clip_norm])}

    def clip(self, state: State) -> float:
        """The state's clip norm, or the plan's."""
        return self.clip_norm if self.adaptive_clip is None else float(state[_CLIP_NORM][0])

    def update(self, state: State, means: Mapping[str, np.ndarray]) -> tuple[State, Mapping[str, np.ndarray]]:
        """The next clip norm, from the noisy share of updates that were within this one."""
        if self.adaptive_clip is None:
            return state, means
        left = {name: mean for name, mean in means.items() if name != WITHIN}
        following = self.adaptive_clip.next_norm(self.clip(state), 0.5 + float(means[WITHIN][0]))
        return {_CLIP_NORM: np.array([following])}, left

    # --- What all have

    def top_up(
        self, total: np.ndarray, vector: Vector, shape: SumShape, survivors: int, randomness: Randomness
    ) -> np.ndarray:
        """A vector's encoded sum with the noise that the server adds."""
        raise NotImplementedError

    def release(
        self,
        total: np.ndarray,
        vector: Vector,
        shape: SumShape,
        survivors: int,
        randomness: Randomness,
        state: State,
    ) -> tuple[np.ndarray, State]:
        """The topped up sum; rounds have independent noise, so the state is as it was."""
        return self.top_up(total, vector, shape, survivors, randomness), state

    def for_cells(
        self, questions: int, noise_multiplier: float | None, epsilon: float | None
    ) -> RoundedNoise:
        """With their L2 norm, √questions, which does not move."""
        return type(self)(
            mechanism=self.mechanism,
            clip_norm=math.sqrt(questions),
            noise_multiplier=noise_multiplier,
            epsilon=epsilon,
            delta=self.delta,
        )

    def noisy_vectors(self, shape: SumShape) -> tuple[NoisyVector, ...]:
        """The vectors of an event."""
        encodings = [(vector.name, self.encoding(vector, shape)) for vector in shape.vectors.vectors]
        return tuple(
            NoisyVector(name, encoding.padded_length, encoding.norm_bound, encoding.local_variance)
            for name, encoding in encodings
        )

    def encoding(self, vector: Vector, shape: SumShape) -> Encoding:
        """Scale, sensitivity and share of the noise of one vector.

        Raises:
            PlanError: the ring can't hold the sum of such a cohort, or the noise is not calibrated yet.
        """
        if self.noise_multiplier is None:
            raise PlanError(
                "privacy.epsilon: the noise for this target is not calibrated yet; resolve the plan for a "
                "population first"
            )
        bounds, bits = shape.bounds, shape.ring_bits
        if bits is None:
            raise PlanError(
                f"privacy.mechanism: {self.mechanism!r} adds noise to integers, and sums in a ring"
            )
        counted, most = self.noise_shares(bounds)
        padded = 1 << max(vector.length - 1, 0).bit_length()
        count, multiplier = len(shape.vectors.vectors), self.noise_multiplier
        exact = vector.name == WITHIN and self.adaptive_clip is not None
        if self.adaptive_clip is not None:
            multiplier = self.adaptive_clip.update_multiplier(multiplier, bounds.denominator)
            joint = multiplier * math.sqrt(count - 1)
            multiplier = self.adaptive_clip.count_multiplier(bounds.denominator) if exact else joint
        else:
            multiplier *= math.sqrt(count)
        found = _finest(multiplier, padded, count, counted, most, bounds.largest, bits, self.law, exact)
        if found is None:
            raise PlanError(
                f"privacy: the noisy sum of up to {bounds.largest} members in {padded} coordinates does not fit the "
                f"{bits}-bit ring at noise multiplier {self.noise_multiplier:g}; accepted: a smaller cohort"
                + (", less noise, or secure_aggregation.ring_bits = 32" if bits < 32 else " or less noise")
            )
        return found

    def ring_bits(self, vectors: VectorSpec, bounds: CohortBounds) -> int:
        """The narrowest ring that costs next to nothing: 16, if `NARROW_RING_TOLERANCE` is kept for every vector."""
        try:
            for vector in vectors.vectors:
                narrow, wide = (self.encoding(vector, SumShape(vectors, bounds, bits)) for bits in (16, 32))
                coarse = narrow.local_variance < _SMOOTH_VARIANCE
                more = self._deviation(narrow, bounds) / self._deviation(wide, bounds) - 1
                if coarse or more > NARROW_RING_TOLERANCE:
                    return 32
        except PlanError:
            return 32
        return 16

    def _deviation(self, encoding: Encoding, bounds: CohortBounds) -> float:
        """Of a coordinate of what is released of a full cohort, noise and rounding, over the clip norm."""
        _, most = self.noise_shares(bounds)
        return math.sqrt(most * encoding.local_variance + bounds.largest / 4) / encoding.steps

    def clipping_codec(self, vector: Vector, public: PublicValues) -> Codec:
        """In L2, as a whole or layer by layer; what says whether an update was within, to what it is.

        Raises:
            PlanError: the round's clip norm is not the plan's, and is not adaptive.
        """
        norm = public.clip_norm
        if norm is None or (norm != self.clip_norm and self.adaptive_clip is None):
            raise PlanError(f"privacy.clip_norm: the round says {norm}, the plan {self.clip_norm}")
        if vector.name == WITHIN:
            return Clip(0.5)
        return clip_codec(vector, norm, by_layer=self.clipping == "per-layer")

    def codec(self, vector: Vector, shape: SumShape, public: PublicValues) -> Codec:
        """Clip → rotate → discretise with a norm bound → noise share → wrap.

        Raises:
            PlanError: outside a ring, or when the round's clip norm is not the plan's, and is not adaptive.
        """
        clip, encoding = self.clipping_codec(vector, public), self.encoding(vector, shape)
        assert shape.ring_bits is not None
        assert public.clip_norm is not None
        longest = 0.5 if vector.name == WITHIN else public.clip_norm * vector.bound
        return Chain.of(
            clip,
            Rotate(Randomness(public.rotation_seed).spawn("rotation", vector.name).bytes(32)),
            Discretise(encoding.steps / longest, encoding.norm_bound),
            *self.client_noise(encoding),
            Wrap(shape.ring_bits),
        )


@lru_cache(maxsize=1024)
def _finest(
    multiplier: float,
    length: int,
    count: int,
    counted: int,
    most: int,
    clients: int,
    bits: int,
    law: NoiseLaw,
    exact: bool,
) -> Encoding | None:
    """The encoding with the finest scale that is of use and fits the ring; None if none fits.

    Args:
        multiplier: of this vector's noise.
        length: of the vector, padded.
        count: the number of vectors in the sum, which share the chance to wrap.
        counted: how many shares have the multiplier's noise together.
        most: how many shares are in a sum at most.
        clients: how many vectors are in a sum at most.
        bits: of the ring.
        law: of the noise.
        exact: whether the vector is a whole number of steps long, so that nothing is rounded.
    """

    def at(steps: float) -> Encoding:
        steps = math.floor(steps) if exact else steps
        # A whole number of steps is within a bound that is a hair above it.
        bound = steps * (1 + 2.0**-30) if exact else rounded_norm_bound(steps, length)
        variance = (multiplier * bound) ** 2 / counted
        denominator = 1 if variance > 2**20 else 2**20  # rounded up, to a number that is short to write
        share = Fraction(math.ceil(Fraction(variance) * denominator), denominator)
        wraps = wrap_probability(
            bits=bits,
            clients=clients,
            steps=steps,
            norm_bound=bound,
            length=length,
            law=law,
            variance=float(most * share),
        )
        return Encoding(steps, length, bound, share, wraps)

    def fits(encoding: Encoding) -> bool:
        return encoding.wrap_probability_bound <= _WRAP_PROBABILITY / count

    low, high = 1.0, max(1.0, useful_steps(length), 2 * math.sqrt(counted) / multiplier)
    found = at(high)
    if not fits(found):
        found = at(low)
        while high - low > 1e-9 * high:
            middle = at((low + high) / 2)
            if fits(middle):
                low, found = (low + high) / 2, middle
            else:
                high = (low + high) / 2
    return found if fits(found) and found.local_variance >= Fraction(1, 4) else None


def useful_steps(length: int) -> float:
    """The smallest s with rounded_norm_bound(s, m) ≤ 1.0001·s: the root of κs² - s - (m/4 + √m/2)."""
    kappa = _INFLATION**2 - 1
    return (1 + math.sqrt(1 + 4 * kappa * (length / 4 + math.sqrt(length) / 2))) / (2 * kappa)
