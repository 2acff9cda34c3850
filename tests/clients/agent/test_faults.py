"""What may happen to an agent in a round: it costs the round a member at most, the agent nothing that it must keep."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.clients.agent.state import Past
from quorate.rounds import Outcome
from quorate.summation import Exposure
from tests.clients.agent.federation import Federation, make, misbehaving, names, until
from tests.clients.agent.proxy import Proxy
from tests.clocks import DAY, YEAR, Clock
from tests.disks import disk

pytestmark = pytest.mark.slow

AGENTS = names(4)
VICTIM, OTHERS = AGENTS[0], AGENTS[1:]
KEYS, SHARES, MASKED, REVEALED = 1, 2, 3, 4
"""An agent's messages in a round."""


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with Federation(tmp_path) as started:
        yield started


def heard(federation: Federation, name: str) -> Past:
    """The agent's last round, once it knows how that ended."""
    until(lambda: federation.past(name) and federation.past(name)[0].outcome, f"{name} hears the outcome")
    return federation.past(name)[0]


@pytest.mark.parametrize(
    ("message", "survivors", "exposure", "outcome"),
    [
        (KEYS, 3, Exposure.NOTHING, Outcome.ABORTED),
        (SHARES, 3, Exposure.NOTHING, Outcome.ABORTED),
        (MASKED, 4, Exposure.MASKED, Outcome.COMMITTED),
        (REVEALED, 4, Exposure.REVEALED, Outcome.COMMITTED),
    ],
)
def test_an_agent_killed_in_any_phase_knows_after_its_restart_what_left_it_and_how_it_ended(
    federation, message, survivors, exposure, outcome
):
    federation.at[VICTIM, message] = lambda: federation.kill(VICTIM)
    running = federation.in_background(make(rounds=1))
    federation.start(*AGENTS)
    (only,) = running.result().history
    assert (only.status, only.survivors) == ("committed", survivors)
    assert federation.past(VICTIM)[0].exposure is exposure
    federation.start(VICTIM)
    last = heard(federation, VICTIM)
    assert (last.exposure, last.outcome) == (exposure, outcome)
    for name in OTHERS:
        assert heard(federation, name).outcome is Outcome.COMMITTED


def test_an_agent_killed_while_it_trains_is_a_dropout_and_leaves_no_process_behind(federation):
    running = federation.in_background(make(rounds=1))
    federation.start(*OTHERS)
    federation.start(
        VICTIM, application=misbehaving("open('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    )
    pid = federation.folder(VICTIM) / "pid"
    until(lambda: pid.exists() and pid.read_text(), "it trains")
    federation.kill(VICTIM)
    (only,) = running.result().history
    assert (only.status, only.survivors) == ("committed", 3)
    until(lambda: not Path(f"/proc/{pid.read_text()}").exists(), "the application's process is gone")


def test_one_more_than_tolerated_is_an_aborted_round_and_the_next_one_commits(federation):
    def kill_two() -> None:
        federation.at.clear()
        federation.kill(AGENTS[0])
        federation.kill(AGENTS[1])

    federation.at[VICTIM, SHARES] = kill_two
    running = federation.in_background(make(rounds=1))
    federation.start(*AGENTS)
    until(lambda: federation.reports, "the first round ends")
    assert federation.reports[0].outcome is Outcome.ABORTED
    federation.start(*AGENTS[:2])
    history = running.result().history
    assert [round.status for round in history] == ["aborted", "committed"]
    assert history[-1].survivors == 4


@pytest.mark.parametrize("message", [KEYS, MASKED])
def test_a_frozen_agent_is_a_dropout_and_comes_back(federation, message):
    federation.at[VICTIM, message] = lambda: federation.agents[VICTIM].send_signal(signal.SIGSTOP)
    running = federation.in_background(make(rounds=1))
    federation.start(*AGENTS)
    (only,) = running.result().history
    assert only.status == "committed"
    federation.agents[VICTIM].send_signal(signal.SIGCONT)
    assert heard(federation, VICTIM).outcome is (Outcome.COMMITTED if message == MASKED else Outcome.ABORTED)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("os._exit(1)", "training-crash"),
        ("kept = []\nwhile True: kept.append(bytearray(1 << 24))", "training-memory"),
        ("while True: pass", "training-time"),
        ("return 'garbage'", "training-error"),
        ("return quorate.rounds.Update({'delta': np.zeros(5, np.float32)}, 10), {}", "update"),
    ],
)
def test_an_application_that_fails_is_a_refusal_that_is_counted_by_its_code(federation, body, code):
    running = federation.in_background(make(rounds=1))
    federation.start(*OTHERS)
    policy = "[limits]\nmemory_mb = 400\ntraining_s = 3.0\n"
    federation.start(VICTIM, application=misbehaving(body), policy=policy)
    (only,) = running.result().history
    assert (only.status, only.survivors) == ("committed", 3)
    assert federation.refused == {code: 1}
    assert federation.agents[VICTIM].poll() is None
    with federation.state(VICTIM) as state:
        until(lambda: state.refusals() == {code: 1}, "it is written down")


