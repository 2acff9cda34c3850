"""Accuracy against ε for every mechanism: what privacy costs a model, at the same ε and over the same rounds.

Two tasks, softmax regression with FedAvg: handwritten digits of 300 clients (Dirichlet, α 1; 30 rounds of 100), and
10,000 clients with a mix of classes each (`datasets.population`; 48 rounds of 200). Every mechanism is calibrated by
the plan itself to the whole run's ε, at δ = clients^-1.1. Central and distributed noise is amplified by Poisson
sampling; the distributed ones sum in a ring of 16 bits. DP-FTRL and local noise know no amplification, so a member
takes part as rarely as the population allows: in every third round of digits, and once in the other task. A local ε is
one against everybody, the server included: its multiplier is that of one Gaussian over a member's participations.

The same seed draws the same cohorts for the central and the distributed mechanisms, so that differences are taken run
by run. Sums are ideal ones, which give what secure aggregation would.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import quorate as q
from benchmarks._rows import Row
from quorate.clients.adapters.examples import Examples
from quorate.simulations import datasets
from quorate.simulations.datasets import ClientData, FederatedDataset

CENTRAL, GAUSSIAN, SKELLAM = "central Gaussian", "distributed discrete Gaussian", "distributed Skellam"
LOCAL, NONE = "local discrete Gaussian", "no noise"
EPSILONS = (1.0, 2.0, 4.0, 8.0)
GOAL_POINTS = 1.0
RING_BITS = 16


@dataclass(frozen=True)
class Task:
    """What is learned, and how.

    Args:
        name: for the table.
        data: of its clients, and the test set.
        rounds: how many.
        cohort: the expected members of one.
        separation: of a member's rounds, for the mechanisms that nothing amplifies.
        learning_rate: of a client.
        seeds: how many runs of each mechanism.
    """

    name: str
    data: Callable[[], FederatedDataset]
    rounds: int
    cohort: int
    separation: int
    learning_rate: float
    seeds: int
    clip_norm: float = 0.5

    def plan(self, privacy: Any, rounds: Mapping[str, Any], ring_bits: int | None = None) -> q.Plan:
        """With a mechanism and a way to draw cohorts."""
        return q.Plan(
            task=q.Task(q.models.softmax(64, 10)),
            rounds=q.Rounds(count=self.rounds, cohort=self.cohort, **rounds),
            training=q.Training(learning_rate=self.learning_rate),
            privacy=privacy,
            secure_aggregation=q.IdealSum(ring_bits=ring_bits),
        )

    def plans(self, epsilon: float, population: int) -> Iterator[tuple[str, q.Plan]]:
        """Every mechanism's, at an ε."""
        target: dict[str, Any] = {"clip_norm": self.clip_norm, "epsilon": epsilon}
        rarely = {"sampling": "separated", "separation": self.separation}
        yield CENTRAL, self.plan(q.privacy.CentralGaussian(**target), {})
        yield GAUSSIAN, self.plan(q.privacy.DistributedGaussian(**target), {}, RING_BITS)
        yield SKELLAM, self.plan(q.privacy.DistributedSkellam(**target), {}, RING_BITS)
        for kind in ("tree", "banded"):
            ftrl = q.privacy.DpFtrl(factorization=kind, span=self.separation, **target)
            yield f"DP-FTRL, {kind}", self.plan(ftrl, rarely)
        alone = self.plan(q.privacy.CentralGaussian(**target), rarely).resolved(population).privacy
        local = q.privacy.LocalGaussian(clip_norm=self.clip_norm, noise_multiplier=alone.noise_multiplier)
        yield LOCAL, self.plan(local, rarely)


def digits() -> FederatedDataset:
    """Of 300 clients."""
    return datasets.digits().partition("dirichlet", clients=300, alpha=1.0, seed=0)


def synthetic() -> FederatedDataset:
    """10,000 clients of 20 examples, made once for all runs."""
    made = datasets.population(clients=10_000, examples=20)
    own = list(made)
    every = Examples(np.concatenate([e.x for e in own]), np.concatenate([e.y for e in own]))
    return FederatedDataset(
        made.name, ClientData(every, np.split(np.arange(len(every)), len(own))), made.test
    )


TASKS = (
    Task("digits, 300 clients", digits, 30, 100, 3, learning_rate=0.3, seeds=16),
    Task("synthetic, 10,000 clients", synthetic, 48, 200, 48, learning_rate=0.1, seeds=6),
)


