"""Rényi curves of our own mechanisms: the divergence D_α at every order, before and after sampling.

Each from a bound that is proven for the mechanism and not for a Gaussian in its place.

**The sum of n shares of discrete Gaussian noise** (Kairouz, Liu, Steinke 2021, arXiv 2102.06387). Each
coordinate's noise is within e^{±τ/2} of N_Z(0, nσ²) pointwise, τ = 10 Σ_{k<n} exp(-2π²σ² k/(k+1)), for σ ≥
1/2 (Theorem 9 and Corollary 12); k of the shares may be one draw of N_Z(0, kσ²), as in `top_up`, because that
step costs exp(-2π²σ² mk/(m+k)) after m shares, and mk/(m+k) ≥ m/(m+1). There may be more shares than the n
that are counted, up to the largest cohort's: τ is taken for those, and the variance for n. Hence for integer
vectors of norm ≤ Δ in d coordinates (Proposition 14)

    D_α ≤ min{ α Δ² / 2nσ² + τ d,   α/2 · (Δ/√n σ + τ √d)² }.

First: P(x-v)/P(x) is at most e^{τd} times the ratio of discrete Gaussians, whose logarithm is linear in x,
and each share's moment generating function is at most exp(t²σ²/2). Second: a triangle inequality for
concentrated DP, coordinate by coordinate. Independent vectors of one sum compose by addition, at each order.

The constants (10, 2π², k/(k+1), and those of rounding) are also those of the authors' published code,
google-research/federated, `distributed_dp/accounting_utils.py`.

**The sum of n shares of Skellam noise** (Agarwal, Kairouz, Liu 2021, arXiv 2110.04995) is Skellam noise of variance μ =
nσ². For integer vectors of norms ≤ Δ₂ (L2) and ≤ Δ₁ (L1) and integers α ≥ 2 (Theorem 3.5 and Corollary 4.1; the same
file of the authors' code)

    D_α ≤ α Δ₂² / 2μ + min{ ((2α-1) Δ₂² + 6 Δ₁) / 4μ²,   3 Δ₁ / 2μ },

with Δ₁ ≤ min{√d Δ₂, Δ₂²}, since on integers |x| ≤ x². Other shares than those that are counted only add noise, and
`top_up` leaves the law as it is, so there is no τ, below or here.

**Discrete Laplace noise** of scale b, P(x) ∝ p^|x| with p = exp(-1/b), moved by an integer k ≥ 0. The sum Σ_x P(x-k)^α
P(x)^{1-α} is three geometric series; with r = exp((2α-1)/b) it is

    exp((α-1) D_α(k)) = (1-p)/(1+p) · [ (1/(1-p) + 1/(r-1)) e^{(α-1)k/b} + (1/(1-p) - r/(r-1)) e^{-αk/b} ].

Both coefficients are positive (1/r < p), so the logarithm is convex in k, and it is 0 at k = 0: hence it is
superadditive, and an integer vector of L1 norm ≤ Δ, whose coordinates have independent noise, costs at most what Δ in
one coordinate costs. D_∞ = Δ/b: at δ = 0 its ε is that, and stays it under sampling, because draws can be compared one
by one (Ghosh, Roughgarden, Sundararajan 2009; Dwork, McSherry, Nissim, Smith 2006).

**One client's own noise** (the local mechanism) is one discrete Gaussian: n = 1, and no τ against whoever sees it.

**Poisson sampling of a symmetric additive mechanism.** Fix everybody but one member, and let P be the law of
the output without that member, Q with it. Sampled with probability q, the outputs on the two neighbouring
data sets are M = (1-q)P + qQ and P, where P is one discrete Gaussian N_Z(0, nσ²): `top_up` makes the noise
that of n shares for every cohort, but some of them in one draw, so that its law is within e^{±τ/2} of that of P in
each coordinate, whoever took part. That costs (2α-1)·dτ/2 on (α-1)D_α, as ∫ p^α r^{1-α} takes α + (α-1) such
factors at most. At integer orders the binomial theorem gives, with no approximation,

    exp((α-1) D_α(M‖P)) = Σ_l C(α,l) (1-q)^{α-l} q^l exp((l-1) D_l(Q‖P)),

so D_l ≤ ε(l) may be put in. (Skellam and discrete Laplace noise are symmetric, too, and have
the same law whoever took part.) Zhu and Wang 2019 (Theorem 5) need a factor 3 in front of the terms l ≥ 3, for
arbitrary P and Q, because of the other direction, D_α(P‖M). Here Q(x) = P(x-v) with P symmetric about its
centre (a sum of symmetric shares is), so the involution x → v-x swaps P and Q, and then D_α(P‖M) ≤ D_α(M‖P)
for all α ≥ 1, as for the sampled Gaussian (Mironov, Talwar, Zhang 2019, Theorem 5). On the integers: with r =
Q/P, E_P g(r) = E_P r·g(1/r) for any g ≥ 0, so it is enough to show h(a) + r·h(b) ≥ 0 for r ≥ 1, where a =
1-q+qr, b = 1-q+q/r, h(t) = t^α - t^{1-α}. Now h(b) = -b·h(1/b), and (a-1) = rb·(1/b - 1), so the claim is
h(a)/(a-1) ≥ h(1/b)/(1/b-1); h is convex on [1, ∞) with h(1) = 0, so this quotient grows, and a ≥ 1/b because
ab = (1-q)² + q² + q(1-q)(r + 1/r) ≥ 1.

**Edges.** exp((α-1)D_α) is jointly convex, so it may be averaged over the (secret) draw of the others. For
draws where one member more would change anything but the sum (a full cohort; a quorum that may be reached
only with it) the unsampled curve is used: on both neighbouring data sets the member takes part alike, so the
same cohorts can be compared one by one. With p the probability of such draws that the member is in, given
that the round is released (those that it is not in have the same law on both):

    exp((α-1) D_α) ≤ (1-p)·exp((α-1) ε_sampled(α)) + p·exp((α-1) ε(α)).

(α-1)D_α is convex in α, so orders between integers are bounded by the chord. Privacy loss distributions are
tighter where they hold: see `quorate.privacy.losses`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from quorate.privacy import external
from quorate.privacy.dp_sgd import ExampleEvent
from quorate.privacy.events import (
    CentralDiscreteLaplaceEvent,
    DistributedSkellamEvent,
    Event,
    ExternalEvent,
    LocalDiscreteGaussianEvent,
    NoisySum,
    TruncatedPoissonSampledEvent,
)

__all__ = [
    "ORDERS",
    "closeness",
    "counted_shares",
    "edge_probability",
    "example_curve",
    "released_curve",
    "sampled_curve",
    "server_curve",
    "sum_curve",
]

ORDERS: tuple[float, ...] = (*(1 + k / 8 for k in range(1, 88)), *range(12, 129), 256)
"""The orders at which curves are known; the integers 2 to 128 and 256, and eighths below 12."""

_INTEGERS = np.arange(257)


@lru_cache(maxsize=1024)
def _sum_log_moments(event: NoisySum, shares: int, orders: tuple[float, ...]) -> np.ndarray:
    """(α-1) D_α of the sum at the given orders."""
    alpha = np.array(orders, np.float64)
    if isinstance(event, DistributedSkellamEvent):
        result = _skellam_log_moments(event, shares, alpha)
    elif isinstance(event, CentralDiscreteLaplaceEvent):
        result = _laplace_log_moments(event, alpha)
    else:
        divergence, most = np.zeros(len(alpha)), counted_shares(event, shares)
        for vector in event.vectors:
            ratio = vector.norm_bound**2 / (shares * float(vector.share_variance))
            tau = _tau(float(vector.share_variance), most)
            additive = alpha / 2 * ratio + tau * vector.dimension
            triangle = alpha / 2 * (math.sqrt(ratio) + tau * math.sqrt(vector.dimension)) ** 2
            divergence += np.minimum(additive, triangle)
        result = (alpha - 1) * divergence
    result.setflags(write=False)
    return result


def _skellam_log_moments(event: DistributedSkellamEvent, shares: int, alpha: np.ndarray) -> np.ndarray:
    """(α-1) D_α of a sum with Skellam noise: by the theorem at integers, by the chord between them."""
    whole = np.arange(1.0, math.ceil(alpha.max()) + 1)
    moments = np.zeros(len(whole))
    for vector in event.vectors:
        square, variance = vector.norm_bound**2, shares * float(vector.share_variance)
        sum_of_sizes = min(math.sqrt(vector.dimension * square), square)
        first = ((2 * whole - 1) * square + 6 * sum_of_sizes) / (4 * variance**2)
        more = np.minimum(first, 3 * sum_of_sizes / (2 * variance))
        moments += (whole - 1) * (whole * square / (2 * variance) + more)
    result: np.ndarray = np.interp(alpha, whole, moments)
    return result


def _laplace_log_moments(event: CentralDiscreteLaplaceEvent, alpha: np.ndarray) -> np.ndarray:
    """(α-1) D_α of a sum with discrete Laplace noise, as in the docstring, without overflow."""
    moments = np.full(len(alpha), 1e-12)  # more than floating point takes away
    for vector in event.vectors:
        rate, moved = float(1 / vector.scale), vector.epsilon
        end = -1 / math.expm1(-rate)  # 1/(1-p)
        middle = -1 / np.expm1(-(2 * alpha - 1) * rate)  # r/(r-1)
        up = np.log(end + middle - 1) + (alpha - 1) * moved
        # 1/(1-p) - r/(r-1) = (p - 1/r) / ((1-p)(1-1/r)), without cancellation
        down = np.log(math.exp(-rate) * -np.expm1(-2 * (alpha - 1) * rate) * end * middle) - alpha * moved
        moments += np.logaddexp(up, down) + math.log(math.tanh(rate / 2))
    result: np.ndarray = np.minimum(moments, (alpha - 1) * event.epsilon)
    return result


def counted_shares(event: NoisySum, shares: int) -> int:
    """How many shares τ is taken for where the variance is that of `shares`: as many as can be there."""
    own = isinstance(event, LocalDiscreteGaussianEvent) and shares == event.shares
    return 1 if own else max(shares, event.most_shares)


def _tau(variance: float, shares: int) -> float:
    """10 Σ_{k=1}^{n-1} exp(-2π² σ² k/(k+1)); the terms fall quickly towards exp(-2π²σ²)."""
    k = np.arange(1, min(shares, 10_000), dtype=np.float64)
    total = float(np.exp(-2 * math.pi**2 * variance * k / (k + 1)).sum())
    if shares > 10_000:  # each of the other terms is below the last of these
        total += (shares - 10_000) * math.exp(-2 * math.pi**2 * variance * (1 - 1e-4))
    return 10 * total


def closeness(event: NoisySum, shares: int) -> float:
    """Σ dτ/2: within ± this is the log of the noise's law of that of one draw, all coordinates together."""
    if isinstance(event, DistributedSkellamEvent | CentralDiscreteLaplaceEvent):
        return 0.0
    most = counted_shares(event, shares)
    return sum(v.dimension * _tau(float(v.share_variance), most) / 2 for v in event.vectors)


