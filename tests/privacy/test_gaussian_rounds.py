from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid

from quorate.privacy.gaussian_rounds import composed_epsilon, gaussian_delta, gaussian_epsilon


def test_one_gaussian_costs_what_the_analytic_curve_says() -> None:
    """Balle and Wang 2018; the two σ are those for (ε, δ) = (1, 1e-5) and (8, 1e-6)."""
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.377178, abs=1e-6)
    assert gaussian_epsilon(1 / 3.730632, 1e-5) == pytest.approx(1, abs=1e-5)
    assert gaussian_epsilon(1 / 0.652935, 1e-6) == pytest.approx(8, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 50), st.floats(0, 60))
def test_the_analytic_delta_is_a_divergence(mean: float, epsilon: float) -> None:
    """Against the integral of (p - e^ε q)₊ by its definition."""
    x = np.linspace(-40, mean + 40, 400_001)
    p, q = (np.exp(-((x - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (mean, 0.0))
    with np.errstate(over="ignore", invalid="ignore"):
        exact = float(trapezoid(np.nan_to_num(np.maximum(p - np.exp(epsilon) * q, 0.0)), x))
    assert gaussian_delta(mean, epsilon) == pytest.approx(exact, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("mean", [0.3, 1.0, 4.0])
def test_unsampled_rounds_composed_on_a_grid_cost_what_one_gaussian_does(mean: float) -> None:
    on_a_grid = composed_epsilon(((mean, 1.0, 0.0, 4),), 1e-5)
    assert (
        gaussian_epsilon(2 * mean, 1e-5)
        <= on_a_grid
        == pytest.approx(gaussian_epsilon(2 * mean, 1e-5), rel=1e-3)
    )


def test_rounds_that_protect_nobody_cost_everything() -> None:
    assert composed_epsilon(((100.0, 0.5, 0.0, 1),), 1e-5) == math.inf
    assert composed_epsilon(((1.0, 0.5, 0.0, 1),), 1e-12) == math.inf
