"""Batches: a client's data as the adapters take them, whatever form the application has them in."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError

__all__ = ["Batches", "batches"]


class Batches(Protocol):
    """Data that rows can be taken of."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> tuple[Any, Any]:
        """Features and targets of some rows, an integer array of shape (rows,): arrays with a leading axis of rows."""
        ...


class _Arrays:
    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.x[rows], self.y[rows]


class _Items:
    """A map-style dataset: `dataset[i]` is the features and the target of one example."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items = [self._dataset[i] for i in rows.tolist()]
        try:
            x, y = (
                _plain(np.stack([np.asarray(part) for part in parts])) for parts in zip(*items, strict=True)
            )
        except (TypeError, ValueError) as error:
            raise DataError(
                f"an item of the dataset is not the features and the target of an example: {error}"
            ) from error
        return x, y


def batches(data: Any) -> Batches:
    """Data of any accepted kind.

    Args:
        data: `Examples`; a pair of arrays (or tensors, or lists) of as many rows; or a dataset with `len` and `[index]`
            whose items are pairs. Floating-point values become float32, whole numbers int64.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(data, Examples):
        return _Arrays(data.x, data.y)
    if isinstance(data, _Arrays | _Items):
        return data
    if isinstance(data, tuple | list) and len(data) == 2:
        x, y = (_plain(np.asarray(part)) for part in data)
        if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
            raise DataError(f"features and targets have as many rows, got shapes {x.shape} and {y.shape}")
        return _Arrays(x, y)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return _Items(data)
    raise DataError(
        f"data of type {type(data).__name__} were found; accepted: Examples, a pair of arrays, or a dataset with len() "
        "and [index] whose items are pairs"
    )


def _plain(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.ascontiguousarray(values, np.float32)
    if values.dtype.kind in "iub":
        return np.ascontiguousarray(values, np.int64)
    raise DataError(f"examples are real numbers, got {values.dtype}")
