"""`quorate run` and `quorate runs`: run a plan here, or have a coordinator run it, and look at what was run.

`list` and `show` read a state directory, or ask a running coordinator (`--at`); the others are for a coordinator.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from quorate.cli.operating import At, OperatorFolder, operator
from quorate.cli.plans import PlanFile, Settings

__all__ = ["Database", "StateDirectory", "app", "run"]

app = typer.Typer(help="Look at runs, and tell a coordinator what to run.", no_args_is_help=True)

StateDirectory = typer.Option(
    Path(".quorate"), "--state", metavar="DIRECTORY", help="Where runs are kept.", file_okay=False
)
RunId = typer.Argument(..., metavar="RUN", help="The run's id, or how it begins.")
Database = typer.Option(
    None,
    "--database",
    metavar="URL",
    envvar="QUORATE_DATABASE",
    show_envvar=True,
    help="A PostgreSQL database in the place of the directory's own: postgresql://USER@HOST/NAME.",
)


def run(
    plan: Path = PlanFile,
    settings: list[str] = Settings,
    state: Path = StateDirectory,
    database: str | None = Database,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, and no progress."),
    log: Path | None = typer.Option(None, metavar="FILE.csv", help="Append a line a round to this file."),
    tensorboard: Path | None = typer.Option(None, metavar="DIRECTORY", help="Log for TensorBoard."),
    best: Path | None = typer.Option(
        None, metavar="FILE.safetensors", help="Keep the parameters with the best --metric in this file."
    ),
    patience: int | None = typer.Option(
        None, min=1, help="End the run when --metric has not become better for so many rounds."
    ),
    metric: str = typer.Option("accuracy", help="What --best and --patience look at."),
) -> None:
    """Run a plan to its end.

    Stopped at any point and started again, it goes on from the last committed round; a finished run prints its result
    again.
    """
    try:
        from quorate.planfile import read_plan

        read = read_plan(plan, settings)
        from quorate import assembly, callbacks
        from quorate.cli import tables

        told: list[callbacks.Callback] = []
        told += [] if log is None else [callbacks.CsvLog(log)]
        told += [] if tensorboard is None else [callbacks.TensorBoardLog(tensorboard)]
        told += [] if best is None else [callbacks.KeepBest(best, metric)]
        told += [] if patience is None else [callbacks.EarlyStopping(metric, patience)]
        quiet = (lambda report: None) if as_json else None
        finished = assembly.run(read, state=state, database=database, watch=quiet, callbacks=told)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from the last committed round", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(tables.as_json(finished)))
    else:
        tables.show(finished)


@app.command("list")
def list_(
    state: Path = StateDirectory,
    database: str | None = Database,
    at: str | None = At,
    operator_folder: Path | None = OperatorFolder,
) -> None:
    """List the runs of a state directory, or of a running coordinator."""
    from rich.console import Console
    from rich.table import Table

    from quorate.server.store import opened

    if at is not None:
        from quorate.wire import admin_pb2 as pb

        table = Table(
            "run", "status", "rounds", "devices waiting", "task", "started", box=None, header_style="bold"
        )
        with operator(at, operator_folder) as service:
            for run in service.ListRuns(pb.ListRunsRequest()).runs:
                waiting = f"{run.waiting_devices} of {run.population}"
                rounds = f"{run.committed} of {run.rounds}"
                table.add_row(run.run, run.status, rounds, waiting, run.task, run.created[:19] + "Z")
        Console().print(table)
        return
    table = Table("run", "status", "committed rounds", "started", "terms", box=None, header_style="bold")
    with opened(state, database) as store:
        for found in store.runs():
            table.add_row(
                found.id, found.status, str(found.committed), found.created[:19] + "Z", found.terms_hash[:16]
            )
    Console().print(table)


@app.command()
def show(
    run_id: str = RunId,
    state: Path = StateDirectory,
    database: str | None = Database,
    at: str | None = At,
    operator_folder: Path | None = OperatorFolder,
) -> None:
    """Show the rounds of a run and what was published from it; of a coordinator's run, where it stands."""
    from rich.console import Console
    from rich.table import Table

    from quorate.server.store import opened

    if at is not None:
        _say(_asked(at, operator_folder, "ShowRun", run_id))
        return
    with opened(state, database) as store:
        found = store.run(run_id)
        rounds, versions = store.rounds(found.id), store.versions(found.id)
    console = Console()
    simulated = ", simulated: a seed made its randomness" if found.simulated else ""
    console.print(f"run {found.id}: {found.status}, {found.committed} committed rounds{simulated}")
    console.print(f"terms {found.terms_hash}")
    table = Table(
        "round",
        "kind",
        "outcome",
        "survivors",
        "metrics",
        "ε released",
        "ε server",
        box=None,
        header_style="bold",
    )
    for past in rounds:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in past.metrics.items())
        spent = [f"{past.epsilons[which]:.3f}" if past.epsilons else "" for which in ("released", "server")]
        survivors = "" if past.survivors is None else f"{past.survivors}/{past.cohort}"
        told = metrics or past.reason or ""
        table.add_row(str(past.number), past.kind.value, past.status, survivors, told, *spent)
    console.print(table)
    for version in versions:
        console.print(
            f"published after round {version['round']}: "
            f"{version['model']} version {version['version']} in {version['registry']}"
        )


