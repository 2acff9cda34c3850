"""Keras 3: what `keras_case` says holds on each backend, which can be chosen once a process only."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Not by importing it: without KERAS_BACKEND it looks for TensorFlow, and fails as if it were not there.
if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras is not installed", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_keras_model_trains_runs_and_is_served_on(backend):
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients.adapters.keras_case"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"all of it holds on {backend}\n")
