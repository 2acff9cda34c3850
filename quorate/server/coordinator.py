"""The coordinator: the round, on one page.

    select → charge the ledger → assign → collect the sum → decode → update → commit → conclude → publish

It is the same loop over every fleet. What leaves the coordinator is written to the store first: the charge before the
assignment, the journal before anything can be revealed, the commit before members keep their state. A coordinator that
was killed aborts the round it finds open, and goes on with a new one: new number, new keys, new noise, new charge.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quorate import pipeline
from quorate.errors import BudgetExhausted, QuorateError, QuorumNotReached
from quorate.fleets import Fleet
from quorate.parameters import Parameters
from quorate.plan import Plan
from quorate.privacy import Epsilons, Ledger
from quorate.randomness import Randomness, generator
from quorate.rounds import (
    Assignment,
    Broadcast,
    Close,
    Closed,
    Instruction,
    Kind,
    Member,
    Outcome,
    PublicValues,
)
from quorate.server.checkpoints import RunState
from quorate.server.selection import Sampler
from quorate.server.store import Run, Store
from quorate.summation import Sink

__all__ = ["Coordinator", "RoundReport"]

log = logging.getLogger(__name__)

ATTEMPTS = 10
"""How many rounds may be aborted one after the other before the run gives up."""


@dataclass(frozen=True)
class RoundReport:
    """How one round went, for whoever watches.

    Args:
        number: of the round, aborted ones counted.
        version: how many rounds are committed now.
        outcome: committed or aborted.
        cohort: how many members were selected.
        survivors: how many are in the sum.
        lost: how many were lost, by phase.
        metrics: of the new model on the server's own data, and of training where the plan lets it out.
        epsilons: spent so far; None when no privacy is claimed.
        reason: why it was aborted.
    """

    number: int
    version: int
    outcome: Outcome
    cohort: int
    survivors: int
    lost: Mapping[str, int]
    metrics: Mapping[str, float]
    epsilons: Epsilons | None
    reason: str | None = None


class Coordinator:
    """Runs the rounds of one run.

    Args:
        plan: resolved.
        run: as the store knows it.
        fleet: who does the work.
        store: where everything is written first.
        sampler: draws the cohorts.
        ledger: of the run; None when the plan claims no privacy.
        randomness: the root of the run's protocol randomness.
        initial: the parameters to start from, if no round is committed yet.
        watch: told of every round.
        publish: told of every committed state: publishes it if it is due.
    """

    def __init__(
        self,
        plan: Plan,
        run: Run,
        fleet: Fleet,
        store: Store,
        sampler: Sampler,
        ledger: Ledger | None,
        randomness: Randomness,
        initial: Parameters,
        watch: Callable[[RoundReport], None] = lambda report: None,
        publish: Callable[[RunState, RoundReport], None] = lambda state, report: None,
    ):
        self.plan, self.run, self.fleet, self.store = plan, run, fleet, store
        self.sampler, self.ledger, self.randomness = sampler, ledger, randomness
        self.watch, self.publish = watch, publish
        self.task, self.strategy = plan.task.resolve(), plan.strategy.resolve()
        self.layout = self.strategy.shared(self.task.layout)
        self.terms = plan.terms()
        self.population = fleet.population()
        self.bounds = plan.bounds(self.population.size)
        self.event = pipeline.event(self.terms, self.bounds, self.population.size)
        self.state = self._recovered(initial)

    def run_to_end(self) -> None:
        """Runs rounds until as many are committed as the plan says.

        Raises:
            QuorateError: too many rounds in a row were aborted, or the parameters diverged.
            BudgetExhausted: the next round would pass the budget.
        """
        aborted = 0
        while self.state.version < self.plan.rounds.count:
            report = self.round()
            self.watch(report)
            aborted = 0 if report.outcome is Outcome.COMMITTED else aborted + 1
            if aborted == ATTEMPTS:
                raise QuorateError(
                    f"{ATTEMPTS} rounds in a row were aborted, the last one because {report.reason}; the run can be "
                    "started again, and goes on from the last committed round"
                )

    def round(self) -> RoundReport:
        """One round, from the selection to the publication."""
        number = self.store.open_round(self.run.id, self.state.version)
        cohort = self.sampler.draw(self.population, self.randomness.spawn("cohort", number))
        self._charge(number, cohort)
        assignment = self._assign(number, cohort)
        encoding = pipeline.build(self.terms, self.bounds, assignment.broadcast.public)
        sink = encoding.sink()
        try:
            closed = self._collect(assignment, encoding, sink)
        except QuorumNotReached as shortage:
            return self._abort(number, cohort, shortage)
        mean, measured = encoding.decode(sink.result(), self.randomness.spawn("decoding", number))
        server, vector = self.strategy.server.update(
            self.state.server,
            self.state.parameters.vector,
            mean,
            fraction_of_population=self.bounds.denominator / self.population.size,
        )
        self._check_finite(number, vector)
        state = RunState(self.state.version + 1, self.layout.unflatten(vector), server)
        report = RoundReport(
            number=number,
            version=state.version,
            outcome=Outcome.COMMITTED,
            cohort=len(cohort),
            survivors=len(closed.survivors),
            lost=closed.lost,
            metrics={**measured, **self._evaluate(state)},
            epsilons=self.spent(),
        )
        self._commit(state, report)
        self.fleet.conclude(self.run.id, number, Outcome.COMMITTED)
        self.publish(state, report)
        return report

    def spent(self) -> Epsilons | None:
        """What the run has spent so far; None when no privacy is claimed."""
        return None if self.ledger is None else self.ledger.spent()

    # --- the steps of a round

    def _charge(self, number: int, cohort: tuple[Member, ...]) -> None:
        """The reservation is the charge: it is written before the assignment leaves."""
        if self.ledger is None or self.event is None:
            return
        try:
            self.ledger.reserve(number, self.event, cohort)
        except BudgetExhausted as exhausted:
            self.store.abort(self.run.id, number, str(exhausted))
            raise

    def _assign(self, number: int, cohort: tuple[Member, ...]) -> Assignment:
        local, training = self.strategy.local, self.plan.training
        seed = self.plan.fleet.seed
        instruction = Instruction(
            rule=local.name,
            settings={**training.model_dump(), **local.settings},
            extras=self.strategy.server.extras(self.state.server),
            seed=None if seed is None else int(generator(seed, "training", number).integers(2**62)),
        )
        public = PublicValues(
            clip_norm=self.plan.privacy.clip_norm,
            rotation_seed=self.randomness.spawn("rotation", number).bytes(32),
        )
        encoded = self.terms.encoded()
        return Assignment(
            run=self.run.id,
            round=number,
            kind=Kind.FIT,
            base_version=self.state.version,
            terms=encoded,
            terms_hash=hashlib.sha256(encoded).digest(),
            broadcast=Broadcast(self.state.parameters, instruction, public),
            bounds=self.bounds,
            members=cohort,
        )

    def _collect(self, assignment: Assignment, encoding: pipeline.Pipeline, sink: Sink) -> Closed:
        present, needed = len(assignment.members), self.bounds.min_survivors
        if present < needed:
            raise QuorumNotReached("selection", present, needed)
        journal = self.store.journal(self.run.id, assignment.round)
        summation = pipeline.summation(
            self.terms, pipeline.session(assignment, encoding), journal, self.fleet.identities
        )
        return self.fleet.collect(assignment, summation, sink, Close())

    def _check_finite(self, number: int, vector: np.ndarray) -> None:
        """A run that diverged stops at its last good state; what the round released stays charged."""
        if not np.isfinite(vector).all():
            reason = f"round {number} left parameters that are not finite"
            self._close(number, reason, revealing=True)
            raise QuorateError(
                f"{reason}: the run diverged, and its last committed state stays; a smaller training.learning_rate or "
                "strategy.learning_rate, or a clip norm, would help"
            )

    def _evaluate(self, state: RunState) -> Mapping[str, float]:
        held_out = self.fleet.held_out()
        return {} if held_out is None else self.task.model.evaluate(state.parameters, held_out)

    def _commit(self, state: RunState, report: RoundReport) -> None:
        self.store.commit(
            self.run.id,
            report.number,
            version=state.version,
            state=state.encoded(),
            cohort=report.cohort,
            survivors=report.survivors,
            lost=report.lost,
            metrics=report.metrics,
            epsilons=_values(report.epsilons),
        )
        self.state = state

    def _abort(self, number: int, cohort: tuple[Member, ...], shortage: QuorumNotReached) -> RoundReport:
        """Closes the round without a result; its charge comes back only if nothing can have been released."""
        log.warning("round %d of run %s is aborted: %s", number, self.run.id, shortage)
        revealing = next(r.revealing for r in self.store.rounds(self.run.id) if r.number == number)
        self._close(number, str(shortage), revealing)
        return RoundReport(
            number=number,
            version=self.state.version,
            outcome=Outcome.ABORTED,
            cohort=len(cohort),
            survivors=0,
            lost={},
            metrics={},
            epsilons=self.spent(),
            reason=str(shortage),
        )

    def _close(self, number: int, reason: str, revealing: bool) -> None:
        if self.ledger is not None and not revealing and self.ledger.is_charged(number):
            self.ledger.refund(number, reason)
        self.store.abort(self.run.id, number, reason)
        self.fleet.conclude(self.run.id, number, Outcome.ABORTED)

    def _recovered(self, initial: Parameters) -> RunState:
        """Aborts the round that an earlier process left open, and reads the last committed state.

        Members are told again how the last rounds ended: the earlier process may not have come to that.
        """
        committed = None
        for past in self.store.rounds(self.run.id):
            if past.status == "open":
                self._close(past.number, "the coordinator was stopped in this round", past.revealing)
            elif past.status == Outcome.ABORTED:
                self.fleet.conclude(self.run.id, past.number, Outcome.ABORTED)
            else:
                committed = past
        if committed is not None:
            self.fleet.conclude(self.run.id, committed.number, Outcome.COMMITTED)
        checkpoint = self.store.checkpoint(self.run.id)
        if checkpoint is None:
            return RunState(0, initial, self.strategy.server.init(self.layout))
        return RunState.decoded(*checkpoint, self.layout)


def _values(epsilons: Epsilons | None) -> dict[str, float]:
    return {} if epsilons is None else {"released": epsilons.released, "server": epsilons.server}
