"""Exact integer noise from a cryptographic stream, vectorised: discrete Gaussian, Skellam, discrete Laplace.

The samples have exactly the law that is stated, given uniform random bits: floating point only ever decides comparisons
that it decides correctly, and the few that are too close for it are settled in exact arithmetic with as many more
random bits as are needed. That keeps the law free of the artefacts that break floating-point noise (Mironov 2012).
"""

from __future__ import annotations

import enum
from fractions import Fraction

import numpy as np

from quorate.privacy.noise.gaussian import discrete_gaussian, table
from quorate.privacy.noise.laplace import discrete_laplace
from quorate.privacy.noise.poisson import add_skellam, skellam
from quorate.randomness import Randomness

__all__ = ["NoiseLaw", "add_noise", "discrete_gaussian", "discrete_laplace", "skellam"]


class NoiseLaw(enum.Enum):
    """What the noise of a mechanism is distributed as."""

    DISCRETE_GAUSSIAN = "discrete Gaussian"
    SKELLAM = "Skellam"


def add_noise(law: NoiseLaw, variance: Fraction, out: np.ndarray, randomness: Randomness) -> None:
    """Adds independent samples with the given variance (for the Gaussian: its σ²) to `out`, modulo its width.

    Args:
        law: of the noise.
        variance: in (0, 2^81].
        out: contiguous signed integers of 32 or 64 bits.
        randomness: where the bits come from.
    """
    if law is NoiseLaw.DISCRETE_GAUSSIAN:
        table(variance).add_to(out.reshape(-1), randomness)
    else:
        add_skellam(variance, out.reshape(-1), randomness)
