"""`[evaluation]`: the model measured on the members' own data, in rounds like those of training.

Every so many committed rounds a cohort of its own is drawn, gets the model, and measures it on its examples. A member
says it in cells (`quorate.cells`): each metric within its range, for the mean; the same value in a histogram, for
quantiles across members; the metric of the examples in each slice, which weighs as much as the member has of them. So
whatever a member measured, each of these questions bounds what it adds, and the cells ride in the same sum as an
update would: under secure aggregation where the plan has it, with noise and a charge of their own where it is private.

What comes out has names such as `federated/accuracy`, `federated/accuracy/p10` and `federated/accuracy/label=3`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from quorate.cells import Bins, Ends, shares
from quorate.errors import DataError
from quorate.rounds import Update, Vector, VectorSpec
from quorate.sections import Section

__all__ = ["CELLS", "EXAMPLES", "PREFIX", "Evaluation", "Questions", "sliced"]

CELLS = "cells"
"""The vector of an evaluation's sum."""
EXAMPLES = "examples"
"""What a member has of examples, among the metrics."""
PREFIX = "federated/"
"""What the names of metrics on members' data begin with."""


def sliced(metric: str, key: str, value: int | str) -> str:
    """The name of a metric over the examples in one slice; of `EXAMPLES`, their number."""
    return f"{metric}/{key}={value}"


class Evaluation(Section):
    """`[evaluation]`: what is measured on members' data, how often, and how that is protected.

    Args:
        metrics: by name the range, low and high, that a member's value is moved into: those that the task measures, and
            `examples`, how many a member has.
        every: after how many committed rounds; the last one is followed by an evaluation in any case.
        quantiles: across members, of each metric, between 0 and 1.
        bins: of the histogram that they are read from: a quantile is right to the width of one.
        slices: values by key: metrics are measured of the examples that have each of them. A key is `label`, or one
            that the task declares.
        weighting: `uniform`: every member counts the same; `examples`: by its number of examples. Quantiles count
            members.
        example_cap: the most examples that count of one member; needed for `examples` in a ring, and with privacy.
        cohort: the expected size of a cohort; by default that of training. It is drawn as in training; where that keeps
            members apart (`separated`), with a fixed size.
        largest_cohort: the most members it can have; by default as in training.
        min_survivors: the fewest whose sum is released; by default as in training.
        noise_multiplier: of the plan's mechanism in these rounds, joint over everything that is measured; only where
            the plan is private.
        epsilon: instead of it: the `released` ε that all evaluations of the run may have by themselves. The ε of
            `[privacy]` is that of training and evaluation together.
    """

    metrics: Annotated[dict[str, list[float]], Field(min_length=1)]
    every: Annotated[int, Field(ge=1)] = 1
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=list)
    bins: Annotated[int, Field(ge=2, le=1024)] = 20
    slices: dict[str, list[int | Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]]] = Field(
        default_factory=dict
    )
    weighting: Literal["uniform", "examples"] = "uniform"
    example_cap: Annotated[int | None, Field(ge=1)] = None
    cohort: Annotated[int | None, Field(ge=1)] = None
    largest_cohort: Annotated[int | None, Field(ge=1)] = None
    min_survivors: Annotated[int | None, Field(ge=1)] = None
    noise_multiplier: Annotated[float | None, Field(gt=0)] = None
    epsilon: Annotated[float | None, Field(gt=0)] = None

    @model_validator(mode="after")
    def _sensible(self) -> Evaluation:
        for name, ends in self.metrics.items():
            if len(ends) != 2 or not ends[0] < ends[1]:
                raise ValueError(f"metrics.{name}: found {ends}; accepted: a low and a high end, low < high")
        for key, values in self.slices.items():
            if not values or len({str(value) for value in values}) != len(values):
                raise ValueError(f"slices.{key}: found {values}; accepted: at least one value, none twice")
        if len(set(self.quantiles)) != len(self.quantiles):
            raise ValueError(f"quantiles: found {self.quantiles}; accepted: none twice")
        return self

    def due(self, version: int, count: int) -> bool:
        """Whether the model after so many committed rounds, of `count` in all, is to be evaluated."""
        return version > 0 and (version % self.every == 0 or version == count)

    def times(self, count: int) -> int:
        """How many evaluations there are in a run of so many rounds."""
        return math.ceil(count / self.every)

    def in_words(self) -> list[str]:
        """What is measured, each metric with its range."""
        how = []
        if self.quantiles:
            how.append(
                "quantiles across members " + ", ".join(f"{100 * p:g} %" for p in sorted(self.quantiles))
            )
        how += [f"by {key} ({len(values)} slices)" for key, values in sorted(self.slices.items())]
        metrics = [
            f"{name} within {low:g} and {high:g}" for name, (low, high) in sorted(self.metrics.items())
        ]
        return [", ".join(metrics), *how]

    @property
    def questions(self) -> Questions:
        """What is asked of a member."""
        found: list[_Asked] = []
        start = 0
        for metric, (low, high) in sorted(self.metrics.items()):
            weighted = self.weighting == "examples" and metric != EXAMPLES
            asked: list[_Asked] = [_Mean(metric, Ends(low, high), start, weighted)]
            if self.quantiles:
                edges = tuple(float(edge) for edge in np.linspace(low, high, self.bins + 1))
                asked.append(_Quantiles(metric, Bins(edges), asked[-1].stop, tuple(sorted(self.quantiles))))
            if metric != EXAMPLES:
                for key, values in sorted(self.slices.items()):
                    asked.append(
                        _Slices(metric, Ends(low, high), asked[-1].stop, weighted, key, tuple(values))
                    )
            found += asked
            start = found[-1].stop
        return Questions(tuple(found), self.weighting == "examples", self.example_cap)


