"""Lower bounds of ε from canaries: random directions that members contribute at full strength, looked for in the model.

A canary that took part has a score (its inner product with the change of the model) that is higher than that of one
that did not. Two ways to make a bound of that:

- *Gaussian*, after Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar 2023 ("One-shot Empirical Privacy Estimation for
  Federated Learning", arXiv 2302.03098, section 3): the scores of both kinds are normal in high dimension, so telling
  them apart is telling two normal distributions apart, whose ε at δ is known. The lower end of a confidence interval
  for their distance gives the bound. It assumes that distribution, which the scores of canaries that did not take part
  have exactly, given the model.
- *One run*, after Steinke, Nasr, Jagielski 2023 ("Privacy Auditing with One (1) Training Run", arXiv 2305.08846,
  theorem 5.2): every canary took part or not by a fair coin; an auditor guesses the surest ones. So many right guesses
  have a probability under (ε, δ)-DP that rules small ε out. It assumes nothing but the coins, and is weaker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quorate.errors import DataError
from quorate.privacy.gaussian_rounds import gaussian_epsilon

__all__ = ["CanaryAudit", "audit", "gaussian_bound", "one_run_bound", "right_guesses"]

_LARGEST = 100.0


@dataclass(frozen=True)
class CanaryAudit:
    """What canaries show.

    Args:
        canaries: how many there were, with and without a part in the run.
        gaussian: the lower bound of ε by the Gaussian estimate, at the confidence.
        one_run: the lower bound of ε by right guesses, at the confidence.
        guesses: how many guesses it rests on, and how many were right.
        delta: the δ of both.
        confidence: of each bound.
    """

    canaries: tuple[int, int]
    gaussian: float
    one_run: float
    guesses: tuple[int, int]
    delta: float
    confidence: float


def audit(included: np.ndarray, excluded: np.ndarray, delta: float, confidence: float = 0.95) -> CanaryAudit:
    """Both bounds.

    Args:
        included: the scores of canaries that took part, shape (n,).
        excluded: the scores of canaries that did not, shape (m,); who took part was decided by fair coins.
        delta: of the claim.
        confidence: of each bound.

    Raises:
        DataError: there are fewer than ten of either kind, or a score is not finite.
    """
    for scores in (included, excluded):
        if len(scores) < 10 or not np.isfinite(scores).all():
            raise DataError(
                f"an audit needs at least ten canaries of either kind with finite scores, got {len(included)} and "
                f"{len(excluded)}"
            )
    # The surest tenth of the guesses, half of them "took part": few are wrong, and ε shows in how few.
    guesses = max(10, (len(included) + len(excluded)) // 10)
    right = right_guesses(included, excluded, guesses)
    total = len(included) + len(excluded)
    return CanaryAudit(
        canaries=(len(included), len(excluded)),
        gaussian=gaussian_bound(included, excluded, delta, confidence),
        one_run=one_run_bound(total, guesses, right, delta, confidence),
        guesses=(guesses, right),
        delta=delta,
        confidence=confidence,
    )


def gaussian_bound(
    included: np.ndarray, excluded: np.ndarray, delta: float, confidence: float = 0.95
) -> float:
    """The lower bound of ε, if scores are normal: that of μ-GDP with the lower end of the interval of μ.

    μ is the distance of the means over the larger of the two standard deviations, so that a spread that the canaries
    themselves make is not taken for privacy lost. Its interval is the normal one, with the variance of an effect size
    (Hedges and Olkin 1985, chapter 5).

    Args:
        included: see `audit`.
        excluded: see `audit`.
        delta: of the claim.
        confidence: one-sided.

    Returns:
        At least 0.
    """
    from scipy.stats import norm

    n, m = len(included), len(excluded)
    spread = max(float(included.std(ddof=1)), float(excluded.std(ddof=1)))
    if spread == 0:
        return math.inf if float(included.mean()) != float(excluded.mean()) else 0.0
    effect = float(included.mean() - excluded.mean()) / spread
    deviation = math.sqrt(1 / n + 1 / m + effect**2 / (2 * (n + m)))
    lowest = effect - float(norm.ppf(confidence)) * deviation
    return gaussian_epsilon(lowest, delta) if lowest > 0 else 0.0


def right_guesses(included: np.ndarray, excluded: np.ndarray, guesses: int) -> int:
    """How many of the surest guesses are right: the highest scores "took part", the lowest "did not".

    Args:
        included: see `audit`.
        excluded: see `audit`.
        guesses: in all, half of either kind.
    """
    scores = np.concatenate([included, excluded])
    took_part = np.concatenate([np.ones(len(included), bool), np.zeros(len(excluded), bool)])
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int((~took_part[order[:half]]).sum() + took_part[order[len(order) - (guesses - half) :]].sum())


def one_run_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95) -> float:
    """The largest ε that so many right guesses rule out; Steinke et al. 2023, theorem 5.2.

    Args:
        canaries: m, each in or out by a fair coin.
        guesses: r of them.
        right: v of those.
        delta: of the claim.
        confidence: one minus the largest probability of so many right guesses.

    Returns:
        At least 0; at most 100.
    """
    low, high = 0.0, _LARGEST
    if _probability(canaries, guesses, right, 0.0, delta) >= 1 - confidence:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if _probability(canaries, guesses, right, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _probability(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """An upper bound of the probability of at least `right` right guesses under (ε, δ)-DP.

    P[W ≥ v] + 2mδ·α, W ~ Binomial(r, e^ε/(1 + e^ε)), α = max over i of P[v - i ≤ W < v]/i.
    """
    from scipy.stats import binom

    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, accuracy))
    masses = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy))
    alpha = float((masses / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, tail + 2 * canaries * delta * alpha)
