"""What a run came to, as a table for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from quorate.errors import DataError
from quorate.evaluation import PREFIX
from quorate.result import FinishedRun

__all__ = ["as_json", "dropouts", "show"]


def as_json(run: FinishedRun) -> dict[str, Any]:
    """The result as JSON values; a statistic's has an `answer`, null where there was more noise than answer."""
    epsilon = run.epsilon
    answer: dict[str, Any] = {}
    try:
        if run.answer is not None:
            answer = {"answer": dict(run.answer)}
    except DataError:
        answer = {"answer": None}
    return {
        "run": run.record.id,
        "terms": run.record.terms_hash,
        "rounds": len(run.committed),
        "evaluations": len(run.evaluations),
        "aborted": len(run.history) - len(run.committed) - len(run.evaluations),
        "dropouts": dropouts(run),
        "metrics": dict(run.metrics),
        **answer,
        "epsilon_released": None if epsilon is None else epsilon.released,
        "epsilon_server": epsilon.server if epsilon is not None and math.isfinite(epsilon.server) else None,
        "delta": None if epsilon is None else epsilon.delta,
        "epsilon_example": None if run.example_epsilon is None else run.example_epsilon.epsilon,
        "delta_example": None if run.example_epsilon is None else run.example_epsilon.delta,
        "simulated": run.record.simulated,
        "versions": [dict(version) for version in run.versions],
    }


def dropouts(run: FinishedRun) -> int:
    """How many members were lost in committed rounds, over all phases."""
    return sum(sum(round.lost.values()) for round in (*run.committed, *run.evaluations))


def show(run: FinishedRun) -> None:
    """Prints the result."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    for name, value in rows(run):
        table.add_row(name, value)
    Console().print(table)


def rows(run: FinishedRun) -> list[tuple[str, str]]:
    """The result's rows."""
    found = as_json(run)
    own = {name: value for name, value in run.metrics.items() if name.startswith(PREFIX)}
    metrics = {name: value for name, value in run.metrics.items() if name not in own}
    lines = [
        ("run", f"{found['run']} ({found['rounds']} rounds committed, {found['aborted']} aborted)"),
    ]
    if metrics:
        lines.append(("metrics", _named(metrics)))
    if own:
        lines.append(("on clients", f"{_named(own)} (last of {found['evaluations']})"))
    if "answer" in found:
        lines += _answer(found["answer"])
    lines.append(("dropouts", str(found["dropouts"])))
    if run.epsilon is None:
        lines.append(("privacy", "no mechanism: no ε is claimed"))
    else:
        marked = ", simulated: a seed made the noise" if run.record.simulated else ""
        lines += [
            ("ε released", f"{run.epsilon.released:.3f} at δ {run.epsilon.delta:.2e}{marked}"),
            (
                "ε server",
                f"{run.epsilon.server:.3f} (no amplification, the most frequent participant)"
                if math.isfinite(run.epsilon.server)
                else "not claimed: what the coordinator sees has no noise",
            ),
            ("neighbours", run.epsilon.relation),
        ]
    example = run.example_epsilon
    if example is not None:
        seeded = ", simulated: a seed made the noise" if example.simulated else ""
        lines += [
            (
                "ε example",
                f"{example.epsilon:.3f} at δ {example.delta:.2e} (against everybody else, {example.participations} "
                f"participations){seeded}",
            ),
            ("neighbours", example.relation),
        ]
    for version in run.versions:
        lines.append(
            ("published", f"{version['model']} version {version['version']} in {version['registry']}")
        )
    return lines


def _answer(found: dict[str, float] | None) -> list[tuple[str, str]]:
    """A line for each of a statistic's cells."""
    if found is None:
        return [("answer", "none: there was more noise than answer; a larger cohort or ε would help")]
    cells = [f"{name}: {value:.4g}" for name, value in found.items()]
    return [("answer" if place == 0 else "", cell) for place, cell in enumerate(cells)]


def _named(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name.removeprefix(PREFIX)} {value:.4f}" for name, value in metrics.items())
