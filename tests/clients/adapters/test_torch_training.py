"""Many clients of a module at once: what each of them would give alone, whatever the module and the sizes."""

import logging
import threading

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.errors import DataError, PlanError
from quorate.simulations.engines import choice
from quorate.simulations.source import Simulation
from tests.clients.adapters.frameworks import (
    RULES,
    assert_each_is_trained_once,
    assert_many_train_as_each_alone,
    blobs,
    instruction,
    some,
)
from tests.federations import digits

torch = pytest.importorskip("torch")
torch_training = pytest.importorskip("quorate.clients.adapters.torch_training")
nn = torch.nn
F = torch.nn.functional


def frozen():
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    module[0].weight.requires_grad_(False)
    return module


def half_used():
    """A parameter that no output depends on."""
    module = nn.Linear(5, 3)
    module.register_parameter("idle", nn.Parameter(torch.ones(2)))
    return module


MODULES = {
    "network": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(12, 3)
    ),
    "frozen": frozen,
    "half used": half_used,
}


def model(module, loss=F.cross_entropy):
    return q.clients.torch(module, loss)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("made", [model(make()) for make in MODULES.values()], ids=MODULES)
@pytest.mark.parametrize("sizes", [[8, 8, 8], [4, 1, 9, 2, 9], [6]])
def test_many_clients_at_once_train_as_each_does_alone(made, rule, sizes):
    assert_many_train_as_each_alone(made, rule, sizes, rtol=2e-3)


def test_more_clients_than_fit_a_block_are_each_trained_once(monkeypatch):
    made = model(MODULES["network"]())
    monkeypatch.setattr(torch_training, "_BLOCK_BYTES", 8 * made.layout.size)
    assert_each_is_trained_once(made)


@pytest.mark.parametrize(
    "module",
    [nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), nn.Sequential(nn.Linear(5, 3), nn.Dropout())],
)
def test_modules_that_would_not_do_the_same_together_are_trained_alone(module):
    assert not model(module).together
    assert model(MODULES["network"]()).together


def by_value(outputs, y):
    return F.cross_entropy(outputs, y) * (1 if outputs.sum().item() > 0 else 2)


def test_what_pytorch_can_not_batch_is_refused_with_what_is_accepted():
    made = model(MODULES["network"](), by_value)
    with pytest.raises(PlanError, match=r"'vectorised' can't be had with 'torch'.*accepted: 'sequential'"):
        made.fit_many(some(made.layout)[0], [blobs()], [instruction()], [{}])


def test_auto_trains_alone_what_pytorch_can_not_batch(caplog):
    made = q.clients.torch(nn.Linear(64, 10), by_value, metrics={})
    plan = q.Plan(task=q.Task(made), rounds=q.Rounds(count=1, cohort=8))
    with caplog.at_level(logging.INFO):
        assembly.run(plan, fleet=Simulation(digits(), seed=1), watch=lambda report: None)
    assert "auto picks 'sequential': an operation of 'torch' can't be batched over clients" in caplog.text


def test_clients_that_train_together_are_told_the_same_and_have_examples():
    made = model(MODULES["network"]())
    start = some(made.layout)[0]
    with pytest.raises(DataError, match="the same local rule and settings"):
        made.fit_many(start, [blobs()] * 2, [instruction(), instruction(epochs=1)], [{}] * 2)
    with pytest.raises(DataError, match="got 0 clients"):
        made.fit_many(start, [], [], [])


def test_engines_agree():
    plan = q.Plan(
        task=q.Task(model(lambda: nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))),
        rounds=q.Rounds(count=3, cohort=20, sampling="fixed"),
        strategy=q.strategies.scaffold(),
    )
    runs = [
        assembly.run(plan, fleet=Simulation(digits(), seed=1, engine=engine), watch=lambda report: None)
        for engine in ("auto", "vectorised", "sequential")
    ]
    assert runs[0].model.vector.tobytes() == runs[1].model.vector.tobytes()
    np.testing.assert_allclose(runs[0].model.vector, runs[2].model.vector, rtol=1e-3, atol=2e-5)


def test_an_engine_s_threads_have_one_of_pytorch_s_each_and_others_keep_theirs(monkeypatch):
    monkeypatch.setattr(choice, "_WORTH_THREADS", 0)
    monkeypatch.setattr(choice, "cores", lambda: 2)
    seen = set()

    def watched(outputs, y):
        seen.add((threading.current_thread().name.partition("_")[0], torch.get_num_threads()))
        return F.cross_entropy(outputs, y)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        made = model(lambda: nn.Sequential(nn.Linear(64, 10)), watched)
        plan = q.Plan(task=q.Task(made), rounds=q.Rounds(count=2, cohort=20, sampling="fixed"))
        runs = [
            assembly.run(plan, fleet=Simulation(digits(), seed=1, engine=engine), watch=lambda report: None)
            for engine in ("vectorised", "sequential")
        ]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == {("quorate simulation", 1), ("MainThread", 3)}
    np.testing.assert_allclose(runs[0].model.vector, runs[1].model.vector, rtol=1e-3, atol=2e-5)
