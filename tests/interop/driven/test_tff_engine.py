"""A plan with a TFF engine, run from this environment: the learning process runs in a child of `.venv-interop`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

import quorate as q
from quorate.cli import privacy
from quorate.errors import BudgetExhausted, PlanError
from quorate.interop.tff.process import Child, ChildFailed
from quorate.planfile import make_plan
from quorate.simulations import datasets

pytestmark = [pytest.mark.drives_interop, pytest.mark.timeout(280)]

PROCESSES = "quorate.interop.tff.processes"


def the_plan(count: int = 2, **sections: object) -> q.Plan:
    content = {
        "task": {"name": "softmax", "inputs": 64, "classes": 10},
        "rounds": {"count": count, "cohort": 6, "sampling": "fixed"},
        "training": {"learning_rate": 0.1, "epochs": 2, "batch_size": 16},
        "fleet": {"kind": "simulation", "dataset": "digits", "clients": 20, "seed": 3},
    }
    return make_plan({**content, **sections})


def with_process(name: str, **settings: object) -> dict[str, object]:
    return {"engine": {"name": "tff", "process": f"{PROCESSES}:{name}", **settings}}


def run(plan: q.Plan, **options: object) -> q.FinishedRun:
    return q.run(plan, watch=lambda report: None, **options)


def of_the_group(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def gone(group: int, timeout_s: float = 30) -> bool:
    end = time.monotonic() + timeout_s
    while of_the_group(group) and time.monotonic() < end:
        time.sleep(0.1)
    return not of_the_group(group)


def test_weighted_fedavg_gives_the_model_of_our_own_engine():
    theirs = run(the_plan(**with_process("weighted_fed_avg")))
    ours = run(the_plan(rounds={"count": 2, "cohort": 6, "sampling": "fixed", "weighting": "examples"}))
    np.testing.assert_allclose(theirs.model.vector, ours.model.vector, atol=1e-6)
    assert np.abs(ours.model.vector).max() > 0.05
    assert theirs.epsilon is None
    assert "train_accuracy" in theirs.metrics


def test_a_model_of_several_layers_that_starts_at_random_is_learned_alike():
    task = {"name": "mlp", "inputs": 64, "hidden": [16], "classes": 10}
    theirs = run(the_plan(task=task, **with_process("unweighted_fed_avg", momentum=0.5)))
    ours = run(the_plan(task=task, strategy={"name": "fedavg", "momentum": 0.5}))
    np.testing.assert_allclose(theirs.model.vector, ours.model.vector, atol=2e-6)


def test_the_model_is_published_and_pulled_as_any_other(tmp_path):
    publish = {"registry": str(tmp_path / "registry"), "model": "digits"}
    done = run(the_plan(publish=publish, **with_process("unweighted_fed_avg", momentum=0.9)))
    pulled = q.pull(
        str(tmp_path / "registry"),
        "digits",
        trust=tmp_path / "registry" / "root.json",
        directory=tmp_path / "pulled",
    )
    held_out = datasets.digits().test
    probabilities = pulled.predict(held_out.x)
    assert probabilities.shape == (360, 10)
    np.testing.assert_allclose(
        probabilities, done.task.model.predict(done.model, held_out.x), rtol=1e-5, atol=1e-6
    )


def test_a_process_with_noise_is_charged_and_stops_at_its_budget(tmp_path):
    settings = {"clip_norm": 0.5, "noise_multiplier": 2.0, "clients_per_round": 6.0}
    plan = the_plan(**with_process("dp_fed_avg", delta=1e-3, **settings))
    done = run(plan, state=tmp_path)
    assert done.epsilon is not None
    told = CliRunner().invoke(privacy.app, ["spent", "--state", str(tmp_path), "--json"])
    assert json.loads(told.stdout)["rows"][0]["epsilon_released"] == done.epsilon.released
    assert done.epsilon.server == np.inf
    assert done.epsilon.delta == 1e-3
    # Two Gaussians with z = 2 are one with μ = √2 / 2 (Dong, Roth, Su 2022): ε at δ by Balle and Wang 2018.
    from quorate.privacy.gaussian_rounds import gaussian_epsilon

    assert done.epsilon.released == pytest.approx(gaussian_epsilon(np.sqrt(2) / 2, 1e-3), rel=1e-6)
    assert not any(name.startswith("train_") for name in done.metrics)
    with pytest.raises(BudgetExhausted):
        run(
            the_plan(
                count=3, **with_process("dp_fed_avg", delta=1e-3, budget=done.epsilon.released, **settings)
            )
        )


def test_a_run_that_was_stopped_goes_on_to_the_same_model(tmp_path):
    plan = the_plan(count=3, **with_process("unweighted_fed_avg", momentum=0.9))

    def stop(report):
        if report.version == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        q.run(plan, state=tmp_path / "state", watch=stop)
    resumed = run(plan, state=tmp_path / "state")
    assert resumed.model.vector.tobytes() == run(plan).model.vector.tobytes()


def test_what_the_process_says_is_wrong_is_said_of_the_plan():
    with pytest.raises(PlanError, match=r"engine\.mu: unknown key"):
        run(the_plan(**with_process("weighted_fed_avg", mu=1.0)))
    with pytest.raises(PlanError, match="has no attribute 'fed_average'"):
        run(the_plan(**with_process("fed_average")))


def test_a_child_that_is_closed_leaves_no_process(tmp_path):
    child = Child()
    child.call("make", job=job())
    assert of_the_group(child.group)
    child.close()
    assert gone(child.group)
    with pytest.raises(ChildFailed, match="gone"):
        child.call("versions")


def test_a_child_ends_with_its_parent(tmp_path):
    code = (
        "import json, sys\n"
        "from quorate.interop.tff.process import Child\n"
        "child = Child(); child.call('make', job=json.loads(sys.argv[1]))\n"
        "print(child.group, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(job())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert of_the_group(group)
        parent.send_signal(signal.SIGKILL)
        parent.wait(60)
    assert gone(group)


def job() -> dict[str, object]:
    from quorate.interop.tff.job import Job

    model = q.models.softmax(4, 2)
    made = Job(f"{PROCESSES}:weighted_fed_avg", {}, model.layout.entries, model.program_spec(), 0.1)
    return made.as_json()
