"""Several runs at once on one coordinator: each with its own plan, population and ledger; pause, stop, restart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import BudgetExhausted, PlanError, StateError
from quorate.hosting import Host
from quorate.plan import Population
from quorate.planfile import format_plan, make_plan
from quorate.privacy import SharedLedger
from quorate.rounds import Deadlines
from quorate.server.administration import RunEvent, RunState
from quorate.server.store import Store
from tests.server.devices.test_faults import Byhand
from tests.server.devices.test_rounds import COUNT, NAMES, Served, serving
from tests.waiting import eventually


def plan(rounds: int = 2, **sections: Any) -> str:
    content: dict[str, Any] = {
        "task": {"name": "softmax", "inputs": 64, "classes": 10},
        "rounds": {"count": rounds, "cohort": COUNT, "sampling": "fixed"},
        "training": {"learning_rate": 0.5},
        "privacy": {
            "mechanism": "distributed-discrete-gaussian",
            "clip_norm": 1.0,
            "noise_multiplier": 0.3,
        },
        "secure_aggregation": {"protocol": "secagg+", "min_survivors": 5},
        "fleet": {"kind": "devices", "population": COUNT},
    }
    return format_plan(make_plan({**content, **sections}))


@contextmanager
def hosting(served: Served, directory: Path, population: Population | None = None) -> Iterator[Host]:
    with closing(Store(directory)) as store:
        host = Host(store, served.service, population=population)
        host.recover()
        try:
            yield host
        finally:
            host.close(grace_s=0.0)


def until(host: Host, run: str, status: str, timeout_s: float = 60.0) -> RunState:
    assert eventually(lambda: host.state(run).status == status, timeout_s), host.state(run)
    return host.state(run)


def test_two_runs_of_one_population_both_finish_each_with_its_own_ledger(tmp_path: Path) -> None:
    with serving() as served, hosting(served, tmp_path) as host:
        first = host.start(plan(rounds=2)).run
        second = host.start(plan(rounds=3, training={"learning_rate": 0.25})).run
        assert first != second
        served.start(*NAMES)
        for run, rounds in ((first, 2), (second, 3)):
            state = until(host, run, "finished")
            assert (state.committed, state.rounds) == (rounds, rounds)
            assert len(host.store.ledger(run).entries()) == rounds
        assert host.state(second).epsilons["released"] > host.state(first).epsilons["released"]


def test_a_paused_run_opens_no_round_until_it_is_resumed(tmp_path: Path) -> None:
    with serving() as served, hosting(served, tmp_path) as host:
        run = host.start(plan(rounds=40)).run
        served.start(*NAMES)
        assert eventually(lambda: host.state(run).committed >= 1, 30)
        assert host.pause(run).status == "paused"
        assert eventually(lambda: not open_rounds(host, run))
        before = host.state(run).committed
        assert not eventually(lambda: host.state(run).committed > before, 1.0)
        host.resume(run)
        assert eventually(lambda: host.state(run).committed > before, 30)


def open_rounds(host: Host, run: str) -> list[int]:
    return [round.number for round in host.store.rounds(run) if round.status == "open"]


def test_a_stopped_run_aborts_its_round_and_goes_on_when_it_is_resumed(tmp_path: Path) -> None:
    with serving() as served, hosting(served, tmp_path) as host:
        run = host.start(plan(rounds=40)).run
        released = threading.Event()

        def held(count: int, frame: bytes) -> bytes:
            if count == 3:
                released.wait(30)
            return frame

        served.start(*NAMES, said=held)
        assert eventually(lambda: bool(open_rounds(host, run)))
        assert host.stop(run).status == "stopped"
        (aborted,) = host.store.rounds(run)
        assert aborted.status == "aborted"
        assert not aborted.revealing
        assert len(host.store.ledger(run).entries()) == 2  # charged, and given back
        released.set()
        assert host.resume(run).status in ("waiting", "running")
        assert eventually(lambda: host.state(run).committed >= 1, 30)


def test_a_coordinator_that_comes_up_again_goes_on_with_what_it_was_told(tmp_path: Path) -> None:
    with serving() as served:
        with hosting(served, tmp_path) as host:
            going = host.start(plan(rounds=3)).run
            paused = host.start(plan(rounds=4)).run
            stopped = host.start(plan(rounds=5)).run
            host.pause(paused)
            host.stop(stopped)
        served.start(*NAMES)
        with hosting(served, tmp_path) as host:
            until(host, going, "finished")
            assert host.state(paused).status == "paused"
            assert host.state(stopped).status == "stopped"
        with hosting(served, tmp_path) as host:
            assert host.state(going).status == "finished"
            with pytest.raises(StateError, match="is finished"):
                host.resume(going)


def test_who_watches_is_told_of_rounds_and_of_the_end(tmp_path: Path) -> None:
    with serving() as served, hosting(served, tmp_path) as host:
        events: list[RunEvent] = []
        run = host.start(plan(rounds=2)).run
        end = host.watch(run, events.append)
        served.start(*NAMES)
        until(host, run, "finished")
        assert eventually(lambda: len(events) == 3)
        end()
    assert [(e.round, e.outcome, e.status) for e in events] == [
        (1, "committed", "running"),
        (2, "committed", "running"),
        (0, "", "finished"),
    ]
    assert events[1].epsilons["released"] > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lambda: "x = [", "not TOML"),
        (lambda: plan(fleet={"kind": "simulation", "dataset": "digits", "clients": 8}), "fleet.kind"),
        (lambda: plan(fleet={"kind": "devices"}), "fleet.population: missing"),
        (lambda: plan(fleet={"kind": "devices", "population": 8, "many": 1}), "fleet.many: unknown key"),
        (lambda: plan(fleet={"kind": "devices", "population": 0}), "fleet.population: found 0"),
        (lambda: plan(fleet={"kind": "devices", "population": 8, "phase_s": 0}), "fleet.phase_s: found 0"),
        (lambda: plan(fleet={"kind": "devices", "population": 8, "training_s": "long"}), "fleet.training_s"),
        (lambda: plan(secure_aggregation={"protocol": "ideal", "min_survivors": 5}), "protects nobody"),
    ],
)
def test_a_plan_that_devices_can_t_run_is_refused(text: Callable[[], str], says: str, tmp_path: Path) -> None:
    with serving() as served, hosting(served, tmp_path) as host:
        with pytest.raises(PlanError, match=says):
            host.start(text())
        assert host.states() == []
        assert served.service.room.demands(frozenset(["softmax"])) == []


def test_a_plan_says_how_long_devices_may_take(tmp_path: Path) -> None:
    fleet = {"kind": "devices", "population": COUNT, "training_s": 1.0, "phase_s": 30.0}
    events: list[RunEvent] = []
    with serving() as served, hosting(served, tmp_path) as host:
        run = host.start(plan(rounds=1, fleet=fleet)).run
        host.watch(run, events.append)
        served.start(*NAMES[1:])
        silent = Byhand(served)
        assert silent.assigned().deadlines == Deadlines(1.0, 30.0)
        until(host, run, "finished")
        silent.stream.close()
    assert (events[0].survivors, events[0].lost) == (COUNT - 1, {"advertise": 1})


def test_a_run_that_goes_on_is_not_started_twice(tmp_path: Path) -> None:
    with serving() as served, hosting(served, tmp_path) as host:
        run = host.start(plan()).run
        with pytest.raises(StateError, match=f"run {run} of these terms is (waiting|running) already"):
            host.start(plan())


def test_a_run_that_spent_its_budget_has_failed_with_the_reason(tmp_path: Path) -> None:
    private = {"mechanism": "distributed-discrete-gaussian", "clip_norm": 1.0, "noise_multiplier": 0.3}
    with serving() as served, hosting(served, tmp_path) as host:
        run = host.start(plan(rounds=5, privacy={**private, "budget": 20.0})).run
        served.start(*NAMES)
        state = until(host, run, "failed")
        assert "above the budget of 20" in state.reason
        assert state.committed < 5
        assert not open_rounds(host, run)


PHONES = {"name": "phones", "epsilon": 60.0, "delta": 1e-5}
"""Six rounds of theirs fit, a seventh does not."""


def test_two_runs_at_once_never_spend_more_than_their_population_may_and_a_restart_forgets_nothing(
    tmp_path: Path,
) -> None:
    """Each of them alone could run to its end, which is four rounds."""
    texts = [plan(rounds=4, population=PHONES, training={"learning_rate": rate}) for rate in (0.5, 0.2)]
    with serving() as served, hosting(served, tmp_path) as host:
        runs = [host.start(text).run for text in texts]
        served.start(*NAMES)
        assert eventually(lambda: all(host.state(run).over for run in runs), 60), host.states()
        assert host.store.account("phones").spent().released <= 60
        failed = [host.state(run) for run in runs if host.state(run).status == "failed"]
        assert failed
        for state in failed:
            assert "what all runs over the population 'phones' have released" in state.reason
            assert not open_rounds(host, state.run)
    with closing(Store(tmp_path)) as store:
        account = store.account("phones")
        ledgers = [SharedLedger(store.ledger(run), account, delta=1e-5) for run in runs]
        assert sum(len(ledger.charges) for ledger in ledgers) == 6
        assert account.spent().released > 50
        with pytest.raises(BudgetExhausted, match="'phones'"):
            ledgers[0].reserve(99, *ledgers[0].charges[-1])


def test_a_coordinator_s_own_budget_holds_for_every_run(tmp_path: Path) -> None:
    devices = Population(name="devices", epsilon=5.0, delta=1e-6)
    with serving() as served, hosting(served, tmp_path, devices) as host:
        assert host.store.run(host.start(plan()).run).population == "devices"
        with pytest.raises(PlanError, match="every run of this coordinator counts towards the budget of"):
            host.start(plan(rounds=3, population=PHONES))
        with pytest.raises(PlanError, match="no round has an ε that could be charged"):
            host.start(plan(rounds=3, privacy={"mechanism": "none", "clip_norm": 1.0}))
