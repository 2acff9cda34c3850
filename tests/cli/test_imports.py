"""What a command imports: only what it needs, so that it starts fast and runs where the rest is not installed."""

import itertools
import json
import subprocess
import sys

import pytest

from tests.cli.commands import PLAN, environment

HEAVY = {
    "alembic", "dp_accounting", "flwr", "grpc", "jax", "keras", "matplotlib", "numpy", "onnx", "onnxruntime", "pandas",
    "pyarrow", "pydantic", "ray", "rich", "scipy", "sklearn", "sqlalchemy", "starlette", "torch", "tuf", "uvicorn",
}  # fmt: skip
PLANNING = {"numpy", "pydantic"}
STORED = {"sqlalchemy", "rich", *PLANNING}
SIGNED = {"tuf", *PLANNING}
CHAINS = {
    "help": {
        "--version": set(),
        "--help": {"rich"},
        "run --help": {"rich"},
        "doctor": {"rich", "numpy"},
    },
    "plans and what is stored": {
        "plan check plan.toml": PLANNING,
        "plan show plan.toml": PLANNING,
        "plan data plan.toml": {"rich", *PLANNING},
        "agent policy check plan.toml": {"rich", *PLANNING},
        "runs list": STORED,
        "privacy spent": {"scipy", *STORED},
    },
    "accounting": {
        "privacy explain plan.toml": {"scipy", *PLANNING},
    },
    "versions and runs": {
        "models verify registry": SIGNED,
        "pull registry digits --trust registry/root.json --directory pulled": SIGNED,
        "models list registry": {"rich", *SIGNED},
        "run without_privacy.toml --state other": STORED | SIGNED,
        "run plan.toml --state another": {"scipy", "onnx", "onnxruntime"} | STORED | SIGNED,
    },
}
"""Each command in the process of the one before it, which may import no more than it."""

RUN = """
import contextlib, io, json, sys
from quorate.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["quorate", *command.split()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as ended:
        assert not ended.code, command
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), flush=True)
"""


@pytest.mark.parametrize("chain", CHAINS)
def test_commands_import_only_what_they_need(chain, copied):
    (copied.directory / "without_privacy.toml").write_text(PLAN.partition("[privacy]")[0])
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(list(CHAINS[chain]))],
        cwd=copied.directory, env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = [HEAVY & set(json.loads(line)) for line in done.stdout.splitlines()]
    for (command, needed), found in zip(CHAINS[chain].items(), loaded, strict=True):
        assert found <= needed, command


def test_a_chain_allows_more_and_more():
    for chain in CHAINS.values():
        allowed = list(chain.values())
        assert all(before <= after for before, after in itertools.pairwise(allowed))
