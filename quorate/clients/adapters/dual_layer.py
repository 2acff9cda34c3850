"""A first dense layer under plain gradient descent, in its dual form: what its weights would give, without them.

Every step of descent subtracts rows of the layer's inputs X times errors E, so that after any number of steps the
weights are W - XᵀA, with A the sum of the errors that each example has met. What they give for a batch B of the
client's examples is then

    X_B·(W - XᵀA) = (X·W)_B - (X·Xᵀ)_B·A

(the dual form of Aizerman et al. 1964, as in kernel methods). X·W and the Gram matrix X·Xᵀ are made once, as large
products; a step costs batch · examples · outputs, whatever the number of inputs, and touches no weights. At the end the
client's way is -XᵀA, one product. The result is that of descent on the weights, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quorate.clients.adapters.dense import Network, Workspace
from quorate.clients.adapters.local_training import Schedule

__all__ = ["DualLayer", "is_less_work"]

_SMALL_PRODUCTS = 1.4
"""How much more a multiplication costs in products with one batch, and with weights read and written for each."""


def is_less_work(network: Network, examples: int, epochs: int) -> bool:
    """Whether the dual form is less work than steps of the weights.

    Args:
        network: whose first layer it is.
        examples: the most that a client has.
        epochs: how often it sees them.
    """
    inputs, outputs = network.widths[:2]
    steps = 2 * epochs * inputs * outputs * _SMALL_PRODUCTS
    dual = 2 * inputs * outputs + examples * (inputs / 2 + epochs * outputs)
    return dual < steps


class DualLayer:
    """The first layer of a block of clients, most steps first.

    Args:
        network: whose first layer it is.
        start: the network's flat parameters, where all clients begin; float32, shape (network.size,).
        data: each client's inputs, float32, shape (its examples, inputs).
        schedule: of their steps.
        workspace: holds what is in between.
    """

    def __init__(
        self,
        network: Network,
        start: np.ndarray,
        data: Sequence[np.ndarray],
        schedule: Schedule,
        workspace: Workspace,
    ):
        inputs, outputs = network.widths[:2]
        clients, most = len(data), max(len(x) for x in data)
        weights, self._split = start[: inputs * outputs].reshape(inputs, outputs), inputs * outputs
        self._data, self._shape, self._workspace = data, (inputs, outputs), workspace
        self._begun = workspace.array("dual outputs", clients, most, outputs)
        self._gram = workspace.array("dual gram", clients, most, most)
        for x, begun, gram in zip(data, self._begun, self._gram, strict=True):
            np.matmul(x, weights, out=begun[: len(x)])
            np.matmul(x, x.T, out=gram[: len(x), : len(x)])
            gram[: len(x), len(x) :] = 0
        self._begun += start[self._split : self._split + outputs]
        self._errors = workspace.array("dual errors", clients, most + 1, outputs)
        self._errors[:] = 0
        self._biases = np.zeros((clients, 1, outputs), np.float32)
        # What is padded takes the client's first example, and leaves its error in a row of its own that nobody reads.
        rows = schedule.rows - schedule.offsets[:, None]
        self._from = rows + most * np.arange(clients)[:, None]
        self._to = np.where(schedule.filled(), rows, most) + (most + 1) * np.arange(clients)[:, None]

    @staticmethod
    def values(network: Network, examples: int) -> int:
        """How many values a client's arrays have in a step."""
        return examples * (examples + 2 * network.widths[1])

    def outputs(self, t: int, clients: int, batch: int) -> np.ndarray:
        """What the layer would give for the batches of step t, without an activation; (clients, batch, outputs)."""
        rows, outputs = self._from[t, :clients, :batch], self._shape[1]
        most = self._gram.shape[2]
        given = self._workspace.array("dual given", clients, batch, outputs)
        np.take(self._begun.reshape(-1, outputs), rows, axis=0, out=given, mode="clip")
        self._place = self._to[t, :clients, :batch]
        if t:
            gram = self._workspace.array("dual rows", clients, batch, most)
            np.take(self._gram.reshape(-1, most), rows, axis=0, out=gram, mode="clip")
            moved = self._workspace.array("dual moved", clients, batch, outputs)
            np.matmul(gram, self._errors[:clients, :most], out=moved)
            given -= moved
            given += self._biases[:clients]
        return given

    def take(self, error: np.ndarray) -> None:
        """A step down the gradient with respect to these outputs, which is multiplied by the rate already."""
        flat = self._errors.reshape(-1, self._shape[1])
        flat[self._place] += error
        self._biases[: len(error)] -= np.add.reduce(error, axis=1, keepdims=True)

    def delta(self, k: int, out: np.ndarray) -> None:
        """Writes the way that client k's weights and biases have come, shape ((inputs + 1) · outputs,)."""
        x = self._data[k]
        errors = self._errors[k, : len(x)]
        np.negative(errors, out=errors)
        np.matmul(x.T, errors, out=out[: self._split].reshape(self._shape))
        out[self._split :] = self._biases[k, 0]
