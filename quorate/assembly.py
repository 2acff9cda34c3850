"""Assembly: builds a run from a plan, and runs it.

    result = run(plan)                                   # everything named in the plan
    result = run(plan, fleet=Simulation(digits))         # a fleet bound in Python

A run belongs to a state directory and the hash of its terms: started again, it goes on after the last committed round;
when it is finished, it gives the same result again. Without a state directory nothing outlives the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from quorate.callbacks import Callback, Enough
from quorate.engine import Engine, EngineSource
from quorate.errors import PlanError, StateError
from quorate.fleets import Fleet
from quorate.plan import Plan, Rounds
from quorate.privacy import Ledger, SharedLedger, default_delta
from quorate.progress import ProgressBar
from quorate.randomness import Randomness, generator
from quorate.resolution import FleetSource, bound, check_abilities, check_recorded, terms_hash
from quorate.result import FinishedRun
from quorate.rounds import Kind
from quorate.server.coordinator import Coordinator, RoundReport
from quorate.server.examples import ExampleBudget, example_spend
from quorate.server.publishing import PublishWhenDue
from quorate.server.records import PopulationBudget, Round, Run, RunStatus
from quorate.server.selection import FirstDone, FixedSize, Sampler, Separated, TruncatedPoisson
from quorate.server.store import Store
from quorate.server.summing import SummingEngine
from quorate.server.unmasking_pool import UnmaskingPool

__all__ = ["open_run", "run", "run_in"]

log = logging.getLogger(__name__)

Watch = Callable[[RoundReport], None]


def run(
    plan: Plan,
    fleet: FleetSource | None = None,
    *,
    state: str | os.PathLike[str] | None = None,
    database: str | None = None,
    watch: Watch | None = None,
    callbacks: Sequence[Callback] = (),
) -> FinishedRun:
    """Runs a plan to its end, or on from where it stopped.

    Args:
        plan: need not be resolved.
        fleet: bound in Python, in the place of `plan.fleet`.
        state: the state directory; None keeps the state in memory.
        database: `postgresql://…`, in the place of the state directory's own database.
        watch: told of every round; None draws a progress bar on standard error.
        callbacks: told of every round, with the parameters after it; they may end the run (`quorate.callbacks`).

    Raises:
        PlanError: the plan can't be run on this fleet.
        StateError: the state directory is in use, or holds this run with another kind of randomness.
        BudgetExhausted: the next round would pass the privacy budget; what was committed stays.
        QuorateError: too many rounds in a row were not quorate.
    """
    source, plan = bound(plan, fleet)
    if state is not None:
        check_recorded(plan)
    with (
        contextlib.closing(Store(state, database=database)) as store,
        _watching(watch, plan.rounds.count) as watching,
    ):
        return run_in(store, source, plan, watching, callbacks)


def run_in(
    store: Store, source: FleetSource, plan: Plan, watch: Watch, callbacks: Sequence[Callback] = ()
) -> FinishedRun:
    """Runs a resolved plan in a store that is open, perhaps beside other runs; see `run`."""
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(_closing(source.open(plan, store.directory)))
        check_abilities(plan, live)
        record = open_run(store, plan)
        randomness = _randomness(plan)
        engine = _engine(plan, record, live, source.size, randomness, stack)
        ledger = _ledger(plan, record, store, engine, source.size)
        publisher = PublishWhenDue(plan, record, source.size, store, ledger)
        coordinator = Coordinator(
            run=record,
            rounds=plan.rounds.count,
            engine=engine,
            store=store,
            samplers=_samplers(plan, record, store),
            ledger=ledger,
            randomness=randomness,
            watch=watch,
            publish=publisher,
            evaluates=partial(_evaluates, plan),
            examples=_example_budget(plan, record, store),
        )
        publisher.catch_up(coordinator.state, coordinator.spent())
        if record.status != RunStatus.FINISHED:
            with _told(callbacks, coordinator, store.rounds(record.id)):
                coordinator.run_to_end()
            publisher.catch_up(coordinator.state, coordinator.spent(), last=True)
            store.finish(record.id)
        return FinishedRun(
            plan=plan,
            record=store.run(record.id),
            population=source.size,
            history=store.rounds(record.id),
            state=coordinator.state,
            epsilon=coordinator.spent(),
            example_epsilon=example_spend(store, record, plan.training),
            ledger_head=None if ledger is None else ledger.sealed_head,
            versions=store.versions(record.id),
        )


def open_run(store: Store, plan: Plan) -> Run:
    """The store's record of a resolved plan's run: the one that exists, or a new one.

    Raises:
        StateError: the store holds this run with another kind of randomness, or its population with another budget.
    """
    if plan.publish is not None:
        plan.task.resolve().model.program_spec()  # what can't be served is refused now, not after the last round
    seeded = plan.fleet.seed is not None
    shared = plan.population
    record = store.open_run(
        plan.terms().encoded(),
        terms_hash(plan),
        simulated=seeded,
        budget=None if shared is None else PopulationBudget(shared.name, shared.epsilon, shared.delta),
    )
    if record.simulated != seeded:
        raise StateError(
            f"run {record.id} was started {'with' if record.simulated else 'without'} a seed; "
            "go on in the same way, or use another state directory"
        )
    return record


def _samplers(plan: Plan, run: Run, store: Store) -> dict[Kind, Sampler]:
    kinds = (Kind.FIT,) if plan.evaluation is None else tuple(Kind)
    return {kind: _sampler(plan.at(kind).rounds, run, store) for kind in kinds}


def _sampler(rounds: Rounds, run: Run, store: Store) -> Sampler:
    if rounds.sampling == "fixed":
        return FixedSize(rounds.drawn)
    recent = partial(store.members_in_sums, run.id, (rounds.separation or 1) - 1)
    if rounds.sampling == "separated":
        return Separated(rounds.drawn, recent)
    if rounds.sampling == "buffered":
        return FirstDone(rounds.cohort, recent)
    assert rounds.largest_cohort is not None, "the plan is resolved"
    return TruncatedPoisson(rounds.cohort, rounds.largest_cohort)


def _evaluates(plan: Plan, version: int) -> bool:
    return plan.evaluation is not None and plan.evaluation.due(version, plan.rounds.count)


def _randomness(plan: Plan) -> Randomness:
    seed = plan.fleet.seed
    return Randomness.system() if seed is None else Randomness.from_seed(seed).spawn("coordinator")


def _engine(
    plan: Plan,
    record: Run,
    fleet: Fleet,
    population: int,
    randomness: Randomness,
    stack: contextlib.ExitStack,
) -> Engine:
    """The plan's engine, or our own; what it holds is freed with the stack."""
    initial = plan.task.resolve().model.initial(generator(plan.fleet.seed, "initial parameters"))
    if plan.engine is not None:
        source: EngineSource = plan.engine.resolve()
        return stack.enter_context(contextlib.closing(source.open(plan, record.id, fleet, initial)))
    return SummingEngine(
        plan=plan,
        run=record.id,
        fleet=fleet,
        population=population,
        randomness=randomness,
        initial=initial,
        unmask=stack.enter_context(UnmaskingPool()),
    )


