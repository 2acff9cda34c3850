"""`[engine] name = "tff"`: a `tff.learning` LearningProcess makes the steps of a run.

    [engine]
    name = "tff"
    process = "my_job:build"        # returns a tff.learning.templates.LearningProcess

The process runs in a child with TensorFlow Federated (`process`), on TFF's own runtime, and does everything between
the broadcast and the new model: local training, aggregation, the server's optimiser. The coordinator draws the
cohorts, charges, commits, and publishes, as with our own engine. The process's whole state is in the checkpoint, so
that a run that was stopped goes on to the same bits, if the process draws nothing.

It works on simulated clients, whose data are here; each meets its data in the order in which our own clients do. The
initial parameters are the task's. A process whose aggregator is a `tff.aggregators.DifferentiallyPrivateFactory` names
the event of its steps: it is charged before each step, no amplification is claimed for it, and what clients measured is
kept back. A step that turns out to have released another event than was charged fails. Of any other process nothing is
claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.clients.adapters.local_training import Schedule, TrainingNumbers
from quorate.engine import RunState, Step
from quorate.errors import PlanError, QuorateError, QuorumNotReached
from quorate.fleets import Ability, DataHolder, Fleet, Population
from quorate.interop.tff.job import Job
from quorate.interop.tff.process import Child
from quorate.parameters import Parameters
from quorate.plan import Plan
from quorate.privacy import Event, ExternalEvent
from quorate.randomness import generator
from quorate.rounds import Instruction, Kind, Member, Outcome
from quorate.simulations.engines.site import member_seed
from quorate.summation import Journal
from quorate.task import Task

__all__ = ["TffEngine", "TffProcess", "tff"]

_STATE = "state."


def tff(process: str, delta: float | None = None, budget: float | None = None, **settings: Any) -> TffProcess:
    """`[engine] name = "tff"`.

    Args:
        process: `module:attribute` of a function that returns a learning process; it gets the `settings`, and the
            `interop.tff.job.Job`, if it has a parameter `job`. Those of `quorate.interop.tff.processes` need no code.
        delta: of the ε, if the process names events; None: `default_delta` of the population.
        budget: the `released` ε that the run must not pass.
        settings: what the function takes.
    """
    if ":" not in process:
        raise PlanError(
            f"process: found {process!r}; accepted: module:attribute of a function that returns a learning process, "
            "such as quorate.interop.tff.processes:weighted_fed_avg"
        )
    if delta is not None and not 0 < delta < 1:
        raise PlanError(f"delta: found {delta}; accepted: above 0 and below 1")
    if budget is not None and not budget > 0:
        raise PlanError(f"budget: found {budget}; accepted: above 0")
    return TffProcess(process, delta, budget, settings)


@dataclass(frozen=True)
class TffProcess:
    """What the engine is made from: made by `tff`."""

    process: str
    delta: float | None
    budget: float | None
    settings: Mapping[str, Any]
    needs = frozenset({Ability.LOCAL_DATA})

    def open(self, plan: Plan, run: str, fleet: Fleet, initial: Parameters) -> TffEngine:
        """The engine, with its child process."""
        return TffEngine(self, plan, run, fleet, initial)


class TffEngine:
    """The engine of one run.

    Raises:
        MissingEnvironment: no Python here has TensorFlow Federated.
        PlanError: there is no such process, or its model is not the task's.
    """

    def __init__(self, source: TffProcess, plan: Plan, run: str, fleet: Fleet, initial: Parameters):
        task = plan.task.resolve()
        self.layout, self._task, self._fleet, self._run = task.layout, task, fleet, run
        self._initial, self._plan = initial, plan
        self._bounds = plan.bounds(fleet.population().size)
        self._child = Child()
        try:
            self._child.call("make", job=_job(source, plan, task).as_json())
            self._first = self._child.call("initial", {"vector": initial.vector})[1]
        except BaseException:
            self._child.close()
            raise

    def initial(self) -> RunState:
        """The task's initial parameters, and the process's first state with them in it."""
        return RunState(0, self._initial, _state(self._first))

    def population(self) -> Population:
        """Who can be selected now."""
        return self._fleet.population()

    def event(self, kind: Kind, state: RunState) -> Event | None:
        """What the process says that a step from this state releases."""
        said = self._child.call("event", _prefixed(state.own))[0]["event"]
        return None if said is None else ExternalEvent(said)

    def step(
        self, kind: Kind, number: int, state: RunState, cohort: tuple[Member, ...], journal: Journal
    ) -> Step:
        """A round of the process, with the cohort's data."""
        if len(cohort) < self._bounds.min_survivors:
            raise QuorumNotReached("selection", len(cohort), self._bounds.min_survivors)
        charged = self.event(kind, state)
        arrays = _prefixed(state.own)
        for i, member in enumerate(cohort):
            examples: Examples = cast(DataHolder, self._fleet).data_of(member)
            rows = self._order(number, member, len(examples))
            arrays |= {f"x.{i}": examples.x, f"y.{i}": examples.y, f"rows.{i}": rows}
        journal.revealing()
        training = self._plan.training
        answer, made = self._child.call("step", arrays, clients=len(cohort), batch_size=training.batch_size)
        released = None if answer["event"] is None else ExternalEvent(answer["event"])
        if released != charged:
            raise QuorateError(
                f"round {number} was charged as {charged} before it began, and the process says that it released "
                f"{released}: its spend can't be told beforehand, so the run stops; the charge stays"
            )
        return Step(
            parameters=self.layout.unflatten(made["vector"]),
            own=_state(made),
            survivors=cohort,
            lost={},
            metrics={} if charged is not None else answer["metrics"],
        )

    def evaluate(self, parameters: Parameters) -> Mapping[str, float]:
        """Of the model on the fleet's held-out data."""
        held_out = self._fleet.held_out()
        return {} if held_out is None else self._task.model.evaluate(parameters, held_out)

    def conclude(self, number: int, outcomes: Mapping[Member, Outcome]) -> None:
        """Through the fleet: members of such a run stage nothing."""
        self._fleet.conclude(self._run, number, outcomes)

    def close(self) -> None:
        """Ends the child, and all that it started."""
        self._child.close()

    def _order(self, number: int, member: Member, examples: int) -> np.ndarray:
        """The rows in the order in which the member meets them, one pass after the other."""
        plan, seed = self._plan, self._plan.fleet.seed
        own = None
        if seed is not None:
            own = member_seed(int(generator(seed, "training", number).integers(2**62)), member)
        numbers = TrainingNumbers.of([Instruction("sgd", plan.training.settings())])
        schedule = Schedule.of(np.array([examples]), numbers, [own])
        return np.concatenate(
            [rows[:count] for rows, count in zip(schedule.rows[:, 0], schedule.counts[:, 0], strict=True)]
        ).astype(np.int64)


def _job(source: TffProcess, plan: Plan, task: Task) -> Job:
    spec: Any = task.model.program_spec()
    return Job(
        process=source.process,
        settings=source.settings,
        shapes=task.layout.entries,
        layers=tuple(spec) if isinstance(spec, Sequence) else None,
        learning_rate=plan.training.learning_rate,
    )


def _prefixed(own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {_STATE + name: value for name, value in own.items()}


def _state(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(_STATE): value for name, value in arrays.items() if name.startswith(_STATE)}
