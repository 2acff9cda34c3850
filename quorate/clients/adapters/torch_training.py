"""Many clients of a PyTorch module at once: their forward passes are one (`torch.func.vmap` over `functional_call`).

The clients of a block take their steps together, each with parameters of its own, so that a linear layer is one batched
matrix product. In every step the clients that are at work are grouped by how many examples they take, so that nothing
is padded and a loss may be any function of a batch. Rules act value by value, so that each parameter is treated by
itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quorate.clients.adapters.batches import Batches
from quorate.clients.adapters.local_training import Schedule
from quorate.clients.adapters.together import Together
from quorate.errors import PlanError
from quorate.rounds import Instruction, State, Updates
from quorate.strategies import local_rules
from quorate.strategies.contract import LocalRule

if TYPE_CHECKING:
    from quorate.clients.adapters.torch_models import TorchModel

__all__ = ["can_train_together", "fit_many"]

_BLOCK_BYTES = 1 << 24  # weights of a block: the larger it is, the fewer calls


def can_train_together(module: Any) -> bool:
    """Whether a module does the same for many clients at once: nothing in it keeps statistics or draws numbers."""
    from torch.nn.modules.dropout import _DropoutNd

    random = getattr(module, "draws", False) or any(
        isinstance(part, _DropoutNd | torch.nn.RNNBase) for part in module.modules()
    )
    return not random and not any(buffer.is_floating_point() for buffer in module.buffers())


def fit_many(
    model: TorchModel,
    start: np.ndarray,
    data: Sequence[Batches],
    instructions: Sequence[Instruction],
    states: Sequence[State],
) -> tuple[Updates, list[State]]:
    """Trains each client from `start` on its own data.

    Args:
        model: whose module can be trained together.
        start: the flat parameters, float32, shape (n,).
        data: of each client, at least one example each.
        instructions: for each client; they may differ in the seed only.
        states: of each client; empty for one that never took part.

    Raises:
        DataError: there is no client, an instruction lacks a number, instructions differ, or a state does not fit.
        PlanError: PyTorch can't batch an operation of the module or the loss.
    """
    job = Together.of(start, data, instructions, states, model.metrics)
    rule, rate = job.rule, job.training.learning_rate

    for chosen in job.blocks(max(1, _BLOCK_BYTES // (4 * len(start)))):
        context, schedule = job.begin(chosen)
        trainer = _Block(model, start, context, [data[c] for c in chosen], job.sizes[chosen])
        try:
            measured = trainer.train(rule, schedule, rate)
        except RuntimeError as error:
            raise PlanError(
                f"fleet.engine: 'vectorised' can't be had with {model.name!r}: {error}; accepted: 'sequential'"
            ) from error
        taken = schedule.steps.astype(np.float32)
        job.keep(chosen, *rule.finish(start, trainer.vectors(), taken, rate, context), measured)
    return job.made()


class _Block:
    """Clients that take their steps together, most steps first."""

    def __init__(
        self,
        model: TorchModel,
        start: np.ndarray,
        context: Mapping[str, np.ndarray],
        data: Sequence[Batches],
        sizes: np.ndarray,
    ):
        self._model = model
        # A call puts parameters into the module, and there are threads: it is copied, its parameters are not.
        shared: dict[int, Any] = {id(p): p for p in model.module.parameters()}
        self._module = copy.deepcopy(model.module, shared).train()
        self._fixed = {
            name: p for name, p in model.module.named_parameters() if name not in model.trained.names
        }
        device = next(model.module.parameters()).device
        begun = model.trained.unflatten(start)
        self.weights = {name: _copies(torch.tensor(v).to(device), len(data)) for name, v in begun.items()}
        self._context = {name: torch.tensor(value).to(device) for name, value in context.items()}
        whole = [one.take(np.arange(size)) for one, size in zip(data, sizes.tolist(), strict=True)]
        self._x, self._y = (
            torch.cat([torch.as_tensor(part) for part in parts]).to(device)
            for parts in zip(*whole, strict=True)
        )

    def train(self, rule: LocalRule, schedule: Schedule, rate: float) -> np.ndarray:
        """Takes all steps; returns each client's metrics, shape (metrics, clients)."""
        clients = schedule.counts.shape[1]
        seen = torch.zeros(len(self._model.metrics), clients, dtype=torch.float64)
        for rows, counts in zip(schedule.rows, schedule.counts, strict=True):
            for count in np.unique(counts[counts > 0]).tolist():
                group = np.flatnonzero(counts == count)
                at = torch.from_numpy(rows[group, :count])
                all_of_them = len(group) == clients
                weights = {n: w if all_of_them else w[group] for n, w in self.weights.items()}
                x, y = (
                    torch.index_select(part, 0, at.flatten()).view(*at.shape, *part.shape[1:])
                    for part in (self._x, self._y)
                )
                gradients, measured = self._gradients(weights, x, y)
                for name, gradient in gradients.items():
                    part = weights[name]
                    if not isinstance(rule, local_rules.Sgd):
                        gradient = rule.gradient(gradient, part, self._here(name, group))
                    part.sub_(gradient, alpha=rate)
                    if not all_of_them:
                        self.weights[name][group] = part
                seen[:, group] += count * torch.stack(measured).double().cpu()
        return np.asarray(seen.numpy() / schedule.counts.sum(axis=0))

    def vectors(self) -> np.ndarray:
        """The clients' flat parameters, shape (clients, n)."""
        trained = self._model.trained
        flat = np.empty((len(next(iter(self.weights.values()))), trained.size), np.float32)
        for name, part in self.weights.items():
            place = torch.from_numpy(flat)[:, trained.slice(name)]
            place.view(part.shape).copy_(part)
        return flat

    def _here(self, name: str, group: np.ndarray) -> dict[str, Any]:
        """The context of some clients, at one parameter."""
        place, shape = self._model.trained.slice(name), self._model.trained.shape(name)
        return {
            key: value[place].view(shape) if value.ndim == 1 else value[group, place].view(-1, *shape)
            for key, value in self._context.items()
        }

    def _gradients(self, weights: dict[str, Any], x: Any, y: Any) -> tuple[dict[str, Any], list[Any]]:
        """Of each client's loss with respect to its own parameters; and what is measured, (clients,) each."""
        model = self._model
        parts = {name: part.detach().requires_grad_() for name, part in weights.items()}

        def one(parts: dict[str, Any], x: Any, y: Any) -> list[Any]:
            outputs = torch.func.functional_call(self._module, {**self._fixed, **parts}, (x,))
            return [model.loss(outputs, y), *(of(outputs.detach(), y) for of in model.measures.values())]

        measured = torch.func.vmap(one)(parts, x, y)
        gradients = torch.autograd.grad(measured[0].sum(), list(parts.values()), materialize_grads=True)
        return dict(zip(parts, gradients, strict=True)), [value.detach() for value in measured]


def _copies(values: Any, clients: int) -> Any:
    """Values for each client, (clients, …), each parameter in one piece: a batched product copies what is not.

    Matrices lie transposed, as the gradient of a linear layer does: a step along it then reads and writes in order.
    """
    if values.ndim == 2:
        return values.T.contiguous().repeat(clients, 1, 1).transpose(1, 2)
    return values.repeat(clients, *[1] * values.ndim)
