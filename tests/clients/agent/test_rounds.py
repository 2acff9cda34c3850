"""Agents as processes, a real coordinator, real streams: rounds, and everything that may go wrong in one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from quorate.clients.agent.judgement import event_of
from quorate.privacy.device_bound import device_example_epsilon
from quorate.rounds import Kind, Outcome
from quorate.summation import Exposure
from tests.clients.agent.federation import Federation, make, names, until

pytestmark = pytest.mark.slow

AGENTS = names(4)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with Federation(tmp_path) as started:
        yield started


def test_agents_learn_a_model_that_only_their_noisy_sums_made(federation):
    running = federation.in_background(make(rounds=3))
    federation.start(*AGENTS)
    found = running.result()
    assert [round.status for round in found.history] == ["committed"] * 3
    assert [round.survivors for round in found.history] == [4] * 3
    for name in AGENTS:
        until(lambda name=name: all(p.outcome for p in federation.past(name)), "every outcome is heard")
        past = federation.past(name)
        assert [(p.outcome, p.exposure) for p in past] == [(Outcome.COMMITTED, Exposure.REVEALED)] * 3
        assert federation.stop(name) == 0


def test_an_agent_that_waits_is_small_and_does_nothing(federation):
    running = federation.in_background(make(rounds=1))
    federation.start(*AGENTS)
    running.result()
    agent = psutil.Process(federation.agents["agent-0"].pid)
    # Sent away, it begins anew, and loads what a check-in needs only then; a round needs twice as much.
    until(lambda: agent.memory_info().rss < 40e6, "it begins anew")
    until(lambda: not agent.children(), "the application's process has ended")
    time.sleep(1)
    switches = agent.num_ctx_switches().voluntary
    time.sleep(3)
    assert agent.num_ctx_switches().voluntary - switches < 5
    agent.send_signal(signal.SIGUSR1)  # checks in, and is sent away again
    until(lambda: federation.log("agent-0").count("no round wants this device") > 1, "it checks in")
    assert agent.memory_info().rss < 80e6


def test_an_agent_that_is_told_to_end_while_its_application_loads_ends_in_good_order(federation):
    federation.start("slow", application="import time\ntime.sleep(600)\n")
    agent = psutil.Process(federation.agents["slow"].pid)
    until(lambda: agent.children(), "the application is being loaded")
    assert federation.stop("slow") == 0


def test_agents_that_train_by_dp_sgd_keep_to_their_example_budget(federation):
    section = {"clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.2}
    made = make(rounds=2, training={"learning_rate": 0.5, "dp_sgd": section})
    event = made.training.example_event
    enough, one = (device_example_epsilon({event: count}, 1e-5) * 1.001 for count in (2, 1))
    for i, name in enumerate(AGENTS):
        epsilon = one if i == 0 else enough
        federation.start(name, policy=f"[example_budget]\nepsilon = {epsilon}\ndelta = 1e-5\n")
    found = federation.in_background(made).result()
    assert [round.survivors for round in found.history] == [4, 3]
    assert federation.refused == {"example-budget": 1}
    assert found.example_epsilon is not None
    assert found.example_epsilon.participations == 2
    assert not found.example_epsilon.simulated
    assert set(found.history[-1].metrics) == set()  # what clients measured in training is kept back
    for i, name in enumerate(AGENTS):
        with federation.state(name) as state:
            assert state.trained(3600.0) == {event: 1 if i == 0 else 2}


def test_agents_measure_a_model_in_secure_sums_that_their_budgets_count_and_one_of_them_declines(federation):
    asked = {"metrics": {"accuracy": [0, 1]}, "slices": {"label": [0, 1, 2]}, "noise_multiplier": 0.05}
    made = make(rounds=2, evaluation=asked)
    federation.start(*AGENTS[1:])
    federation.start(AGENTS[0], policy="[accept]\nevaluation = false\n")
    found = federation.in_background(made).result()
    assert [(round.kind, round.survivors) for round in found.history] == [
        (Kind.FIT, 4),
        (Kind.EVALUATE, 3),
        (Kind.FIT, 4),
        (Kind.EVALUATE, 3),
    ]
    assert federation.refused == {"evaluation": 2}
    assert found.metrics["federated/accuracy"] > 0.8
    assert "federated/accuracy/label=2" in found.metrics
    terms = made.resolved(4).terms()
    trained, measured = (event_of(own, own.bounds(4)) for own in (terms, terms.at(Kind.EVALUATE)))
    for name in AGENTS:
        until(lambda name=name: all(p.outcome for p in federation.past(name)), "every outcome is heard")
        with federation.state(name) as state:
            spent = state.spent(3600.0)
        assert spent == ({trained: 2} if name == AGENTS[0] else {trained: 2, measured: 2})