def sum_curve(event: NoisySum, shares: int, orders: tuple[float, ...] = ORDERS) -> np.ndarray:
    """D_α of a sum with the given number of honest shares, without any sampling; shape (len(orders),)."""
    curve: np.ndarray = _sum_log_moments(event, shares, orders) / (np.array(orders) - 1)
    return curve


def server_curve(event: Event) -> np.ndarray:
    """D_α, at `ORDERS`, of one participation, against the server, who knows who took part; infinite without shares."""
    inner = event.event if isinstance(event, TruncatedPoissonSampledEvent) else event
    if isinstance(inner, ExternalEvent) or not inner.shares:
        return np.full(len(ORDERS), np.inf)
    return sum_curve(inner, inner.shares)


@lru_cache(maxsize=1024)
def released_curve(event: Event) -> np.ndarray:
    """D_α, at `ORDERS`, of one round, against those who see only what is released.

    Of a sampled event it holds for every member of the population; of any other, for those who took part.
    """
    if isinstance(event, TruncatedPoissonSampledEvent):
        curve = sampled_curve(event)
    elif isinstance(event, ExternalEvent):
        curve = external.external_curve(event, ORDERS)
    else:
        curve = sum_curve(event, event.released_shares)
    curve.setflags(write=False)
    return curve


