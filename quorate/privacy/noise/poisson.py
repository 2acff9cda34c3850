"""Poisson numbers, and the Skellam numbers that are their differences, for any rational mean.

A Skellam number of variance μ is the difference of two independent Poisson numbers of mean λ = μ/2 (Skellam 1946). A
Poisson number is its mode m = ⌊λ⌋ plus a number that is sampled by rejection from a histogram (`rejection`): its law is
unimodal and log-concave, with the density p(m + x) / p(m) = λ^x · m! / (m + x)!.

In float64 it comes from Loader 2000: log p(k) = -S(k) - λ·h((k-λ)/λ) - log √(2πk), with Stirling's error S(k) = log k!
- log √(2πk) - k log k + k and h(u) = (1+u) log(1+u) - u; every term has a small relative error, so that nothing
  cancels.
Exactly, log k! is that of an integer for small k, and Stirling's series for large ones, whose error is below the first
term that is left out.
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

__all__ = ["add_skellam", "poisson_numbers", "skellam"]

_LARGEST_MEAN = 1 << 80
_TABULATED = 256
"""Below this, Stirling's error is taken from a table."""
_FACTORIALS = 4096
"""Below this, a factorial is taken exactly."""


def skellam(variance: Fraction | int, count: int, randomness: Randomness) -> np.ndarray:
    """Independent samples of the symmetric Skellam law, int64, shape (count,).

    Args:
        variance: μ, exactly; in (0, 2^81].
        count: how many.
        randomness: where the bits come from; the same stream gives the same samples.

    Raises:
        ValueError: the variance is out of range.
    """
    samples = np.zeros(count, np.int64)
    add_skellam(Fraction(variance), samples, randomness)
    return samples


def add_skellam(variance: Fraction, out: np.ndarray, randomness: Randomness) -> None:
    """Adds independent samples to `out`, contiguous signed integers, modulo its width; arguments as for `skellam`."""
    table, _ = _table(variance / 2)
    table.add_to(out, randomness)
    np.negative(out, out=out)
    table.add_to(out, randomness)
    np.negative(out, out=out)


def poisson_numbers(mean: Fraction | int, count: int, randomness: Randomness) -> np.ndarray:
    """Independent samples of the Poisson law, int64, shape (count,).

    Args:
        mean: λ, exactly; in (0, 2^62].
        count: how many.
        randomness: where the bits come from; the same stream gives the same samples.

    Raises:
        ValueError: the mean is out of range.
    """
    if mean > 1 << 62:
        raise ValueError(f"a mean is in (0, 2^62], got {float(mean):g}")
    table, mode = _table(Fraction(mean))
    samples = table.sample(count, randomness)
    samples += mode
    return samples


@dataclass(frozen=True)
class _Poisson:
    """The density p(m + x) / p(m).

    Args:
        mean: λ.
        mode: m = ⌊λ⌋, which is one.
    """

    mean: Fraction
    mode: int

    def ratio(self, negative: np.ndarray, size: np.ndarray) -> np.ndarray:
        """In float64, by Loader's formula."""
        moved = np.where(negative, -size, size)
        inside = moved >= -self.mode
        moved = np.where(inside, moved, 0.0)
        logs = self._log(moved) - self._log(np.zeros(1))
        density: np.ndarray = np.where(inside, np.exp(np.minimum(logs, 0.0)), 0.0)
        return density

    def _log(self, moved: np.ndarray) -> np.ndarray:
        """The logarithm of p(m + moved), but for a constant."""
        mean, mode = float(self.mean), float(self.mode)
        relative = (moved + float(self.mode - self.mean)) / mean
        count = mode + moved
        positive = np.maximum(count, 1.0)
        root = np.log1p(np.maximum(moved, 1 - mode) / mode) if mode else np.log(positive)
        logs = -mean * _h(relative) - root / 2 - _stirling_error(positive)
        none = math.log(2 * math.pi * max(mode, 1.0)) / 2 - mean  # log p(0) = -λ
        found: np.ndarray = np.where(count > 0, logs, none)
        return found

    def logarithm(self, negative: bool, size: int, digits: int) -> decimal.Decimal | None:
        """Of λ^x · m! / (m + x)!."""
        moved = -size if negative else size
        count = self.mode + moved
        if count < 0:
            return None
        context = decimal.Context(
            prec=digits + 2 * len(str(count + self.mode)) + 10, Emin=-(10**9), Emax=10**9
        )
        numerator, denominator = (decimal.Decimal(part) for part in self.mean.as_integer_ratio())
        rate = context.subtract(context.ln(numerator), context.ln(denominator))
        found = context.multiply(decimal.Decimal(moved), rate)
        return context.subtract(found, _log_factorials(self.mode, count, digits + 2, context))


