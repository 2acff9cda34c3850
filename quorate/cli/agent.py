"""`quorate agent`: a device's own side: enrol, run, look, pause, leave, and what its policy says of a plan."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from quorate.cli.plans import PlanFile, Settings

if TYPE_CHECKING:
    from quorate.clients.agent.policy import Policy
    from quorate.clients.agent.state import AgentState

__all__ = ["app"]

app = typer.Typer(help="Take part in federated learning from this device.", no_args_is_help=True)
policy_app = typer.Typer(help="What this device accepts.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")


def _default_directory() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "quorate" / "agent"


AgentDirectory = typer.Option(
    None,
    "--state",
    metavar="DIRECTORY",
    help="Where the agent keeps its keys and its memory; by default ~/.local/state/quorate/agent.",
    file_okay=False,
)
PolicyFile = typer.Option(
    None, "--policy", metavar="POLICY.toml", help="What this device accepts.", dir_okay=False, exists=True
)
Tasks = typer.Option(
    [], "--task", metavar="MODULE:ATTRIBUTE", help="An installed task; may be given several times."
)
Coordinator = typer.Option(None, "--coordinator", metavar="HOST:PORT", help="Where to check in.")
Insecure = typer.Option(
    False, "--insecure", help="Without TLS and identity, on this machine only: for trying things out."
)
Device = typer.Option(None, "--device", metavar="NAME", help="With --insecure: what this device is called.")
AsJson = typer.Option(False, "--json", help="Print one JSON object.")


@app.command()
def enrol(
    coordinator: str = typer.Option(
        ...,
        "--coordinator",
        metavar="HOST:PORT",
        help="The coordinator's enrolment service, or the independent authority's.",
    ),
    token: str = typer.Option(
        ..., "--token", envvar="QUORATE_TOKEN", help="From `quorate coordinator token`; good for one device."
    ),
    state: Path | None = AgentDirectory,
) -> None:
    """Make this device's keys, and bring a certificate for them; the keys never leave the device."""
    from quorate.clients.agent import enrolment
    from quorate.clients.agent.state import held

    directory = state or _default_directory()
    with held(directory):
        enrolled = enrolment.enrol(directory, coordinator, token)
    typer.echo(f"device       {enrolled.device}")
    typer.echo(f"until        {enrolled.until:%Y-%m-%d %H:%M} UTC; the agent renews it by itself")
    typer.echo(f"checks in    {enrolled.service}")
    for signer in enrolled.signers:
        typer.echo(f"signs plans  {signer}   (for a policy: [accept] signers)")


@app.command()
def forget(
    state: Path | None = AgentDirectory,
    anyway: bool = typer.Option(False, "--anyway", help="Erase also if the authority can't be told."),
) -> None:
    """Leave for good: the authority is told, and this device's keys and memory are erased."""
    from quorate.clients.agent import enrolment

    told = enrolment.forget(state or _default_directory(), anyway=anyway)
    typer.echo("forgotten" + (", and the authority was told" if told else ""))


@app.command()
def run(
    tasks: list[str] = Tasks,
    coordinator: str | None = Coordinator,
    insecure: bool = Insecure,
    device: str | None = Device,
    policy: Path | None = PolicyFile,
    state: Path | None = AgentDirectory,
    flower_apps: list[Path] = typer.Option(
        [],
        "--flower-app",
        metavar="DIRECTORY",
        help="A Flower app whose client takes part as a task; may be given several times.",
        exists=True,
        file_okay=False,
    ),
    node_config: str = typer.Option(
        "", "--node-config", help="With --flower-app: what its context says of this node, as Flower takes it."
    ),
    flower: str | None = typer.Option(
        None, "--flower", metavar="HOST:PORT", help="Be a node of this Flower SuperLink."
    ),
    root_certificates: Path | None = typer.Option(
        None,
        "--root-certificates",
        metavar="CA.pem",
        help="With --flower: to verify the SuperLink with; without it, or with --insecure, there is no TLS.",
        exists=True,
        dir_okay=False,
    ),
    log_level: str = typer.Option("info", "--log-level", help="debug, info, warning or error."),
    json_logs: bool = typer.Option(False, "--json-logs", help="Write logs as one JSON object a line."),
) -> None:
    """Take part in rounds, until it is stopped."""
    from quorate.clients.agent.__main__ import Launch
    from quorate.errors import PlanError

    if flower_apps:
        from quorate.interop.flower.by_path import names_of

        tasks = [*tasks, *names_of(flower_apps, node_config)]
    if not tasks:
        raise PlanError("--task: missing; accepted: module:attribute of an installed task")
    if log_level not in ("debug", "info", "warning", "error"):
        raise PlanError(f"--log-level: found {log_level!r}; accepted: debug, info, warning, error")
    if flower is not None:
        if coordinator is not None or device is not None:
            raise PlanError(
                "--flower: found beside --coordinator or --device; accepted: one way to take part"
            )
        if root_certificates is None and not insecure:
            raise PlanError("--flower: found without TLS; accepted: --root-certificates, or --insecure")
        from quorate.interop.flower.agent import run_agent

        run_agent(
            flower, tasks, policy, state or _default_directory(), root_certificates, log_level, json_logs
        )
        return
    Launch(
        tasks=tasks,
        directory=str((state or _default_directory()).resolve()),
        coordinator=coordinator,
        insecure=insecure,
        device=device,
        policy=None if policy is None else str(policy.resolve()),
        log_level=log_level,
        json_logs=json_logs,
    ).become()


