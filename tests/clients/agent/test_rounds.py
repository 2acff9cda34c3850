"""Agents as processes, a real coordinator, real streams: rounds, and everything that may go wrong in one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from quorate.rounds import Outcome
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
