"""The distributed Skellam mechanism of Agarwal, Kairouz and Liu 2021 (arXiv 2110.04995).

A Skellam number is the difference of two Poisson numbers of the same mean, half its variance. Sums of them are Skellam
again, so that the noise of any number of shares is known exactly, without a τ.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from quorate.privacy.events import DistributedSkellamEvent
from quorate.privacy.mechanisms.distributed_noise import DistributedNoise, released_shares
from quorate.privacy.noise import NoiseLaw
from quorate.rounds import SumShape

__all__ = ["DistributedSkellam"]


class DistributedSkellam(DistributedNoise):
    """Distributed Skellam noise: every survivor adds a share, and only the noisy sum is seen.

    Threat model, unit of privacy and noise multiplier are those of `DistributedGaussian`. It costs what that costs, to
    four digits, where the noise is a few steps wide, and is better where steps are so coarse that the sum of discrete
    Gaussians is no discrete Gaussian. The loss distributions that are proven for it (`quorate.privacy.losses`) take 5
    or 6 steps off its deviation; sampling takes twice as long.
    """

    law: ClassVar[NoiseLaw] = NoiseLaw.SKELLAM

    mechanism: Literal["distributed-skellam"] = "distributed-skellam"

    def event(self, shape: SumShape) -> DistributedSkellamEvent:
        """The noisy sum, with the fewest honest shares before and after `top_up`."""
        return DistributedSkellamEvent(
            vectors=self.noisy_vectors(shape),
            shares=shape.bounds.honest,
            released_shares=released_shares(shape.bounds),
            quorum=shape.bounds.min_survivors,
            largest=shape.bounds.largest,
        )
