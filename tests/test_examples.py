"""The examples run, with fewer rounds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(code: str, directory: Path, *arguments: str) -> None:
    (directory / "example.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, "example.py", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_figure_of_fedprox_is_drawn_by_forty_lines_at_most(tmp_path):
    code = (EXAMPLES / "fedprox_figure.py").read_text()
    assert len(code.splitlines()) <= 40
    assert "count=100" in code
    run(code.replace("count=100", "count=2"), tmp_path, "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_three_ways_to_wait_are_compared_in_simulated_hours(tmp_path):
    code = (EXAMPLES / "simulated_hours.py").read_text()
    assert "TARGET = 0.85" in code
    run(code.replace("TARGET = 0.85", "TARGET = 0.2"), tmp_path, "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = json.loads((EXAMPLES / "clients_that_differ.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert any("ROUNDS = 60" in cell for cell in cells)
    run("\n".join(cells).replace("ROUNDS = 60", "ROUNDS = 2"), tmp_path)