def sampled_curve(event: TruncatedPoissonSampledEvent, orders: tuple[float, ...] = ORDERS) -> np.ndarray:
    """D_α of a sampled sum at the given orders, which are at most 256; shape (len(orders),)."""
    inner, q, p = event.event, event.probability, edge_probability(event)
    moments = _sum_log_moments(inner, inner.released_shares, orders)
    if q < 1 and p < 1:
        integers = _single_log_moments(inner, tuple(range(2, 257)))
        expansion = _binomial_log_moments(q, np.concatenate([np.zeros(2), integers]))
        sampled = np.interp(orders, _INTEGERS[1:], expansion[1:]) + math.log1p(-p)
        if p > 0:
            sampled = np.logaddexp(sampled, _single_log_moments(inner, orders) + math.log(p))
        distance = closeness(inner, inner.released_shares)
        moments = np.minimum(moments, sampled + (2 * np.array(orders) - 1) * distance)
    curve: np.ndarray = moments / (np.array(orders) - 1)
    return curve


@lru_cache(maxsize=256)
def example_curve(event: ExampleEvent) -> np.ndarray:
    """D_α, at `ORDERS`, of one participation under DP-SGD, for one example, against everybody but its device.

    Each step is one discrete Gaussian, so that there is no τ; the draw of the other examples has no edges.
    """
    alpha, q = np.array(ORDERS), event.sampling_rate
    moments = alpha * (alpha - 1) / 2 / event.noise_multiplier**2
    if q < 1:
        whole = _INTEGERS * (_INTEGERS - 1) / 2 / event.noise_multiplier**2
        expansion = _binomial_log_moments(q, whole)
        moments = np.minimum(moments, np.interp(alpha, _INTEGERS[1:], expansion[1:]))
    curve: np.ndarray = event.steps * moments / (alpha - 1)
    curve.setflags(write=False)
    return curve


