"""A round on a device: the participation, with the policy before it and the application's child process in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from quorate.clients.agent.channels import Connection
from quorate.clients.agent.conditions import Sensors, unmet
from quorate.clients.agent.description import Description
from quorate.clients.agent.judgement import event_of, judge, refuse
from quorate.clients.agent.policy import Policy
from quorate.clients.agent.state import AgentState
from quorate.clients.agent.training import ChildClient, Trainer
from quorate.clients.participation import Participation, is_signed
from quorate.errors import IdentityRefused, PolicyRefused
from quorate.parameters import Parameters
from quorate.plan import Terms
from quorate.randomness import Randomness
from quorate.rounds import Assignment, Instruction, State, Update
from quorate.summation import Exposure
from quorate.task import Task

__all__ = ["begin"]

log = logging.getLogger(__name__)

Trainers = Mapping[str, tuple[Description, Trainer]]


def begin(
    assignment: Assignment,
    connection: Connection,
    policy: Policy,
    state: AgentState,
    sensors: Sensors,
    trainers: Trainers,
) -> Participation:
    """A participation that keeps to the device's policy, and whose steps are written down before they are taken.

    Args:
        assignment: what the coordinator asks for.
        connection: says who the device is.
        policy: the device's.
        state: where the round is written down.
        sensors: what conditions are checked by.
        trainers: of the installed tasks, by the tasks' names.
    """
    applications = _Applications(trainers, assignment.deadlines.training_s)

    def accepts(terms: Terms, assignment: Assignment) -> None:
        missing = unmet(policy.conditions, sensors.read())
        if missing:
            log.warning("no training now: %s", "; ".join(missing))
            raise PolicyRefused("the device's conditions do not hold", "conditions")
        name = terms.task.resolve().name
        applications.choose(name)
        spent = {} if policy.budget is None else state.spent(policy.budget.period_s)
        trained = {} if policy.example_budget is None else state.trained(policy.example_budget.period_s)
        refuse(
            judge(policy, terms, assignment.terms, assignment.bounds, assignment.endorsement, spent, trained)
        )
        if is_signed(terms):
            _refresh(connection)
        event = event_of(terms, assignment.bounds)
        state.begin(name, assignment.run, assignment.round, event, terms.training.example_event)

    def exposing(exposure: Exposure) -> None:
        state.expose(assignment.run, assignment.round, exposure)

    return Participation(
        connection.device,
        applications,
        state.states,
        Randomness.system(),
        accepts=accepts,
        identities=connection.identities,
        exposing=exposing,
        tasks={
            name: Task(description, slices=dict.fromkeys(description.keys, _elsewhere))
            for name, (description, _) in trainers.items()
        },
    )


def _elsewhere(data: object) -> object:
    raise NotImplementedError("a device slices its data in a child process")


def _refresh(connection: Connection) -> None:
    try:
        connection.refresh()
    except IdentityRefused as refused:
        log.error("%s", refused)
        raise PolicyRefused("the enrolment log is not what this device has seen before", "log") from refused


class _Applications:
    """The client that a participation is given: that of the terms' task, once the policy has let it pass.

    Args:
        trainers: of all tasks.
        timeout_s: how long training may take.
    """

    def __init__(self, trainers: Trainers, timeout_s: float):
        self._trainers, self._timeout_s = trainers, timeout_s
        self._chosen: ChildClient | None = None

    def choose(self, task: str) -> None:
        """Sets which task is trained.

        Raises:
            PolicyRefused: it is not installed.
        """
        if task not in self._trainers:
            raise PolicyRefused(f"the task {task!r} is not installed on this device", "task")
        description, trainer = self._trainers[task]
        self._chosen = ChildClient(trainer, description.rules, description.keys, self._timeout_s)

    @property
    def rules(self) -> frozenset[str]:
        """Of the chosen task's client."""
        return frozenset() if self._chosen is None else self._chosen.rules

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the chosen task's client."""
        return () if self._chosen is None else self._chosen.keys

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """Of the chosen task's client."""
        assert self._chosen is not None, "the policy comes first"
        return self._chosen.fit(parameters, instruction, state)

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """Of the chosen task's client."""
        assert self._chosen is not None, "the policy comes first"
        return self._chosen.evaluate(parameters, instruction, state)
