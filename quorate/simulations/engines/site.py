"""A site: where clients' work is done. It finds their data, has them trained, encodes what they give, and adds it up.

Every engine has one; the *processes* engine has one in every worker. What a member gives depends on the seed, the
round and the member only, never on the site or on who else is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from quorate import pipeline
from quorate.clients.participation import check_training
from quorate.plan import Plan
from quorate.randomness import Randomness
from quorate.rounds import Instruction, Kind, Member, State
from quorate.simulations.datasets import FederatedDataset
from quorate.simulations.engines.contract import Contributions, Done, Order, Training
from quorate.simulations.engines.sequential import evaluated
from quorate.sums import held_in
from quorate.task import Model

__all__ = ["InThisProcess", "Site", "instruction_of", "member_seed"]

_BLOCK_BYTES = 1 << 24  # of updates that wait to be encoded


class Site:
    """Trains and encodes.

    Args:
        data: the clients' data.
        plan: resolved; its fleet's seed keys what the clients draw.
        train: the way to train a block of clients.
        together: whether clients are trained in blocks; one by one otherwise.
    """

    def __init__(self, data: FederatedDataset, plan: Plan, train: Training, together: bool):
        self.data, self.plan = data, plan
        self._terms, self._seed = plan.terms(), plan.fleet.seed
        self._task = plan.task.resolve()
        self._train = train
        self.block = max(1, _BLOCK_BYTES // (4 * self._task.layout.size)) if together else 1
        self._process, self._randomness = -1, Randomness(bytes(32))

    @property
    def model(self) -> Model:
        """What is trained."""
        return self._task.model

    def work(
        self, order: Order, begin: Callable[[int, int], None] = lambda start, stop: None
    ) -> Iterator[Contributions]:
        """The contributions of an order's members; those that are not finite are left out.

        Args:
            order: what to do.
            begin: told which of the members (from, to) are trained next.
        """
        assignment, members = order.assignment, order.members
        terms = self._terms.at(assignment.kind)
        encoding = pipeline.build(terms, assignment.bounds, assignment.broadcast.public)
        told = pipeline.instructed(assignment, terms)
        training = assignment.kind is Kind.FIT
        work, block = (self._train, self.block) if training else (evaluated, 1)
        randomness = self._own_randomness().spawn("clients", assignment.round)
        for start in range(0, len(members), block):
            chosen = members[start : start + block]
            begin(start, start + len(chosen))
            data = [self.data.clients[self.data.index(member)] for member in chosen]
            if start == 0:
                check_training(self._task.model.client(data[0]), told)
            states: Sequence[State] = [order.states.get(member, {}) for member in chosen]
            instructions = [instruction_of(told, member) for member in chosen]
            updates, kept = work(self._task, assignment, data, instructions, states)
            if order.summed and len(chosen) > 1:
                total = encoding.combined(updates, order.discount)
                if total is not None and np.isfinite(total).all():
                    yield Contributions(chosen, total[None], tuple(kept))
                    continue
            streams = [
                randomness.spawn(m) if encoding.draws else randomness for m in chosen
            ]  # each costs 50 µs
            encoded = encoding.encode_many(updates, streams, order.discount)
            yield _finite(Contributions(chosen, encoded, tuple(kept)))

    def _own_randomness(self) -> Randomness:
        """This process's own stream, which no other process draws from, unless a seed says what is drawn."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._randomness = Randomness.system() if self._seed is None else Randomness.from_seed(self._seed)
        return self._randomness


def _finite(made: Contributions) -> Contributions:
    """Those whose vectors are finite."""
    if made.encoded.dtype.kind != "f":
        return made
    good = [
        bool(np.isfinite(vector @ vector) or np.isfinite(vector).all())  # a finite square says it all
        for vector in made.encoded
    ]
    if all(good):
        return made
    chosen = [i for i, fine in enumerate(good) if fine]
    return Contributions(
        members=tuple(made.members[i] for i in chosen),
        encoded=made.encoded[chosen],
        states=tuple(made.states[i] for i in chosen),
    )


def instruction_of(instruction: Instruction, member: Member) -> Instruction:
    """In a seeded run each client has a data order of its own."""
    if instruction.seed is None:
        return instruction
    return dataclasses.replace(instruction, seed=member_seed(instruction.seed, member))


def member_seed(seed: int, member: Member) -> int:
    """The seed of a member's data order, from that of the round's instruction."""
    return int.from_bytes(hashlib.sha256(b"%d %s" % (seed, member.encode())).digest()[:7], "big")


class InThisProcess:
    """The engine that is its own only site.

    Args:
        site: with the data of all clients.
    """

    def __init__(self, site: Site):
        self._site = site

    def run(self, order: Order) -> Done:
        """Trains and encodes, and adds up as it goes if the order says so."""
        states: dict[Member, State] = {}
        members: list[Member] = []
        vectors: list[tuple[tuple[Member, ...], np.ndarray]] = []
        total: np.ndarray | None = None
        for made in self._site.work(order):
            states.update(zip(made.members, made.states, strict=True))
            members += made.members
            if not order.summed:
                vectors += [
                    ((member,), vector) for member, vector in zip(made.members, made.encoded, strict=True)
                ]
                continue
            if total is None:
                total = np.zeros(made.encoded.shape[1], held_in(made.encoded.dtype))
            made.add_to(total)
        if total is not None and members:
            vectors.append((tuple(members), total))
        return Done(vectors, states)

    def close(self) -> None:
        """There is nothing to end."""
