"""`quorate sweep`: run a plan with many settings and seeds, and report what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from quorate.cli.plans import PlanFile, Settings

if TYPE_CHECKING:
    from quorate.sweeps import Result

__all__ = ["app"]

app = typer.Typer(help="Run a plan with many settings and seeds.", no_args_is_help=True)

Results = typer.Option(Path("sweep.sqlite"), "--out", metavar="FILE", help="Where the results are kept.")


@app.command()
def run(
    plan: Path = PlanFile,
    settings: list[str] = Settings,
    grid: list[str] = typer.Option(
        [], metavar="a.b=1,2,3", help="Values of a setting; of several, every combination is run."
    ),
    space: list[str] = typer.Option(
        [], metavar="a.b=log:1e-3:1", help="A random search: low:high, log:low:high, int:low:high, or values."
    ),
    count: int = typer.Option(10, min=1, help="How many random sets of values."),
    seeds: int = typer.Option(1, min=1, help="How many seeds each set of values is run with."),
    jobs: int = typer.Option(1, min=1, help="How many runs at the same time."),
    out: Path = Results,
) -> None:
    """Run every case that the results do not hold yet.

    Stopped at any point and started again, it goes on with what is not done.
    """
    from rich.console import Console
    from rich.progress import Progress

    from quorate import sweeps
    from quorate.errors import PlanError

    if bool(grid) == bool(space):
        raise PlanError("a sweep has either --grid or --space, and at least one of them")
    cases = sweeps.expand(grid, seeds) if grid else sweeps.sampled(space, count, seeds)
    try:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(f"{len(cases)} runs", total=len(cases))

            def told(result: sweeps.Result) -> None:
                if result.error is not None:
                    shown = ", ".join(result.case.settings)
                    progress.console.print(
                        f"{shown}, seed {result.case.seed}: {result.error}", style="yellow"
                    )
                progress.advance(task)

            done = sweeps.run(plan, cases, out, settings, jobs, told)
            progress.update(task, completed=len(cases))
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on with what is not done", err=True)
        raise typer.Exit(130) from None
    _show(done)


@app.command()
def report(
    out: Path = Results,
    plot: Path | None = typer.Option(None, metavar="FILE.png", help="Draw --metric against rounds."),
    metric: str = typer.Option("accuracy", help="What is drawn."),
) -> None:
    """Show the results: for each set of values, mean ± standard deviation over seeds."""
    from quorate import sweeps

    found = sweeps.results(out)
    _show(found)
    if plot is not None:
        sweeps.plot(found, metric, plot)
        typer.echo(f"drawn: {plot}")


def _show(found: Sequence[Result]) -> None:
    import math

    from rich.console import Console
    from rich.table import Table

    from quorate import sweeps

    groups = sweeps.summary(found)
    names = list(dict.fromkeys(name for group in groups for name in group.metrics))
    table = Table("settings", "seeds", *names, "ε released", "s a run", box=None, header_style="bold")
    for group in groups:
        cells = []
        for name in names:
            mean, spread = group.metrics.get(name, (math.nan, math.nan))
            cells.append(
                "" if math.isnan(mean) else f"{mean:.4g}" + ("" if math.isnan(spread) else f" ± {spread:.2g}")
            )
        count = f"{group.count}" + (f" ({group.failed} failed)" if group.failed else "")
        spent = "" if group.epsilon is None else f"{group.epsilon:.3f}"
        table.add_row(", ".join(group.settings), count, *cells, spent, f"{group.seconds:.1f}")
    Console().print(table)
