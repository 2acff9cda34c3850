"""What `docs/from-tff.md` shows is run: both forms of the job give the same model."""

import re
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.interop

TEXT = (Path(__file__).parents[3] / "docs" / "from-tff.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The page's Python, run in order, as a module `my_job`."""
    monkeypatch.chdir(tmp_path)
    job = types.ModuleType("my_job")
    monkeypatch.setitem(sys.modules, "my_job", job)
    for block in blocks("python"):
        exec(compile(block, "docs/from-tff.md", "exec"), vars(job))
    return job


def test_both_forms_of_the_job_give_the_same_model(shown):
    theirs = np.concatenate([np.ravel(w) for w in shown.weights.trainable])
    np.testing.assert_allclose(shown.run.model.vector, theirs, atol=1e-6)
    assert shown.run.metrics["accuracy"] > 0.75
    assert shown.version.number == 1


def test_the_plan_that_keeps_the_process_learns_it(shown):
    from quorate.interop.tff.job import Job
    from quorate.interop.tff.learning import Learning
    from quorate.planfile import make_plan

    (plan,) = [make_plan(tomllib.loads(text)) for text in blocks("toml") if "[engine]" in text]
    assert plan.engine is not None
    task = plan.task.resolve()
    source = plan.engine.resolve()
    learning = Learning(Job(source.process, source.settings, task.layout.entries, None, 0.1))
    state = learning.initial(np.zeros(task.layout.size, np.float32))
    for _ in range(plan.rounds.count):
        data = [learning.dataset(c.x, c.y, np.arange(len(c)), plan.training.batch_size) for c in shown.digits]
        state, metrics = learning.step(state, data)
    np.testing.assert_allclose(learning.vector(state), shown.run.model.vector, atol=1e-6)
    assert set(metrics) == {"train_loss", "train_sparse_categorical_accuracy"}
