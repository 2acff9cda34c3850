"""A plan with canaries among its clients, and what the learned model tells of them.

Canaries are members whose update is a random direction, far longer than the clip norm; half of them, by fair coins, are
in the population, and the model's change is searched for all of them. Everything else is the plan's own: strategy,
mechanism, codecs, sampling; secure aggregation is replaced by the ideal sum, which is the same to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quorate.errors import PlanError
from quorate.fleets import Client
from quorate.parameters import Layout, Parameters
from quorate.plan import IdealSum, PlainSum, Plan, RingSum
from quorate.privacy.audits.canaries import CanaryAudit, audit
from quorate.randomness import generator
from quorate.rounds import Instruction, Member, State, Update
from quorate.simulations.datasets import FederatedDataset
from quorate.simulations.source import Simulation
from quorate.strategies import local_rules
from quorate.task import Model, ProgramSpec, Task

__all__ = ["Canaries", "with_canaries"]

_TOO_LONG = 10.0
"""Canaries are so many times longer than the clip norm: a clip that does nothing shows."""


@dataclass(frozen=True)
class Canaries:
    """A plan and a fleet with canaries in it.

    Args:
        plan: to be run on the fleet.
        fleet: the clients, and the canaries that take part.
        start: the parameters that the run starts from.
        directions: of all canaries, unit vectors, float32, shape (canaries, parameters).
        taking_part: which of them are in the fleet.
    """

    plan: Plan
    fleet: Simulation
    start: np.ndarray
    directions: np.ndarray
    taking_part: np.ndarray

    def found(self, parameters: Parameters, delta: float, confidence: float = 0.95) -> CanaryAudit:
        """What the model that was learned tells of the canaries.

        Args:
            parameters: at the end of the run.
            delta: of the claim.
            confidence: of the bounds.

        Raises:
            DataError: there are too few canaries.
        """
        change = parameters.vector.astype(np.float64) - self.start
        scores = self.directions @ change
        return audit(scores[self.taking_part], scores[~self.taking_part], delta, confidence)


def with_canaries(plan: Plan, fleet: Simulation, canaries: int, seed: int = 0) -> Canaries:
    """Puts canaries among the clients of a plan; the cohort grows with the population.

    Args:
        plan: with privacy, for a simulation.
        fleet: its clients.
        canaries: how many are drawn; about half take part.
        seed: of the directions, the coins, and the run.

    Raises:
        PlanError: the plan has no clip norm, so nothing bounds what a canary contributes.
    """
    clip_norm = plan.privacy.clip_norm
    if clip_norm is None:
        raise PlanError("privacy.clip_norm: missing; without a bound on updates there is no claim to audit")
    task, strategy = plan.task.resolve(), plan.strategy.resolve()
    layout = strategy.shared(task.layout)
    rng = generator(seed, "canaries")
    directions = rng.standard_normal((canaries, layout.size), np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    taking_part = rng.random(canaries) < 0.5
    lengths = {vector.name: vector.length for vector in strategy.vectors(layout).vectors}
    members = [
        _Canary({"delta": np.float32(_TOO_LONG * clip_norm) * directions[index]}, lengths)
        for index in np.flatnonzero(taking_part)
    ]
    data = _Beside(fleet.data, members)
    audited = Task(_WithCanaries(task.model))
    summing = plan.secure_aggregation
    ideal = (
        IdealSum(corrupt=summing.corrupt, dropout=summing.dropout)
        if isinstance(summing, RingSum)
        else PlainSum()
    )
    rounds = plan.rounds.model_copy(
        update={"cohort": round(plan.rounds.cohort * len(data) / len(fleet.data)), "largest_cohort": None}
    )
    content = {name: getattr(plan, name) for name in ("training", "strategy", "privacy")}
    content |= {"task": audited, "rounds": rounds, "secure_aggregation": ideal}
    own = dataclasses.replace(fleet, data=data, seed=seed, engine="sequential")
    start = task.model.initial(generator(seed, "initial parameters")).vector.astype(np.float64)
    return Canaries(Plan(**content), own, start, directions, taking_part)


@dataclass(frozen=True)
class _Canary:
    """What stands in the place of a canary's data."""

    vectors: Mapping[str, np.ndarray]
    lengths: Mapping[str, int]

    rules = frozenset(local_rules.names())

    def __len__(self) -> int:
        return 1

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """Its direction; nothing of any other vector."""
        zeros = {name: np.zeros(length, np.float32) for name, length in self.lengths.items()}
        return Update(zeros | dict(self.vectors), 1), {}

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """Nothing."""
        return Update({}, 1)


class _Beside(FederatedDataset):
    """Clients, and canaries behind them."""

    def __init__(self, data: FederatedDataset, canaries: Sequence[_Canary]):
        super().__init__(f"{data.name}, {len(canaries)} canaries", _Both(data, canaries), data.test)
        object.__setattr__(self, "_data", data)

    def member(self, index: int) -> Member:
        """A client's own name, or `canary-0` and so on."""
        clients: FederatedDataset = self.__dict__["_data"]
        return clients.member(index) if index < len(clients) else f"canary-{index - len(clients)}"

    def index(self, member: Member) -> int:
        """The index of a client or a canary."""
        clients: FederatedDataset = self.__dict__["_data"]
        if member.startswith("canary-"):
            return len(clients) + int(member.removeprefix("canary-"))
        return clients.index(member)


class _Both:
    """The clients' data, and canaries in the place of data."""

    def __init__(self, data: FederatedDataset, canaries: Sequence[_Canary]):
        self._data, self._canaries = data, canaries

    def __len__(self) -> int:
        return len(self._data) + len(self._canaries)

    def __getitem__(self, index: int) -> Any:
        clients = len(self._data)
        return self._data.clients[index] if index < clients else self._canaries[index - clients]

    def size_of(self, index: int) -> int:
        """A canary counts as one example."""
        return self._data.clients.size_of(index) if index < len(self._data) else 1

    @property
    def sizes(self) -> np.ndarray:
        """Of both."""
        return np.concatenate([self._data.clients.sizes, np.ones(len(self._canaries), np.int64)])


class _WithCanaries:
    """A model whose clients may be canaries."""

    def __init__(self, model: Model):
        self._model = model
        self.name, self.settings, self.metrics = model.name, model.settings, model.metrics

    @cached_property
    def layout(self) -> Layout:
        """The model's."""
        return self._model.layout

    def initial(self, rng: np.random.Generator) -> Parameters:
        """The model's."""
        return self._model.initial(rng)

    def client(self, data: Any) -> Client:
        """A canary is its own client, and does what it is told to by no rule."""
        if not isinstance(data, _Canary):
            return self._model.client(data)
        made: Any = data
        return made  # type: ignore[no-any-return]

    def evaluate(self, parameters: Parameters, data: Any) -> Mapping[str, float]:
        """The model's."""
        return self._model.evaluate(parameters, data)

    def program_spec(self) -> ProgramSpec:
        """The model's."""
        return self._model.program_spec()
