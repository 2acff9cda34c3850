"""What makes a step of a run: the contract between the coordinator and whatever turns a cohort's data into a new model.

The coordinator owns what every run has: the choice of the cohort, the charge, the commit, the publication. An engine
owns the step in between. Ours encodes, sums and decodes (`quorate.server.summing`); another, such as a learning process
of another framework, may do its own aggregation: then it says itself what a step releases, and without an event no ε is
claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from quorate.fleets import Ability, Fleet, Population
from quorate.parameters import Layout, Parameters
from quorate.plan import Plan
from quorate.privacy import Event
from quorate.rounds import Kind, Member, Outcome, State
from quorate.summation import Journal

__all__ = ["ClosableEngine", "Engine", "EngineSource", "RunState", "Step"]


@dataclass(frozen=True)
class RunState:
    """What a round starts from, and what a committed round leaves.

    Args:
        version: how many rounds were committed.
        parameters: the shared model.
        own: what else the engine keeps from one round to the next: named arrays of any numeric dtype.
    """

    version: int
    parameters: Parameters
    own: State


@dataclass(frozen=True)
class Step:
    """What a round came to.

    Args:
        parameters: the new model.
        own: the engine's own state after the round.
        survivors: the members whose updates are in it.
        lost: how many members were lost, by phase.
        metrics: of training, where the plan lets them out; of an evaluation, what it came to.
    """

    parameters: Parameters
    own: State
    survivors: tuple[Member, ...]
    lost: Mapping[str, int]
    metrics: Mapping[str, float]


class Engine(Protocol):
    """Makes the steps of one run. It keeps nothing between two steps that is not in the `RunState`."""

    @property
    def layout(self) -> Layout:
        """Of the parameters that it learns."""
        ...

    def initial(self) -> RunState:
        """The state before the first round, version 0."""
        ...

    def population(self) -> Population:
        """Who can be selected for the next round; it may wait until there are enough."""
        ...

    def event(self, kind: Kind, state: RunState) -> Event | None:
        """What a step from this state releases: charged before the step begins. None when no privacy is claimed."""
        ...

    def step(
        self, kind: Kind, number: int, state: RunState, cohort: tuple[Member, ...], journal: Journal
    ) -> Step:
        """A round: from the assignment to the new parameters, which need not be finite.

        Args:
            kind: of the round; after an evaluation parameters and state are as they were. Only an engine of a plan
                that has an `[evaluation]` is asked for one.
            number: of the round; never used twice in a run.
            state: what it starts from.
            cohort: the members that were drawn.
            journal: of the round: written before anything computed from clients' data can be released.

        Raises:
            QuorumNotReached: too few members were left; nothing was released unless the journal says so.
        """
        ...

    def evaluate(self, parameters: Parameters) -> Mapping[str, float]:
        """Metrics of a model on the server's own data, not in a round; empty when there are none."""
        ...

    def conclude(self, number: int, outcomes: Mapping[Member, Outcome]) -> None:
        """Tells the members how a round ended for each of them. Idempotent: they are told again after a restart."""
        ...


class ClosableEngine(Engine, Protocol):
    """An engine that holds something, such as a process."""

    def close(self) -> None:
        """Frees it."""
        ...


class EngineSource(Protocol):
    """What an engine is made from: `[engine]` of a plan, by the entry points `quorate.engines`."""

    @property
    def needs(self) -> frozenset[Ability]:
        """What the fleet must be able to do."""
        ...

    @property
    def delta(self) -> float | None:
        """The δ of every ε, if the engine names events; None: `default_delta` of the population."""
        ...

    @property
    def budget(self) -> float | None:
        """The `released` ε that the ledger must not pass; None: no limit."""
        ...

    def open(self, plan: Plan, run: str, fleet: Fleet, initial: Parameters) -> ClosableEngine:
        """The engine, ready for the rounds of a run.

        Args:
            plan: resolved.
            run: the run's id.
            fleet: who does the work.
            initial: the parameters to start from.
        """
        ...
