"""Distributed noise: every client adds a share to its rounded integer vector; only the noisy sum is seen, in a ring.

What the distributed mechanisms have in common: shares, and the server's part of the noise. The law of a share, and what
it costs, is said by each (`distributed_gaussian`, `distributed_skellam`, `local_gaussian`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from quorate.codecs import Codec
from quorate.privacy.mechanisms.rounded_noise import Encoding, RoundedNoise
from quorate.privacy.noise import NoiseLaw, add_noise
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, SumShape, Vector

__all__ = ["DistributedNoise", "NoiseShare"]


@dataclass(frozen=True)
class NoiseShare:
    """Adds one client's share of the noise to every coordinate, sampled exactly.

    Args:
        law: of the noise.
        variance: in steps².
    """

    law: NoiseLaw
    variance: Fraction

    def length(self, n: int) -> int:
        """Unchanged."""
        return n

    def encode(self, values: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Noisy integer vectors, of the dtype of `values` and modulo its width, shape (clients, n)."""
        noisy = values.copy()
        add_noise(self.law, self.variance, noisy, randomness)
        return noisy

    def decode(self, total: np.ndarray, n: int) -> np.ndarray:
        """Unchanged: the noise stays in the sum."""
        return total


class DistributedNoise(RoundedNoise):
    """Shares of noise that clients add, and what the server adds so that its level tells nothing.

    The noise multiplier is that of the fewest honest survivors' summed noise.
    """

    def noise_shares(self, bounds: CohortBounds) -> tuple[int, int]:
        """The fewest honest survivors have the multiplier's noise together; everybody's is in a sum at most."""
        return bounds.honest, bounds.largest

    def client_noise(self, encoding: Encoding) -> tuple[Codec, ...]:
        """A share each."""
        return (NoiseShare(self.law, encoding.local_variance),)

    def top_up(
        self, total: np.ndarray, vector: Vector, shape: SumShape, survivors: int, randomness: Randomness
    ) -> np.ndarray:
        """The sum with the noise of all members that are missing from the largest cohort, in its own dtype.

        It is one draw with the variance of their shares together. What is released then holds the noise of exactly
        `bounds.largest` shares, whoever took part, up to what `quorate.privacy.curves` accounts for.
        """
        bounds = shape.bounds
        if not bounds.min_survivors <= survivors <= bounds.largest:
            raise ValueError(
                f"{survivors} survivors are not within {bounds.min_survivors} to {bounds.largest}"
            )
        variance, missing = self.encoding(vector, shape).local_variance, bounds.largest - survivors
        if not missing:
            return total.copy()
        noisy = total.astype(np.int32)
        add_noise(self.law, missing * variance, noisy, randomness)
        return noisy.astype(total.dtype)


def released_shares(bounds: CohortBounds) -> int:
    """The fewest honest shares in what is released, after `top_up`.

    At most a share γ of any survivors leave their noise out; honest = ⌈(1 - γ) · min_survivors⌉ says that 1 - γ is
    above (honest - 1) / min_survivors.
    """
    return max(bounds.honest, bounds.largest * (bounds.honest - 1) // bounds.min_survivors)
