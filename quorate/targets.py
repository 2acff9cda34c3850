"""What noise a target ε asks for, before there is a plan: beside what other cohorts, rounds and populations ask for.

It is that of the distributed discrete Gaussian under Poisson sampling; the other mechanisms with an ε that sampling
amplifies need a few per cent less or more. Noise over signal is the length of the noise in the released mean over the
clip norm: above about 1, a model of this length learns little from one round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from quorate import privacy
from quorate.cohorts import RingSum, Rounds, cohort_bounds
from quorate.errors import MissingExtra, PlanError
from quorate.rounds import SumShape, Vector, VectorSpec

__all__ = ["Noise", "Target", "draw", "least_epsilon", "noise_for", "others"]

_AROUND = [0.25, 0.5, 1.0, 2.0, 4.0]
_BEYOND = [1.0, 2.0, 4.0, 8.0, 16.0]


@dataclass(frozen=True)
class Target:
    """What is asked for.

    Args:
        epsilon: the `released` ε of the whole run.
        rounds: how many.
        cohort: the expected members of each.
        population: how many members there are.
        delta: of the ε; None for population^-1.1.
        dimension: the length of an update.
        corrupt: the share of members that may collude.
        dropout: the share that drops out at most.
    """

    epsilon: float
    rounds: int
    cohort: int
    population: int
    delta: float | None = None
    dimension: int = 100_000
    corrupt: float = 0.1
    dropout: float = 0.15

    @property
    def possible(self) -> bool:
        """Whether there can be such cohorts and rounds, whatever the ε."""
        return 1 <= self.cohort <= self.population and self.rounds >= 1

    @property
    def at(self) -> float:
        """δ."""
        return privacy.default_delta(self.population) if self.delta is None else self.delta

    @property
    def shape(self) -> SumShape:
        """Of a round's sum."""
        rounds, summing = (
            Rounds(count=self.rounds, cohort=self.cohort),
            RingSum(corrupt=self.corrupt, dropout=self.dropout),
        )
        bounds = cohort_bounds(rounds, summing, self.population)
        return SumShape(VectorSpec((Vector("delta", self.dimension),)), bounds, ring_bits=32)

    @property
    def sampling(self) -> dict[str, Any]:
        """How the rounds are drawn, for `privacy.calibrate`."""
        return {
            "rounds": self.rounds,
            "delta": self.at,
            "population": self.population,
            "probability": self.cohort / self.population,
            "dropout": self.dropout,
        }


@dataclass(frozen=True)
class Noise:
    """What keeps a target.

    Args:
        multiplier: the noise's standard deviation over the clip norm.
        released: ε against those who see the models only.
        server: ε against the coordinator.
        over_signal: the length of the noise in the released mean, over the clip norm.
    """

    multiplier: float
    released: float
    server: float
    over_signal: float


@lru_cache(maxsize=256)
def noise_for(target: Target) -> Noise | None:
    """The least noise that keeps a target; None where none does."""
    shape, bounds = target.shape, target.shape.bounds
    try:
        found = privacy.calibrate(_mechanism(target), shape, **target.sampling)
    except PlanError:
        return None
    assert found.noise_multiplier is not None
    event, share = found.event(shape), target.cohort / target.population
    sampled = privacy.TruncatedPoissonSampledEvent(
        target.population, share, bounds.largest, event, target.dropout
    )
    most = privacy.most_participations(target.rounds, share, target.population)
    deviation = found.noise_multiplier * math.sqrt(bounds.largest / bounds.honest)
    return Noise(
        multiplier=found.noise_multiplier,
        released=privacy.forecast(sampled, target.rounds, target.at),
        server=privacy.forecast_server(event, most, target.at),
        over_signal=deviation * math.sqrt(target.dimension) / target.cohort,
    )


def least_epsilon(target: Target) -> float:
    """The smallest ε that can be had with these rounds and cohorts, rounded up to three digits."""
    least = privacy.least_epsilon(_mechanism(target), target.shape, **target.sampling)
    unit = 10.0 ** (math.floor(math.log10(least)) - 2)
    return math.ceil(least / unit * (1 + 1e-9)) * unit


