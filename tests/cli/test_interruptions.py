"""A run that is stopped, at any point and in any way, goes on when it is started again."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from quorate.privacy import Ledger
from quorate.server.registry import Registry
from quorate.server.store import Store, opened
from tests.cli.commands import PLAN, quorate, quorate_process, rows, started, wait_until

ROUNDS = 6
SLOW = PLAN.replace("count = 3", f"count = {ROUNDS}").replace("epochs = 2", "epochs = 150")
"""A small plan whose rounds take a tenth of a second, so that one can be stopped in the middle."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "plan.toml").write_text(SLOW)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the same plan, never stopped."""
    directory = tmp_path_factory.mktemp("undisturbed")
    (directory / "plan.toml").write_text(SLOW)
    return run_to_end(directory)


def run_to_end(directory: Path) -> dict[str, Any]:
    done = quorate_process("run", "plan.toml", "--json", cwd=directory)  # its engine may fork
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def assert_whole(directory: Path, found: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    """The run is finished, as if nobody had stopped it, and it has paid for everything."""
    state = directory / ".quorate"
    committed = rows(state, "SELECT base_version FROM rounds WHERE status = 'committed' ORDER BY number")
    assert committed == [(version,) for version in range(ROUNDS)]
    assert not rows(state, "SELECT number FROM rounds WHERE status = 'open'")
    assert found["rounds"] == ROUNDS
    assert found["epsilon_released"] >= undisturbed["epsilon_released"]
    with opened(state) as store:
        (run,) = store.runs()
        ledger = Ledger(store.ledger(run.id), delta=found["delta"])
        ledger.verify()
        assert ledger.spent().released == pytest.approx(found["epsilon_released"])
        for past in store.rounds(run.id):
            assert ledger.is_charged(past.number) or (past.status == "aborted" and not past.revealing)
    registry = Registry(directory / "registry")
    assert registry.versions("digits") == (1,)
    assert not [finding for finding in registry.verify() if finding.serious]


def test_a_run_killed_in_round_3_goes_on_and_has_paid_for_everything(directory, undisturbed):
    state = directory / ".quorate"
    with started("run", "plan.toml", "--json", cwd=directory) as process:
        wait_until(lambda: rows(state, "SELECT number FROM rounds WHERE number = 3"), process)
        process.kill()
        process.wait(60)
    before = rows(state, "SELECT number, status FROM rounds ORDER BY number")
    found = run_to_end(directory)
    assert_whole(directory, found, undisturbed)
    after = rows(state, "SELECT number, status FROM rounds ORDER BY number")
    # what was closed stays as it was; the round that was open is aborted, and its number is never used again
    assert after[: len(before)] == [
        (number, "aborted" if status == "open" else status) for number, status in before
    ]
    assert found["aborted"] == len(after) - ROUNDS


def killed_again_and_again(directory: Path, undisturbed: dict[str, Any], kills: int, seed: int) -> None:
    """Kills a run at random instants, most of them in a round, some before the first."""
    instants, state = random.Random(seed), directory / ".quorate"
    for _ in range(kills):
        opened_before = rows(state, "SELECT COUNT(*) FROM rounds")
        with started("run", "plan.toml", "--json", cwd=directory) as process:
            if instants.random() < 0.75:
                while process.poll() is None and rows(state, "SELECT COUNT(*) FROM rounds") == opened_before:
                    time.sleep(0.002)
            time.sleep(instants.uniform(0.0, 0.5))
            process.kill()
            process.wait(60)
    assert_whole(directory, run_to_end(directory), undisturbed)


def test_a_run_killed_at_random_instants_finishes(directory, undisturbed):
    killed_again_and_again(directory, undisturbed, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_at_many_random_instants_finishes(seed, directory, undisturbed):
    killed_again_and_again(directory, undisturbed, kills=8, seed=100 + seed)


def test_ctrl_c_stops_a_run_with_a_hint_and_the_same_command_goes_on(directory, undisturbed):
    state = directory / ".quorate"
    with started("run", "plan.toml", "--json", cwd=directory) as process:
        committed = "SELECT number FROM rounds WHERE status = 'committed'"
        wait_until(lambda: rows(state, committed), process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "the same command goes on from the last committed round" in err
    assert "Traceback" not in err
    (run,) = rows(state, "SELECT id FROM runs")
    found = run_to_end(directory)
    assert found["run"] == run[0]
    assert_whole(directory, found, undisturbed)


def test_ctrl_c_in_the_middle_of_a_write_comes_after_it(tmp_path):
    with contextlib.closing(Store(tmp_path)) as store:
        sent = []

        def interrupt(*statement: object) -> None:
            if not sent:
                sent.append(os.kill(os.getpid(), signal.SIGINT))

        sa.event.listen(store._database.engine, "before_cursor_execute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.open_run(b"terms", "hash", simulated=False)
        assert [run.terms_hash for run in store.runs()] == ["hash"]


def test_two_runs_can_t_use_one_state_directory_at_the_same_time(directory):
    state = directory / ".quorate"
    with started("run", "plan.toml", "--json", cwd=directory) as process:
        wait_until(lambda: rows(state, "SELECT number FROM rounds"), process)
        second = quorate("run", "plan.toml", "--json", cwd=directory)
        still_there = process.poll() is None
    if still_there:
        assert second.returncode == 1
        assert "in use by another process" in second.stderr
        assert "Traceback" not in second.stderr
