"""Membership inference on a model that was learned from clients' data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.errors import PlanError
from quorate.parameters import Parameters
from quorate.privacy.audits.membership import Attack, likelihood_ratio, threshold
from quorate.randomness import generator
from quorate.rounds import Instruction
from quorate.simulations.datasets import FederatedDataset
from quorate.task import Model

__all__ = ["members_and_others", "memberships"]


def memberships(
    model: Model,
    parameters: Parameters,
    data: FederatedDataset,
    training: Mapping[str, float],
    shadows: int = 0,
    seed: int = 0,
) -> list[Attack]:
    """Membership inference on a model: were the clients' examples trained on, and not the test set's?

    Args:
        model: of the task.
        parameters: that are attacked.
        data: the clients' examples are the members, the test set's the others.
        training: the settings that shadow models are trained with: the plan's, over all their examples.
        shadows: how many shadow models are trained, each on half of the examples: at least 4; 0: the threshold attack
            only.
        seed: of the halves.

    Raises:
        PlanError: there is no test set.
    """
    trained_on, others = members_and_others(data)
    x, y = (np.concatenate([getattr(trained_on, part), getattr(others, part)]) for part in "xy")
    members = np.arange(len(y)) < len(trained_on)
    losses = _losses(model, parameters, x, y)
    attacks = [threshold(losses[members], losses[~members])]
    if shadows:
        rng = generator(seed, "shadows")
        trained = rng.random((shadows, len(y))).argsort(axis=0) < shadows // 2  # each example in half of them
        seen = []
        for index, chosen in enumerate(trained):
            start = model.initial(generator(seed, "shadow", index))
            instruction = Instruction(
                "sgd", training, seed=int(generator(seed, "order", index).integers(2**62))
            )
            update, _ = model.client(Examples(x[chosen], y[chosen])).fit(start, instruction, {})
            learned = model.layout.unflatten(start.vector + update.vectors["delta"])
            seen.append(_losses(model, learned, x, y))
        attacks.append(likelihood_ratio(losses, np.stack(seen), trained, members))
    return attacks


def members_and_others(data: FederatedDataset) -> tuple[Examples, Examples]:
    """All clients' examples, and the test set's.

    Raises:
        PlanError: there is no test set.
    """
    if data.test is None:
        raise PlanError("an attack needs examples that nobody trained on, and these data have no test set")
    clients = [data.clients[index] for index in range(len(data))]
    return Examples(
        np.concatenate([one.x for one in clients]), np.concatenate([one.y for one in clients])
    ), data.test


def _losses(model: Model, parameters: Parameters, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each example, shape (examples,)."""
    return np.array(
        [model.evaluate(parameters, Examples(x[i : i + 1], y[i : i + 1]))["loss"] for i in range(len(y))]
    )
