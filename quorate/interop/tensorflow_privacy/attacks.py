"""Membership inference on a learned model, by tensorflow-privacy's attacks.

An attack looks at what the model says of an example, and guesses whether it was trained on it (Shokri et al. 2017; the
threshold on the loss: Yeom et al. 2018). What an attack gets bounds from below what the model leaks: that none succeeds
proves nothing. The unit is an example, where our ε is about a member's whole contribution.

The attacks run in the environment of TensorFlow Federated (`quorate.interop.tff.environment`), in a child process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quorate.errors import DataError
from quorate.interop.tff.process import Child

__all__ = ["ATTACKS", "Membership", "Predictions", "membership"]

ATTACKS = ("threshold", "threshold-entropy", "lr", "knn", "rf", "mlp")
"""By the names that tensorflow-privacy gives them: thresholds on loss and entropy, and four trained classifiers."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of some examples, and what is true.

    Args:
        probabilities: of the classes, shape (examples, classes).
        labels: int64, shape (examples,).
    """

    probabilities: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.probabilities.ndim != 2 or self.labels.shape != self.probabilities.shape[:1]:
            raise DataError(
                "an attack needs probabilities of shape (examples, classes) and as many labels, got "
                f"{self.probabilities.shape} and {self.labels.shape}"
            )
        if len(self.labels) < 10:
            raise DataError(
                f"an attack needs at least 10 examples of each kind to learn from, got {len(self.labels)}"
            )


@dataclass(frozen=True)
class Membership:
    """What one attack came to.

    Args:
        attack: its name.
        auc: the area under its ROC curve; 0.5 is a guess.
        advantage: the largest difference of its true and false positive rates.
        epsilon_lower_bound: an ε for one example that the attack's error rates speak against: of each threshold with
            confidence 95 %, and the largest of many thresholds, so that it can be above the truth by chance.
    """

    attack: str
    auc: float
    advantage: float
    epsilon_lower_bound: float


def membership(
    members: Predictions,
    others: Predictions,
    attacks: Sequence[str] = ("threshold", "threshold-entropy", "lr"),
) -> tuple[Membership, ...]:
    """Attacks a classifier.

    Args:
        members: of examples that it was trained on.
        others: of examples of the same kind that it was not trained on.
        attacks: of `ATTACKS`.

    Raises:
        DataError: an attack is not known, or the predictions don't fit.
        MissingEnvironment: no Python here has tensorflow-privacy.
    """
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown or not attacks:
        raise DataError(f"attacks: found {list(attacks)}; accepted: some of {', '.join(ATTACKS)}")
    if members.probabilities.shape[1] != others.probabilities.shape[1]:
        raise DataError(
            f"predictions of {members.probabilities.shape[1]} and {others.probabilities.shape[1]} classes are of two "
            "models"
        )
    arrays = {
        "members": members.probabilities.astype(np.float64),
        "member_labels": members.labels.astype(np.int64),
        "others": others.probabilities.astype(np.float64),
        "other_labels": others.labels.astype(np.int64),
    }
    with Child() as child:
        found = child.call("attack", arrays, attacks=list(attacks))[0]["found"]
    return tuple(Membership(**one) for one in found)
