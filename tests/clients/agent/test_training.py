"""The application's code in a child process: whatever it does is a failed training, and the agent lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from quorate.clients.agent.limits import Limits
from quorate.clients.agent.training import Trainer
from quorate.errors import PlanError, TrainingFailed
from quorate.parameters import Layout
from quorate.rounds import Instruction
from tests.clients.agent.federation import APPLICATION, misbehaving, until

LAYOUT = Layout((("weight", (8, 3)), ("bias", (3,))))
INSTRUCTION = Instruction("sgd", {"learning_rate": 0.5, "epochs": 1, "batch_size": 10})

Made = Callable[..., Trainer]


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Makes a trainer of an application."""
    made: list[Trainer] = []
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("DEVICE", "me")
    monkeypatch.chdir(tmp_path)

    def make(
        application: str = APPLICATION, check: Callable[[], None] = lambda: None, **limits: object
    ) -> Trainer:
        Path("app.py").write_text(application)
        made.append(Trainer("app:task", Limits(**limits), check))
        return made[-1]

    yield make
    for one in made:
        one.close()


def fit(trainer: Trainer, timeout_s: float = 60.0) -> object:
    return trainer.work("fit", LAYOUT.zeros(), INSTRUCTION, {}, timeout_s)


def failure(trainer: Trainer, timeout_s: float = 60.0) -> TrainingFailed:
    with pytest.raises(TrainingFailed) as failed:
        fit(trainer, timeout_s)
    return failed.value


def test_a_task_describes_itself(trainer):
    described = trainer().describe()
    assert (described.name, described.layout) == ("softmax", LAYOUT)
    assert described.settings == {"inputs": 8, "classes": 3}
    assert "sgd" in described.rules


def test_training_in_the_child_gives_what_it_gives_in_this_process(trainer):
    update, state = fit(trainer())
    assert update.examples == 30
    assert update.vectors["delta"].shape == (LAYOUT.size,)
    assert np.abs(update.vectors["delta"]).max() > 0
    assert set(update.metrics) == {"loss", "accuracy"}
    assert not state


def test_extras_and_states_go_there_and_back(trainer):
    one = trainer()
    instruction = Instruction(
        "control-variate", INSTRUCTION.settings, {"control": np.zeros(LAYOUT.size, np.float32)}
    )
    update, state = one.work("fit", LAYOUT.zeros(), instruction, {}, 60.0)
    assert set(update.vectors) == {"delta", "control"}
    again, _ = one.work("fit", LAYOUT.zeros(), instruction, state, 60.0)
    assert again.examples == 30
    assert set(state)


def test_what_the_application_prints_does_not_disturb(trainer):
    one = trainer(APPLICATION + "\nprint('hello', flush=True)\nos.write(1, b'x' * 1000)\n")
    assert fit(one)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("os._exit(3)", "training-crash"),
        ("os.kill(os.getpid(), 11)", "training-crash"),
        ("sys.exit(0)", "training-crash"),
        ("raise ValueError('the patient is 42 years old')", "training-error"),
        ("return 'garbage'", "training-error"),
        ("return quorate.rounds.Update({'delta': np.full(27, np.nan)}, 10), {}", "training-diverged"),
        ("return quorate.rounds.Update({'delta': np.zeros((27, 1))}, 10), {}", "training-answer"),
        ("return quorate.rounds.Update({'delta': np.array(['a'])}, 10), {}", "training-error"),
        ("return quorate.rounds.Update({'delta': np.zeros(27)}, -1), {}", "training-answer"),
        ("return quorate.rounds.Update({'delta': np.zeros(27)}, 1, {'loss': np.inf}), {}", "training-answer"),
    ],
)
def test_whatever_training_does_is_a_failure_with_a_code(trainer, body, code):
    one = trainer(misbehaving(body))
    assert failure(one).code == code


def test_the_applications_words_do_not_leave_the_device(trainer):
    assert "42" not in str(failure(trainer(misbehaving("raise ValueError('the patient is 42 years old')"))))


def test_after_a_crash_the_next_training_has_a_fresh_process(trainer):
    body = """
if not os.path.exists("crashed"):
    open("crashed", "w").close()
    os._exit(1)
return quorate.rounds.Update({"delta": np.zeros(27, np.float32)}, 10), {}
"""
    one = trainer(misbehaving(body))
    assert failure(one).code == "training-crash"
    assert fit(one)


def test_a_training_that_hangs_is_ended_at_its_deadline(trainer):
    one = trainer(misbehaving("while True: pass"))
    one.describe()
    assert failure(one, timeout_s=1.0).code == "training-time"
    assert not psutil.Process().children()


def test_a_training_that_allocates_without_end_is_ended(trainer):
    one = trainer(misbehaving("kept = []\nwhile True: kept.append(bytearray(1 << 22))"), memory_mb=300)
    assert failure(one).code == "training-memory"


def test_a_training_whose_children_allocate_without_end_is_ended(trainer):
    body = """
import subprocess
code = "kept = []\\nimport time\\nfor _ in range(60): kept.append(b'x' * (1 << 22))\\ntime.sleep(60)"
processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
time.sleep(60)
"""
    one = trainer(misbehaving(body), memory_mb=300)
    assert failure(one).code == "training-memory"
    until(lambda: not psutil.Process().children(recursive=True), "its children are gone too")


def test_training_stops_when_it_is_told_to(trainer):
    def stop() -> None:
        raise TrainingFailed("the device was paused", "paused")

    one = trainer(misbehaving("time.sleep(600)"))
    one.describe()
    one._check = stop
    assert failure(one).code == "paused"


def test_an_answer_that_is_too_large_is_refused(trainer):
    body = (
        "return quorate.rounds.Update({'delta': np.zeros(27)}, 1), {'big': np.broadcast_to(0.0, 40_000_000)}"
    )
    one = trainer(misbehaving(body), memory_mb=256)
    assert failure(one).code in ("training-answer", "training-memory")


@pytest.mark.parametrize(
    ("application", "says"),
    [
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("task = 3", "task"),
        ("import quorate as q\ntask = q.Task(q.models.softmax(8, 3))", "task"),
        ("import os; os._exit(1)", "task"),
    ],
)
def test_an_application_that_cant_be_used_is_refused_at_the_start(trainer, application, says):
    with pytest.raises(PlanError, match="app:task") as refused:
        trainer(application).describe()
    assert says in str(refused.value)


PARENT = """
import os, sys, time
from quorate.clients.agent.limits import Limits
from quorate.clients.agent.training import Trainer
from tests.clients.agent.test_training import fit
trainer = Trainer("app:task", Limits())
trainer.describe()
print(trainer._process.pid, flush=True)
fit(trainer, 600.0)
"""


def test_the_child_does_not_outlive_a_killed_agent(trainer, monkeypatch):
    trainer(misbehaving("while True: pass"))
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child is gone")
    parent.stdout.close()
