import math

import numpy as np
import pytest
from scipy import stats

from quorate.errors import DataError
from quorate.privacy.audits.canaries import audit, gaussian_bound, one_run_bound, right_guesses
from quorate.privacy.gaussian_rounds import gaussian_epsilon


def scores(mu, n=500, m=500, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(mu, 1, n), rng.normal(0, 1, m)


@pytest.mark.parametrize(
    ("right", "epsilon"),
    [(100, math.log(1 / (0.05**-0.01 - 1))), (10, math.log(1 / (0.05**-0.1 - 1)))],
)
def test_when_every_guess_is_right_the_bound_is_in_closed_form(right, epsilon):
    # q^r = 0.05 with q = e^ε/(1 + e^ε); δ = 0.
    assert one_run_bound(1000, right, right, delta=0.0) == pytest.approx(epsilon, abs=1e-6)


def test_without_delta_the_bound_is_where_the_binomial_tail_is_the_significance():
    epsilon = one_run_bound(1000, 200, 170, delta=0.0)
    assert stats.binom.sf(169, 200, 1 / (1 + math.exp(-epsilon))) == pytest.approx(0.05, rel=1e-4)


def test_a_larger_delta_and_fewer_right_guesses_prove_less():
    assert one_run_bound(1000, 200, 170, 1e-5) < one_run_bound(1000, 200, 170, 0.0)
    assert one_run_bound(1000, 200, 150, 1e-5) < one_run_bound(1000, 200, 170, 1e-5)
    assert one_run_bound(1000, 200, 100, 1e-5) == 0.0
    assert one_run_bound(1000, 200, 0, 1e-5) == 0.0


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0, 4.0])
def test_the_gaussian_bound_is_below_the_truth_and_near_it(mu):
    bounds = [gaussian_bound(*scores(mu, seed=seed), 1e-5) for seed in range(200)]
    truth = gaussian_epsilon(mu, 1e-5)
    assert np.mean(np.array(bounds) > truth) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert np.median(bounds) > 0.6 * truth


def test_both_bounds_are_zero_where_nothing_can_be_told():
    found = audit(*scores(0.0), delta=1e-5)
    assert found.gaussian < 0.5
    assert found.one_run == 0.0


def test_the_one_run_bound_is_below_the_truth():
    for seed in range(50):
        included, excluded = scores(1.0, seed=seed)
        assert audit(included, excluded, 1e-5).one_run < gaussian_epsilon(1.0, 1e-5)


def test_guesses_are_the_surest_ones():
    assert right_guesses(np.array([5.0, 4.0, -9.0]), np.array([-5.0, -4.0, 9.0]), 2) == 0
    assert right_guesses(np.array([5.0, 4.0, 1.0]), np.array([-5.0, -4.0, 2.0]), 4) == 4


@pytest.mark.parametrize(
    ("included", "excluded"), [(np.ones(9), np.ones(50)), (np.full(50, np.nan), np.ones(50))]
)
def test_too_few_canaries_and_scores_that_are_not_finite_are_refused(included, excluded):
    with pytest.raises(DataError, match="at least ten canaries"):
        audit(included, excluded, 1e-5)
