"""A first dense layer under plain gradient descent, in its dual form: what its weights would give, without them.

Every step of descent subtracts rows of the layer's inputs X times errors E, so that after any number of steps the
weights are W - XᵀA, with A the sum of the errors that each example has met. What they give for a batch B of the
client's examples is then

    X_B·(W - XᵀA) = (X·W)_B - (X·Xᵀ)_B·A

(the dual form of Aizerman et al. 1964, as in kernel methods). X·W and the Gram matrix X·Xᵀ are made once, as large
products; a step costs batch · examples · outputs, whatever the number of inputs, and touches no weights. At the end the
client's way is -XᵀA, one product, in which those of many clients can be summed (`products`). The result is that of
descent on the weights, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quorate.clients.adapters.dense import Network, Workspace
from quorate.clients.adapters.local_training import Schedule
from quorate.clients.adapters.products import Products

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
        behind: takes the way of the biases, in its first values; float32, shape (clients, values).
        workspace: holds what is in between.
    """

    def __init__(
        self,
        network: Network,
        start: np.ndarray,
        data: Sequence[np.ndarray],
        schedule: Schedule,
        behind: np.ndarray,
        workspace: Workspace,
    ):
        inputs, outputs = network.widths[:2]
        self._sizes = np.array([len(x) for x in data])
        clients, most = len(data), int(self._sizes.max())
        weights, split = start[: inputs * outputs].reshape(inputs, outputs), inputs * outputs
        self._workspace, self._rows, self._behind = workspace, schedule.rows, behind
        self._biases = behind[:, None, :outputs]
        self._biases[:] = 0
        self._inputs = data[0] if clients == 1 else np.concatenate(data)
        self._begun = workspace.array("dual outputs", len(self._inputs), outputs)
        np.matmul(self._inputs, weights, out=self._begun)
        self._begun += start[split : split + outputs]
        self._gram = np.empty((clients, most, most), np.float32)
        for x, gram in zip(data, self._gram, strict=True):
            np.matmul(x, x.T, out=gram[: len(x), : len(x)])
            gram[: len(x), len(x) :] = 0
            gram[len(x) :] = 0
        # What is padded takes the client's first example, and leaves its error in a last row that nobody reads.
        self._met = np.zeros((clients * most + 1, outputs), np.float32)
        self._errors = self._met[:-1].reshape(clients, most, outputs)
        places = schedule.rows - schedule.offsets[:, None] + most * np.arange(clients)[:, None]
        self._from, self._to = places, np.where(schedule.filled(), places, clients * most)

    @staticmethod
    def values(network: Network, examples: int) -> int:
        """How many values a client's arrays have in a step."""
        return examples * (examples + 2 * network.widths[1])

    def outputs(self, t: int, clients: int, batch: int) -> np.ndarray:
        """What the layer would give for the batches of step t, without an activation; (clients, batch, outputs)."""
        most, outputs = self._errors.shape[1:]
        given = self._workspace.array("dual given", clients, batch, outputs)
        np.take(self._begun, self._rows[t, :clients, :batch], axis=0, out=given, mode="clip")
        self._place = self._to[t, :clients, :batch]
        if t:
            gram = self._workspace.array("dual rows", clients, batch, most)
            rows = self._from[t, :clients, :batch]
            np.take(self._gram.reshape(-1, most), rows, axis=0, out=gram, mode="clip")
            moved = self._workspace.array("dual moved", clients, batch, outputs)
            np.matmul(gram, self._errors[:clients], out=moved)
            given -= moved
            given += self._biases[:clients]
        return given

    def take(self, error: np.ndarray) -> None:
        """A step down the gradient with respect to these outputs, which is multiplied by the rate already."""
        self._met[self._place] += error
        self._biases[: len(error)] -= np.add.reduce(error, axis=1, keepdims=True)

    def ways(self) -> Products:
        """The ways that the clients have come; what lies behind the layer is what `behind` holds."""
        most = self._errors.shape[1]
        errors = self._met[:-1]
        if len(self._inputs) < len(errors):
            errors = self._errors[np.arange(most) < self._sizes[:, None]]
        return Products(self._inputs, errors, self._sizes, self._gram, self._behind)
