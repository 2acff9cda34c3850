"""Sweeps: a plan with many settings and seeds, run in processes of their own, and one file with all results.

A case is a set of values, `a.b=c` as on the command line, and a seed. What is done is in the file, so a sweep that was
stopped goes on where it was; cases that failed are tried again. Cases run in worker processes with one BLAS thread
each, their state in memory.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quorate.errors import DataError, MissingExtra, PlanError, QuorateError
from quorate.randomness import generator

__all__ = ["Case", "Group", "Result", "draw", "expand", "plot", "results", "run", "sampled", "summary"]

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS results (settings TEXT, seed INTEGER, status TEXT, seconds REAL, result TEXT,"
    " PRIMARY KEY (settings, seed))"
)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Case:
    """One run of a sweep.

    Args:
        settings: `a.b=c` each, in the order of the grid.
        seed: of the fleet.
    """

    settings: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Result:
    """What a case came to.

    Args:
        case: which one.
        metrics: of the last round; empty if it failed.
        history: of every committed round, the metrics.
        epsilon: released; None when no privacy is claimed.
        seconds: that it took.
        error: why it failed; None if it did not.
    """

    case: Case
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    epsilon: float | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Group:
    """The results of one set of values, over its seeds.

    Args:
        settings: the values.
        count: how many seeds ended well.
        failed: how many did not.
        metrics: name → mean and standard deviation (of the sample; NaN for one seed).
        epsilon: released, the largest; None when no privacy is claimed.
        seconds: of a run, on average.
    """

    settings: tuple[str, ...]
    count: int
    failed: int
    metrics: Mapping[str, tuple[float, float]]
    epsilon: float | None
    seconds: float


def expand(grid: Sequence[str], seeds: int) -> list[Case]:
    """Every combination of the grid's values, each with seeds 0, 1, ….

    Args:
        grid: `a.b=1,2,3` each.
        seeds: how many.

    Raises:
        PlanError: an axis has no values.
    """
    axes = []
    for axis in grid:
        path, equals, values = axis.partition("=")
        chosen = [value.strip() for value in _split(values) if value.strip()]
        if not path.strip() or not equals or not chosen:
            raise PlanError(
                f"--grid {axis}: accepted: section.key=value,value,…, such as rounds.cohort=10,20"
            )
        axes.append([f"{path.strip()}={value}" for value in chosen])
    return [Case(settings, seed) for settings in itertools.product(*axes) for seed in range(seeds)]


def sampled(space: Sequence[str], count: int, seeds: int, seed: int = 0) -> list[Case]:
    """Random sets of values, each with seeds 0, 1, ….

    Args:
        space: `a.b=low:high`, `a.b=log:low:high`, `a.b=int:low:high` (both ends included) or `a.b=1,2,3` each.
        count: how many sets.
        seeds: of each.
        seed: the same gives the same sets.

    Raises:
        PlanError: an axis is none of these.
    """
    rng = generator(seed, "sweep", *space)
    chosen = [tuple(draw(axis, rng) for axis in space) for _ in range(count)]
    return [Case(settings, number) for settings in chosen for number in range(seeds)]


def draw(axis: str, rng: np.random.Generator) -> str:
    """One value of an axis of a random search, as `a.b=c`."""
    path, _, values = axis.partition("=")
    kind, _, rest = values.partition(":")
    try:
        if "," in values or ":" not in values:
            return f"{path}={rng.choice([value.strip() for value in _split(values)])}"
        low, high = (float(end) for end in (rest if kind in ("log", "int") else values).split(":"))
        if not low < high or (kind == "log" and low <= 0):
            raise ValueError("the ends are not in order")
    except ValueError as error:
        raise PlanError(
            f"--space {axis}: {error}; accepted: section.key=low:high, =log:low:high, =int:low:high or =value,value,…"
        ) from error
    if kind == "int":
        return f"{path}={int(rng.integers(int(low), int(high) + 1))}"
    if kind == "log":
        return f"{path}={math.exp(rng.uniform(math.log(low), math.log(high))):.6g}"
    return f"{path}={rng.uniform(low, high):.6g}"


def run(
    plan: Path,
    cases: Sequence[Case],
    file: Path,
    settings: Sequence[str] = (),
    jobs: int = 1,
    told: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Runs the cases that the file does not hold yet, and writes each down as it ends.

    Args:
        plan: the plan file.
        cases: all of the sweep.
        file: the results, SQLite.
        settings: `a.b=c` for all cases.
        jobs: how many run at the same time.
        told: of each case that ended.

    Returns:
        The results of all cases, also of those that were done before.

    Raises:
        PlanError: a case is no plan that can be run; none is started then.
        DataError: the file is not a sweep's.
    """
    from quorate.planfile import read_plan

    for case in cases:
        read_plan(plan, [*settings, *case.settings])
    with closing(_opened(file)) as connection:
        done = {
            (result.case.settings, result.case.seed) for result in _rows(connection) if result.error is None
        }
        pending = [case for case in cases if (case.settings, case.seed) not in done]
        for result in _worked(plan, pending, settings, jobs):
            with connection:
                connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)", _as_row(result))
            told(result)
        wanted = {(case.settings, case.seed) for case in cases}
        return [result for result in _rows(connection) if (result.case.settings, result.case.seed) in wanted]


