"""A plan as a Flower app: what is written is what Flower takes, and runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.commands import quorate
from tests.interop.flower.processes import Processes

PLAN = """\
[task]
name = "softmax"
inputs = 13
classes = 3

[fleet]
kind = "simulation"
dataset = "wine"
clients = 4
partition = "iid"

[rounds]
count = 2
cohort = 4
sampling = "fixed"

[training]
learning_rate = 0.5
epochs = 2

[privacy]
mechanism = "distributed-discrete-gaussian"
clip_norm = 1.0
noise_multiplier = 0.3

[secure_aggregation]
protocol = "secagg+"
min_survivors = 3
corrupt = 0.0

[publish]
registry = "registry"
model = "wine"
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "plan.toml").write_text(PLAN)
    done = quorate("plan", "export", "--flower", "plan.toml", "app", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "next: flwr run app" in done.stdout
    return tmp_path / "app"


def test_flower_builds_a_bundle_of_what_is_exported(app: Path, tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        assert processes.start("flwr", "build", "--app", str(app)).wait(120) == 0, processes.log("flwr")
    assert [path.name[:24] for path in tmp_path.glob("*.fab")] == ["quorate.quorate-softmax."]


def test_a_directory_that_holds_something_is_left_alone(app: Path, tmp_path: Path) -> None:
    done = quorate("plan", "export", "--flower", "plan.toml", "app", cwd=tmp_path)
    assert done.returncode == 1
    assert "app is not empty; a Flower app is written into a new directory" in done.stderr


def test_another_system_has_to_be_named(app: Path, tmp_path: Path) -> None:
    done = quorate("plan", "export", "plan.toml", "other", cwd=tmp_path)
    assert done.returncode == 2
    assert "--flower" in done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flower_runs_what_is_exported_on_stock_nodes_and_the_model_is_published(
    app: Path, tmp_path: Path
) -> None:
    with Processes(tmp_path) as processes:
        superlink = processes.superlink(isolation="subprocess")
        for part in range(4):
            processes.supernode(superlink, f"partition-id={part} num-partitions=4")
        home = tmp_path / "flwr"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{superlink}"\ninsecure = true\n'
        )
        assert processes.start("flwr", "run", str(app), "--stream").wait(400) == 0, processes.log("flwr")
        said = processes.log("flwr")
    assert re.search(r"2 rounds are committed: .*accuracy", said), said
    done = quorate("models", "list", "registry", cwd=tmp_path)
    assert "wine" in done.stdout
