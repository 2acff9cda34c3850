"""The discrete Laplace law: P(x) is proportional to exp(-|x| / b) on the integers, for any rational scale b.

Ghosh, Roughgarden, Sundararajan 2009; Canonne, Kamath, Steinke 2020, section 5. |x| is geometric, and the binary digits
of a geometric number are independent: digit i is 1 with probability 1 / (1 + exp(2^i / b)). Digits are decided by
comparing 64 random bits with the first 64 bits of that probability; where they agree (once in 2^64), by as many more of
both as are needed. What lies beyond the last digit has probability exp(-2^L / b) < 2^-64, and starts the same law anew.
Of zero both signs are proposed, and one is refused.
"""

from __future__ import annotations

import decimal
import math
from fractions import Fraction
from functools import lru_cache

import numpy as np

from quorate.randomness import Randomness

__all__ = ["discrete_laplace"]

_TILE = 1 << 15
_LARGEST_SCALE = 1 << 40


def discrete_laplace(scale: Fraction | int, count: int, randomness: Randomness) -> np.ndarray:
    """Independent samples, int64, shape (count,); of variance 1 / (cosh(1/b) - 1), nearly 2b².

    Args:
        scale: b, exactly; in (0, 2^40].
        count: how many.
        randomness: where the bits come from; the same stream gives the same samples.

    Raises:
        ValueError: the scale is out of range.
    """
    scale = Fraction(scale)
    if not 0 < scale <= _LARGEST_SCALE:
        raise ValueError(f"a scale is in (0, 2^40], got {float(scale):g}")
    out = np.empty(count, np.int64)
    for start in range(0, count, _TILE):
        _fill(out[start : start + _TILE], scale, randomness)
    return out


def _fill(out: np.ndarray, scale: Fraction, randomness: Randomness) -> None:
    sizes = _geometric(scale, len(out), randomness)
    negative = np.unpackbits(randomness.words((len(out) + 7) // 8, np.dtype(np.uint8)))[: len(out)].astype(
        bool
    )
    out[:] = np.where(negative, -sizes, sizes)
    again = np.flatnonzero(negative & (sizes == 0))
    if again.size:
        replacement = np.empty(len(again), np.int64)
        _fill(replacement, scale, randomness)
        out[again] = replacement


def _geometric(scale: Fraction, count: int, randomness: Randomness) -> np.ndarray:
    """P(size ≥ k) = exp(-k / scale)."""
    digits = max(1, math.ceil(math.log2(45 * scale)) if scale > Fraction(1, 45) else 1)  # e^-45 < 2^-64
    sizes = np.zeros(count, np.int64)
    for digit in range(digits):
        sizes |= _coins(Fraction(1 << digit) / scale, True, count, randomness).astype(np.int64) << digit
    beyond = np.flatnonzero(_coins(Fraction(1 << digits) / scale, False, count, randomness))
    if beyond.size:
        sizes[beyond] = (1 << digits) + _geometric(scale, len(beyond), randomness)
    return sizes


def _coins(exponent: Fraction, logistic: bool, count: int, randomness: Randomness) -> np.ndarray:
    """Bool, shape (count,): true with probability 1 / (1 + e^exponent), or e^-exponent."""
    uniform = randomness.words(count, np.dtype(np.uint64))
    threshold = _bits(exponent, logistic, 64)
    coins: np.ndarray = uniform < np.uint64(threshold)
    for i in np.flatnonzero(uniform == np.uint64(threshold)):
        coins[i] = _settle(exponent, logistic, randomness)
    return coins


def _settle(exponent: Fraction, logistic: bool, randomness: Randomness) -> bool:
    """Decides by further bits, when the first 64 are those of the probability; ends with probability 1."""
    known = 64
    while True:
        known += 64
        expected = _bits(exponent, logistic, known) & ((1 << 64) - 1)
        drawn = int(randomness.words(1, np.dtype(np.uint64))[0])
        if drawn != expected:
            return drawn < expected


@lru_cache(maxsize=1024)
def _bits(exponent: Fraction, logistic: bool, bits: int) -> int:
    """⌊2^bits · p⌋, exactly: p is irrational, so enough digits tell on which side of an integer it is."""
    digits = bits // 3 + 20
    while True:
        context = decimal.Context(prec=digits + len(str(int(exponent))), Emin=-(10**9), Emax=10**9)
        power = context.divide(decimal.Decimal(-exponent.numerator), decimal.Decimal(exponent.denominator))
        value = Fraction(context.exp(power))
        if logistic:
            value /= 1 + value
        slack = value / 10 ** (digits - 3)
        low, high = (math.floor((1 << bits) * (value + side)) for side in (-slack, slack))
        if low == high:
            return int(low)
        digits += 20
