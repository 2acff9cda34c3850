"""What Gaussian rounds cost, sampled or not: ε at δ of N(μ, 1) against N(0, 1), and of many of them composed.

**Sampling, and its edges.** With the member drawn with probability q the pair is (1-q)N(0,1) + qN(μ,1)
against N(0,1); removing and adding are composed apart, because a member is zeroed in all rounds or in none.
Hockey-stick divergences are jointly convex, so the secret draw of the others may be told: with probability p
(`curves.edge_probability`) it is an edge on which the member takes part and is not hidden, N(μ,1) against N(0,1);
else the sampled pair (or two equal laws, which that dominates). A mixture whose component is told has the
mixture of the two loss distributions. Dominating pairs compose adaptively (Zhu, Dong, Wang 2022, Theorem 10).

**Arithmetic.** Losses are put on a grid: the mass of a cell goes to its two ends so that its probability under both
laws is kept, which dominates and is nearly tight (Doroshenko et al. 2022, *Connect the dots*). Rounds of one event are
a power of its discrete Fourier transform, on a window outside of which Chernoff's bound leaves 2·10^-16. What floating
point and tails can do to a δ is taken off it beforehand: `_SLACK`, an a-priori bound for the transform's error in
L1 at the sizes that are allowed. Without sampling nothing is put on a grid: T rounds are one Gaussian (Dong,
Roth, Su 2022, Corollary 2), and ε comes from the exact curve (Balle and Wang 2018, Theorem 8).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from quorate.errors import MissingExtra

__all__ = ["Part", "composed_epsilon", "gaussian_delta", "gaussian_epsilon"]

_STEP = 1e-4
_LARGEST_WINDOW = 1 << 19
_TAIL = 9.5
"""Standard deviations after which a Gaussian's mass (10^-21) counts as an unbounded loss."""
_SLACK = 1e-10
_LARGEST_MEAN = 12.0
_LARGEST_LOSS = 500.0
"""Above this μ, or this loss of all rounds together, nobody is protected, and no fine distribution is needed."""
_TILTS = np.concatenate([-np.logspace(2.5, -2, 28), np.logspace(-2, 2.5, 28)])


# --- One Gaussian -----------------------------------------------------------------------------------------------------


def gaussian_delta(mean: float, epsilon: float) -> float:
    """δ at ε of N(μ, 1) against N(0, 1): Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ) (Balle and Wang 2018, Theorem 8)."""
    if mean == 0:
        return max(0.0, -math.expm1(epsilon))
    first = _upper(epsilon / mean - mean / 2)
    second = math.exp(epsilon + _log_upper(epsilon / mean + mean / 2))
    return max(0.0, first - second)


def gaussian_epsilon(mean: float, delta: float) -> float:
    """The smallest ε ≥ 0 at which N(μ, 1) against N(0, 1) has at most δ, rounded up to 1e-9 of it."""
    if gaussian_delta(mean, 0.0) <= delta:
        return 0.0
    if not math.isfinite(mean):
        return math.inf
    low, high = 0.0, 1.0
    while gaussian_delta(mean, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mean, middle) > delta else (low, middle)
    return high


def _upper(x: float) -> float:
    """P(N(0, 1) > x)."""
    return math.erfc(x / math.sqrt(2)) / 2


def _log_upper(x: float) -> float:
    """Its logarithm; far out from Mills' ratio, whose upper bound makes a δ smaller by less than 1/x² of it."""
    if x < 30:
        return math.log(_upper(x))
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-1 / (x * x))


# --- Loss distributions on a grid -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Losses:
    """A loss distribution: mass `masses[i]` at loss (lowest + i)·step, and `unbounded` at infinity.

    Args:
        lowest: the first grid point, as an integer.
        masses: shape (n,).
        unbounded: the mass at infinity.
        log_moments: bounds on log Σ mass·exp(t·loss) for the tilts t of `_TILTS`.
    """

    lowest: int
    masses: np.ndarray
    unbounded: float
    log_moments: np.ndarray


Part = tuple[float, float, float, int]
"""μ, the sampling probability, the probability of an edge, and how many rounds."""


@lru_cache(maxsize=512)
def composed_epsilon(parts: tuple[Part, ...], delta: float) -> float:
    """ε at δ of all parts, composed: the larger of removing and adding a member's contribution.

    Infinite where δ is too small for the arithmetic, or a μ so large that nobody is protected.

    Raises:
        MissingExtra: SciPy is not installed.
    """
    if delta <= 2 * _SLACK or max(mean for mean, *_ in parts) > _LARGEST_MEAN:
        return math.inf
    return max(_one_direction(parts, delta - _SLACK, adding) for adding in (False, True))


