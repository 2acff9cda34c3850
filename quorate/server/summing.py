"""Our own engine: assign → collect the sum → decode → the strategy's update.

The plan says what is summed and how (`quorate.pipeline`); the fleet does the work. State between rounds is the
strategy's server rule's and the privacy mechanism's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from quorate import pipeline
from quorate.engine import RunState, Step
from quorate.errors import QuorateError, QuorumNotReached
from quorate.fleets import Fleet, Population
from quorate.parameters import Parameters
from quorate.plan import Plan, Terms
from quorate.privacy import Event
from quorate.privacy.secagg import Unmask, add_masks
from quorate.randomness import Randomness, generator
from quorate.rounds import (
    Assignment,
    Broadcast,
    Close,
    Closed,
    CohortBounds,
    Instruction,
    Kind,
    Member,
    Outcome,
    PublicValues,
    State,
)
from quorate.summation import Journal, Sink

__all__ = ["SummingEngine"]

_SERVER, _MECHANISM = "server.", "mechanism."


class SummingEngine:
    """Encode, sum, decode.

    Args:
        plan: resolved.
        run: the run's id.
        fleet: who does the work.
        population: the population's size that privacy is accounted for; a fleet never offers fewer to select from.
        randomness: the root of the run's protocol randomness.
        initial: the parameters to start from.
        unmask: takes masks off a secure sum: in this process, or `quorate.server.unmasking_pool`.
    """

    def __init__(
        self,
        plan: Plan,
        run: str,
        fleet: Fleet,
        population: int,
        randomness: Randomness,
        initial: Parameters,
        unmask: Unmask = add_masks,
    ):
        self._plan, self._run, self._fleet, self._size = plan, run, fleet, population
        self._randomness, self._start, self._unmask = randomness, initial, unmask
        self._task, self._strategy, self._mechanism = (
            plan.task.resolve(),
            plan.strategy.resolve(),
            plan.privacy,
        )
        self.layout = self._strategy.shared(self._task.layout)
        self._terms = plan.terms()
        self._encoded_terms = self._terms.encoded()
        kinds = (Kind.FIT,) if plan.evaluation is None else tuple(Kind)
        self._kinds = {kind: _Work.of(self._terms.at(kind), population) for kind in kinds}

    def initial(self) -> RunState:
        """The parameters to start from, and the first states of server rule and mechanism."""
        vectors = self._strategy.vectors(self.layout)
        own = _together(self._strategy.server.init(self.layout), self._mechanism.init(vectors))
        return RunState(0, self._start, own)

    def population(self) -> Population:
        """Who can be selected now.

        Raises:
            QuorateError: there are fewer than privacy is accounted for.
        """
        population = self._fleet.population()
        if population.present < self._size:
            raise QuorateError(
                f"{population.present} members can be selected, and privacy is accounted for a population of at least "
                f"{self._size}; the run can be started again when there are more"
            )
        return population

    def event(self, kind: Kind, state: RunState) -> Event | None:
        """The noisy sum of a cohort, as it was drawn."""
        return self._kinds[kind].event

    def step(
        self, kind: Kind, number: int, state: RunState, cohort: tuple[Member, ...], journal: Journal
    ) -> Step:
        """One round, from the assignment to the strategy's update, or to the metrics of an evaluation."""
        work, server, mechanism = self._kinds[kind], _part(state.own, _SERVER), _part(state.own, _MECHANISM)
        if kind is Kind.FIT:
            assignment = self._assign(number, state, self._training(number, server), mechanism, cohort, work)
        else:
            mechanism = {}  # an evaluation's has none
            assignment = self._assign(
                number, state, Instruction(self._strategy.local.name, {}), mechanism, cohort, work
            )
        encoding = pipeline.build(work.terms, work.bounds, assignment.broadcast.public)
        sink = encoding.sink()
        closed = self._collect(assignment, encoding, sink, journal, work)
        stream = self._randomness.spawn("decoding", number)
        decoded, metrics, mechanism = encoding.decode(sink.result(), stream, mechanism)
        metrics = {**metrics, **closed.measured}
        if kind is Kind.EVALUATE:
            return Step(state.parameters, state.own, closed.survivors, closed.lost, metrics)
        mechanism, means = self._mechanism.update(mechanism, decoded)
        server, vector = self._strategy.server.update(
            server,
            state.parameters.vector,
            means,
            fraction_of_population=self._plan.rounds.cohort / self._size,
        )
        return Step(
            parameters=self.layout.unflatten(vector),
            own=_together(server, mechanism),
            survivors=closed.survivors,
            lost=closed.lost,
            metrics=metrics,
        )

    def evaluate(self, parameters: Parameters) -> Mapping[str, float]:
        """Of the model on the fleet's held-out data."""
        held_out = self._fleet.held_out()
        return {} if held_out is None else self._task.model.evaluate(parameters, held_out)

    def conclude(self, number: int, outcomes: Mapping[Member, Outcome]) -> None:
        """Through the fleet."""
        self._fleet.conclude(self._run, number, outcomes)

    def _training(self, number: int, server: State) -> Instruction:
        local, training = self._strategy.local, self._plan.training
        seed = self._plan.fleet.seed
        return Instruction(
            rule=local.name,
            settings={**training.settings(), **local.settings},
            extras=self._strategy.server.extras(server),
            seed=None if seed is None else int(generator(seed, "training", number).integers(2**62)),
        )

    def _assign(
        self,
        number: int,
        state: RunState,
        instruction: Instruction,
        mechanism: State,
        cohort: tuple[Member, ...],
        work: _Work,
    ) -> Assignment:
        clip_norm = work.terms.privacy.clip(mechanism)
        public = PublicValues(clip_norm, self._randomness.spawn("rotation", number).bytes(32))
        return Assignment(
            run=self._run,
            round=number,
            kind=work.terms.kind,
            base_version=state.version,
            terms=self._encoded_terms,
            terms_hash=hashlib.sha256(self._encoded_terms).digest(),
            broadcast=Broadcast(state.parameters, instruction, public),
            bounds=work.bounds,
            members=cohort,
        )

    def _collect(
        self,
        assignment: Assignment,
        encoding: pipeline.Pipeline,
        sink: Sink,
        journal: Journal,
        work: _Work,
    ) -> Closed:
        summing, rounds = work.terms.secure_aggregation, work.terms.rounds
        present, needed = len(assignment.members), work.bounds.min_survivors * summing.fewest_buckets
        if present < needed:
            raise QuorumNotReached("selection", present, needed)
        session = pipeline.session(assignment, encoding)
        partition = self._randomness.spawn("buckets", assignment.round)
        summation = pipeline.summation(
            work.terms, session, journal, self._fleet.identities, self._unmask, partition
        )
        close = Close(rounds.cohort if rounds.over_selection > 1 else None)
        return self._fleet.collect(assignment, summation, sink, close)


@dataclass(frozen=True)
class _Work:
    """What rounds of one kind have in common."""

    terms: Terms
    bounds: CohortBounds
    event: Event | None

    @classmethod
    def of(cls, terms: Terms, population: int) -> _Work:
        """In a population of the given size."""
        bounds = terms.bounds(population)
        return cls(terms, bounds, terms.event(bounds, population))


def _together(server: State, mechanism: State) -> State:
    named = {_SERVER + name: array for name, array in server.items()}
    return named | {_MECHANISM + name: array for name, array in mechanism.items()}


def _part(own: State, prefix: str) -> State:
    return {name.removeprefix(prefix): array for name, array in own.items() if name.startswith(prefix)}
