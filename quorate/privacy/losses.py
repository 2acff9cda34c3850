"""Privacy loss distributions of our own mechanisms: tighter than Rényi curves by about a tenth, where they hold.

**From integer noise to the continuous Gaussian.** Let the noise of a coordinate have a law P on the integers
that is within e^{±τ/2}, pointwise, of a discrete Gaussian N_Z(0, σ²) (a sum of shares: see
`quorate.privacy.curves`; one discrete Gaussian: τ = 0), and r² < σ². Take y from the *continuous* N(μ, σ² -
r²), μ an integer, and round it at random: to z with probability exp(-(z-y)²/2r²) / Θ(y), Θ(y) = Σ_z
exp(-(z-y)²/2r²). By Poisson summation Θ(y) / √(2π)r = 1 + 2 Σ_{k≥1} exp(-2π²r²k²) cos 2πky is in [1-η, 1+η],
η = 2 Σ_k exp(-2π²r²k²). Without Θ's variation z would have the density of N(μ, σ²), the convolution of both, at
z; and the sum of these over the integers, which normalises N_Z(μ, σ²), is in [1-η, 1+η] as well, because σ ≥ r.
So the law R_μ of the rounded number is within a factor (1+η)/(1-η) ≤ e^{3η} of N_Z(μ, σ²), and within
e^{±(τ/2 + 3η)} of P moved by μ. In d independent coordinates the exponents add up: to ρ = d(τ/2 + 3η).

The rounding does not look at μ. So every law that a round can release, a mixture of moved noise over the
secret draw of the cohort and what everybody contributes, is pointwise within e^{±ρ} of a function (the
rounding) of the same mixture of *Gaussian* noise, given all that was released before. Over T rounds these
factors multiply, and what a function of the Gaussian rounds can show, the Gaussian rounds can:

    δ(ε) = Σ (P - e^ε P')₊ ≤ e^ρ Σ (R - e^{ε-2ρ} R')₊ ≤ e^ρ δ_Gauss(ε - 2ρ),   ρ summed over the rounds.

With r = 2, 3η is below 10^-33, and shares of a standard deviation of 2 steps have τ below 10^-15: what it costs
is r² of the variance, 10^-7 of it. Coarse steps make ρ large; then Rényi curves are used alone. Reducing a
sum modulo 2^32 is a function of it, too. Vectors of one sum, each divided by its own deviation, make one
Gaussian of unit variance, moved by at most √Σ Δ²/(σ²-r²) = μ in L2 norm; it is rotation invariant, so μ is all
that matters, and a shorter move is a function of a longer one (shrink, then add noise), sampled or not.

**Skellam noise is discrete Gaussian noise of a random width.** Of variance r it is P(x) = e^-r I_|x|(r), and by Hartman
and Watson 1974 (*Normal distribution functions on spheres and the modified Bessel functions*) there is a law η of t > 0
with I_ν(r) / I_0(r) = ∫ exp(-ν²t/2) η(dt) for all ν ≥ 0. So with ϑ(t) = Σ_x exp(-x²t/2)

    P = ∫ N_Z(0, 1/t) w(dt),   w(dt) = e^-r I_0(r) ϑ(t) η(dt), a law.

The width looks at nothing, so it may be told, one a coordinate. It is hardly ever narrow: η is the law of ∫_0^1
ds/|B_s|², B a planar Brownian motion with |B_0| = |B_1| = √r (Yor 1980, *Loi de l'indice du lacet brownien, et
distribution de Hartman-Watson*). The angle θ between its ends has a density proportional to e^{r cos θ}, and given the
ends B is a bridge, whose part across the chord is √r cos(θ/2) + b_s with a standard Brownian bridge b. Let h > 0, L =
2h² + log(1.01 √(2πr)), 1 - cos a = L/r. Then P(min b ≤ -h) = e^{-2h²}, and since 1 - cos θ ≤ θ²/2 gives I_0(r) ≥ e^r /
1.01√(2πr) for r ≥ 4, P(|θ| > a) ≤ e^{r cos a} / I_0(r) ≤ e^{-2h²}. Otherwise |B_s| > √r cos(a/2) - h for all s, hence

    1/t ≥ s²,   s = √(r - L/2) - h,   but for a probability under η of 2e^{-2h²}.

Under w it is at most twice that: ϑ falls, ϑ(1/s²) ≤ 1 + √(2πr), and e^-r I_0(r) ≤ √(π/8r), as 1 - cos θ ≥ 2θ²/π². So
in d coordinates all widths are at least s but for a probability of 4d·e^{-2h²} = `_UNLIKELY`, which is counted as lost,
in every round; otherwise the proof above holds, with s² for σ² and τ = 0 (noise of a larger width is a function of that
of a smaller). s is about h = 5 or 6 steps below √r.

What Gaussian rounds cost, sampled or not, says `quorate.privacy.gaussian_rounds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from quorate.privacy.curves import closeness, edge_probability
from quorate.privacy.dp_sgd import MOST_COORDINATES, SMALLEST_DEVIATION, ExampleEvent
from quorate.privacy.events import (
    CentralDiscreteLaplaceEvent,
    DistributedSkellamEvent,
    Event,
    ExternalEvent,
    NoisySum,
    TruncatedPoissonSampledEvent,
)
from quorate.privacy.external import gaussian_mean
from quorate.privacy.gaussian_rounds import composed_epsilon, gaussian_epsilon

__all__ = ["example_epsilon", "released_epsilon", "server_epsilon"]

_ROUNDING_VARIANCE = 4.0
"""r²; 3η = 6·exp(-8π²)·(1 + …) is below 1e-33."""
_ROUNDING_CLOSENESS = 1e-33
_UNLIKELY = 2.0**-60
"""That the width of a coordinate of a vector's Skellam noise is below the one that is counted, in a round."""


