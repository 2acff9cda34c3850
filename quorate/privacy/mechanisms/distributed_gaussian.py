"""The distributed discrete Gaussian mechanism of Kairouz, Liu and Steinke 2021 (arXiv 2102.06387)."""

from __future__ import annotations

from typing import Literal

from quorate.privacy.events import DistributedDiscreteGaussianEvent
from quorate.privacy.mechanisms.distributed_noise import DistributedNoise, released_shares
from quorate.rounds import SumShape

__all__ = ["DistributedGaussian"]


class DistributedGaussian(DistributedNoise):
    """Distributed discrete Gaussian noise: every survivor adds a share, and only the noisy sum is seen.

    Threat model: secure aggregation shows the server nothing but the sum modulo 2^16 or 2^32. Against the server (and
    against peers, who see the roster) the noise of at least `bounds.honest` honest survivors protects each of
    them: members that collude with the server, or leave their noise out, are in `min_survivors - honest`.
    Against those who see only the released models the server is trusted with two more things: to keep the
    draw of the cohort secret, and to fill the noise up to that of the largest cohort (`top_up`), because the
    level of the noise would otherwise tell how many took part, and amplification by sampling would not hold.
    Unit of privacy: one member's whole contribution, replaced by zero, in every round. Members that send
    something malformed are not bounded: clipping is done by honest clients.

    The noise multiplier is that of the fewest honest survivors' summed noise. See `RoundedNoise` for the arguments.
    """

    mechanism: Literal["distributed-discrete-gaussian"] = "distributed-discrete-gaussian"

    def event(self, shape: SumShape) -> DistributedDiscreteGaussianEvent:
        """The noisy sum, with the fewest honest shares before and after `top_up`."""
        return DistributedDiscreteGaussianEvent(
            vectors=self.noisy_vectors(shape),
            shares=shape.bounds.honest,
            released_shares=released_shares(shape.bounds),
            quorum=shape.bounds.min_survivors,
            largest=shape.bounds.largest,
        )
