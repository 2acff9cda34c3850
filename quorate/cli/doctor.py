"""`quorate doctor`: what is installed here, what works with what, and the command that mends it."""

from __future__ import annotations

import json
from typing import Any

import typer

__all__ = ["doctor"]


def doctor(
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say what is installed, what works with what, and the command that mends what does not.

    It fails if what every installation needs is not there, or an extra is installed in versions that don't fit.
    """
    found = _examined()
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)
    if not found["good"]:
        raise typer.Exit(1)


def _examined() -> dict[str, Any]:
    from importlib.metadata import version

    from quorate import installation

    here = installation.machine()
    base, extras = installation.base(), installation.extras()
    broken = [one for one in base if not one.good]
    return {
        "quorate": version("quorate"),
        "python": here.python,
        "system": here.system,
        "cores": here.cores,
        "memory_gib": round(here.memory_gib, 1),
        "aes": here.aes,
        "base": {one.name: one.found for one in base},
        "base_problems": [str(one) for one in broken],
        "base_remedy": "pip install --force-reinstall quorate" if broken else None,
        "extras": {
            extra.name: {
                "works": extra.good,
                "packages": [str(one) for one in extra.requirements],
                "remedy": None if extra.good else extra.remedy,
            }
            for extra in extras
        },
        "interop": _interop(),
        "ports": {str(port): installation.free_port(port) for port in installation.PORTS},
        "good": not broken and not any(extra.partly for extra in extras),
    }


def _interop() -> dict[str, Any]:
    """The environment of TensorFlow Federated, which is another than this one."""
    from importlib.metadata import version

    from quorate.errors import QuorateError
    from quorate.interop.tff import environment
    from quorate.interop.tff.process import Child

    try:
        python = environment.interpreter()
        with Child() as child:
            versions = child.versions
    except QuorateError as error:
        return {"works": False, "why": str(error).partition("\n")[0], "remedy": environment.remedy()}
    same = versions["quorate"] == version("quorate")
    return {
        "works": same,
        "python": str(python),
        "versions": versions,
        "why": None if same else f"it has Quorate {versions['quorate']}, this is {version('quorate')}",
        "remedy": None if same else environment.remedy(),
    }


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from quorate.installation import PORTS

    aes = {
        True: "AES in hardware",
        False: "no AES in hardware: masks are made slowly",
        None: "AES: can't be told",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("quorate", "", found["quorate"])
    table.add_row("python", "", found["python"])
    machine = f"{found['system']}, {found['cores']} cores, {found['memory_gib']} GiB, {aes[found['aes']]}"
    table.add_row("machine", "", machine)
    problems = found["base_problems"]
    versions = ", ".join(f"{name} {version}" for name, version in found["base"].items() if version)
    table.add_row("base", _mark(not problems), versions if not problems else ", ".join(problems))
    _remedy(table, found["base_remedy"])
    for name, extra in found["extras"].items():
        table.add_row(name, _mark(extra["works"]), ", ".join(extra["packages"]))
        _remedy(table, extra["remedy"])
    interop = found["interop"]
    shown = interop.get("versions", {})
    said = ", ".join(f"{name} {version}" for name, version in shown.items())
    why = interop.get("why")
    table.add_row("tff", _mark(interop["works"]), "; ".join(part for part in (said, why) if part))
    _remedy(table, interop.get("remedy"))
    taken = [f"{port} ({PORTS[int(port)]})" for port, free in found["ports"].items() if not free]
    ports = f"in use: {', '.join(taken)}; another one is given by the commands' options" if taken else "free"
    table.add_row("ports", "", ", ".join(found["ports"]) + f" {ports}" if not taken else ports)
    Console(soft_wrap=False).print(table)


def _mark(works: bool) -> str:
    return "[green]works[/green]" if works else "[yellow]missing[/yellow]"


def _remedy(table: Any, command: str | None) -> None:
    if command is not None:
        table.add_row("", "", f"[dim]→ {command.replace('[', chr(92) + '[')}[/dim]")
