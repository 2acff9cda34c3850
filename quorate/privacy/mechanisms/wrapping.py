"""How likely a noisy sum in a ring wraps: an upper bound, from which rings and scales are chosen.

A coordinate of a full cohort's sum is signal + noise. Two bounds on the signal hold, and the better one counts:

- *certain*: n clients' integer vectors of L2 norm ≤ Δ move a coordinate by at most nΔ, whatever they hold;
- *rotated*: before rounding the sum of n vectors of norm ≤ s steps is H·D·X / √m with ‖X‖ ≤ ns and random signs D,
  which are drawn for the round and known to nobody before it. A coordinate is a sum of ±X_k/√m, so its moment
  generating function at t is at most exp(t² (ns)² / 2m) (Hoeffding 1963; Kairouz, Liu, Steinke 2021, Lemma 29).
  Rounding moves it by less than a step a client, and single precision by less than 2^-20 of s. It holds for honest
  clients, who have their updates from the data and the model, not from the signs.

The noise of total variance μ has a log moment generating function of at most μt²/2 (discrete Gaussians: Canonne,
Kamath, Steinke 2020, Corollary 17), or exactly μ(cosh t - 1) (Skellam). Chernoff's bound at any t > 0 is a bound; it is
taken near the best t, for both signs and all m coordinates. What wraps is wrong by 2^bits: an error of the model, not a
loss of privacy, because the reduction is a function of the noisy sum.
"""

from __future__ import annotations

import math

from quorate.privacy.noise import NoiseLaw

__all__ = ["wrap_probability"]


def wrap_probability(
    *, bits: int, clients: int, steps: float, norm_bound: float, length: int, law: NoiseLaw, variance: float
) -> float:
    """A bound on P(any coordinate leaves [-2^(bits-1), 2^(bits-1))).

    Args:
        bits: of the ring.
        clients: the most in a sum, n.
        steps: the largest L2 norm of a client's vector before rounding, s.
        norm_bound: the largest L2 norm after rounding, Δ.
        length: m, after rotation.
        law: of the noise.
        variance: of all the noise in a coordinate, μ, in steps².
    """
    limit = 2.0 ** (bits - 1) - 1
    rounding = clients * (1 + steps * 2.0**-20)
    certain = _log_tail(limit - clients * norm_bound, 0.0, law, variance)
    rotated = _log_tail(limit - rounding, (clients * steps) ** 2 / length, law, variance)
    return min(1.0, 2 * length * math.exp(min(certain, rotated)))


def _log_tail(headroom: float, sub_gaussian: float, law: NoiseLaw, variance: float) -> float:
    """The logarithm of P(signal + noise > headroom), at most, for a signal with that sub-Gaussian variance."""
    if headroom <= 0:
        return 0.0
    if law is NoiseLaw.DISCRETE_GAUSSIAN:
        return -(headroom**2) / (2 * (sub_gaussian + variance))
    # Minimises -th + Vt²/2 + μ(cosh t - 1) by Newton's method on its derivative, which is convex: from above it falls
    # to the root.
    t = min(headroom / (sub_gaussian + variance), math.asinh(headroom / variance))
    for _ in range(50):
        t -= (sub_gaussian * t + variance * math.sinh(t) - headroom) / (
            sub_gaussian + variance * math.cosh(t)
        )
    noise = 2 * variance * math.sinh(t / 2) ** 2  # cosh t - 1, without cancellation
    return -t * headroom + sub_gaussian * t**2 / 2 + noise
