"""What a run came to: its history, its model, what it spent, and how to publish it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.clients.adapters.statistics import Statistic
from quorate.engine import RunState
from quorate.errors import MissingExtra
from quorate.evaluation import PREFIX
from quorate.parameters import Parameters
from quorate.plan import Plan, Publish
from quorate.privacy import Epsilons, ExampleEpsilon
from quorate.rounds import Kind
from quorate.server.publishing import publish
from quorate.server.records import Round, Run, committed, measured
from quorate.server.registry import Version
from quorate.task import Task

__all__ = ["FinishedRun"]


@dataclass(frozen=True)
class FinishedRun:
    """A run that has committed all its rounds.

    Args:
        plan: resolved.
        record: the run as the store has it.
        population: the population's size.
        history: every round, aborted ones included, in order.
        state: after the last committed round.
        epsilon: what was spent; None when no privacy is claimed.
        example_epsilon: what was spent of one example; None where clients don't train by DP-SGD.
        ledger_head: SHA-256 of the ledger's last row, which versions carry; None when no privacy is claimed.
        versions: what was published while it ran: round, registry, model and version.
    """

    plan: Plan
    record: Run
    population: int
    history: Sequence[Round]
    state: RunState
    epsilon: Epsilons | None
    example_epsilon: ExampleEpsilon | None
    ledger_head: str | None
    versions: Sequence[Mapping[str, Any]]

    @property
    def task(self) -> Task:
        """What was learned."""
        return self.plan.task.resolve()

    @property
    def model(self) -> Parameters:
        """The learned parameters."""
        return self.state.parameters

    @property
    def committed(self) -> Sequence[Round]:
        """The committed rounds of training, in order."""
        return committed(self.history)

    @property
    def evaluations(self) -> Sequence[Round]:
        """The evaluations on members' data, in order; `base_version` is the number of rounds before each."""
        return committed(self.history, Kind.EVALUATE)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the learned parameters; those on members' data have names such as `federated/accuracy`."""
        return measured(self.history)

    @property
    def answer(self) -> Mapping[str, float] | None:
        """What a statistic's run found, in the question's words; None for a task that is no statistic.

        Raises:
            DataError: there was more noise than answer.
        """
        model = self.task.model
        return model.answer(self.model) if isinstance(model, Statistic) else None

    def publish(
        self, registry: str | os.PathLike[str], model: str, alias: str | None = "stable", data_card: str = ""
    ) -> Version:
        """Publishes the learned parameters as a signed version; the registry is made if there is none.

        Args:
            registry: its directory.
            model: the model's name in it.
            alias: the alias that moves to the new version; None moves none.
            data_card: what it was trained on and what it is for.
        """
        target = Publish(registry=os.fspath(registry), model=model, alias=alias, data_card=data_card)
        last = self.committed[-1]
        return publish(
            target,
            self.plan,
            self.record,
            self.population,
            last.number,
            self.state,
            self.metrics,
            self.epsilon,
            self.example_epsilon,
            self.ledger_head,
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draws metrics and ε against committed rounds; a Matplotlib figure, saved if a path is given.

        Raises:
            MissingExtra: Matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtra("simulation", "plotting a run") from error
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        left = figure.subplots()
        rounds = range(1, len(self.committed) + 1)
        names = tuple(self.committed[-1].metrics)
        for name in ("accuracy",) if "accuracy" in names else names:
            left.plot(rounds, [r.metrics[name] for r in self.committed], label=name)
            told = [r for r in self.evaluations if PREFIX + name in r.metrics]
            if told:
                own = [r.metrics[PREFIX + name] for r in told]
                left.plot([r.base_version for r in told], own, "o", label=PREFIX + name)
        left.set_xlabel("committed rounds")
        if self.epsilon is not None:
            right = left.twinx()
            for which, style in (("released", "--"), ("server", ":")):
                spent = [r.epsilons[which] for r in self.committed]
                right.plot(rounds, spent, style, color="tab:gray", label=f"ε {which}")
            right.set_ylabel("ε")
            right.legend(loc="lower right", frameon=False)
        left.legend(loc="upper left", frameon=False)
        if path is not None:
            figure.savefig(Path(path), dpi=144)
        return figure