def _h(u: np.ndarray) -> np.ndarray:
    """(1+u) log(1+u) - u, for u ≥ -1; near 0 by its series Σ_{n≥2} (-u)^n / n(n-1), with a relative error of 2^-50."""
    near = np.abs(u) < 0.125
    small, large = np.where(near, u, 0.0), np.where(near, 1.0, np.maximum(u, -1.0 + 1e-300))
    series = np.zeros_like(small)
    for n in range(20, 1, -1):
        series = series * -small + 1 / (n * (n - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        direct = np.where(large > -1, (1 + large) * np.log1p(large) - large, 1.0)
    found: np.ndarray = np.where(near, series * small * small, direct)
    return found


@lru_cache(maxsize=1)
def _tabulated_errors() -> np.ndarray:
    """S(k) of 1 to 255 at [k], off by 2^-40; nothing stands at [0]."""
    k = np.arange(1.0, _TABULATED)
    whole = np.array([math.log(math.factorial(n)) for n in range(1, _TABULATED)])
    return np.concatenate([[0.0], whole - ((k + 0.5) * np.log(k) - k + math.log(2 * math.pi) / 2)])


def _stirling_error(k: np.ndarray) -> np.ndarray:
    """S(k) = 1/12k - 1/360k³ + 1/1260k⁵ - … for k ≥ 1."""
    inverse = 1 / k
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    tabulated = _tabulated_errors()[np.minimum(k, _TABULATED - 1).astype(np.int64)]
    found: np.ndarray = np.where(k < _TABULATED, tabulated, series)
    return found


def _log_factorials(low: int, high: int, digits: int, context: decimal.Context) -> decimal.Decimal:
    """The logarithm of high! / low!, whichever is larger, with an absolute error below 2·10^-digits."""
    if min(low, high) < _FACTORIALS:
        quotient = math.prod(range(min(low, high) + 1, max(low, high) + 1))
        log = context.ln(decimal.Decimal(quotient))
        return log if low <= high else context.minus(log)
    return context.subtract(_stirling(high, digits, context), _stirling(low, digits, context))


def _stirling(k: int, digits: int, context: decimal.Context) -> decimal.Decimal:
    """The logarithm of k! / √2π by Stirling's series, with an absolute error below 10^-digits."""
    size = decimal.Decimal(k)
    found = context.multiply(context.add(size, decimal.Decimal("0.5")), context.ln(size))
    found = context.subtract(found, size)
    enough = decimal.Decimal(1).scaleb(-digits, context)
    i = 0
    while True:
        i += 1
        term = context.divide(_coefficient(i, context), context.power(size, 2 * i - 1))
        if abs(term) < enough:  # the error is below the first term that is left out
            return found
        found = context.add(found, term)


def _coefficient(i: int, context: decimal.Context) -> decimal.Decimal:
    """B_2i / 2i(2i-1)."""
    exact = _bernoulli(2 * i) / (2 * i * (2 * i - 1))
    return context.divide(decimal.Decimal(exact.numerator), decimal.Decimal(exact.denominator))


@lru_cache(maxsize=512)
def _bernoulli(n: int) -> Fraction:
    """B_n, by Σ_{k<=n} C(n+1, k) B_k = 0."""
    return (
        Fraction(1)
        if n == 0
        else -sum(math.comb(n + 1, k) * _bernoulli(k) for k in range(n)) / Fraction(n + 1)
    )


@lru_cache(maxsize=64)
def _table(mean: Fraction) -> tuple[Table, int]:
    """The histogram, and the mode."""
    if not 0 < mean <= _LARGEST_MEAN:
        raise ValueError(f"a mean is in (0, 2^80], got {float(mean):g}")
    deviation, mode = math.sqrt(mean), math.floor(mean)
    offset_bits = math.floor(math.log2(deviation / 32)) if deviation >= 32 else 0
    return Table.of(_Poisson(mean, mode), offset_bits), mode
