"""Clipping: to a norm that follows a quantile of the updates' norms, and layer by layer.

**Adaptive quantile clipping** (Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv 1905.03871, Algorithm 1). Every client
says whether its update was within the round's clip norm: +½ or -½, a vector of one number that rides in the same sum,
with noise of deviation σ_b. From the noisy fraction b̃ of updates that were within, the next clip norm is C·exp(-η(b̃ -
γ)). A client moves that sum by ½ at most, so both together cost what noise multiplier z costs if the updates' own is

    z_Δ = (z^-2 - (2σ_b)^-2)^(-1/2)        (their Theorem 1)

b̃ - ½ is a sum over a fixed denominator, as all means: members that drop out pull b̃ towards ½, which does not move the
median, and moves other quantiles a little outwards.

**Per-layer clipping** (McMahan, Ramage, Talwar, Zhang 2018, section 3.1): each of K named arrays of the model is
clipped to C/√K, so that the whole is within C, and costs the same.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from quorate.codecs import Clip, ClipParts, Codec
from quorate.errors import PlanError
from quorate.rounds import Vector
from quorate.sections import Section

__all__ = ["AdaptiveClip", "clip_codec", "is_within"]


class AdaptiveClip(Section):
    """`[privacy.adaptive_clip]`: the clip norm follows a quantile of the norms of the updates.

    Args:
        quantile: of the updates that are not clipped, γ.
        learning_rate: of the logarithm of the clip norm, η.
        count_noise: the deviation of the noise on the number of updates that are within, over the members expected in a
            sum; the paper's σ_b / n.
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    count_noise: Annotated[float, Field(gt=0)] = 0.05

    def count_multiplier(self, expected_cohort: float) -> float:
        """The noise multiplier of the count: its deviation over what one client moves it by, 2σ_b."""
        return 2 * self.count_noise * expected_cohort

    def update_multiplier(self, noise_multiplier: float, expected_cohort: float) -> float:
        """That of the updates, z_Δ, so that both together cost what `noise_multiplier` says.

        Raises:
            PlanError: the count alone costs more.
        """
        left = noise_multiplier**-2 - self.count_multiplier(expected_cohort) ** -2
        if left <= 0:
            least = noise_multiplier / (2 * expected_cohort)
            raise PlanError(
                f"privacy.adaptive_clip.count_noise: found {self.count_noise:g}, which alone costs more than noise "
                f"multiplier {noise_multiplier:g} with {expected_cohort:g} members; accepted: above {least:.3g}"
            )
        return 1 / math.sqrt(left)

    def next_norm(self, clip_norm: float, fraction_within: float) -> float:
        """The next round's clip norm."""
        return clip_norm * math.exp(-self.learning_rate * (fraction_within - self.quantile))


def clip_codec(vector: Vector, clip_norm: float, *, by_layer: bool) -> Codec:
    """Clips one vector of an update, as a whole or each of its parts."""
    norm = clip_norm * vector.bound
    return ClipParts(norm, vector.parts) if by_layer and len(vector.parts) > 1 else Clip(norm)


def is_within(values: np.ndarray, vector: Vector, clip_norm: float, *, by_layer: bool) -> bool:
    """Whether nothing of one vector, shape (n,), is clipped; False for values that are not finite."""
    parts = vector.parts if by_layer and len(vector.parts) > 1 else (vector.length,)
    bound, start = clip_norm * vector.bound / math.sqrt(len(parts)), 0
    for length in parts:
        part = np.asarray(values[start : start + length], np.float64)
        start += length
        with np.errstate(over="ignore", invalid="ignore"):
            if not float(part @ part) <= bound**2:
                return False
    return True
