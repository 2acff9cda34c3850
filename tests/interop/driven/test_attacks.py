"""tensorflow-privacy's membership inference, called from this environment."""

import json

import numpy as np
import pytest

from quorate.errors import DataError
from quorate.interop.tensorflow_privacy.attacks import Predictions, membership
from tests.cli.commands import PLAN, quorate

pytestmark = [pytest.mark.drives_interop, pytest.mark.timeout(280)]


def predictions(confidence: float, seed: int, examples: int = 200) -> Predictions:
    """Of a classifier that gives the true class of four a probability of about `confidence`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, examples)
    logits = rng.normal(size=(examples, 4))
    logits[np.arange(examples), labels] += np.log(3 * confidence / (1 - confidence))
    exponentials = np.exp(logits)
    return Predictions(exponentials / exponentials.sum(axis=1, keepdims=True), labels)


def test_a_model_that_knows_its_examples_by_heart_is_found_out():
    for found in membership(predictions(0.9999, 1), predictions(0.4, 2)):
        assert found.auc > 0.95, found
        assert found.advantage > 0.8, found
        assert found.epsilon_lower_bound > 1, found


def test_a_model_that_says_the_same_of_all_is_not():
    (found,) = membership(predictions(0.7, 3, 1000), predictions(0.7, 4, 1000), attacks=("threshold",))
    # The AUC of two equal distributions of 1000 has a standard deviation of 0.013.
    assert abs(found.auc - 0.5) < 0.06
    assert found.advantage < 0.12
    assert found.epsilon_lower_bound < 1.5


def test_what_can_not_be_attacked_is_refused():
    good = predictions(0.9, 1)
    with pytest.raises(DataError, match="accepted: some of threshold"):
        membership(good, good, attacks=("guess",))
    with pytest.raises(DataError, match="as many labels"):
        Predictions(good.probabilities, good.labels[1:])


def test_an_audit_has_their_attacks_beside_ours(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    done = quorate(
        "privacy", "audit", "plan.toml", "--canaries", "40", "--tensorflow-privacy", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = {attack["name"]: attack["auc"] for attack in json.loads(done.stdout)["membership"]}
    assert found["tensorflow-privacy, threshold"] == pytest.approx(found["loss threshold"], abs=1e-3)
    assert {"tensorflow-privacy, threshold-entropy", "tensorflow-privacy, lr"} <= set(found)