def _one_direction(parts: tuple[Part, ...], delta: float, adding: bool) -> float:
    step = _STEP
    while True:
        losses = [(_losses(mean, q, edge, step, adding), count) for mean, q, edge, count in parts]
        low, high = _window(losses)
        if high > _LARGEST_LOSS:
            return math.inf
        longest = max(len(part.masses) for part, _ in losses)
        size = 1 << math.ceil(math.log2(max((high - low) / step + 2, longest)))
        if size <= _LARGEST_WINDOW:
            break
        step *= 2
    spectrum = np.ones(size // 2 + 1, np.complex128)
    start, bounded = 0, 0.0
    for (mean, q, edge, count), (part, _) in zip(parts, losses, strict=True):
        spectrum *= _power(_spectrum(mean, q, edge, step, adding, size), count)
        start += count * part.lowest
        bounded += count * math.log1p(-part.unbounded)
    first, last = math.floor(low / step), math.ceil(high / step)
    masses = np.roll(np.fft.irfft(spectrum, size), -((first - start) % size))[: last - first]
    return _epsilon_of(np.maximum(masses, 0.0), first, step, delta + math.expm1(bounded))


def _epsilon_of(masses: np.ndarray, first: int, step: float, delta: float) -> float:
    """The smallest ε ≥ 0 with Σ mass·(1 - e^{ε-loss})₊ ≤ δ."""
    if delta <= 0:
        return math.inf
    begin = max(0, -first)
    tail, lowest = masses[begin:], (first + begin) * step
    above = np.cumsum(tail[::-1])[::-1]
    # Relative to the lowest loss: Σ mass·e^{lowest-loss}.
    tilted = np.cumsum((tail * np.exp(-step * np.arange(len(tail))))[::-1])[::-1]

    def beyond(i: int) -> bool:
        """Whether δ is kept at ε = losses[i]; from there on it is kept."""
        return bool(above[i] - math.exp(step * i) * tilted[i] <= delta)

    i = bisect.bisect_left(range(len(tail)), True, key=beyond)
    if i == len(tail):
        return math.inf
    loss = lowest + step * i
    if tilted[i] <= 0 or above[i] <= delta:
        return loss if i else 0.0
    return max(0.0, min(loss, lowest + math.log((above[i] - delta) / tilted[i])))


@lru_cache(maxsize=16)
def _spectrum(mean: float, q: float, edge: float, step: float, adding: bool, size: int) -> np.ndarray:
    """The discrete Fourier transform of a loss distribution on a circle of the given size."""
    spectrum: np.ndarray = np.fft.rfft(_losses(mean, q, edge, step, adding).masses, size)
    spectrum.setflags(write=False)
    return spectrum


def _power(values: np.ndarray, count: int) -> np.ndarray:
    """values^count, by squaring."""
    result, square = np.ones_like(values), values.copy()
    while count:
        if count & 1:
            result *= square
        count >>= 1
        if count:
            square *= square
    return result


def _window(losses: list[tuple[_Losses, int]]) -> tuple[float, float]:
    """The losses between which Chernoff's bound leaves at most 1e-16 on either side."""
    moments = sum(count * part.log_moments for part, count in losses)
    assert isinstance(moments, np.ndarray)
    ends = (moments + 37.0) / _TILTS
    return float(ends[_TILTS < 0].max()), float(ends[_TILTS > 0].min())


@lru_cache(maxsize=64)
def _losses(mean: float, q: float, edge: float, step: float, adding: bool) -> _Losses:
    """The loss distribution of one round: (1 - edge)·sampled + edge·unsampled, in one direction."""
    sampled = _gaussian_losses(mean, q, step, adding)
    parts = [(1 - edge, sampled)] + ([(edge, _gaussian_losses(mean, 1.0, step, adding))] if edge > 0 else [])
    lowest = min(part[0] for _, part in parts)
    masses = np.zeros(max(part[0] + len(part[1]) for _, part in parts) - lowest)
    unbounded = 0.0
    for weight, (start, mass, infinite) in parts:
        masses[start - lowest : start - lowest + len(mass)] += weight * mass
        unbounded += weight * infinite
    log_moments = _log_moments(lowest, masses, step)
    for array in (masses, log_moments):
        array.setflags(write=False)
    return _Losses(lowest, masses, unbounded, log_moments)


def _log_moments(lowest: int, masses: np.ndarray, step: float) -> np.ndarray:
    """Bounds on log Σ mass·exp(t·loss), a hair above it: exp is below its chord over every 64 neighbours."""
    cells = -(-len(masses) // 64)
    blocks = np.zeros((cells, 64))
    blocks.ravel()[: len(masses)] = masses
    upper = blocks @ (np.arange(64) / 63)
    weights = np.concatenate([blocks.sum(axis=1) - upper, upper])
    starts = lowest + 64 * np.arange(cells)
    places = np.concatenate([starts, starts + 63]) * step
    kept = weights > 0
    logs, places = np.log(weights[kept]), places[kept]
    return np.array([_log_sum(logs + tilt * places) for tilt in _TILTS])


def _gaussian_losses(mean: float, q: float, step: float, adding: bool) -> tuple[int, np.ndarray, float]:
    """Lowest grid point, masses, and the mass at infinity, of (1-q)N(0,1) + qN(μ,1) against N(0,1), or the reverse."""
    first, edges, with_it, without, below, above = _both_masses(mean, q, step)
    if not adding:
        return (first, *_split(with_it, without, edges[:-1], step, lowest=below[0], unbounded=above[0]))
    lower = -edges[1:][::-1]
    split = _split(without[::-1], with_it[::-1], lower, step, lowest=above[1], unbounded=below[1])
    return (1 - first - len(edges), *split)


@lru_cache(maxsize=4)
def _both_masses(
    mean: float, q: float, step: float
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, tuple[float, float], tuple[float, float]]:
    """Lowest grid point, the cells' edges, their masses under (1-q)N(0,1) + qN(μ,1) and N(0,1), and what is outside.

    The loss log(1 - q + q·exp(μx - μ²/2)) grows with x, so a cell of the grid is an interval of x.
    """
    ndtr = _ndtr()
    low, high = (_loss_at(x, mean, q) for x in (-_TAIL, mean + _TAIL))
    first, last = math.floor(low / step), math.ceil(high / step)
    edges = np.arange(first, last + 1) * step
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = (np.expm1(edges) + q) / q
        x = np.where(odds > 0, np.log(np.maximum(odds, 1e-320)) / mean + mean / 2, -np.inf)
    # What is outside: below counts as the lowest loss, above as infinite.
    x = np.clip(x, -_TAIL, mean + _TAIL)
    without = _cells(x, ndtr)
    with_it = (1 - q) * without + q * _cells(x - mean, ndtr)
    below = float((1 - q) * ndtr(-_TAIL) + q * ndtr(-_TAIL - mean)), float(ndtr(-_TAIL))
    above = float((1 - q) * ndtr(-mean - _TAIL) + q * ndtr(-_TAIL)), float(ndtr(-mean - _TAIL))
    for array in (edges, with_it, without):
        array.setflags(write=False)
    return first, edges, with_it, without, below, above


def _split(
    mass: np.ndarray, other: np.ndarray, lower: np.ndarray, step: float, *, lowest: float, unbounded: float
) -> tuple[np.ndarray, float]:
    """Puts each cell's mass on its ends so that `other`, Σ mass·e^-loss, is kept; shape (cells + 1,)."""
    upper = np.clip((mass - other * np.exp(lower)) / -math.expm1(-step), 0.0, mass)
    masses = np.zeros(len(mass) + 1)
    masses[:-1] += mass - upper
    masses[1:] += upper
    masses[0] += lowest
    return masses, unbounded


def _cells(x: np.ndarray, ndtr: Callable[..., Any]) -> np.ndarray:
    """P(x_i < N(0,1) ≤ x_{i+1}), from the nearer tail, so that it is precise relative to itself."""
    tails = ndtr(-np.abs(x))
    cells: np.ndarray = np.abs(np.diff(tails))
    across = int(np.searchsorted(x, 0.0, side="right")) - 1
    if 0 <= across < len(cells):
        cells[across] = 1 - tails[across] - tails[across + 1]
    return cells


def _loss_at(x: float, mean: float, q: float) -> float:
    exponent = mean * x - mean**2 / 2
    return exponent if q == 1 else float(np.logaddexp(math.log1p(-q), math.log(q) + exponent))


def _log_sum(logs: np.ndarray) -> float:
    largest = float(logs.max())
    return largest + math.log(float(np.exp(logs - largest).sum()))


def _ndtr() -> Callable[..., Any]:
    try:
        from scipy.special import ndtr
    except ImportError as error:
        raise MissingExtra("server", "privacy accounting") from error
    found: Callable[..., Any] = ndtr
    return found
