"""What clients of a dense network have come, as products: in the first layer it is -XᵀE (see `dual_layer`).

Their weighted sum is one large product, whatever the number of clients, so that no client's way has to be made by
itself; and a norm follows from two small matrices: ‖XᵀE‖² is the sum over (X·Xᵀ)∘(E·Eᵀ).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

__all__ = ["Products"]

_CANCELLED = 0.1
"""Of the square that orthogonal examples would give: where less is left, they have cancelled, and digits are lost."""


@dataclass(frozen=True, eq=False)
class Products:
    """The ways of a block of clients; see `quorate.rounds.Rows`.

    Args:
        inputs: X, all clients' examples one client after the other, float32, shape (rows, inputs).
        errors: E, the errors that each example has met, times the learning rate; float32, shape (rows, outputs).
        sizes: how many examples each client has, int64, shape (clients,).
        gram: of each client X·Xᵀ, and zeros where it has fewer examples than others; float32, (clients, most, most).
        behind: what follows the first layer's weights in the flat vector, float32, shape (clients, values).
    """

    inputs: np.ndarray
    errors: np.ndarray
    sizes: np.ndarray
    gram: np.ndarray
    behind: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(clients, length)."""
        return len(self.sizes), self._split + self.behind.shape[1]

    def norms(self) -> np.ndarray:
        """Each way's L2 norm, to some 10^-6 of it; NaN where examples cancel each other, or it is not finite."""
        squares = np.empty(len(self.sizes))
        with np.errstate(over="ignore", invalid="ignore"):
            for k, (rows, gram, behind) in enumerate(zip(self._rows, self.gram, self.behind, strict=True)):
                errors = self.errors[rows]
                terms = gram[: len(errors), : len(errors)] * (errors @ errors.T)
                square, apart = terms.sum(dtype=np.float64), np.trace(terms, dtype=np.float64)
                trusted = square >= _CANCELLED * apart
                squares[k] = square + behind @ behind if trusted else np.nan
        return np.sqrt(squares)

    def weighed(self, weights: np.ndarray) -> np.ndarray:
        """Σ weight · way, float32, shape (length,)."""
        single = weights.astype(np.float32)
        out = np.empty(self.shape[1], np.float32)
        scaled = self.errors * np.repeat(-single, self.sizes)[:, None]
        np.matmul(self.inputs.T, scaled, out=self._of_first(out))
        np.matmul(single, self.behind, out=out[self._split :])
        return out

    def one(self, client: int, out: np.ndarray | None = None) -> np.ndarray:
        """A client's way by itself, shape (length,); in `out` if that is given."""
        way = np.empty(self.shape[1], np.float32) if out is None else out
        rows = self._rows[client]
        np.matmul(self.inputs[rows].T, -self.errors[rows], out=self._of_first(way))
        way[self._split :] = self.behind[client]
        return way

    @property
    def _split(self) -> int:
        inputs, outputs = self.inputs.shape[1], self.errors.shape[1]
        return int(inputs * outputs)

    def _of_first(self, way: np.ndarray) -> np.ndarray:
        return way[: self._split].reshape(self.inputs.shape[1], self.errors.shape[1])

    @cached_property
    def _rows(self) -> list[slice]:
        """Of each client."""
        ends = np.cumsum(self.sizes).tolist()
        return [slice(start, end) for start, end in pairwise([0, *ends])]
