"""The `quorate` command. One file a command group; each imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import os
import sys

import click
import typer

from quorate.cli import (
    agent,
    audits,
    authority,
    calibration,
    coordinator,
    demo,
    doctor,
    explanation,
    models,
    plans,
    privacy,
    runs,
    serving,
    strategies,
    sweeps,
)
from quorate.errors import QuorateError

__all__ = ["app", "main"]

app = typer.Typer(
    name="quorate",
    help="Federated learning that ends in a served model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(doctor.doctor)
app.command("run")(runs.run)
app.add_typer(plans.app, name="plan")
app.add_typer(runs.app, name="runs")
app.add_typer(sweeps.app, name="sweep")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(authority.app, name="authority")
app.add_typer(strategies.app, name="strategies")
app.add_typer(models.app, name="models")
app.add_typer(privacy.app, name="privacy")
privacy.app.command("calibrate")(calibration.calibrate)
privacy.app.command("explain")(explanation.explain)
privacy.app.command("audit")(audits.audit)
app.add_typer(agent.app, name="agent")
app.command()(serving.serve)
app.command()(serving.pull)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"quorate {version('quorate')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_version, is_eager=True
    ),
) -> None:
    pass


def main() -> None:
    """Runs the command line: a known error is a message on standard error, without a traceback."""
    sys.path.insert(0, os.getcwd())  # a plan may name `module:attribute` of where it is run
    try:
        code = app(standalone_mode=False, prog_name="quorate")
    except QuorateError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        typer.echo("stopped", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