@app.command()
def start(
    plan: Path = PlanFile,
    settings: list[str] = Settings,
    at: str | None = At,
    operator_folder: Path | None = OperatorFolder,
) -> None:
    """Have a coordinator run a plan; a run that was stopped or failed goes on."""
    from quorate.planfile import format_plan, read_plan

    read = read_plan(plan, settings)
    from quorate.wire import admin_pb2 as pb

    with operator(at, operator_folder) as service:
        _say(service.StartRun(pb.StartRunRequest(plan=format_plan(read))))


@app.command()
def pause(run_id: str = RunId, at: str | None = At, operator_folder: Path | None = OperatorFolder) -> None:
    """Open no more rounds of a run, after the one that is under way."""
    _say(_asked(at, operator_folder, "PauseRun", run_id))


@app.command()
def resume(run_id: str = RunId, at: str | None = At, operator_folder: Path | None = OperatorFolder) -> None:
    """Go on with a run that was paused, was stopped or has failed."""
    _say(_asked(at, operator_folder, "ResumeRun", run_id))


@app.command()
def stop(run_id: str = RunId, at: str | None = At, operator_folder: Path | None = OperatorFolder) -> None:
    """End a run now; its open round is aborted."""
    _say(_asked(at, operator_folder, "StopRun", run_id))


@app.command()
def watch(run_id: str = RunId, at: str | None = At, operator_folder: Path | None = OperatorFolder) -> None:
    """Print a line for every round of a run, until it ends or Ctrl-C."""
    from quorate.wire import admin_pb2 as pb

    with operator(at, operator_folder) as service:
        for event in service.WatchRun(pb.RunRequest(run=run_id)):
            typer.echo(_described(event))


def _asked(at: str | None, operator_folder: Path | None, method: str, run_id: str) -> Any:
    from quorate.wire import admin_pb2 as pb

    with operator(at, operator_folder) as service:
        return getattr(service, method)(pb.RunRequest(run=run_id))


def _say(state: Any) -> None:
    """Where a coordinator's run stands."""
    typer.echo(
        f"run      {state.run} ({state.task}): {state.status}{', ' * bool(state.reason)}{state.reason}"
    )
    typer.echo(f"rounds   {state.committed} of {state.rounds} committed")
    typer.echo(f"devices  {state.waiting_devices} waiting; a round needs {state.population}")
    if state.HasField("epsilon_released"):
        typer.echo(f"spent    ε {state.epsilon_released:.3f} released, {state.epsilon_server:.3f} server")


def _described(event: Any) -> str:
    if not event.round:
        return f"{event.status}{', ' * bool(event.reason)}{event.reason}"
    if event.outcome == "aborted":
        return f"round {event.round}: aborted, {event.reason}"
    parts = [f"{name} {value:.4g}" for name, value in sorted(event.metrics.items())]
    parts.append(f"survivors {event.survivors} of {event.cohort}")
    if event.HasField("epsilon_released"):
        parts.append(f"ε {event.epsilon_released:.3f}, server {event.epsilon_server:.3f}")
    return f"round {event.round}: committed, " + ", ".join(parts)