def others(target: Target) -> list[Target]:
    """Other cohorts, numbers of rounds and populations, for the same ε."""
    cohort, rounds, population = target.cohort, target.rounds, target.population
    found = [replace(target, cohort=size) for size in (cohort // 2, 2 * cohort, 5 * cohort)]
    found += [replace(target, rounds=count) for count in (rounds // 5, rounds // 2, 2 * rounds)]
    found += [replace(target, population=10 * population)]
    found += [replace(target, cohort=10 * cohort, population=10 * population)]
    return [other for other in dict.fromkeys(found) if other.possible and other != target]


def draw(target: Target, path: Path) -> Any:
    """Draws noise over signal against ε and against rounds, a line a cohort, the target marked; saves the figure.

    Raises:
        MissingExtra: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError as error:
        raise MissingExtra("simulation", "plotting a calibration") from error
    figure = Figure(figsize=(9, 4), layout="constrained")
    by_epsilon, by_rounds = figure.subplots(1, 2, sharey=True)
    asked = noise_for(target)
    if asked is not None:
        near, larger, longer = target, _AROUND, _AROUND
    else:  # what can be had is at a larger ε, or in fewer rounds
        near, larger, longer = (
            replace(target, epsilon=least_epsilon(target)),
            _BEYOND,
            [1 / k for k in _BEYOND],
        )
    cohorts = [replace(near, cohort=near.cohort * times) for times in (1, 2, 5)]
    for other in (each for each in cohorts if each.possible):
        every = 1 if other == near else 2
        _line(
            by_epsilon, [replace(other, epsilon=times * near.epsilon) for times in larger[::every]], "epsilon"
        )
        _line(by_rounds, [replace(other, rounds=count) for count in _counts(near, longer[::every])], "rounds")
    for axes, x, label in (
        (by_epsilon, target.epsilon, "ε of the whole run"),
        (by_rounds, target.rounds, f"rounds, at ε {near.epsilon:g}"),
    ):
        if asked is not None:
            mark = f"asked for: noise multiplier {asked.multiplier:.3g}"
            axes.plot([x], [asked.over_signal], "*", color="black", markersize=13, label=mark)
        elif axes is by_epsilon:
            axes.axvline(x, color="black", linestyle=":", label="asked for: can't be had")
        axes.axhline(1, color="tab:gray", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel(label)
    by_epsilon.set_yscale("log")
    by_epsilon.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    by_epsilon.yaxis.set_major_formatter("{x:g}")
    by_epsilon.yaxis.set_minor_locator(LogLocator(subs=()))
    _ticks(by_epsilon, sorted({target.epsilon, *(times * near.epsilon for times in larger)}))
    _ticks(by_rounds, _counts(near, longer))
    by_epsilon.set_ylabel("noise over signal (1: a round teaches little)")
    by_epsilon.legend(frameon=False, fontsize="small")
    figure.suptitle(
        f"{target.rounds:,} rounds among {target.population:,} members, updates of {target.dimension:,} values, "
        f"δ {target.at:.2g}",
        fontsize="medium",
    )
    figure.savefig(path, dpi=144)
    return figure


def _mechanism(target: Target) -> privacy.DistributedGaussian:
    return privacy.DistributedGaussian(clip_norm=1.0, epsilon=target.epsilon)


def _counts(target: Target, times: Sequence[float]) -> list[int]:
    return sorted({max(1, round(step * target.rounds)) for step in times})


def _line(axes: Any, steps: Sequence[Target], name: str) -> None:
    """Through the steps that can be had."""
    had = [
        (getattr(step, name), noise.over_signal) for step in steps if (noise := noise_for(step)) is not None
    ]
    if had:
        axes.plot(*zip(*had, strict=True), marker="o", markersize=4, label=f"cohorts of {steps[0].cohort:,}")


def _ticks(axes: Any, values: Sequence[float]) -> None:
    axes.set_xticks(values, [f"{value:.3g}" for value in values])
    axes.minorticks_off()
