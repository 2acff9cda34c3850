"""What a command imports: only what it needs, so that it starts fast and runs where the rest is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import COMMAND, PLAN, environment

HEAVY = {
    "alembic", "dp_accounting", "flwr", "grpc", "jax", "keras", "matplotlib", "numpy", "onnx", "onnxruntime", "pandas",
    "pyarrow", "pydantic", "ray", "rich", "scipy", "sklearn", "sqlalchemy", "starlette", "torch", "tuf", "uvicorn",
}  # fmt: skip
PLANNING = {"numpy", "pydantic"}
STORED = {"sqlalchemy", "rich", *PLANNING}
SIGNED = {"tuf", *PLANNING}
COMMANDS = {
    "--version": set(),
    "--help": {"rich"},
    "run --help": {"rich"},
    "doctor": {"numpy", "rich"},
    "plan check plan.toml": PLANNING,
    "plan show plan.toml": PLANNING,
    "plan data plan.toml": {"rich", *PLANNING},
    "privacy explain plan.toml": {"scipy", *PLANNING},
    "privacy spent": {"scipy", *STORED},
    "agent policy check plan.toml": {"rich", *PLANNING},
    "runs list": STORED,
    "models list registry": {"rich", *SIGNED},
    "models verify registry": SIGNED,
    "pull registry digits --trust registry/root.json --directory pulled": SIGNED,
    "run without_privacy.toml --state other": STORED | SIGNED,
    "run plan.toml --state another": {"scipy", "onnx", "onnxruntime"} | STORED | SIGNED,
}


def imported(*arguments: str, cwd: Path) -> set[str]:
    """Which heavy packages a command had imported when it was done."""
    code = f"""
import atexit, json, runpy, sys
loaded = lambda: sorted({{name.partition(".")[0] for name in sys.modules}})
atexit.register(lambda: print(json.dumps(loaded()), file=sys.stderr))
sys.argv = {[COMMAND, *arguments]!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return HEAVY & set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_only_what_it_needs(command, copied):
    (copied.directory / "without_privacy.toml").write_text(PLAN.partition("[privacy]")[0])
    assert imported(*command.split(), cwd=copied.directory) <= COMMANDS[command]
