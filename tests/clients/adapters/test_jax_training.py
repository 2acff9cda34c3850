"""Many clients of a JAX model at once: what each of them would give alone, whatever is padded."""

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.simulations.source import Simulation
from tests.clients.adapters.frameworks import (
    RULES,
    assert_each_is_trained_once,
    assert_many_train_as_each_alone,
)
from tests.federations import wine

pytest.importorskip("jax")
jax_training = pytest.importorskip("quorate.clients.adapters.jax_training")
cases = pytest.importorskip("tests.clients.adapters.jax_case")
MODEL = cases.model()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_many_clients_at_once_train_as_each_does_alone(rule):
    assert_many_train_as_each_alone(MODEL, rule, [4, 1, 9, 2], rtol=1e-3)


def test_more_clients_than_fit_a_block_are_each_trained_once(monkeypatch):
    monkeypatch.setattr(jax_training, "_BLOCK_BYTES", 4 * 4 * MODEL.layout.size)
    assert_each_is_trained_once(MODEL)


@pytest.mark.parametrize("strategy", [q.strategies.fedavg(), q.strategies.scaffold()])
def test_engines_agree_and_a_seeded_run_learns_and_can_be_repeated(strategy):
    plan = q.Plan(
        task=q.Task(cases.model(cases.network(13, 16, 3))),
        rounds=q.Rounds(count=4, cohort=12, sampling="fixed"),
        training=q.Training(learning_rate=0.3, epochs=1),
        strategy=strategy,
    )
    runs = [
        assembly.run(plan, fleet=Simulation(wine(), seed=1, engine=engine), watch=lambda report: None)
        for engine in ("auto", "auto", "sequential")
    ]
    assert runs[0].model.vector.tobytes() == runs[1].model.vector.tobytes()
    np.testing.assert_allclose(runs[0].model.vector, runs[2].model.vector, rtol=1e-3, atol=2e-5)
    first, last = (runs[0].committed[i].metrics["loss"] for i in (0, -1))
    assert last < 0.8 * first
