"""`quorate plan`: check a plan, show it filled in, show its clients' data, write it for another system."""

from __future__ import annotations

from pathlib import Path

import typer

__all__ = ["PlanFile", "Settings", "app"]

app = typer.Typer(help="Check, show and export plans.", no_args_is_help=True)

PlanFile = typer.Argument(..., metavar="PLAN.toml", help="The plan file.", dir_okay=False)
Settings = typer.Option(
    [], "--set", metavar="a.b=c", help="Set a value of the plan; may be given several times."
)


@app.command()
def check(plan: Path = PlanFile, settings: list[str] = Settings) -> None:
    """Say whether a plan can be run, and if not, every reason."""
    from quorate import resolution
    from quorate.planfile import read_plan

    resolved = resolution.resolve(read_plan(plan, settings))
    typer.echo(f"{plan}: good; terms {resolution.terms_hash(resolved)[:16]}")


@app.command()
def show(plan: Path = PlanFile, settings: list[str] = Settings) -> None:
    """Show a plan with the defaults filled in, and what depends on the population worked out."""
    from quorate import resolution
    from quorate.planfile import format_plan, read_plan

    typer.echo(format_plan(resolution.resolve(read_plan(plan, settings))), nl=False)


@app.command()
def data(
    plan: Path = PlanFile,
    settings: list[str] = Settings,
    plot: Path | None = typer.Option(
        None, help="Draw label against client into this file, such as data.png."
    ),
) -> None:
    """Show the data of a simulation's clients: how many examples each has, and of which labels."""
    from rich.console import Console
    from rich.table import Table

    from quorate import resolution
    from quorate.errors import PlanError
    from quorate.planfile import read_plan
    from quorate.simulations.datasets import FederatedDataset, showing

    read = read_plan(plan, settings)
    found = getattr(resolution.open_fleet(read.fleet), "data", None)
    if not isinstance(found, FederatedDataset):
        raise PlanError(
            f"fleet.kind: the data of a {read.fleet.kind!r} fleet stay with its members; accepted: 'simulation'"
        )
    described, console = dict(showing.facts(found)), Console()
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    for row in described.items():
        table.add_row(*row)
    console.print(table)
    if "labels" in described:
        labels = Table("label", "examples", "clients", "largest share", box=None, header_style="bold")
        for label, examples, clients, share in showing.label_table(found):
            labels.add_row(str(label), f"{examples:,}", f"{clients:,}", f"{share:.1%}")
        console.print()
        console.print(labels)
    if plot is not None:
        showing.draw(found, plot)
        typer.echo(f"drawn: {plot}")


@app.command()
def export(
    plan: Path = PlanFile,
    directory: Path = typer.Argument(..., metavar="DIR", help="Where to write it: a new directory."),
    flower: bool = typer.Option(False, "--flower", help="As a Flower app, for `flwr run`."),
    nodes: int | None = typer.Option(None, help="How many nodes it counts on; by default, the plan's fleet."),
    settings: list[str] = Settings,
) -> None:
    """Write a plan for another system, which then runs it: its rounds, secure aggregation and accounting stay ours."""
    if not flower:
        raise typer.BadParameter("say for which system; accepted: --flower")
    from quorate.planfile import read_plan

    read = read_plan(plan, settings)
    from quorate.interop.flower.apps import write_app

    written = write_app(read, directory, nodes)
    typer.echo(f"a Flower app is in {written}; next: flwr run {written}")