def results(file: Path) -> list[Result]:
    """Everything that a sweep's file holds, in the order of the settings and seeds.

    Raises:
        DataError: there is no such file, or it is not a sweep's.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}; `quorate sweep run` makes one")
    with closing(_opened(file)) as connection:
        return _rows(connection)


def summary(found: Iterable[Result]) -> list[Group]:
    """The results by settings, over seeds."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in found:
        groups.setdefault(result.case.settings, []).append(result)
    return [_group(settings, members) for settings, members in groups.items()]


def plot(found: Sequence[Result], metric: str, path: Path) -> None:
    """Draws a metric against committed rounds, one line for each set of values: the mean over seeds and its spread.

    Raises:
        DataError: no result has this metric.
        MissingExtra: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("simulation", "plotting a sweep") from error
    measured = {name for result in found for name in result.metrics}
    if metric not in measured:
        raise DataError(
            f"there is no metric {metric!r}; these are measured: {', '.join(sorted(measured)) or 'none'}"
        )
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for group in summary(found):
        lines = [
            [metrics.get(metric, math.nan) for metrics in result.history]
            for result in found
            if result.case.settings == group.settings and result.error is None
        ]
        if not lines:
            continue
        length = min(len(line) for line in lines)
        values, rounds = np.array([line[:length] for line in lines]), np.arange(1, length + 1)
        mean, spread = values.mean(axis=0), values.std(axis=0)
        (drawn,) = axes.plot(rounds, mean, label=", ".join(group.settings) or "the plan")
        axes.fill_between(
            rounds, mean - spread, mean + spread, color=drawn.get_color(), alpha=0.2, linewidth=0
        )
    axes.set_xlabel("committed rounds")
    axes.set_ylabel(metric)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=144)


def _worked(plan: Path, cases: Sequence[Case], settings: Sequence[str], jobs: int) -> Iterator[Result]:
    """The results as they come; what is not begun when the caller stops is not begun."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_one_thread, max_tasks_per_child=1
    ) as pool:
        waiting = {pool.submit(_work, str(plan), tuple(settings), case): case for case in cases}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    case = waiting.pop(future)
                    died = future.exception()
                    yield future.result() if died is None else Result(case, {}, [], None, 0.0, repr(died))
        finally:
            for future in waiting:
                future.cancel()


def _one_thread() -> None:
    for name in _THREADS:
        os.environ[name] = "1"


def _work(plan: str, settings: tuple[str, ...], case: Case) -> Result:
    """Runs one case, in a process of its own."""
    from quorate import assembly
    from quorate.planfile import read_plan

    began = time.monotonic()
    try:
        read = read_plan(plan, [*settings, *case.settings, f"fleet.seed={case.seed}"])
        finished = assembly.run(read, watch=lambda report: None)
    except QuorateError as error:
        return Result(case, {}, [], None, time.monotonic() - began, str(error))
    return Result(
        case,
        dict(finished.metrics),
        [dict(round.metrics) for round in finished.committed],
        None if finished.epsilon is None else finished.epsilon.released,
        time.monotonic() - began,
    )


def _opened(file: Path) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(file)
    try:
        with connection:
            connection.execute(_SCHEMA)
            connection.execute("SELECT settings, seed, status, seconds, result FROM results LIMIT 1")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise DataError(f"{file} is not the file of a sweep: {error}") from error
    return connection


def _as_row(result: Result) -> tuple[str, int, str, float, str]:
    content = {
        "metrics": result.metrics,
        "history": result.history,
        "epsilon": result.epsilon,
        "error": result.error,
    }
    status = "done" if result.error is None else "failed"
    return json.dumps(result.case.settings), result.case.seed, status, result.seconds, json.dumps(content)


def _rows(connection: sqlite3.Connection) -> list[Result]:
    rows = connection.execute("SELECT settings, seed, seconds, result FROM results ORDER BY rowid")
    found = [
        Result(Case(tuple(json.loads(settings)), seed), seconds=seconds, **json.loads(content))
        for settings, seed, seconds, content in rows
    ]
    return sorted(found, key=lambda result: (result.case.settings, result.case.seed))


def _group(settings: tuple[str, ...], members: Sequence[Result]) -> Group:
    well = [result for result in members if result.error is None]
    names = dict.fromkeys(name for result in well for name in result.metrics)
    metrics = {}
    for name in names:
        values = np.array([result.metrics[name] for result in well if name in result.metrics])
        metrics[name] = (float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan)
    spent = [result.epsilon for result in well if result.epsilon is not None]
    seconds = float(np.mean([result.seconds for result in well])) if well else math.nan
    return Group(settings, len(well), len(members) - len(well), metrics, max(spent, default=None), seconds)


def _split(values: str) -> list[str]:
    """At commas, but not inside brackets or quotes."""
    parts, depth, quoted = [""], 0, False
    for character in values:
        quoted ^= character == '"'
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts
