"""Every adapter over the wire: the examples for devices, as real processes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "devices"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("application", "framework"),
    [("numpy", "numpy"), ("sklearn", "sklearn"), ("torch", "torch"), ("jax", "jax"), ("keras", "keras")],
)
def test_an_adapter_trains_over_grpc(application, framework):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    done = subprocess.run(
        [sys.executable, "federate.py", f"{application}_client", "--rounds", "2"],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2: committed" in done.stdout
    assert "finished" in done.stdout
