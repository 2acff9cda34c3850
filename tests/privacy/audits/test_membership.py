import numpy as np
import pytest
from scipy import stats

from quorate.errors import DataError
from quorate.privacy.audits.membership import likelihood_ratio, measured, threshold


def test_the_area_under_the_curve_is_the_probability_that_a_member_scores_higher():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.7, 1, 3000), rng.normal(0, 1, 2000)
    found = measured("scores", members, others)
    wins = stats.mannwhitneyu(members, others).statistic / (3000 * 2000)
    assert found.auc == pytest.approx(wins, abs=1e-9)
    assert found.advantage == pytest.approx(2 * stats.norm.cdf(0.35) - 1, abs=0.04)


def test_equal_scores_tell_nothing():
    found = measured("constant", np.zeros(50), np.zeros(70))
    assert (found.auc, found.advantage, found.true_positives) == (0.5, 0.0, 0.0)


def test_a_smaller_loss_means_member():
    found = threshold(np.array([0.1, 0.2]), np.array([1.0, 2.0, 3.0]))
    assert (found.auc, found.advantage, found.true_positives) == (1.0, 1.0, 1.0)


def overfitted(n=400, shadows=24, seed=0):
    """Losses as an overfitted model has them: each example is as hard as it is, and easier where it was trained on."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0, 3, n)

    def losses(trained):
        logits = hardness + 1.5 * trained + rng.normal(0, 0.7, n)
        return np.log1p(np.exp(-logits))

    trained = rng.random((shadows, n)) < 0.5
    members = rng.random(n) < 0.5
    return losses(members), np.stack([losses(chosen) for chosen in trained]), trained, members


def test_shadow_models_find_members_where_a_threshold_hardly_does():
    losses, shadows, trained, members = overfitted()
    plain = threshold(losses[members], losses[~members])
    better = likelihood_ratio(losses, shadows, trained, members)
    assert plain.auc < 0.7
    assert better.auc > 0.85
    assert better.true_positives > 3 * plain.true_positives


def test_what_was_not_trained_on_can_not_be_told():
    losses, shadows, trained, _ = overfitted()
    members = np.random.default_rng(9).random(len(losses)) < 0.5
    assert 0.4 < likelihood_ratio(losses, shadows, trained, members).auc < 0.6


def test_too_few_shadow_models_and_no_examples_are_refused():
    losses, shadows, trained, members = overfitted(shadows=3)
    with pytest.raises(DataError, match="two shadow models"):
        likelihood_ratio(losses, shadows, trained, members)
    with pytest.raises(DataError, match="and others"):
        threshold(np.ones(3), np.ones(0))
