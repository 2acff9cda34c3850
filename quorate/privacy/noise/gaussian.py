"""The discrete Gaussian N_Z(0, σ²) for any rational σ²: P(x) is proportional to exp(-x² / 2σ²) on the integers.

Canonne, Kamath, Steinke 2020, Definition 1. Sampled by rejection from a histogram (`rejection`).
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from quorate.privacy.noise.rejection import Table
from quorate.randomness import Randomness

__all__ = ["discrete_gaussian", "table"]

_LARGEST_VARIANCE = 1 << 84


def discrete_gaussian(variance: Fraction | int, count: int, randomness: Randomness) -> np.ndarray:
    """Independent samples of N_Z(0, variance), int64, shape (count,).

    Args:
        variance: σ², exactly; in (0, 2^84], so that no sample leaves 2^50 but with probability below
            e^-10000.
        count: how many.
        randomness: where the bits come from; the same stream gives the same samples.

    Raises:
        ValueError: the variance is out of range.
    """
    return table(Fraction(variance)).sample(count, randomness)


@dataclass(frozen=True)
class _Gaussian:
    """The density exp(-x² / 2σ²).

    Args:
        variance: σ².
    """

    variance: Fraction

    def ratio(self, negative: np.ndarray, size: np.ndarray) -> np.ndarray:
        """In float64: the exponent is computed in a few rounded operations, so it is off by 2^-50 of itself."""
        density: np.ndarray = np.exp(-size * size * float(1 / (2 * self.variance)))
        return density

    def logarithm(self, negative: bool, size: int, digits: int) -> decimal.Decimal:
        """-x² / 2σ², by one division."""
        exponent = Fraction(size**2) / (2 * self.variance)
        context = decimal.Context(prec=digits + len(str(int(exponent))))
        return context.divide(decimal.Decimal(-exponent.numerator), decimal.Decimal(exponent.denominator))


@lru_cache(maxsize=64)
def table(variance: Fraction) -> Table:
    """The histogram of one variance.

    Raises:
        ValueError: the variance is out of range.
    """
    if not 0 < variance <= _LARGEST_VARIANCE:
        raise ValueError(f"a variance is in (0, 2^84], got {float(variance):g}")
    sigma = math.sqrt(variance)
    return Table.of(_Gaussian(variance), math.floor(math.log2(sigma / 32)) if sigma >= 32 else 0)
