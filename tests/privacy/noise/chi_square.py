"""Pearson's test of samples on the integers against an exact law."""

from __future__ import annotations

import numpy as np
from scipy import stats


def p_value(samples: np.ndarray, first: int, law: np.ndarray) -> float:
    """The p-value; neighbours are put together until 20 samples are expected of each.

    Args:
        samples: integers.
        first: the integer that `law` begins with.
        law: probabilities of consecutive integers; what lies outside counts to the ends, and is negligible.
    """
    expected = law * len(samples)
    inside = np.clip(samples - first, 0, len(law) - 1)
    observed = np.bincount(inside, minlength=len(law))
    starts, gathered = [0], 0.0
    left = np.cumsum(expected[::-1])[::-1]
    for value in range(len(law)):
        if gathered >= 20 and left[value] >= 20:
            starts.append(value)
            gathered = 0.0
        gathered += expected[value]
    expected, observed = np.add.reduceat(expected, starts), np.add.reduceat(observed, starts)
    assert len(starts) > 1
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(starts) - 1))


def tail_is_right(samples: np.ndarray, first: int, law: np.ndarray, beyond: float) -> bool:
    """Whether as many samples as are expected, within five deviations, are farther out than `beyond`."""
    expected = law[np.abs(np.arange(first, first + len(law))) > beyond].sum() * len(samples)
    found = (np.abs(samples) > beyond).sum()
    return bool(abs(found - expected) < 5 * np.sqrt(expected) + 5)
