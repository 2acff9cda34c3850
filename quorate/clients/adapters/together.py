"""Clients that are trained at once: what they share in every framework, and where goes what each of them makes.

An adapter trains block after block of them, or many blocks at a time: it takes a block's context and schedule
(`begin`), and gives back what the local rule made of its steps (`keep`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

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
        parts: what each block has made.
    """

    start: np.ndarray
    sizes: np.ndarray
    seeds: Sequence[int | None]
    training: TrainingNumbers
    rule: LocalRule
    extras: Mapping[str, np.ndarray]
    stacked: Mapping[str, np.ndarray]
    metrics: Sequence[str]
    parts: list[_Part] = field(default_factory=list)

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
        """Takes what a block has made, which nobody changes any more.

        Args:
            chosen: the clients' places.
            vectors: by name, float32, shape (clients, n) each; what are `Rows` in one block are so in all.
            states: by name, shape (clients, …) each.
            measured: averages over the examples as they were met, shape (metrics, clients).
        """
        self.parts.append(_Part(chosen, vectors, states, measured))

    def made(self) -> tuple[Updates, list[State]]:
        """The updates and the states of all clients, once every block is kept."""
        n, vectors, rows = len(self.start), dict[str, np.ndarray](), dict[str, Rows]()
        for vector in self.rule.vectors(n).vectors:
            blocks = [(part.chosen, part.vectors[vector.name]) for part in self.parts]
            unmade = [(chosen, made) for chosen, made in blocks if not isinstance(made, np.ndarray)]
            if unmade:
                rows[vector.name] = _InBlocks(unmade, (len(self.sizes), vector.length))
            else:
                vectors[vector.name] = self._whole(blocks)
        kept = {
            name: self._whole([(part.chosen, part.states[name]) for part in self.parts])
            for name in self.stacked
        }
        states: list[State] = [
            {name: value[i].copy() for name, value in kept.items()} for i in range(len(self.sizes))
        ]
        measured = self._whole([(part.chosen, part.measured.T) for part in self.parts], np.float64)
        metrics = dict(zip(self.metrics, measured.T, strict=True))
        return Updates(_Made(vectors, rows), self.sizes, metrics, rows), states

    def _whole(
        self, blocks: Sequence[tuple[np.ndarray, Any]], dtype: npt.DTypeLike = np.float32
    ) -> np.ndarray:
        """What blocks of clients have made, as one array in the clients' order; a block in that order is not copied."""
        if len(blocks) == 1 and (np.diff(blocks[0][0]) == 1).all():
            return np.asarray(blocks[0][1], dtype)
        whole = np.empty((len(self.sizes), *blocks[0][1].shape[1:]), dtype)
        for chosen, block in blocks:
            whole[chosen] = block
        return whole


@dataclass(frozen=True, eq=False)
class _Part:
    """What a block has made; see `Together.keep`."""

    chosen: np.ndarray
    vectors: Mapping[str, np.ndarray | Rows]
    states: Mapping[str, np.ndarray]
    measured: np.ndarray


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
        self._vectors, self._rows = dict(vectors), rows

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._vectors and name in self._rows:
            rows = self._rows[name]
            made = self._vectors[name] = np.empty(rows.shape, np.float32)
            for client, vector in enumerate(made):
                rows.one(client, vector)
        return self._vectors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._vectors or name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter({**self._vectors, **self._rows})

    def __len__(self) -> int:
        return len({**self._vectors, **self._rows})
