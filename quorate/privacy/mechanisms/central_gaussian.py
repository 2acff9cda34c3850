"""The central Gaussian mechanism, on the integers: the server adds the noise to a sum before anybody else sees it.

Dwork et al. 2006 (EUROCRYPT); McMahan et al. 2018 for federated averaging; with discrete noise, so that floating point
leaks nothing: Canonne, Kamath, Steinke 2020. One discrete Gaussian costs at most what the Gaussian costs (their
Theorem 7), without any τ.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from quorate.codecs import Codec
from quorate.privacy.events import CentralDiscreteGaussianEvent
from quorate.privacy.mechanisms.rounded_noise import Encoding, RoundedNoise
from quorate.privacy.noise import add_noise
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, SumShape, Vector

__all__ = ["CentralGaussian"]


class CentralGaussian(RoundedNoise):
    """Discrete Gaussian noise that the server adds to the sum: as accurate as can be, if the server is trusted.

    Threat model: against those who see only the released models, the coordinator is trusted to add the noise, and to
    draw the cohort in secret. Against the coordinator nothing is claimed (the `server` ε is infinite): it sees the
    exact sum under secure aggregation, and every single update without. Clients need not be trusted with noise, so no
    share of them is left out, and what dropouts leave has the same noise. Unit of privacy: one member's whole
    contribution, replaced by zero, in every round. Members that send something malformed are not bounded: clipping is
    done by honest clients.

    The noise multiplier is that of all the noise. See `RoundedNoise` for the arguments.
    """

    needs_hidden_updates: ClassVar[bool] = False

    mechanism: Literal["central-gaussian"] = "central-gaussian"

    def noise_shares(self, bounds: CohortBounds) -> tuple[int, int]:
        """One, the server's."""
        return 1, 1

    def client_noise(self, encoding: Encoding) -> tuple[Codec, ...]:
        """None."""
        return ()

    def top_up(
        self, total: np.ndarray, vector: Vector, shape: SumShape, survivors: int, randomness: Randomness
    ) -> np.ndarray:
        """The sum with all the noise, in its own dtype: the same for any number of survivors."""
        noisy = total.astype(np.int32)
        add_noise(self.law, self.encoding(vector, shape).local_variance, noisy, randomness)
        return noisy.astype(total.dtype)

    def event(self, shape: SumShape) -> CentralDiscreteGaussianEvent:
        """The sum with the server's noise."""
        return CentralDiscreteGaussianEvent(self.noisy_vectors(shape), shape.bounds.min_survivors)
