"""The local Gaussian mechanism, on the integers: every client's own noise protects it, whoever sees its vector.

Kasiviswanathan et al. 2011 for the model; the noise is discrete Gaussian (Canonne, Kamath, Steinke 2020, Theorem 7), so
that floating point leaks nothing (Mironov 2012). There is no local mechanism with continuous noise.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from quorate.privacy.events import LocalDiscreteGaussianEvent
from quorate.privacy.mechanisms.distributed_noise import DistributedNoise, released_shares
from quorate.rounds import CohortBounds, SumShape

__all__ = ["LocalGaussian"]


class LocalGaussian(DistributedNoise):
    """Discrete Gaussian noise that protects each client by itself, with or without secure aggregation.

    Threat model: against the server, the other members and everybody else a client needs to trust nobody but its own
    device: its vector leaves with all the noise that the `server` ε counts. Against those who see only the released
    models the noise of all honest survivors counts, and sampling amplifies, if the server keeps the draw of the cohort
    secret and fills the noise up to that of the largest cohort. Unit of privacy: one member's whole contribution,
    replaced by zero, in every round.

    The noise multiplier is that of one client's noise: the sum has √n times as much as a central mechanism's with the
    same multiplier. It is given, and not found from an `epsilon`: that is a target for what is released, and would
    leave a single client with next to no noise. See `RoundedNoise` for the arguments.
    """

    needs_hidden_updates: ClassVar[bool] = False

    mechanism: Literal["local-discrete-gaussian"] = "local-discrete-gaussian"

    @model_validator(mode="after")
    def _own_noise(self) -> LocalGaussian:
        if self.epsilon is not None:
            raise ValueError(
                f"epsilon: found {self.epsilon:g}, a target for what is released, which says nothing of a client's own "
                "noise; accepted: noise_multiplier"
            )
        return self

    def noise_shares(self, bounds: CohortBounds) -> tuple[int, int]:
        """One client's own noise counts; everybody's is in a sum at most."""
        return 1, bounds.largest

    def event(self, shape: SumShape) -> LocalDiscreteGaussianEvent:
        """What a client sends, and what is released after `top_up`."""
        return LocalDiscreteGaussianEvent(
            vectors=self.noisy_vectors(shape),
            released_shares=released_shares(shape.bounds),
            quorum=shape.bounds.min_survivors,
            largest=shape.bounds.largest,
        )
