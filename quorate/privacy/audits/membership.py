"""Membership inference: can somebody who has the model tell whose examples it was trained on?

Two attacks on losses, in the words of the papers: the *threshold* attack (Yeom, Giacomelli, Fredrikson, Jha 2018,
"Privacy Risk in Machine Learning", section 3): a small loss means "member"; and the *likelihood ratio* attack with
shadow models (Carlini, Chien, Nasr, Song, Terzis, Tramèr 2022, "Membership Inference Attacks From First Principles",
algorithm 1): is this loss likelier among models that were trained with the example, or among those without?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quorate.errors import DataError

__all__ = ["Attack", "likelihood_ratio", "measured", "threshold"]

_LOW_RATE = 0.01


@dataclass(frozen=True)
class Attack:
    """How well an attack tells members from others.

    Args:
        name: of the attack.
        auc: the area under its ROC curve; 0.5 is a guess.
        advantage: the largest true positive rate minus false positive rate (Yeom et al. 2018, definition 4).
        true_positives: the true positive rate at a false positive rate of 1 %; 0.01 is a guess.
    """

    name: str
    auc: float
    advantage: float
    true_positives: float


def threshold(members: np.ndarray, others: np.ndarray) -> Attack:
    """The threshold attack.

    Args:
        members: losses of examples that the model was trained on, shape (n,).
        others: losses of examples that it was not, shape (m,).
    """
    return measured("loss threshold", -np.asarray(members), -np.asarray(others))


def likelihood_ratio(
    losses: np.ndarray, shadows: np.ndarray, trained: np.ndarray, members: np.ndarray
) -> Attack:
    """The likelihood ratio attack, online, with normal distributions of log(-1 + e^loss).

    For a cross entropy this is minus the logit of the true class's probability, which Carlini et al. found to be
    nearly normal.

    Args:
        losses: of each example under the model that is attacked, shape (n,).
        shadows: of each example under shadow models, shape (shadows, n).
        trained: which shadow model was trained on which example, bool, shape (shadows, n).
        members: which examples the attacked model was trained on, bool, shape (n,).

    Raises:
        DataError: an example has fewer than two shadow models of either kind.
    """
    counts = trained.sum(axis=0)
    if min(counts.min(), (len(trained) - counts).min()) < 2:
        raise DataError(
            "every example needs two shadow models that were trained on it, and two that were not"
        )
    target, seen = _logits(losses), _logits(shadows)
    within, without = (_fitted(seen, chosen) for chosen in (trained, ~trained))
    scores = _log_density(target, *within) - _log_density(target, *without)
    return measured("likelihood ratio, shadow models", scores[members], scores[~members])


def measured(name: str, members: np.ndarray, others: np.ndarray) -> Attack:
    """An attack's figures, from its scores: higher means "member".

    Raises:
        DataError: there are none of either kind.
    """
    if not len(members) or not len(others):
        raise DataError("an attack needs examples that the model was trained on, and others")
    scores = np.concatenate([members, others])
    order = np.argsort(-scores, kind="stable")
    hits = np.concatenate([np.ones(len(members)), np.zeros(len(others))])[order]
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are called alike
    true = np.concatenate([[0.0], (np.cumsum(hits) / len(members))[last]])
    false = np.concatenate([[0.0], (np.cumsum(1 - hits) / len(others))[last]])
    return Attack(
        name,
        auc=float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum()),
        advantage=float((true - false).max()),
        true_positives=float(true[false <= _LOW_RATE].max()),
    )


def _logits(losses: np.ndarray) -> np.ndarray:
    safe = np.maximum(losses, 1e-12)
    return np.asarray(-np.log(np.expm1(np.minimum(safe, 500.0))))


def _fitted(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the chosen ones of each column; one standard deviation for all, as the paper has it for few models."""
    held = np.where(chosen, values, np.nan)
    mean = np.nanmean(held, axis=0)
    return mean, np.full_like(mean, max(float(np.nanstd(held - mean)), 1e-6))


def _log_density(x: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return np.asarray(-0.5 * ((x - mean) / deviation) ** 2 - np.log(deviation))
