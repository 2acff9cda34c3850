"""What outlives the agent's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from quorate.clients.agent.state import AgentState, held, holder
from quorate.errors import PolicyRefused, StateError
from quorate.privacy import DistributedDiscreteGaussianEvent, ExampleEvent, NoisyVector
from quorate.rounds import Outcome
from quorate.summation import Exposure

EVENT = DistributedDiscreteGaussianEvent((NoisyVector("delta", 10, 100.0, 10_000),), 4, 4, 4, 6)  # type: ignore[arg-type]
DAY_S = 86_400.0


class Clock:
    def __init__(self, now: float = 1e9):
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


def took_part(state: AgentState, round: int, exposure: Exposure = Exposure.REVEALED) -> None:
    state.begin("digits", "run", round, EVENT)
    state.expose("run", round, exposure)


def test_a_round_is_begun_once_and_for_ever(directory):
    with_state = AgentState(directory)
    with_state.begin("digits", "run", 1, EVENT)
    with_state.close()
    again = AgentState(directory)
    with pytest.raises(PolicyRefused) as refused:
        again.begin("digits", "run", 1, EVENT)
    assert refused.value.code == "repeated"
    again.begin("digits", "run", 2, EVENT)
    again.begin("digits", "other run", 1, EVENT)
    again.close()


def test_what_left_the_device_is_undecided_until_the_outcome_is_heard(directory):
    state = AgentState(directory)
    took_part(state, 1, Exposure.MASKED)
    assert state.undecided() == [("run", 1)]
    state.conclude("run", 1, Outcome.COMMITTED)
    state.conclude("run", 1, Outcome.ABORTED)  # the first word counts
    assert state.undecided() == []
    assert [past.outcome for past in state.past(5)] == [Outcome.COMMITTED]
    state.close()


def test_a_round_from_which_nothing_left_is_given_up_with_what_was_staged(directory):
    state = AgentState(directory)
    state.begin("digits", "run", 1, EVENT)
    state.states.stage("run", 1, {"me": {"count": np.ones(1, np.float32)}})
    took_part(state, 2, Exposure.MASKED)
    state.give_up()
    assert state.undecided() == [("run", 2)]
    state.conclude("run", 1, Outcome.COMMITTED)
    assert not state.states.get("run", "me")
    state.close()


def test_exposure_never_shrinks(directory):
    state = AgentState(directory)
    took_part(state, 1, Exposure.REVEALED)
    state.expose("run", 1, Exposure.MASKED)
    assert state.past(1)[0].exposure is Exposure.REVEALED
    state.close()


def test_what_was_spent_is_what_left_within_the_period(directory, clock):
    state = AgentState(directory, clock)
    took_part(state, 1)
    clock.now += 10 * DAY_S
    took_part(state, 2, Exposure.MASKED)
    took_part(state, 3, Exposure.NOTHING)
    assert state.spent(30 * DAY_S) == {EVENT: 2}
    assert state.spent(5 * DAY_S) == {EVENT: 1}
    clock.now += 40 * DAY_S
    assert state.spent(30 * DAY_S) == {}
    state.close()


def test_a_clock_that_is_set_back_takes_nothing_from_what_was_spent(directory, clock):
    state = AgentState(directory, clock)
    took_part(state, 1)
    clock.now -= 1000 * DAY_S
    assert state.now() == 1e9
    took_part(state, 2)
    assert state.spent(30 * DAY_S) == {EVENT: 2}
    clock.now = 1e9 + 20 * DAY_S
    assert state.spent(30 * DAY_S) == {EVENT: 2}
    state.close()


def test_a_clock_that_is_set_back_does_not_keep_the_device_away_for_longer(directory, clock):
    state = AgentState(directory, clock)
    state.come_back(600.0)
    assert state.away_s() == pytest.approx(600.0)
    clock.now -= 1000 * DAY_S
    assert state.away_s() <= 600.0
    clock.now = 1e9 + 601
    assert state.away_s() == 0.0
    state.close()


def test_refusals_are_counted_by_code(directory):
    state = AgentState(directory)
    state.refused("run", 1, "budget", "too much")
    state.refused("run", 2, "budget", "too much")
    state.refused("run", 3, "survivors", "too few")
    assert state.refusals() == {"budget": 2, "survivors": 1}
    state.close()


def test_nobody_else_may_read_it(directory):
    AgentState(directory).close()
    assert os.stat(directory / "agent.sqlite").st_mode & 0o077 == 0
    assert os.stat(directory).st_mode & 0o077 == 0


def test_a_file_that_is_no_state_is_refused(directory):
    directory.mkdir()
    (directory / "agent.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(StateError, match=r"agent\.sqlite"):
        AgentState(directory)


def test_a_directory_has_one_agent(directory):
    with held(directory):
        assert holder(directory) == os.getpid()
        with pytest.raises(StateError, match=str(os.getpid())), held(directory):
            pass
    assert holder(directory) is None


WRITER = """
import sys
from pathlib import Path
from tests.clients.agent.test_state import EVENT, AgentState, Exposure
state = AgentState(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    state.begin("digits", "run", number, EVENT)
    state.expose("run", number, Exposure.REVEALED)
    print(number, flush=True)
"""


@pytest.mark.parametrize("attempt", range(3))
def test_what_was_written_survives_a_kill(directory, attempt):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(5)]
    time.sleep(0.01 * attempt)
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split()]
    process.wait()
    state = AgentState(directory)
    rounds = {past.round: past.exposure for past in state.past(100_000)}
    assert set(said) <= set(rounds)
    assert all(rounds[number] is Exposure.REVEALED for number in said)
    with pytest.raises(PolicyRefused):
        state.begin("digits", "run", said[-1], EVENT)
    state.close()


def test_what_training_cost_an_example_is_counted_once_the_vector_left_and_for_the_period(directory, clock):
    state, training = AgentState(directory, clock), ExampleEvent(1.1, 0.01, 100)
    state.begin("digits", "run", 1, EVENT, training)
    state.begin("digits", "run", 2, EVENT, training)
    state.begin("digits", "run", 3, None)
    assert state.trained(DAY_S) == {}
    for round in (1, 3):
        state.expose("run", round, Exposure.MASKED)
    state.close()
    again = AgentState(directory, clock)
    assert again.trained(DAY_S) == {training: 1, None: 1}
    clock.now += 2 * DAY_S
    assert again.trained(DAY_S) == {}
    again.close()
