"""What `docs/simulation.md` shows of each adapter is run, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOWN = re.findall(
    r"^```python\n(.*?)^```",
    (ROOT / "docs/simulation.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)
TASKS = [code for code in SHOWN if "task = " in code]

RUN = """
from quorate.simulations import datasets

digits = datasets.digits().partition("iid", clients=20, seed=0)
plan = q.Plan(task=task, rounds=q.Rounds(count=2, cohort=10), training=q.Training(learning_rate=0.02))
run = q.run(plan, fleet=q.Simulation(digits, seed=0), watch=lambda report: None)
assert len(run.committed) == 2
print(run.committed[-1].metrics["loss"] < run.committed[0].metrics["loss"])
"""


def test_every_adapter_is_shown():
    shown = [
        name
        for name in ("torch", "keras", "jax", "sklearn")
        for code in TASKS
        if f"q.clients.{name}(" in code
    ]
    assert shown == ["torch", "keras", "jax", "sklearn"]


@pytest.mark.slow
@pytest.mark.parametrize("code", TASKS, ids=lambda code: re.search(r"q\.clients\.(\w+)", code)[1])
def test_a_task_as_it_is_shown_learns(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + RUN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"
