"""Clients that are trained at once: what they share in every framework, and where goes what each of them makes.

An adapter trains block after block of them, or many blocks at a time: it takes a block's context and schedule
(`begin`), and gives back what the local rule made of its steps (`keep`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from quorate.clients.adapters.local_training import Schedule, TrainingNumbers, stack_states
from quorate.errors import DataError
from quorate.rounds import Instruction, Rows, State, Updates
from quorate.strategies import local_rules
from quorate.strategies.contract import LocalRule

__all__ = ["Together"]


@dataclass(frozen=True, eq=False)
class Together:
    """The training of some clients; made by `of`.

    Args:
        start: the flat parameters that all of them start from, float32, shape (n,).
        sizes: how many examples each client has, shape (clients,).
        seeds: of each client's order of examples.
        training: the numbers that they share.
        rule: the local rule.
        extras: what the server broadcasts with the parameters, by name, shape (n,) each.
        stacked: the clients' states, by name, shape (clients, …) each.
        metrics: what is measured, by name.
        vectors: what they make, by name, shape (clients, n) each.
        kept: their new states, like `stacked`.
        measured: averages over the examples as they were met, shape (metrics, clients).
        rows: what they make and is in no array, by name: in blocks, with the clients' places.
    """

    start: np.ndarray
    sizes: np.ndarray
    seeds: Sequence[int | None]
    training: TrainingNumbers
    rule: LocalRule
    extras: Mapping[str, np.ndarray]
    stacked: Mapping[str, np.ndarray]
    metrics: Sequence[str]
    vectors: Mapping[str, np.ndarray]
    kept: Mapping[str, np.ndarray]
    measured: np.ndarray
    rows: dict[str, list[tuple[np.ndarray, Rows]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        start: np.ndarray,
        data: Sequence[Sized],
        instructions: Sequence[Instruction],
        states: Sequence[State],
        metrics: Sequence[str],
    ) -> Together:
        """What clients with these data, instructions and states are to do.

        Args:
            start: the flat parameters, float32, shape (n,).
            data: of each client, at least one example each.
            instructions: for each client; they may differ in the seed only.
            states: of each client; empty for one that never took part.
            metrics: the names of what will be measured.

        Raises:
            DataError: there is no client, or one without an example, an instruction lacks a number, instructions
                differ, or a state does not fit.
        """
        if not data or not len(data) == len(instructions) == len(states):
            found = f"{len(data)} clients, {len(instructions)} instructions, {len(states)} states"
            raise DataError(f"training needs an instruction and a state for each client, got {found}")
        training = TrainingNumbers.of(instructions)
        rule = local_rules.by_name(instructions[0].rule, instructions[0].settings)
        stacked = stack_states(states, rule, len(start))
        sizes = np.array([len(one) for one in data])
        if not sizes.all():
            raise DataError("training needs at least one example of each client")
        return cls(
            start=start,
            sizes=sizes,
            seeds=[instruction.seed for instruction in instructions],
            training=training,
            rule=rule,
            extras={name: np.asarray(v, np.float32) for name, v in instructions[0].extras.items()},
            stacked=stacked,
            metrics=metrics,
            vectors={
                v.name: np.empty((len(data), v.length), np.float32) for v in rule.vectors(len(start)).vectors
            },
            kept={name: np.empty_like(value) for name, value in stacked.items()},
            measured=np.empty((len(metrics), len(data))),
        )

    def blocks(self, most: int) -> list[np.ndarray]:
        """The clients' places in blocks of at most so many: most steps first, and of equally many most examples."""
        steps = self.training.epochs * -(-self.sizes // self.training.batch_size)
        order = np.lexsort((-self.sizes, -steps))
        return [order[i : i + most] for i in range(0, len(order), most)]

    def begin(self, chosen: np.ndarray) -> tuple[Mapping[str, np.ndarray], Schedule]:
        """The rule's context of a block, its vectors of shape (n,) or (clients, n), and the block's schedule."""
        states = {name: value[chosen] for name, value in self.stacked.items()}
        context = self.rule.begin(self.start, self.extras, states)
        return context, Schedule.of(self.sizes[chosen], self.training, [self.seeds[c] for c in chosen])

    def keep(
        self,
        chosen: np.ndarray,
        vectors: Mapping[str, np.ndarray | Rows],
        states: Mapping[str, np.ndarray],
        measured: np.ndarray,
    ) -> None:
        """Takes what a block has made. What are `Rows` in one are so in all."""
        for name, value in self.vectors.items():
            made = vectors[name]
            if isinstance(made, np.ndarray):
                value[chosen] = made
            else:
                self.rows.setdefault(name, []).append((chosen, made))
        for name, value in self.kept.items():
            value[chosen] = states[name]
        self.measured[:, chosen] = measured

    def made(self) -> tuple[Updates, list[State]]:
        """The updates and the states of all clients, once every block is kept."""
        metrics = dict(zip(self.metrics, self.measured, strict=True))
        states: list[State] = [
            {name: value[i].copy() for name, value in self.kept.items()} for i in range(len(self.sizes))
        ]
        rows = {name: _InBlocks(blocks, self.vectors[name].shape) for name, blocks in self.rows.items()}
        return Updates(_Made(self.vectors, rows), self.sizes, metrics, rows), states


@dataclass(frozen=True, eq=False)
class _InBlocks:
    """Rows of clients that were trained in blocks; see `quorate.rounds.Rows`."""

    blocks: Sequence[tuple[np.ndarray, Rows]]
    shape: tuple[int, int]

    def norms(self) -> np.ndarray:
        norms = np.empty(self.shape[0])
        for chosen, rows in self.blocks:
            norms[chosen] = rows.norms()
        return norms

    def weighed(self, weights: np.ndarray) -> np.ndarray:
        first, *others = (rows.weighed(weights[chosen]) for chosen, rows in self.blocks)
        for other in others:
            first += other
        return first

    def one(self, client: int, out: np.ndarray | None = None) -> np.ndarray:
        rows, place = self._places[client]
        return rows.one(place, out)

    @cached_property
    def _places(self) -> dict[int, tuple[Rows, int]]:
        return {c: (rows, place) for chosen, rows in self.blocks for place, c in enumerate(chosen.tolist())}


class _Made(Mapping[str, np.ndarray]):
    """Vectors by name, of which some are made when they are asked for."""

    def __init__(self, vectors: Mapping[str, np.ndarray], rows: Mapping[str, Rows]):
        self._vectors, self._rows = dict(vectors), dict(rows)

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._rows:
            rows = self._rows.pop(name)
            for client, vector in enumerate(self._vectors[name]):
                rows.one(client, vector)
        return self._vectors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._vectors

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)
