"""The attacks of tensorflow-privacy as an operation of the child process; it needs scikit-learn and no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import (
    membership_inference_attack as inference,
)
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.data_structures import (
    AttackInputData,
    AttackType,
)

__all__ = ["attack"]


def attack(
    header: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs the attacks that the header names on the predictions; see `attacks.membership`."""
    results = inference.run_attacks(
        AttackInputData(
            logits_train=_logarithm(arrays["members"]),
            logits_test=_logarithm(arrays["others"]),
            labels_train=arrays["member_labels"],
            labels_test=arrays["other_labels"],
        ),
        attack_types=[AttackType(name) for name in header["attacks"]],
    )
    found = []
    for result in results.single_attack_results:
        bounds = result.get_epsilon_lower_bound()
        found.append(
            {
                "attack": result.attack_type.value,
                "auc": float(result.get_auc()),
                "advantage": float(result.get_attacker_advantage()),
                "epsilon_lower_bound": float(max(bounds, default=0.0)),
            }
        )
    return {"found": found}, {}


def _logarithm(probabilities: np.ndarray) -> np.ndarray:
    """Logits that give these probabilities: the attacks on entropies take nothing else."""
    return np.asarray(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)))