@app.command()
def status(state: Path | None = AgentDirectory, as_json: bool = AsJson) -> None:
    """Say what the agent is doing, what it took part in, and what it declined."""
    import json

    directory = state or _default_directory()
    opened = _existing(directory)
    try:
        found = _status(directory, opened)
        rounds = [
            {
                "run": past.run,
                "round": past.round,
                "task": past.task,
                "began": _time(past.began),
                "exposed": past.exposure.name.lower(),
                "outcome": None if past.outcome is None else past.outcome.value,
            }
            for past in opened.past(10)
        ]
    finally:
        opened.close()
    if as_json:
        typer.echo(json.dumps({**found, "rounds": rounds}))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    facts = Table(box=None, show_header=False)
    facts.add_column(style="bold")
    facts.add_column()
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
        facts.add_row(name.replace("_", " "), "–" if value is None else str(value))
    console.print(facts)
    if rounds:
        table = Table(*rounds[0], box=None, header_style="bold")
        for row in rounds:
            table.add_row(*("–" if value is None else str(value) for value in row.values()))
        console.print(table)


@app.command()
def pause(state: Path | None = AgentDirectory) -> None:
    """Take part in nothing until `resume`; training that is under way stops."""
    _set_paused(state, "yes")
    typer.echo("paused; quorate agent resume goes on")


@app.command()
def resume(state: Path | None = AgentDirectory) -> None:
    """Go on after `pause`."""
    _set_paused(state, None)
    typer.echo("resumed")


@app.command()
def install(
    tasks: list[str] = Tasks,
    coordinator: str | None = Coordinator,
    policy: Path | None = PolicyFile,
    state: Path | None = AgentDirectory,
    system: bool = typer.Option(
        False, "--system", help="For the machine, as the user 'quorate'; by default for this user."
    ),
    folder: Path | None = typer.Option(
        None, "--folder", help="Where the unit is written, in place of systemd's own folder.", file_okay=False
    ),
) -> None:
    """Write a systemd unit that runs the agent from this folder, and say how to start it."""
    from quorate.clients.agent import unit
    from quorate.errors import PlanError

    if not tasks:
        raise PlanError("--task: missing; accepted: module:attribute of an installed task")
    directory = (state or (Path("/var/lib/quorate/agent") if system else _default_directory())).resolve()
    arguments = [word for task in tasks for word in ("--task", task)]
    arguments += ["--state", str(directory), "--json-logs"]
    arguments += [] if coordinator is None else ["--coordinator", coordinator]
    arguments += [] if policy is None else ["--policy", str(policy.resolve())]
    path = unit.install(arguments, directory, system=system, folder=folder)
    manager = "sudo systemctl" if system else "systemctl --user"
    typer.echo(f"written: {path}")
    if system:
        typer.echo(f"first:   sudo useradd --system quorate; sudo install -d -o quorate -m 700 {directory}")
    typer.echo(f"start:   {manager} daemon-reload && {manager} enable --now {unit.NAME}")
    typer.echo(f"logs:    {manager.replace('systemctl', 'journalctl')} -u {unit.NAME} -f")
    if not system:
        typer.echo("so that it runs while nobody is logged in: loginctl enable-linger")


