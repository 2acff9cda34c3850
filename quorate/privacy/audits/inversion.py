"""Gradient inversion: what somebody who sees an update can read of the data it was computed from.

For a first layer x ↦ W·x + b the gradient of W is that of b times x, so one example's features are exactly the ratio of
the two (Phong, Aono, Hayashi, Wang, Moriai 2018, "Privacy-Preserving Deep Learning via Additively Homomorphic
Encryption", section 3). From a mean over examples the ratio is a mix of those with the largest say in that output.
"""

from __future__ import annotations

import numpy as np

__all__ = ["inverted", "likeness"]


def inverted(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The features that an update of a first layer tells, shape (outputs, inputs); zeros where its bias did not move.

    Args:
        weight: the update of the weights, shape (inputs, outputs).
        bias: the update of the bias, shape (outputs,).
    """
    moved = np.abs(bias) > 1e-12
    ratio = np.zeros((len(bias), len(weight)))
    ratio[moved] = (weight.T[moved].astype(np.float64)) / bias[moved, None]
    return ratio


def likeness(found: np.ndarray, examples: np.ndarray) -> tuple[float, int, int]:
    """The largest cosine of anything found with any of the examples, and which they are.

    Both are centred first: pictures that are mostly dark are all alike.

    Args:
        found: shape (outputs, inputs).
        examples: shape (examples, inputs).

    Returns:
        The cosine, the row of `found`, the row of `examples`.
    """
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (found, examples.astype(np.float64)))
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    cosines = np.divide(a @ b.T, norms, out=np.zeros((len(a), len(b))), where=norms > 0)
    row, column = np.unravel_index(int(cosines.argmax()), cosines.shape)
    return float(cosines[row, column]), int(row), int(column)