def _ledger(plan: Plan, record: Run, store: Store, engine: Engine, population: int) -> Ledger | None:
    """None when the engine names no event, so that no privacy is claimed."""
    if plan.engine is None:
        privacy = plan.privacy
        private, delta, budget = privacy.private, privacy.delta, privacy.limit
    else:
        source: EngineSource = plan.engine.resolve()
        private, budget = engine.event(Kind.FIT, engine.initial()) is not None, source.budget
        delta = source.delta or default_delta(population)
    if not private:
        if record.population is not None:
            raise PlanError(
                f"population: found the budget of {record.population!r}, but the engine claims no privacy, so that no "
                "round has an ε that could be charged to it; accepted: no [population]"
            )
        return None
    assert delta is not None, "the plan is resolved"
    rows, simulated = store.ledger(record.id), plan.fleet.seed is not None
    if record.population is None:
        return Ledger(rows, delta=delta, budget=budget, simulated=simulated)
    account = store.account(record.population)
    return SharedLedger(rows, account, delta=delta, budget=budget, simulated=simulated)


def _example_budget(plan: Plan, record: Run, store: Store) -> ExampleBudget | None:
    """None where the plan says none."""
    training = plan.training.dp_sgd
    return None if training is None or training.limit is None else ExampleBudget(store, record, plan)


@contextlib.contextmanager
def _closing(fleet: Fleet) -> Iterator[Fleet]:
    """Closes the fleet, and tells it what went wrong."""
    try:
        yield fleet
    except BaseException as failure:
        fleet.close(failure)
        raise
    fleet.close()


@contextlib.contextmanager
def _told(
    callbacks: Sequence[Callback], coordinator: Coordinator, history: Sequence[Round]
) -> Iterator[None]:
    """Tells callbacks of every round; when one has had enough, the run ends there, as after its last round."""
    for callback in callbacks:
        callback.begin(history)
    watch = coordinator.watch

    def tell(report: RoundReport) -> None:
        watch(report)
        for callback in callbacks:
            callback(report, coordinator.state.parameters)

    coordinator.watch = tell
    try:
        yield
    except Enough as enough:
        log.info("run %s ends after %d rounds: %s", coordinator.run.id, coordinator.state.version, enough)


@contextlib.contextmanager
def _watching(watch: Watch | None, rounds: int) -> Iterator[Watch]:
    if watch is not None:
        yield watch
    else:
        with ProgressBar(rounds) as bar:
            yield bar