@policy_app.command("check")
def policy_check(
    plan: Path = PlanFile,
    settings: list[str] = Settings,
    policy: Path | None = PolicyFile,
    population: int | None = typer.Option(
        None, "--population", min=1, help="How many members there are; by default what the plan's fleet says."
    ),
    state: Path | None = AgentDirectory,
) -> None:
    """Say for each rule of this device's policy whether a plan passes it, what was spent so far counted in.

    A plan on paper is signed by nobody: who signed it is asked when it is sent.
    """
    from rich.console import Console
    from rich.table import Table

    from quorate.clients.agent.judgement import judge
    from quorate.planfile import read_plan
    from quorate.rounds import Kind

    own, read = _policy(policy), read_plan(plan, settings)
    if population is None:
        from quorate import resolution

        population = resolution.open_fleet(read.fleet).size
    terms = read.resolved(population).terms()
    directory = state or _default_directory()
    spent: Any = {}
    trained: Any = {}
    if (directory / "agent.sqlite").exists():
        opened = _existing(directory)
        spent = {} if own.budget is None else opened.spent(own.budget.period_s)
        trained = {} if own.example_budget is None else opened.trained(own.example_budget.period_s)
        opened.close()
    kinds = (Kind.FIT,) if terms.evaluation is None else tuple(Kind)
    verdicts = [
        (kind, verdict)
        for kind in kinds
        for verdict in judge(
            own,
            terms.at(kind),
            terms.encoded(),
            terms.at(kind).bounds(population),
            None,
            spent,
            trained,
        )
        if verdict.rule != "signer"
    ]
    table = Table("rule", "passes", "the plan", "this device accepts", box=None, header_style="bold")
    for kind, verdict in verdicts:
        rule = verdict.rule if kind is Kind.FIT else f"{verdict.rule}, in evaluations"
        table.add_row(rule, "yes" if verdict.passed else "NO", verdict.found, verdict.accepted)
    Console().print(table)
    if not all(verdict.passed for _, verdict in verdicts):
        raise typer.Exit(1)


@policy_app.command("show")
def policy_show(policy: Path | None = PolicyFile) -> None:
    """Show the policy with the defaults filled in."""
    from quorate.planfile import format_sections

    typer.echo(format_sections(_policy(policy)), nl=False)


def _policy(path: Path | None) -> Policy:
    from quorate.clients.agent.policy import Policy, read_policy

    return Policy() if path is None else read_policy(path)


def _existing(directory: Path) -> AgentState:
    from quorate.clients.agent.state import FILE, AgentState
    from quorate.errors import StateError

    if not (directory / FILE).exists():
        raise StateError(
            f"{directory} holds no agent's state; give --state, or run `quorate agent run` first"
        )
    return AgentState(directory)


def _status(directory: Path, state: AgentState) -> dict[str, Any]:
    from quorate.clients.agent.state import holder
    from quorate.privacy.device_bound import device_epsilon, device_example_epsilon

    noted = state.fact("policy")
    policy = _policy(None if noted is None else Path(noted))
    spent: dict[str, Any] = {"epsilon_spent": None, "epsilon_budget": None}
    if policy.budget is not None:
        events = state.spent(policy.budget.period_s)
        spent = {
            "epsilon_spent": round(device_epsilon(events, policy.budget.delta), 4),
            "epsilon_budget": policy.budget.epsilon,
        }
    if policy.example_budget is not None:
        found = device_example_epsilon(
            state.trained(policy.example_budget.period_s), policy.example_budget.delta
        )
        spent |= {
            "example_epsilon_spent": round(found, 4) if math.isfinite(found) else None,
            "example_epsilon_budget": policy.example_budget.epsilon,
        }
    checked_in, next_check_in = state.fact("last_check_in"), state.fact("next_check_in")
    return {
        "running": holder(directory),
        "paused": state.fact("paused") is not None,
        "doing": state.fact("doing"),
        "device": state.fact("device"),
        "coordinator": state.fact("coordinator"),
        "tasks": state.fact("tasks"),
        "last_check_in": None if checked_in is None else _time(float(checked_in)),
        "next_check_in": None if next_check_in is None else _time(float(next_check_in)),
        "participations": dict(state.totals()),
        "declined": dict(state.refusals()),
        **spent,
    }


def _set_paused(state: Path | None, value: str | None) -> None:
    import signal

    from quorate.clients.agent.state import holder

    directory = state or _default_directory()
    opened = _existing(directory)
    opened.note(paused=value)
    opened.close()
    running = holder(directory)
    if running is not None:
        os.kill(running, signal.SIGUSR1)


def _time(seconds: float) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