@dataclass(frozen=True)
class Questions:
    """Everything that is asked in an evaluation. A member adds at most 1 to the cells of each question.

    Args:
        asked: in the order of their cells.
        by_examples: whether members count by their number of examples.
        example_cap: as many count 1; None: each counts 1.
    """

    asked: tuple[_Asked, ...]
    by_examples: bool
    example_cap: int | None

    def __len__(self) -> int:
        """How many questions: the largest L1 norm of a contribution, and the square of the largest L2 norm."""
        return len(self.asked)

    @property
    def vectors(self) -> VectorSpec:
        """One vector: the cells of all questions."""
        return VectorSpec((Vector(CELLS, self.asked[-1].stop),))

    def contribution(self, update: Update) -> np.ndarray:
        """What a member adds, float32. NaN counts nowhere, and infinity at the end of its range.

        Raises:
            DataError: a metric is not among what was measured.
        """
        cells = np.zeros(self.asked[-1].stop)
        weight = self._weight(update.examples)
        for asked in self.asked:
            asked.fill(cells[asked.start : asked.stop], update, weight)
        return cells.astype(np.float32)

    def answers(self, cells: np.ndarray) -> dict[str, float]:
        """Metrics by name, from the sum of the cells; one of which nothing is above 0 is left out."""
        found: dict[str, float] = {}
        for asked in self.asked:
            found |= asked.read(cells[asked.start : asked.stop])
        return {PREFIX + name: value for name, value in found.items()}

    def _weight(self, examples: int) -> float:
        if not self.by_examples:
            return 1.0
        return (
            float(examples)
            if self.example_cap is None
            else min(examples, self.example_cap) / self.example_cap
        )


@dataclass(frozen=True)
class _Mean:
    """The mean of a metric over members, or over examples."""

    metric: str
    question: Ends
    start: int
    weighted: bool

    @property
    def stop(self) -> int:
        return self.start + self.question.cells

    def fill(self, cells: np.ndarray, update: Update, weight: float) -> None:
        cells += (weight if self.weighted else 1.0) * _tally(self.question, _measured(update, self.metric))

    def read(self, cells: np.ndarray) -> dict[str, float]:
        found = shares(cells)
        return {} if found is None else {self.metric: self.question.answer(found)["mean"]}


@dataclass(frozen=True)
class _Quantiles:
    """Quantiles of a metric across members."""

    metric: str
    question: Bins
    start: int
    probabilities: tuple[float, ...]

    @property
    def stop(self) -> int:
        return self.start + self.question.cells

    def fill(self, cells: np.ndarray, update: Update, weight: float) -> None:
        cells += _tally(self.question, _measured(update, self.metric))

    def read(self, cells: np.ndarray) -> dict[str, float]:
        found = {f"{self.metric}/p{100 * p:g}": self.question.quantile(cells, p) for p in self.probabilities}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class _Slices:
    """The mean of a metric in each slice of a key. Slices are disjoint: a member adds its share of examples to each."""

    metric: str
    question: Ends
    start: int
    weighted: bool
    key: str
    values: tuple[int | str, ...]

    @property
    def stop(self) -> int:
        return self.start + len(self.values) * self.question.cells

    def fill(self, cells: np.ndarray, update: Update, weight: float) -> None:
        examples = max(update.examples, 1)
        for own, value in zip(cells.reshape(-1, self.question.cells), self.values, strict=True):
            name = sliced(self.metric, self.key, value)
            if name in update.metrics:
                held = update.metrics.get(sliced(EXAMPLES, self.key, value), 0.0)
                own += held / examples * _tally(self.question, update.metrics[name])
        cells *= (weight if self.weighted else 1.0) / max(1.0, float(cells.sum()))

    def read(self, cells: np.ndarray) -> dict[str, float]:
        answers = {}
        for own, value in zip(cells.reshape(-1, self.question.cells), self.values, strict=True):
            found = shares(own)
            if found is not None:
                answers[sliced(self.metric, self.key, value)] = self.question.answer(found)["mean"]
        return answers


_Asked = _Mean | _Quantiles | _Slices


def _measured(update: Update, metric: str) -> float:
    """A member's value.

    Raises:
        DataError: it was not measured.
    """
    if metric == EXAMPLES:
        return float(update.examples)
    if metric not in update.metrics:
        found = ", ".join(update.metrics) or "nothing"
        raise DataError(f"an evaluation needs the metric {metric!r}; this client measured {found}")
    return update.metrics[metric]


def _tally(question: Ends | Bins, value: float) -> np.ndarray:
    return np.zeros(question.cells) if math.isnan(value) else question.tally(np.array([value]))
