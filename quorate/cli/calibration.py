"""`quorate privacy calibrate`: the noise for a target ε, or what can be had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from quorate.cli.rows import AsJson, show_rows

if TYPE_CHECKING:
    from quorate.targets import Target

__all__ = ["calibrate"]


def calibrate(
    epsilon: float = typer.Option(..., "--epsilon", min=1e-3, help="The released ε of the whole run."),
    rounds: int = typer.Option(..., "--rounds", min=1, help="How many rounds."),
    cohort: int = typer.Option(..., "--cohort", min=1, help="The expected size of a cohort."),
    population: int = typer.Option(..., "--population", min=1, help="How many members there are."),
    delta: float | None = typer.Option(None, "--delta", help="δ; by default population^-1.1."),
    dimension: int = typer.Option(100_000, "--dimension", min=1, help="The length of an update."),
    corrupt: float = typer.Option(
        0.1, "--corrupt", min=0, max=0.49, help="The share of members that may collude."
    ),
    dropout: float = typer.Option(
        0.15, "--dropout", min=0, max=0.49, help="The share that drops out at most."
    ),
    plot: Path | None = typer.Option(
        None, metavar="FILE.png", help="Draw noise over signal against ε and rounds into this file."
    ),
    as_json: bool = AsJson,
) -> None:
    """Find the noise for a target ε, beside what other cohorts and numbers of rounds would need.

    Noise over signal is the length of the noise in the released mean over the clip norm: above about 1, a model of this
    length learns little from one round. If the target can't be had, the table says what can.
    """
    from dataclasses import replace

    from quorate import targets
    from quorate.errors import PlanError

    asked = targets.Target(epsilon, rounds, cohort, population, delta, dimension, corrupt, dropout)
    if not asked.possible:
        raise PlanError(f"--cohort: found {cohort} of {population} members; accepted: 1 to {population}")
    had = targets.noise_for(asked) is not None
    others = targets.others(asked)
    if not had:
        least = targets.least_epsilon(asked)
        others = [replace(asked, epsilon=least), *(other for other in others if targets.noise_for(other))]
    show_rows([_noise(target) for target in (asked, *others)], as_json)
    if plot is not None:
        targets.draw(asked, plot)
        typer.echo(f"drawn: {plot}", err=as_json)
    if not had:
        also = ", or one of the table's other rows" if others[1:] else ""
        raise PlanError(
            f"--epsilon: found {epsilon:g}, which can't be had with {rounds} rounds of {cohort} among {population} "
            f"members at delta {asked.at:.3g}; accepted: {least:.3g} or more{also}"
        )


def _noise(target: Target) -> dict[str, Any]:
    """One row of the table; None where it can't be had."""
    from quorate import targets

    found = targets.noise_for(target)
    return {
        "population": target.population,
        "cohort": target.cohort,
        "rounds": target.rounds,
        "noise_multiplier": None if found is None else found.multiplier,
        "epsilon_released": None if found is None else found.released,
        "epsilon_server": None if found is None else found.server,
        "delta": target.at,
        "noise_over_signal": None if found is None else found.over_signal,
    }
