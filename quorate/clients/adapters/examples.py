"""Examples: what a client, or a test set, holds. Two arrays, one row an example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quorate.errors import DataError

__all__ = ["Examples"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Features and targets of some examples.

    Args:
        x: features, shape (examples, features), or (examples, …) for images and the like; float32 (other real dtypes
            are converted).
        y: targets, shape (examples,): int64 labels from 0 on, or float32 values (converted likewise).

    Raises:
        DataError: the shapes do not fit each other, or the values are not real numbers.
    """

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        x, y = np.asarray(self.x), np.asarray(self.y)
        if x.ndim < 2 or y.shape != x.shape[:1]:
            raise DataError(
                f"examples are x of shape (examples, features, …) and y (examples,), got {x.shape}, {y.shape}"
            )
        if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiub":
            raise DataError(f"examples are real numbers, got x of {x.dtype} and y of {y.dtype}")
        object.__setattr__(self, "x", np.ascontiguousarray(x, np.float32))
        object.__setattr__(
            self, "y", np.ascontiguousarray(y, np.float32 if y.dtype.kind == "f" else np.int64)
        )

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: np.ndarray) -> Examples:
        """A copy of the rows at `indices`, an integer array of shape (rows,)."""
        return Examples(self.x[indices], self.y[indices])