def _single_log_moments(event: NoisySum, orders: tuple[float, ...]) -> np.ndarray:
    """(α-1) D_α of one draw in the place of the released shares: for N_Z(0, nσ²) at most α(α-1)/2 · Σ Δ²/nσ²."""
    if isinstance(event, DistributedSkellamEvent | CentralDiscreteLaplaceEvent):
        return _sum_log_moments(event, event.released_shares, orders)
    alpha = np.array(orders, np.float64)
    ratio = sum(v.norm_bound**2 / (event.released_shares * float(v.share_variance)) for v in event.vectors)
    result: np.ndarray = alpha * (alpha - 1) / 2 * ratio
    return result


def _binomial_log_moments(q: float, whole: np.ndarray) -> np.ndarray:
    """The logarithms of Σ_l C(α,l) (1-q)^{α-l} q^l exp(whole[l]), for α = 0..256."""
    alpha, drawn = _INTEGERS[:, None], _INTEGERS[None, :]
    rest = np.maximum(alpha - drawn, 0)
    log_factorial = _log_factorial(len(_INTEGERS))
    choose = log_factorial[alpha] - log_factorial[drawn] - log_factorial[rest]
    terms = choose + rest * math.log1p(-q) + drawn * math.log(q) + whole[drawn]
    terms[drawn > alpha] = -np.inf
    largest = terms.max(axis=1)
    result: np.ndarray = np.maximum(largest + np.log(np.exp(terms - largest[:, None]).sum(axis=1)), 0.0)
    return result


def edge_probability(event: TruncatedPoissonSampledEvent) -> float:
    """The probability that a member takes part where it changes more than the sum, given that the round is released.

    The member is drawn, and either the others fill the cohort, so that it takes another's place, or fewer of them
    survive than the quorum, which may have hung on it. In a full cohort without the member nothing depends on it.
    Every other survives with a probability of at least q·(1 - dropout), so that the number of their survivors is
    stochastically at least binomial.
    """
    return _edge_probability(
        event.population, event.probability, event.cap, event.event.quorum, event.dropout
    )


@lru_cache(maxsize=64)
def _edge_probability(population: int, q: float, cap: int, quorum: int, dropout: float) -> float:
    full = float(np.exp(_binomial_log_pmf(population - 1, q)[cap:]).sum())
    short = float(np.exp(_binomial_log_pmf(population - 1, q * (1 - dropout))[:quorum]).sum())
    released = 1 - short - full
    return min(1.0, q * (full + short) / released) if released > 0 else 1.0


def _binomial_log_pmf(n: int, p: float) -> np.ndarray:
    """The logarithms of P(Bin(n, p) = k), for k = 0..n."""
    if p >= 1:
        return np.concatenate([np.full(n, -np.inf), [0.0]])
    k = np.arange(n + 1)
    log_factorial = _log_factorial(n + 1)
    result: np.ndarray = (
        log_factorial[n]
        - log_factorial[k]
        - log_factorial[n - k]
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
    )
    return result


@lru_cache(maxsize=16)
def _log_factorial(count: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count, dtype=np.float64)))])
