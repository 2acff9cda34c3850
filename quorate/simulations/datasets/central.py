"""A dataset in one place: examples to train with, which a partition spreads over clients, and examples to test with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.randomness import generator
from quorate.simulations import partitions
from quorate.simulations.datasets.federated import ClientData, FederatedDataset

__all__ = ["Dataset", "split"]


@dataclass(frozen=True)
class Dataset:
    """Examples to train with, and examples to test with.

    Args:
        name: as in a plan.
        train: what is partitioned over the clients.
        test: what the server evaluates on; no client has any of it.
    """

    name: str
    train: Examples
    test: Examples

    def partition(self, kind: str, clients: int, seed: int = 0, **options: Any) -> FederatedDataset:
        """The training examples, over clients.

        Args:
            kind: `iid`, `dirichlet` or `quantity` (with `alpha`), `shards` (with `per_client`), see `partitions`.
            clients: how many there are.
            seed: the same gives the same partition.
            options: the kind's own.

        Raises:
            PlanError: there is no such kind, or it has no such option.
            DataError: the data can't be partitioned so.
        """
        rng = generator(seed, "partition", self.name, kind, clients)
        parts = partitions.by_name(kind, self.train.y, clients, rng, **options)
        shown = ", ".join([f"{clients} clients", *(f"{k} {v}" for k, v in options.items()), f"seed {seed}"])
        return FederatedDataset(
            f"{self.name}, {kind} over {shown}", ClientData(self.train, tuple(parts)), self.test
        )


def split(name: str, x: np.ndarray, y: np.ndarray, seed: int) -> Dataset:
    """A dataset whose test set is a fifth, rounded up: every fifth example in the order of the targets, ties at random.

    Args:
        name: as in a plan.
        x: features, shape (examples, features).
        y: targets, shape (examples,).
        seed: the same gives the same split.
    """
    examples = Examples(x, y)
    order = generator(seed, "split", name).permutation(len(examples))
    order = order[np.argsort(examples.y[order], kind="stable")]
    held_out = np.zeros(len(examples), bool)
    held_out[order[::5]] = True
    return Dataset(name, examples.take(np.flatnonzero(~held_out)), examples.take(np.flatnonzero(held_out)))
