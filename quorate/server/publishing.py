"""From a committed state to a signed version: what of a run goes into the manifest, and what does not.

Published are the bounds of the cohorts, never a count of survivors: amplification by sampling holds only while nobody
outside knows who, or how many, took part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quorate.artifacts.manifest import Cohort, ExamplePrivacy, Privacy
from quorate.artifacts.programs import Program, dense_network, from_graph
from quorate.engine import RunState
from quorate.plan import Plan, Publish, SecAggPlus
from quorate.privacy import Epsilons, ExampleEpsilon, Ledger
from quorate.privacy.explanation import kept_after_withdrawal
from quorate.server.coordinator import RoundReport
from quorate.server.examples import example_spend
from quorate.server.faults import Point, passing
from quorate.server.records import Run, committed, evaluated, measured
from quorate.server.registry import Provenance, Registry, Version
from quorate.server.store import Store
from quorate.task import OnnxGraph, Task

__all__ = ["PublishWhenDue", "publish"]


def publish(
    target: Publish,
    plan: Plan,
    run: Run,
    population: int,
    round: int,
    state: RunState,
    metrics: Mapping[str, float],
    epsilons: Epsilons | None,
    examples: ExampleEpsilon | None,
    ledger: str | None,
) -> Version:
    """Publishes a committed state as the next version; a state that is published already gives its version again.

    Args:
        target: where to; the registry is made if there is none.
        plan: resolved.
        run: of the state.
        population: the population's size.
        round: the committed round that left the state.
        state: after that round.
        metrics: of the state.
        epsilons: spent until then.
        examples: spent until then of one example, where clients train by DP-SGD.
        ledger: the sealed head of the run's ledger, if there is one.

    Raises:
        RegistryError: the registry can't be written.
        DataError: the parameters are not finite.
    """
    bounds = plan.bounds(population)
    mechanism, summation = _protection(plan, private=epsilons is not None)
    privacy = Privacy(
        mechanism=mechanism,
        neighbours=None if epsilons is None else epsilons.relation,
        epsilon_released=None if epsilons is None else f"{epsilons.released:.6g}",
        epsilon_server=None
        if epsilons is None or not math.isfinite(epsilons.server)
        else f"{epsilons.server:.6g}",
        delta=None if epsilons is None else f"{epsilons.delta:.6g}",
        simulated=run.simulated,
        summation=summation,
        withdrawal=kept_after_withdrawal(epsilons),
        examples=None
        if examples is None
        else ExamplePrivacy(
            neighbours=examples.relation, epsilon=f"{examples.epsilon:.6g}", delta=f"{examples.delta:.6g}"
        ),
        ledger=ledger,
    )
    provenance = Provenance(
        run=run.id,
        round=round,
        terms=run.terms_hash,
        cohort=Cohort(largest=bounds.largest, min_survivors=bounds.min_survivors),
        privacy=privacy,
        evaluation=metrics,
        data_card=target.data_card,
    )
    registry = Registry.create(Path(target.registry), exist_ok=True)
    return registry.publish(
        target.model, state.parameters, program(plan.task.resolve()), provenance, alias=target.alias
    )


def _protection(plan: Plan, private: bool) -> tuple[str, str]:
    """The mechanism of privacy, and how updates were summed; with an engine of another framework, its name."""
    if plan.engine is not None:
        return plan.engine.name if private else "none", plan.engine.name
    summing = plan.secure_aggregation
    threat_model = f", {summing.threat_model}" if isinstance(summing, SecAggPlus) else ""
    buckets = f", {summing.buckets} buckets" if summing.buckets > 1 else ""
    return plan.privacy.mechanism, summing.protocol + threat_model + buckets


def program(task: Task) -> Program:
    """The servable program of a task.

    Raises:
        PlanError: its model can't be served.
    """
    spec = task.model.program_spec()
    return from_graph(spec, task.layout) if isinstance(spec, OnnxGraph) else dense_network(spec)


@dataclass(frozen=True)
class PublishWhenDue:
    """Publishes the states that a plan wants published: every so many committed rounds, and after the last.

    Args:
        plan: resolved.
        run: whose states they are.
        population: the population's size.
        store: notes what was published.
        ledger: of the run; None when no privacy is claimed.
    """

    plan: Plan
    run: Run
    population: int
    store: Store
    ledger: Ledger | None

    def __call__(self, state: RunState, report: RoundReport) -> None:
        """Publishes the state after a round, if it is due, and evaluated if it is to be."""
        self.catch_up(state, report.epsilons)

    def catch_up(self, state: RunState, epsilons: Epsilons | None, last: bool = False) -> None:
        """Publishes the last committed state, if it is due and was not published yet.

        One that is to be evaluated on members' data is published afterwards: its manifest says what came out.

        Args:
            state: the last committed one.
            epsilons: spent until then.
            last: whether no round will follow, though the plan has more.
        """
        target, plan, version = self.plan.publish, self.plan, state.version
        if target is None or version == 0:
            return
        if not (last or version == plan.rounds.count or (target.every and version % target.every == 0)):
            return
        rounds = self.store.rounds(self.run.id)
        awaited = plan.evaluation is not None and plan.evaluation.due(version, plan.rounds.count)
        if awaited and evaluated(rounds) < version and not last:
            return
        number, metrics = committed(rounds)[-1].number, measured(rounds)
        with passing(Point.PUBLISH):
            examples = example_spend(self.store, self.run, plan.training, until=number)
            head = None if self.ledger is None else self.ledger.sealed_head
            published = publish(
                target, plan, self.run, self.population, number, state, metrics, epsilons, examples, head
            )
        self.store.record_version(self.run.id, number, target.registry, target.model, published.number)
