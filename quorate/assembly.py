"""Assembly: builds a run from a plan, finds its parts by name, and runs it.

    result = run(plan)                                   # everything named in the plan
    result = run(plan, fleet=Simulation(digits))         # a fleet bound in Python

A run belongs to a state directory and the hash of its terms: started again, it goes on after the last committed round;
when it is finished, it gives the same result again. Without a state directory nothing outlives the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from quorate.errors import PlanError, StateError
from quorate.fleets import Ability, Fleet
from quorate.parts import find_part, make_part
from quorate.plan import FleetSection, IdealSum, Plan, SecAggPlus
from quorate.privacy import Ledger
from quorate.progress import ProgressBar
from quorate.randomness import Randomness, generator
from quorate.result import FinishedRun
from quorate.server.coordinator import Coordinator, RoundReport
from quorate.server.publishing import PublishWhenDue
from quorate.server.selection import FixedSize, Sampler, TruncatedPoisson
from quorate.server.store import Run, RunStatus, Store

__all__ = ["FleetSource", "open_fleet", "resolve", "run", "terms_hash"]

Watch = Callable[[RoundReport], None]


class FleetSource(Protocol):
    """What a fleet is made from: `[fleet]` of a plan, or an object bound in Python."""

    @property
    def size(self) -> int:
        """The population's size."""
        ...

    def section(self) -> FleetSection:
        """How it stands in a plan."""
        ...

    def open(self, plan: Plan, directory: Path | None) -> Fleet:
        """The fleet, ready for the rounds of a resolved plan."""
        ...


def run(
    plan: Plan,
    fleet: FleetSource | None = None,
    *,
    state: str | os.PathLike[str] | None = None,
    watch: Watch | None = None,
) -> FinishedRun:
    """Runs a plan to its end, or on from where it stopped.

    Args:
        plan: need not be resolved.
        fleet: bound in Python, in the place of `plan.fleet`.
        state: the state directory; None keeps the state in memory.
        watch: told of every round; None draws a progress bar on standard error.

    Raises:
        PlanError: the plan can't be run on this fleet.
        StateError: the state directory is in use, or holds this run with another kind of randomness.
        BudgetExhausted: the next round would pass the privacy budget; what was committed stays.
        QuorateError: too many rounds in a row were not quorate.
    """
    source, plan = _bound(plan, fleet)
    if state is not None and not plan.strategy.resolve().recorded:
        raise PlanError(
            f"strategy: {plan.strategy.name!r} has no settings that could be written down, so a state directory can't "
            "tell its runs apart; accepted: a factory decorated with @quorate.strategies.strategy(name), or no state"
        )
    encoded = plan.terms().encoded()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store(state)))
        live = stack.enter_context(contextlib.closing(source.open(plan, store.directory)))
        _check_abilities(plan, live)
        record = store.open_run(encoded, terms_hash(plan), simulated=plan.fleet.seed is not None)
        if record.simulated != (plan.fleet.seed is not None):
            raise StateError(
                f"run {record.id} was started {'with' if record.simulated else 'without'} a seed; "
                "go on in the same way, or use another state directory"
            )
        publisher = PublishWhenDue(plan, record, source.size, store)
        coordinator = Coordinator(
            plan=plan,
            run=record,
            fleet=live,
            store=store,
            sampler=_sampler(plan),
            ledger=_ledger(plan, record, store),
            randomness=_randomness(plan),
            initial=plan.task.resolve().model.initial(generator(plan.fleet.seed, "initial parameters")),
            watch=stack.enter_context(_watching(watch, plan.rounds.count)),
            publish=publisher,
        )
        publisher.catch_up(coordinator.state, coordinator.spent())
        if record.status != RunStatus.FINISHED:
            coordinator.run_to_end()
            publisher.catch_up(coordinator.state, coordinator.spent())
            store.finish(record.id)
        return FinishedRun(
            plan=plan,
            record=store.run(record.id),
            population=source.size,
            history=store.rounds(record.id),
            state=coordinator.state,
            epsilon=coordinator.spent(),
            versions=store.versions(record.id),
        )


def resolve(plan: Plan) -> Plan:
    """The plan with everything filled in, its fleet included."""
    return _bound(plan, None)[1]


def open_fleet(section: FleetSection) -> FleetSource:
    """The fleet that a plan names.

    Raises:
        PlanError: there is no such fleet, or it does not take these settings.
    """
    factory = find_part("fleet.kind", "quorate.fleets", section.kind)
    source: FleetSource = make_part("fleet", factory, {**section.settings, "seed": section.seed})
    return source


def terms_hash(plan: Plan) -> str:
    """SHA-256 of the terms of a resolved plan, in hexadecimal."""
    return hashlib.sha256(plan.terms().encoded()).hexdigest()


def _bound(plan: Plan, fleet: FleetSource | None) -> tuple[FleetSource, Plan]:
    """The fleet's source, and the plan resolved for its population."""
    source = open_fleet(plan.fleet) if fleet is None else fleet
    if fleet is not None:
        plan = plan.model_copy(update={"fleet": fleet.section()})
    return source, plan.resolved(source.size)


def _check_abilities(plan: Plan, fleet: Fleet) -> None:
    """Refuses a plan that needs what the fleet can't do."""
    summing, strategy = plan.secure_aggregation, plan.strategy.resolve()
    if isinstance(summing, IdealSum) and not fleet.simulated:
        raise PlanError(
            "secure_aggregation.protocol: 'ideal' protects nobody, so it is for simulations; accepted: 'secagg+'"
        )
    needed = {Ability.SECURE} if isinstance(summing, SecAggPlus) else set()
    if isinstance(summing, SecAggPlus) and summing.parameters().threat_model.signed:
        needed.add(Ability.IDENTITIES)
    if not strategy.aggregator.linear:
        needed.add(Ability.SINGLE_UPDATES)
    if strategy.local.initial(1):
        needed.add(Ability.CLIENT_STATE)
    if plan.fleet.seed is not None and not fleet.simulated:
        raise PlanError(
            f"fleet.seed: a seed is for simulations, fleet.kind {plan.fleet.kind!r} has real members"
        )
    missing = needed - fleet.abilities
    if missing:
        raise PlanError(
            f"fleet.kind: {plan.fleet.kind!r} can't do what the plan needs: {', '.join(sorted(missing))}"
        )


def _sampler(plan: Plan) -> Sampler:
    rounds = plan.rounds
    if rounds.sampling == "fixed":
        return FixedSize(rounds.cohort)
    assert rounds.largest_cohort is not None, "the plan is resolved"
    return TruncatedPoisson(rounds.cohort, rounds.largest_cohort)


def _randomness(plan: Plan) -> Randomness:
    seed = plan.fleet.seed
    return Randomness.system() if seed is None else Randomness.from_seed(seed).spawn("coordinator")


def _ledger(plan: Plan, record: Run, store: Store) -> Ledger | None:
    if not plan.privacy.private:
        return None
    assert plan.privacy.delta is not None, "the plan is resolved"
    return Ledger(
        store.ledger(record.id),
        delta=plan.privacy.delta,
        budget=plan.privacy.limit,
        simulated=plan.fleet.seed is not None,
    )


@contextlib.contextmanager
def _watching(watch: Watch | None, rounds: int) -> Iterator[Watch]:
    if watch is not None:
        yield watch
    else:
        with ProgressBar(rounds) as bar:
            yield bar