def released_epsilon(rounds: Iterable[tuple[Event, int]], delta: float) -> float:
    """ε at δ of rounds against those who see only what is released; infinite where it can't be told so.

    Args:
        rounds: events, each with how often it happened.
        delta: δ.

    Raises:
        MissingExtra: SciPy is not installed.
    """
    plain, close, lost, sampled = 0.0, 0.0, 0.0, []
    for event, count in rounds:
        inner = event.event if isinstance(event, TruncatedPoissonSampledEvent) else event
        if isinstance(inner, ExternalEvent):
            mean, distance, chance = gaussian_mean(inner), 0.0, 0.0
        else:
            mean, distance, chance = _as_gaussian(inner, inner.released_shares)
        close += count * distance
        lost += count * chance
        if isinstance(event, TruncatedPoissonSampledEvent) and event.probability < 1:
            sampled.append((mean, event.probability, edge_probability(event), count))
        else:
            plain += count * mean**2
    if not sampled:
        return _widened(lambda d: gaussian_epsilon(math.sqrt(plain), d), delta - lost, close)
    if plain > 0:
        sampled.append((math.sqrt(plain), 1.0, 0.0, 1))
    parts = tuple(sorted(sampled))
    return _widened(lambda d: composed_epsilon(parts, d), delta - lost, close)


def server_epsilon(rounds: Iterable[tuple[Event, int]], delta: float) -> float:
    """ε at δ of participations against the server, which knows who took part; infinite where it can't be told so."""
    square, close, lost = 0.0, 0.0, 0.0
    for event, count in rounds:
        inner = event.event if isinstance(event, TruncatedPoissonSampledEvent) else event
        if isinstance(inner, ExternalEvent) or not inner.shares:
            return math.inf
        mean, distance, chance = _as_gaussian(inner, inner.shares)
        square += count * mean**2
        close += count * distance
        lost += count * chance
    return _widened(lambda d: gaussian_epsilon(math.sqrt(square), d), delta - lost, close)


def example_epsilon(trainings: Iterable[tuple[ExampleEvent, int]], delta: float) -> float:
    """ε at δ of one client's trainings for one of its examples; infinite where it can't be told so.

    Args:
        trainings: events, each with how often the client took part.
        delta: δ.

    Raises:
        MissingExtra: SciPy is not installed.
    """
    plain, close, counts = 0.0, 0.0, dict[tuple[float, float], int]()
    for event, count in trainings:
        # σ = zΔ, so that Δ²/(σ² - r²) = 1 / (z² (1 - r²/σ²)).
        mean = 1 / (event.noise_multiplier * math.sqrt(1 - _ROUNDING_VARIANCE / SMALLEST_DEVIATION**2))
        steps = count * event.steps
        close += steps * MOST_COORDINATES * _ROUNDING_CLOSENESS
        if event.sampling_rate == 1:
            plain += steps * mean**2
        else:
            kind = mean, event.sampling_rate
            counts[kind] = counts.get(kind, 0) + steps
    if not counts:
        return _widened(lambda d: gaussian_epsilon(math.sqrt(plain), d), delta, close)
    parts = [(mean, q, 0.0, count) for (mean, q), count in counts.items()]
    if plain > 0:
        parts.append((math.sqrt(plain), 1.0, 0.0, 1))
    return _widened(lambda d: composed_epsilon(tuple(sorted(parts)), d), delta, close)


def _as_gaussian(event: NoisySum, shares: int) -> tuple[float, float, float]:
    """μ of the Gaussian that dominates the sum, ρ, and the probability that it doesn't.

    Infinite for noise of another kind, or too narrow for r².
    """
    if isinstance(event, CentralDiscreteLaplaceEvent):
        return math.inf, math.inf, 0.0
    skellam = isinstance(event, DistributedSkellamEvent)
    square, close = 0.0, closeness(event, shares)
    for vector in event.vectors:
        variance = shares * float(vector.share_variance)
        width = _least_variance(variance, vector.dimension) if skellam else variance
        if width <= 2 * _ROUNDING_VARIANCE:
            return math.inf, math.inf, 0.0
        square += vector.norm_bound**2 / (width - _ROUNDING_VARIANCE)
        close += vector.dimension * _ROUNDING_CLOSENESS
    return math.sqrt(square), close, skellam * len(event.vectors) * _UNLIKELY


def _least_variance(variance: float, dimension: int, unlikely: float = _UNLIKELY) -> float:
    """s²: Skellam noise is discrete Gaussian noise of random variances, which are at least that, but for `unlikely`."""
    squared = math.log(4 * dimension / unlikely) / 2
    rest = variance - squared - math.log(1.01 * math.sqrt(2 * math.pi * variance)) / 2
    if variance < 4 or rest <= squared:
        return 0.0
    return (math.sqrt(rest) - math.sqrt(squared)) ** 2


def _widened(epsilon: Callable[[float], float], delta: float, close: float) -> float:
    """ε + 2ρ at δ·e^-ρ; δ is what is left of it for that."""
    return epsilon(delta * math.exp(-close)) + 2 * close if close < 1 and delta > 0 else math.inf
