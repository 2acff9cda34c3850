"""The coordinator: the round, on one page.

    select → charge the ledger → step (assign → collect the sum → decode → update) → commit → conclude → publish

It is the same loop over every engine and fleet, and for both kinds of rounds: an evaluation leaves the model as it was,
and comes before the next training. What leaves the coordinator is written to the store first: the charge
before the assignment, the journal before anything can be revealed, the commit before members keep their state. A
coordinator that was killed aborts the round it finds open, and goes on with a new one: new number, new keys, new noise,
new charge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quorate.engine import Engine, RunState, Step
from quorate.errors import BudgetExhausted, QuorateError, QuorumNotReached, RoundsAborted
from quorate.privacy import Epsilons, Event, Ledger
from quorate.randomness import Randomness
from quorate.rounds import Kind, Member, Outcome
from quorate.server import checkpoints
from quorate.server.examples import ExampleBudget
from quorate.server.records import Run, evaluated
from quorate.server.selection import Sampler
from quorate.server.store import Store

__all__ = ["Coordinator", "RoundReport"]

log = logging.getLogger(__name__)

ATTEMPTS = 10
"""How many rounds may be aborted one after the other before the run gives up."""


@dataclass(frozen=True)
class RoundReport:
    """How one round went, for whoever watches.

    Args:
        number: of the round, aborted ones counted.
        kind: training, or an evaluation on members' data.
        version: how many rounds of training are committed now.
        outcome: committed or aborted.
        cohort: how many members were selected.
        survivors: how many are in the sum.
        lost: how many were lost, by phase.
        metrics: of the new model on the server's own data, and of training where the plan lets it out; of an
            evaluation, what it came to.
        epsilons: spent so far; None when no privacy is claimed.
        reason: why it was aborted.
    """

    number: int
    kind: Kind
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
        run: as the store knows it.
        rounds: how many to commit.
        engine: makes the steps.
        store: where everything is written first.
        samplers: draw the cohorts of each kind of round.
        ledger: of the run; None when the plan claims no privacy.
        randomness: the root of the run's protocol randomness.
        watch: told of every round.
        publish: told of every committed round: publishes the state if it is due.
        evaluates: says after how many committed rounds the model is evaluated on members' data.
        examples: the run's budget for single examples; None when the plan says none.
    """

    def __init__(
        self,
        run: Run,
        rounds: int,
        engine: Engine,
        store: Store,
        samplers: Mapping[Kind, Sampler],
        ledger: Ledger | None,
        randomness: Randomness,
        watch: Callable[[RoundReport], None] = lambda report: None,
        publish: Callable[[RunState, RoundReport], None] = lambda state, report: None,
        evaluates: Callable[[int], bool] = lambda version: False,
        examples: ExampleBudget | None = None,
    ):
        self.run, self.rounds, self.engine, self.store = run, rounds, engine, store
        self.samplers, self.ledger, self.randomness = samplers, ledger, randomness
        self.watch, self.publish, self.evaluates, self.examples = watch, publish, evaluates, examples
        self._evaluated = evaluated(store.rounds(run.id))
        self.state = self._recovered()

    def run_to_end(self) -> None:
        """Runs rounds until as many are committed as the plan says.

        Raises:
            RoundsAborted: too many rounds in a row were aborted.
            QuorateError: the parameters diverged.
            BudgetExhausted: the next round would pass the budget.
        """
        aborted = 0
        while (kind := self.due()) is not None:
            report = self.round(kind)
            self.watch(report)
            aborted = 0 if report.outcome is Outcome.COMMITTED else aborted + 1
            if aborted == ATTEMPTS:
                raise RoundsAborted(
                    f"{ATTEMPTS} rounds in a row were aborted, the last one because {report.reason}; the run can be "
                    "started again, and goes on from the last committed round"
                )

    def due(self) -> Kind | None:
        """What the next round is; None when all are committed."""
        version = self.state.version
        if self._evaluated < version and self.evaluates(version):
            return Kind.EVALUATE
        return Kind.FIT if version < self.rounds else None

    def round(self, kind: Kind = Kind.FIT) -> RoundReport:
        """One round, from the selection to the publication."""
        population = self.engine.population()
        number = self.store.open_round(self.run.id, self.state.version, kind)
        cohort = self.samplers[kind].draw(population, self.randomness.spawn("cohort", number))
        self._charge(number, self.engine.event(kind, self.state), cohort)
        self.store.assign(self.run.id, number, cohort)
        try:
            step = self.engine.step(kind, number, self.state, cohort, self.store.journal(self.run.id, number))
        except QuorumNotReached as shortage:
            return self._abort(kind, number, cohort, shortage)
        self._check_finite(number, step.parameters.vector)
        report = self._committed(kind, number, cohort, step)
        summed = frozenset(step.survivors)
        outcomes = {m: Outcome.COMMITTED if m in summed else Outcome.ABORTED for m in cohort}
        self.engine.conclude(number, outcomes)
        self.publish(self.state, report)
        return report

    def spent(self) -> Epsilons | None:
        """What the run has spent so far; None when no privacy is claimed."""
        return None if self.ledger is None else self.ledger.spent()

    # --- the steps of a round

    def _charge(self, number: int, event: Event | None, cohort: tuple[Member, ...]) -> None:
        """The reservation is the charge: it is written before the assignment leaves."""
        try:
            if self.examples is not None:
                self.examples.check(number, cohort)
            if self.ledger is not None and event is not None:
                self.ledger.reserve(number, event, cohort)
        except BudgetExhausted as exhausted:
            self.store.abort(self.run.id, number, str(exhausted))
            raise

    def _check_finite(self, number: int, vector: np.ndarray) -> None:
        """A run that diverged stops at its last good state; what the round released stays charged."""
        if not np.isfinite(vector).all():
            reason = f"round {number} left parameters that are not finite"
            self._close(number, reason, revealing=True)
            raise QuorateError(
                f"{reason}: the run diverged, and its last committed state stays; a smaller training.learning_rate or "
                "strategy.learning_rate, or a clip norm, would help"
            )

    def _committed(self, kind: Kind, number: int, cohort: tuple[Member, ...], step: Step) -> RoundReport:
        """Writes the round's row and the checkpoint, in one transaction."""
        state, metrics = self.state, step.metrics
        if kind is Kind.FIT:
            state = RunState(state.version + 1, step.parameters, step.own)
            metrics = {**metrics, **self.engine.evaluate(state.parameters)}
        report = RoundReport(
            number=number,
            kind=kind,
            version=state.version,
            outcome=Outcome.COMMITTED,
            cohort=len(cohort),
            survivors=len(step.survivors),
            lost=step.lost,
            metrics=metrics,
            epsilons=self.spent(),
        )
        self.store.commit(
            self.run.id,
            number,
            version=state.version,
            state=checkpoints.encode(state) if kind is Kind.FIT else None,
            cohort=report.cohort,
            survivors=step.survivors,
            lost=report.lost,
            metrics=report.metrics,
            epsilons=_values(report.epsilons),
        )
        self.state = state
        self._evaluated = state.version if kind is Kind.EVALUATE else self._evaluated
        return report

    def _abort(
        self, kind: Kind, number: int, cohort: tuple[Member, ...], shortage: QuorumNotReached
    ) -> RoundReport:
        """Closes the round without a result; its charge comes back only if nothing can have been released."""
        log.warning("round %d of run %s is aborted: %s", number, self.run.id, shortage)
        revealing = next(r.revealing for r in self.store.rounds(self.run.id) if r.number == number)
        self._close(number, str(shortage), revealing)
        return RoundReport(
            number=number,
            kind=kind,
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
        """The charge comes back, if it does, by the transaction that closes the round."""

        def abort(refund: bytes | None = None) -> None:
            self.store.abort(self.run.id, number, reason, refund)

        if self.ledger is not None and not revealing and self.ledger.is_charged(number):
            self.ledger.refund(number, reason, abort)
        else:
            abort()
        self._conclude(number)

    def _conclude(self, number: int) -> None:
        """Tells how a round ended that this process did not commit: the store knows, also after a restart."""
        self.engine.conclude(number, self.store.outcomes(self.run.id, number))

    def _recovered(self) -> RunState:
        """Aborts the round that an earlier process left open, and reads the last committed state.

        Members are told again how the last rounds ended: the earlier process may not have come to that.
        """
        committed = None
        for past in self.store.rounds(self.run.id):
            if past.status == "open":
                self._close(past.number, "the coordinator was stopped in this round", past.revealing)
            elif past.status == Outcome.ABORTED:
                self._conclude(past.number)
            else:
                committed = past
        if committed is not None:
            self._conclude(committed.number)
        checkpoint = self.store.checkpoint(self.run.id)
        if checkpoint is None:
            return self.engine.initial()
        return checkpoints.decode(*checkpoint, self.engine.layout)


def _values(epsilons: Epsilons | None) -> dict[str, float]:
    return {} if epsilons is None else {"released": epsilons.released, "server": epsilons.server}