def accuracies(plan: q.Plan, data: FederatedDataset, seeds: int, epsilon: float) -> np.ndarray:
    """In per cent, a run a seed; each keeps the ε that it was to keep."""
    found = []
    for seed in range(seeds):
        done = q.run(plan, fleet=q.Simulation(data, seed=seed), watch=lambda report: None)
        if done.epsilon is not None:
            local = isinstance(plan.privacy, q.privacy.LocalGaussian)
            spent = done.epsilon.server if local else done.epsilon.released
            assert spent <= epsilon * (1 + 1e-5), (plan.privacy, spent)
        found.append(100 * done.metrics["accuracy"])
    return np.array(found)


def released_noise(plan: q.Plan, population: int, ring_bits: int | None = None) -> float:
    """Standard deviation of noise and rounding in a coordinate of a full cohort's sum, in clip norms."""
    resolved = plan.resolved(population)
    shape = resolved.shape(resolved.bounds(population))
    vector = shape.vectors.vectors[0]
    encoding = resolved.privacy.encoding(vector, shape)
    _, most = resolved.privacy.noise_shares(shape.bounds)
    return math.sqrt(most * encoding.local_variance + shape.bounds.largest / 4) / encoding.steps


Found = dict[tuple[str, float], np.ndarray]
"""Accuracies by mechanism and ε, ∞ for no noise."""


def rows(quick: bool, plot: str | None = None) -> Iterator[Row]:
    """What was measured, as it comes; drawn into a file at the end, if one is given."""
    found: dict[str, Found] = {}
    for task in TASKS[:1] if quick else TASKS:
        found[task.name] = {}
        yield from task_rows(
            task, (4.0,) if quick else EPSILONS, 3 if quick else task.seeds, found[task.name]
        )
    if plot is not None:
        draw(found, plot)


def task_rows(task: Task, epsilons: Sequence[float], seeds: int, found: Found) -> Iterator[Row]:
    """One task's; what was found is kept."""
    data = task.data()
    noiseless = task.plan(q.privacy.NoPrivacy(clip_norm=task.clip_norm), {})
    found[NONE, math.inf] = accuracies(noiseless, data, seeds, math.inf)
    yield from accuracy_rows(f"{task.name}, {NONE}", found[NONE, math.inf])
    for epsilon in epsilons:
        noise = {}
        for name, plan in task.plans(epsilon, len(data)):
            found[name, epsilon] = accuracies(plan, data, seeds, epsilon)
            case = f"{task.name}, ε {epsilon:g}, {name}"
            yield from accuracy_rows(case, found[name, epsilon])
            if name in (CENTRAL, GAUSSIAN, SKELLAM):
                noise[name] = released_noise(plan, len(data))
            if name in (GAUSSIAN, SKELLAM):
                lost = found[CENTRAL, epsilon] - found[name, epsilon]
                mean = float(lost.mean())
                yield Row(case, "points below central", "", mean, f"≤ {GOAL_POINTS:g}", mean <= GOAL_POINTS)
                yield Row(case, "standard error", "", error_of(lost))
                yield Row(case, "noise over central's", "×", noise[name] / noise[CENTRAL])


def accuracy_rows(case: str, found: np.ndarray) -> Iterator[Row]:
    """The mean over the seeds, and its error."""
    yield Row(case, "accuracy", "%", float(found.mean()))
    yield Row(case, "standard error", "%", error_of(found))


def error_of(found: np.ndarray) -> float:
    """The mean's standard error."""
    return statistics.stdev(found.tolist()) / math.sqrt(len(found))


def draw(found: Mapping[str, Found], file: str) -> None:
    """Accuracy against ε, a panel a task, with standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (task, own) in zip(np.ravel(figure.subplots(1, len(found))), found.items(), strict=True):
        axes.axhline(own[NONE, math.inf].mean(), color="tab:gray", linestyle=":", label=NONE)
        for name in dict.fromkeys(name for name, _ in own if name != NONE):
            at = [epsilon for other, epsilon in own if other == name]
            means, errors = (
                [of(own[name, epsilon]) for epsilon in at] for of in (lambda a: float(a.mean()), error_of)
            )
            axes.errorbar(at, means, errors, marker="o", markersize=4, capsize=2, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(EPSILONS, [f"{epsilon:g}" for epsilon in EPSILONS])
        axes.set_xlabel("ε of the whole run")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(task, fontsize="medium")
    figure.legend(*axes.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=110)