@pytest.mark.parametrize("how", ["cut", "silence"])
def test_a_network_that_fails_in_a_round_and_heals_costs_one_round(federation, how):
    with Proxy(federation.port) as proxy:

        def fail() -> None:
            federation.at.clear()
            getattr(proxy, how)()

        federation.at[VICTIM, SHARES] = fail
        running = federation.in_background(make(rounds=2))
        federation.start(*OTHERS)
        federation.start(VICTIM, port=proxy.port)
        until(lambda: federation.reports, "the first round ends")
        proxy.heal()
        history = running.result().history
    assert [round.status for round in history] == ["committed", "committed"]
    until(lambda: all(past.outcome for past in federation.past(VICTIM)), "it knows how its rounds ended")


def test_a_device_whose_disk_is_full_is_a_dropout_until_there_is_room(federation):
    """What it can't write down does not leave it."""
    with disk(federation.folder(VICTIM) / "state", 4) as full:

        def fill() -> None:
            federation.at.clear()
            full.fill()

        federation.at[VICTIM, SHARES] = fill
        running = federation.in_background(make(rounds=2))
        federation.start(*OTHERS)
        federation.start(VICTIM, policy="[conditions]\nfree_disk_mb = 0\n")
        until(lambda: federation.reports, "the first round ends")
        full.free()
        history = running.result().history
        assert [(round.status, round.survivors) for round in history] == [("committed", 3), ("committed", 4)]
        assert federation.agents[VICTIM].poll() is None
        assert "the agent's memory can't be used" in federation.log(VICTIM)
        assert "database or disk is full" in federation.log(VICTIM)
        second, first = federation.past(VICTIM)
        assert (first.exposure, first.outcome) == (Exposure.NOTHING, Outcome.ABORTED)
        assert second.exposure is Exposure.REVEALED
        federation.stop(VICTIM)


def test_a_device_whose_clock_jumps_goes_on(federation):
    """Ahead in the first round, far back in the second; deadlines and waits are by a clock that only runs."""
    clock = Clock(federation.directory / "clock")
    offsets = iter([10 * YEAR, -10 * YEAR])
    federation.at[VICTIM, SHARES] = lambda: clock.jump(next(offsets, 0.0))
    running = federation.in_background(make(rounds=3))
    federation.start(*OTHERS)
    federation.start(
        VICTIM, environment=clock.environment, policy="[budget]\nepsilon = 1000.0\ndelta = 1e-6\n"
    )
    history = running.result().history
    assert [(round.status, round.survivors) for round in history] == [("committed", 4)] * 3
    assert heard(federation, VICTIM).outcome is Outcome.COMMITTED
    assert federation.agents[VICTIM].poll() is None
    last, middle, first = federation.past(VICTIM)
    # It was believed when it was set ahead; set back, time stood still, and gave nothing back.
    assert middle.began - first.began > 9 * YEAR
    assert last.began >= middle.began
    with federation.state(VICTIM) as state:
        assert sum(state.spent(30 * DAY).values()) == 2
        assert state.away_s() < 60


def test_a_coordinator_that_goes_away_and_returns_is_found_again(federation):
    with Proxy(federation.port) as proxy:
        proxy.cut()
        running = federation.in_background(make(rounds=1))
        federation.start(*AGENTS, port=proxy.port)
        until(lambda: "the stream was lost" in federation.log(VICTIM), "nobody answers")
        proxy.heal()
        assert running.result().history[-1].survivors == 4


def test_a_budget_is_kept_by_the_device_itself_over_restarts(federation):
    policy = "[budget]\nepsilon = 60.0\ndelta = 1e-6\n"
    running = federation.in_background(make(rounds=4))
    federation.start(*OTHERS)
    federation.start(VICTIM, policy=policy)
    until(lambda: len(federation.reports) == 1, "a round ends")
    federation.stop(VICTIM)
    federation.start(VICTIM, policy=policy)
    running.result()
    assert set(federation.refused) == {"budget"}
    with federation.state(VICTIM) as state:
        assert sum(state.spent(30 * 86_400).values()) == len(federation.past(VICTIM)) < 4


def test_a_device_that_wants_another_signer_declines(federation):
    running = federation.in_background(make(rounds=1))
    federation.start(*OTHERS)
    federation.start(VICTIM, policy=f'[accept]\nsigners = ["{"ab" * 32}"]\n')
    assert running.result().history[-1].survivors == 3
    assert federation.refused == {"signer": 1}
    assert not federation.past(VICTIM)
