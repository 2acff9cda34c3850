"""Data of many clients: each client's examples, found by index, and made only when they are asked for.

A partition of one dataset, data that belong to somebody by nature, and clients that are generated look the same from
outside. What leaves here is a client's `Examples`; a population of a million clients costs nothing until its clients
are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError
from quorate.rounds import Member

__all__ = ["ClientData", "Clients", "FederatedDataset", "GeneratedClients"]

_COUNTED = 10_000
"""Label counts are taken from so many clients at most: those of generated clients have to be made first."""


class Clients(Protocol):
    """The clients' examples, by index."""

    def __len__(self) -> int:
        """How many clients there are."""
        ...

    def __getitem__(self, index: int, /) -> Examples:
        """A client's examples."""
        ...

    def size_of(self, index: int) -> int:
        """How many examples a client has, without making them."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """How many examples each client has; int64, shape (clients,)."""
        ...


class ClientData:
    """Clients that share one array of examples.

    Args:
        examples: of all clients.
        parts: one array of indices a client.
    """

    def __init__(self, examples: Examples, parts: Sequence[np.ndarray]):
        self.examples, self.parts = examples, tuple(parts)

    def __getitem__(self, index: int) -> Examples:
        part = self.parts[index]
        first, last = (int(part[0]), int(part[-1])) if len(part) else (0, -2)
        if last - first == len(part) - 1 and (part[1:] > part[:-1]).all():  # one after the other
            return Examples(self.examples.x[first : last + 1], self.examples.y[first : last + 1])  # no copy
        return self.examples.take(part)

    def __len__(self) -> int:
        return len(self.parts)

    def size_of(self, index: int) -> int:
        """How many examples a client has."""
        return len(self.parts[index])

    @property
    def sizes(self) -> np.ndarray:
        """How many examples each client has; int64, shape (clients,)."""
        return np.array([len(part) for part in self.parts], np.int64)


@dataclass(frozen=True)
class GeneratedClients:
    """Clients that do not exist until they are drawn.

    Args:
        count: how many there are.
        make: a client's examples, from its index: the same for the same index.
        size: how many examples every client has.
    """

    count: int
    make: Callable[[int], Examples]
    size: int

    def __getitem__(self, index: int) -> Examples:
        return self.make(index)

    def __len__(self) -> int:
        return self.count

    def size_of(self, index: int) -> int:
        """The same for all."""
        return self.size

    @property
    def sizes(self) -> np.ndarray:
        """The same for all; int64, shape (clients,)."""
        return np.broadcast_to(np.int64(self.size), (self.count,))


@dataclass(frozen=True)
class FederatedDataset:
    """Data of many clients, and the server's test set.

    Args:
        name: what it is, for people.
        clients: each client's examples, by index.
        test: what the server evaluates on; None if it has nothing.
        keys: the clients' own names, where they have any; `client-0` and so on otherwise.
    """

    name: str
    clients: Clients
    test: Examples | None
    keys: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.keys is not None and not len(set(self.keys)) == len(self.keys) == len(self.clients):
            raise DataError(f"{self.name}: clients need different names, one each")

    def __len__(self) -> int:
        return len(self.clients)

    def member(self, index: int) -> Member:
        """The name of the client at an index.

        Raises:
            IndexError: there is no such client.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no client {index}, there are {len(self)}")
        return f"client-{index}" if self.keys is None else self.keys[index]

    def index(self, member: Member) -> int:
        """The index of a client, from its name.

        Raises:
            DataError: there is no client of this name.
        """
        if self.keys is not None:
            index = self._indices.get(member, -1)
        else:
            number = member.removeprefix("client-")
            index = int(number) if number.isdecimal() and f"client-{int(number)}" == member else -1
        if not 0 <= index < len(self.clients):
            last = len(self) - 1
            raise DataError(
                f"there is no client {member!r}; these exist: {self.member(0)} to {self.member(last)}"
            )
        return index

    @cached_property
    def _indices(self) -> Mapping[str, int]:
        return {key: index for index, key in enumerate(self.keys or ())}

    def __iter__(self) -> Iterator[Examples]:
        return (self.clients[index] for index in range(len(self)))

    def examples_of(self, member: Member) -> int:
        """How many examples a client has."""
        return self.clients.size_of(self.index(member))

    @cached_property
    def mean_examples(self) -> float:
        """How many examples a client has on average."""
        return float(self.clients.sizes.mean())

    def label_counts(self, most: int = _COUNTED) -> np.ndarray:
        """How many examples of each label each client has; int64, shape (clients, labels).

        Args:
            most: of how many clients, from the first on.

        Raises:
            DataError: the targets are no labels.
        """
        targets = [self.clients[index].y for index in range(min(len(self), most))]
        if any(y.dtype != np.int64 for y in targets):
            raise DataError(f"{self.name} has no labels to count: its targets are values")
        labels = 1 + max(int(y.max()) for y in targets if len(y))
        return np.stack([np.bincount(y, minlength=labels) for y in targets])

    def describe(self) -> dict[str, Any]:
        """What it holds, and how unequal its clients are.

        Keys: `name`, `clients`, `train_examples`, `test_examples`, `features`, `labels` if there are any;
        `examples_each` is the smallest, median and largest number of a client's examples; `labels_each`,
        where there are labels, that of its different labels (of the first 10,000 clients).
        """
        sizes, first = self.clients.sizes, self.clients[0]
        described: dict[str, Any] = {
            "name": self.name,
            "clients": len(self),
            "train_examples": int(sizes.sum()),
            "test_examples": 0 if self.test is None else len(self.test),
            "features": first.x.shape[1],
            "examples_each": _spread(sizes),
        }
        if first.y.dtype == np.int64:
            counts = self.label_counts()
            described |= {"labels": counts.shape[1], "labels_each": _spread((counts > 0).sum(axis=1))}
        return described


def _spread(values: np.ndarray) -> tuple[int, float, int]:
    return int(values.min()), float(np.median(values)), int(values.max())
