"""A systemd unit for the agent: started at boot, restarted when it ends, confined as far as training allows.

See systemd.service(5), systemd.exec(5). The user's unit runs as whoever installs it, the system's as a user of its own.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from quorate.errors import StateError

__all__ = ["NAME", "install", "text"]

NAME = "quorate-agent.service"


def text(command: Sequence[str], directory: Path, working: Path, *, system: bool) -> str:
    """The unit's content.

    Args:
        command: what it runs.
        directory: where the agent keeps its state: the only place that it may write to.
        working: where the command runs, and the application's module is found.
        system: for the system's manager; else for the user's.
    """
    user = "User=quorate\n" if system else ""
    confined = f"""\
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths={_quoted(directory)}
"""
    return f"""\
[Unit]
Description=Quorate agent: federated learning on this device
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart={" ".join(_quoted(word) for word in command)}
WorkingDirectory={_quoted(working)}
{user}Restart=on-failure
RestartSec=30
KillMode=mixed
TimeoutStopSec=30
Nice=10
IOSchedulingClass=idle
{confined}
[Install]
WantedBy={"multi-user.target" if system else "default.target"}
"""


def install(arguments: Sequence[str], directory: Path, *, system: bool, folder: Path | None = None) -> Path:
    """Writes the unit.

    Args:
        arguments: of `quorate agent run`.
        directory: where the agent keeps its state.
        system: for the system's manager.
        folder: where units are; None: where the manager looks for them.

    Returns:
        Where it is.

    Raises:
        StateError: it can't be written.
    """
    if folder is None:
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        folder = Path("/etc/systemd/system") if system else config / "systemd" / "user"
    command = [str(Path(sys.executable).with_name("quorate")), "agent", "run", *arguments]
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text(command, directory, Path.cwd(), system=system), encoding="utf-8")
    except OSError as error:
        hint = "; a system's unit needs root" if system else ""
        raise StateError(f"the unit can't be written: {error}{hint}") from error
    return path


def _quoted(word: str | Path) -> str:
    """A word as systemd reads it: percent and dollar signs stand for themselves (systemd.service(5))."""
    escaped = str(word).replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{escaped}"' if shlex.quote(str(word)) != str(word) else escaped
