"""Running the `quorate` command as people do, and its output and exit code: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from quorate.cli import main

COMMAND = str(Path(sys.executable).with_name("quorate"))

PLAN = """\
[task]
name = "softmax"
inputs = 64
classes = 10

[fleet]
kind = "simulation"
dataset = "digits"
clients = 40
partition = "iid"

[rounds]
count = 3
cohort = 12

[training]
learning_rate = 0.5
epochs = 2
batch_size = 10

[strategy]
name = "fedadam"

[privacy]
mechanism = "distributed-discrete-gaussian"
clip_norm = 0.5
noise_multiplier = 1.0

[secure_aggregation]
protocol = "secagg+"
min_survivors = 5

[publish]
registry = "registry"
model = "digits"
"""
"""A small plan: about a second."""


def environment() -> dict[str, str]:
    """Wide tables, no colours."""
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


@dataclass(frozen=True)
class Done:
    """What a command that ran in this process has said."""

    returncode: int
    stdout: str
    stderr: str


def quorate(*arguments: str | Path, cwd: Path) -> Done:
    """Runs a command to its end in this process, since starting one takes longer than most commands do."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, environment()),
        mock.patch.object(sys, "argv", [COMMAND, *map(str, arguments)]),
        mock.patch.object(sys, "path", [*sys.path]),
        mock.patch.object(os, "execv", side_effect=AssertionError("it needs a process of its own")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
    return Done(code, out.getvalue(), err.getvalue())


def quorate_process(
    *arguments: str | Path, cwd: Path, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end in a process of its own: for what changes the process, or depends on it."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


@contextmanager
def started(*arguments: str | Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A command under way; killed at the end if it is still there."""
    process = subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def assert_fails(done: Done | subprocess.CompletedProcess[str], code: int) -> str:
    """Its message: it failed as a command should, with nothing on standard output and no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
    return done.stderr


def rows(state: Path, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """What another process has written to a state directory so far; empty if it has not come to that."""
    database = state / "quorate.sqlite"
    if not database.exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as opened:
            return opened.execute(query, parameters).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return []
        raise


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str], timeout_s: float = 60
) -> None:
    """Returns once something is so, while a process is under way."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.002)
