"""`quorate coordinator run`: the coordinator's process."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import typer

from quorate.cli.runs import Database

__all__ = ["run"]


def run(
    folder: Path = typer.Argument(..., metavar="DIR", help="The coordinator's folder.", file_okay=False),
    devices: str = typer.Option(
        ":9443", "--listen", metavar="HOST:PORT", help="Where devices check in; no host is every interface."
    ),
    enrolment: str = typer.Option(
        ":9444", metavar="HOST:PORT", help="Where devices enrol, with an authority of its own."
    ),
    admin: str = typer.Option("localhost:9445", metavar="HOST:PORT", help="Where `quorate runs` reaches it."),
    metrics: str = typer.Option(
        "localhost:9446", metavar="HOST:PORT", help="Where Prometheus scrapes it; empty for nowhere."
    ),
    plans: list[Path] = typer.Option(
        [],
        "--plan",
        metavar="PLAN.toml",
        help="Start this plan's run; may be given several times.",
        dir_okay=False,
    ),
    database: str | None = Database,
    budget: float | None = typer.Option(
        None, min=1e-3, help="The released ε that all runs together may spend, whatever they learn."
    ),
    budget_delta: float = typer.Option(1e-6, min=1e-12, max=0.1, help="The δ of --budget."),
    insecure: bool = typer.Option(
        False,
        "--insecure",
        help="Without certificates, for localhost only: every device is who it says it is.",
    ),
    grace: float = typer.Option(30.0, metavar="SECONDS", help="How long open rounds may take at the end."),
    streams: int = typer.Option(10_000, help="The most devices at once."),
    level: str = typer.Option("info", "--log-level", help="debug, info, warning or error."),
) -> None:
    """Serve devices, and run plans on them, until it is told to end.

    Runs that were started go on when it is started again. It logs one JSON object a line to standard error, and ends in
    good order on Ctrl-C and SIGTERM.
    """
    from quorate import logs
    from quorate.coordination import Addresses, CoordinatorProcess
    from quorate.plan import Population
    from quorate.server.devices import Limits

    logs.configure(level)
    texts = [_text(plan) for plan in plans]
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if insecure and devices.startswith(":"):
        devices = "localhost" + devices
    if insecure:
        typer.echo(
            "warning: insecure: no certificates, every device is who it says it is; for this machine only",
            err=True,
        )
    process = CoordinatorProcess(
        folder,
        Addresses(devices, enrolment, admin, metrics or None),
        database=database,
        population=None if budget is None else Population(name="devices", epsilon=budget, delta=budget_delta),
        insecure=insecure,
        limits=Limits(streams=streams),
        grace_s=grace,
    )
    with process:
        for name, port in process.ports.items():
            typer.echo(f"{name:9}  port {port}")
        for text in texts:
            typer.echo(f"run        {process.host.start(text).run}")
        ended.wait()
        typer.echo("ending", err=True)


def _text(plan: Path) -> str:
    from quorate.errors import PlanError

    try:
        return plan.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"the file can't be read: {error}", source=str(plan)) from error
