"""The sections of a plan that are not described elsewhere, and which mechanisms and sums it can have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, PrivateAttr

from quorate.cohorts import IdealSum, PlainSum, SecAggPlus
from quorate.errors import PlanError
from quorate.parts import find_part, make_part, written
from quorate.privacy import (
    CentralGaussian,
    CentralLaplace,
    DistributedGaussian,
    DistributedSkellam,
    DpFtrl,
    DpQuery,
    DpSgd,
    ExampleEvent,
    LocalGaussian,
    NoPrivacy,
)
from quorate.sections import Section
from quorate.strategies import Strategy
from quorate.task import Task

__all__ = [
    "SUMMED",
    "AnyMechanism",
    "EngineSection",
    "FleetSection",
    "NamedSection",
    "Population",
    "Privacy",
    "Publish",
    "SecureAggregation",
    "StrategySection",
    "TaskSection",
    "Training",
    "strategy_section",
    "task_section",
]

AnyMechanism = (
    NoPrivacy
    | CentralGaussian
    | CentralLaplace
    | DpFtrl
    | DpQuery
    | LocalGaussian
    | DistributedGaussian
    | DistributedSkellam
)
Privacy = Annotated[AnyMechanism, Field(discriminator="mechanism")]
SecureAggregation = Annotated[PlainSum | IdealSum | SecAggPlus, Field(discriminator="protocol")]
SUMMED = ("strategy", "privacy", "secure_aggregation")
"""The sections of our own engine."""


class NamedSection(Section):
    """A section that names a part and gives its settings: every key but the name goes to the part's factory."""

    model_config = ConfigDict(extra="allow")

    @property
    def settings(self) -> dict[str, Any]:
        """The factory's arguments."""
        return dict(self.model_extra or {})


class TaskSection(NamedSection):
    """`[task]`: what is learned.

    Args:
        name: an installed task, or `module:attribute` of a task or of a function that makes one.
    """

    name: str
    _live: Task | None = PrivateAttr(None)

    def resolve(self) -> Task:
        """The task itself."""
        if self._live is None:
            found = find_part("task.name", "quorate.tasks", self.name)
            if not isinstance(found, Task):
                found = make_part("task", found, self.settings)
            elif self.settings:
                raise PlanError(
                    f"task.{next(iter(self.settings))}: unknown key; {self.name!r} is a task that is made already; "
                    "accepted: its name only"
                )
            self._live = found if isinstance(found, Task) else Task(found)
        return self._live


class StrategySection(NamedSection):
    """`[strategy]`: the local rule, the aggregator and the server's rule.

    Args:
        name: an installed strategy, or `module:attribute`.
    """

    name: str = "fedavg"
    _live: Strategy | None = PrivateAttr(None)

    def complete(self) -> StrategySection:
        """This section with every setting of the strategy written out."""
        strategy = self.resolve()
        section = StrategySection(name=strategy.name, **written("strategy", strategy.settings))
        section._live = strategy
        return section

    def resolve(self) -> Strategy:
        """The strategy itself."""
        if self._live is None:
            factory = find_part("strategy.name", "quorate.strategies", self.name)
            self._live = make_part("strategy", factory, self.settings)
        return self._live


class EngineSection(NamedSection):
    """`[engine]`: what makes the steps of the run, in the place of our own engine.

    It does its own aggregation, so that there is no `[strategy]`, `[privacy]` or `[secure_aggregation]` beside it.

    Args:
        name: an installed engine, such as `tff`.
    """

    name: str
    _live: Any = PrivateAttr(None)

    def resolve(self) -> Any:
        """What the engine is made from: a `quorate.engine.EngineSource`."""
        if self._live is None:
            factory = find_part("engine.name", "quorate.engines", self.name)
            self._live = make_part("engine", factory, self.settings)
        return self._live


class FleetSection(NamedSection):
    """`[fleet]`: who runs the client side. Outside the terms.

    Args:
        kind: an installed fleet, such as `simulation`.
        seed: makes a simulation repeatable, and its ε a simulated one; None draws from the operating system.
    """

    kind: str = "simulation"
    seed: int | None = None


class Training(Section):
    """`[training]`: what each client does with its data in a round.

    Args:
        learning_rate: of the client's SGD.
        epochs: passes over the client's data.
        batch_size: examples a step; with `dp_sgd`, whose batches are drawn, how many examples' gradients are computed
            at once.
        dp_sgd: clips the gradient of every example, and adds noise to their sums, so that single examples are
            protected; None: gradients are as they are.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    epochs: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 20
    dp_sgd: DpSgd | None = None

    @property
    def example_event(self) -> ExampleEvent | None:
        """What one participation costs an example; None where single examples are not protected."""
        return None if self.dp_sgd is None else self.dp_sgd.event(self.epochs)

    def settings(self) -> dict[str, float]:
        """The numbers that an instruction has of this section."""
        numbers: dict[str, float] = self.model_dump(exclude={"dp_sgd"})
        return numbers if self.dp_sgd is None else numbers | self.dp_sgd.settings(self.epochs)


class Publish(Section):
    """`[publish]`: where versions go. Outside the terms.

    Args:
        registry: the registry's directory.
        model: the model's name in it.
        alias: the alias that moves to each new version; None moves none.
        every: publish after every so many committed rounds; 0 only after the last.
        data_card: what the model was trained on and what it is for, free text.
    """

    registry: str
    model: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    alias: Annotated[str | None, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = "stable"
    every: Annotated[int, Field(ge=0)] = 0
    data_card: str = ""


class Population(Section):
    """`[population]`: whose budget this run's rounds count towards, beside its own. Outside the terms.

    All runs of one state directory or coordinator that name the same population share its budget, whatever they learn;
    the ledger refuses the round that would pass it. It stays as the first of them says.

    Args:
        name: of the people or devices that the runs are over.
        epsilon: the `released` ε that all of them together must not pass.
        delta: of that ε; it is said, because plans that expect different numbers of members share it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]


def task_section(value: Any) -> Any:
    """The section of a live task; anything else as it is."""
    if isinstance(value, Task):
        section = TaskSection(name=value.name, **written("task", value.model.settings))
        section._live = value
        return section
    return value


def strategy_section(value: Any) -> Any:
    """The section of a live strategy; anything else as it is."""
    if isinstance(value, Strategy):
        section = StrategySection(name=value.name)
        section._live = value
        return section.complete()
    return value
