"""Federated statistics: a question about the members' data, as a task whose parameters are the answer's cells.

    task = q.Task(q.statistics.histogram(edges=[0, 4, 8, 12, 16], column=20))
    plan = q.Plan(task=task, rounds=q.Rounds(count=1, cohort=500, sampling="fixed"),
                  privacy=q.privacy.CentralLaplace(clip_norm=1.0, epsilon=1.0))

A member's contribution is the share of its examples that falls into each cell: whatever its data are, and however
many, its L1 norm is at most 1, and so is its L2 norm. So `clip_norm = 1` clips no honest member, and any mechanism
makes an answer private: Laplace noise for the L1 norm, Gaussian noise for the L2 norm. Rounds, sums, noise and account
are those of any other task, under `fedavg`; nothing is trained.

How values fall into cells is said in `quorate.cells`. Every member counts the same. After several rounds the cells are
summed over them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quorate.cells import Bins, Ends, Question, Values, shares
from quorate.clients.adapters.examples import Examples
from quorate.errors import DataError, PlanError
from quorate.fleets import Client
from quorate.parameters import Layout, Parameters
from quorate.rounds import Instruction, State, Update
from quorate.task import ProgramSpec

__all__ = ["Statistic", "StatisticClient", "bounded_mean", "categories", "histogram"]

_CELLS = "cells"


def histogram(edges: Sequence[float], column: int | None = None) -> Statistic:
    """Which share of a member's values lies between which edges, averaged over the members.

    A value beyond the edges counts in the nearest bin; a bin holds its lower edge, and the last one its upper edge as
    well. NaN counts nowhere.

    Args:
        edges: of the bins, finite and growing, at least two.
        column: of the features; None: the targets.

    Raises:
        PlanError: the edges don't grow, or the column is below 0.
    """
    given = [float(edge) for edge in edges]
    if len(given) < 2 or not all(map(math.isfinite, given)) or sorted(set(given)) != given:
        raise PlanError(f"edges: {given} was found; at least two finite numbers that grow are accepted")
    return Statistic("histogram", {"edges": given, "column": _column(column)}, Bins(tuple(given)))


def categories(values: Sequence[int], column: int | None = None) -> Statistic:
    """Which share of a member's values is which of the given ones, averaged over the members; others count nowhere.

    Args:
        values: at least one, all different.
        column: of the features; None: the targets.

    Raises:
        PlanError: there is no value, or one twice, or the column is below 0.
    """
    given = list(values)
    if not given or len(set(given)) != len(given):
        raise PlanError(f"values: {given} was found; at least one whole number, none twice, is accepted")
    return Statistic("categories", {"values": given, "column": _column(column)}, Values(tuple(given)))


def bounded_mean(low: float, high: float, column: int | None = None) -> Statistic:
    """The mean over the members of the mean of a member's values, each moved to the nearest within the range.

    NaN counts nowhere.

    Args:
        low: of the range.
        high: above `low`; both are finite.
        column: of the features; None: the targets.

    Raises:
        PlanError: the range is empty, or the column is below 0.
    """
    if not (math.isfinite(high - low) and low < high):
        raise PlanError(f"high: {high} was found; a finite number above low ({low}) is accepted")
    settings = {"low": float(low), "high": float(high), "column": _column(column)}
    return Statistic("bounded-mean", settings, Ends(float(low), float(high)))


@dataclass(frozen=True)
class Statistic:
    """A question: made by `histogram`, `categories` or `bounded_mean`.

    Args:
        name: of the function that made it, as it stands in a plan.
        settings: its arguments.
        question: how values fall into cells.
    """

    name: str
    settings: Mapping[str, Any]
    question: Question
    metrics: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """One vector, `cells`."""
        return Layout(((_CELLS, (self.question.cells,)),))

    def initial(self, rng: np.random.Generator) -> Parameters:
        """Empty cells."""
        return self.layout.unflatten(np.zeros(self.question.cells, np.float32))

    def client(self, data: Examples | None) -> Client:
        """A client that answers from its data.

        Raises:
            DataError: there are no data, or not this column.
        """
        if data is None:
            raise DataError(
                f"{self.name!r} has no data of its own; accepted: quorate.Task(statistic, data=function), where the "
                "function gives the device's examples"
            )
        return StatisticClient(self, data)

    def contribution(self, data: Examples) -> np.ndarray:
        """The share of the examples in each cell, float64, shape (cells,): at least 0, and 1 in all at most.

        Raises:
            DataError: the examples have no such column.
        """
        column = self.settings["column"]
        features = data.x.reshape(len(data), math.prod(data.x.shape[1:]))
        if column is not None and column >= features.shape[1]:
            raise DataError(f"column {column} is asked for, and examples have {features.shape[1]} features")
        values = np.asarray(data.y if column is None else features[:, column], np.float64)
        values = values[~np.isnan(values)]
        tally: np.ndarray = self.question.tally(values) / max(len(values), 1)
        return tally

    def evaluate(self, parameters: Parameters, data: Any) -> Mapping[str, float]:
        """None: a held-out set has no members."""
        return {}

    def shares(self, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """Each cell's share of all, float64, shape (cells,): cells that noise made negative count as empty.

        Raises:
            DataError: no cell is above 0, so that there was more noise than answer.
        """
        found = shares(parameters[_CELLS])
        if found is None:
            raise DataError(
                "no cell is above 0: there was more noise than answer; accepted: a larger cohort or ε"
            )
        return found

    def answer(self, parameters: Mapping[str, np.ndarray]) -> Mapping[str, float]:
        """The answer in the question's words: a share for each bin or value, or `mean`.

        Args:
            parameters: of a finished run.

        Raises:
            DataError: see `shares`.
        """
        return self.question.answer(self.shares(parameters))

    def program_spec(self) -> ProgramSpec:
        """None.

        Raises:
            PlanError: always: a statistic predicts nothing.
        """
        raise PlanError(
            f"task.name: {self.name!r} is a statistic, which predicts nothing; accepted: no [publish]"
        )


class StatisticClient:
    """A client that answers a question from its own data. It has the local rule `sgd`, and takes no step.

    Args:
        statistic: the question.
        data: may be empty.
    """

    rules = frozenset({"sgd"})

    def __init__(self, statistic: Statistic, data: Examples):
        self._contribution, self._examples = statistic.contribution(data), len(data)

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """The contribution, as `delta`."""
        return Update({"delta": self._contribution.astype(np.float32)}, self._examples), state

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """Nothing is measured."""
        return Update({}, self._examples)


def _column(column: int | None) -> int | None:
    if column is not None and (isinstance(column, bool) or column < 0):
        raise PlanError(f"column: {column!r} was found; a whole number of at least 0, or none, is accepted")
    return column
