"""What a run came to, as a table for people and as JSON for programs."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table

from quorate.result import FinishedRun

__all__ = ["as_json", "dropouts", "show"]


def as_json(run: FinishedRun) -> dict[str, Any]:
    """The result as JSON values."""
    epsilon = run.epsilon
    return {
        "run": run.record.id,
        "terms": run.record.terms_hash,
        "rounds": len(run.committed),
        "aborted": len(run.history) - len(run.committed),
        "dropouts": dropouts(run),
        "metrics": dict(run.metrics),
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
    return sum(sum(round.lost.values()) for round in run.committed)


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
    lines = [
        ("run", f"{found['run']} ({found['rounds']} rounds committed, {found['aborted']} aborted)"),
        ("metrics", ", ".join(f"{name} {value:.4f}" for name, value in found["metrics"].items())),
        ("dropouts", str(found["dropouts"])),
    ]
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
