"""Runs from plans: bound objects, state directories, and what is refused before anything is done."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.errors import BudgetExhausted, PlanError, StateError
from quorate.fleets import Ability
from quorate.plan import FleetSection
from quorate.server import checkpoints
from quorate.server.registry import Registry
from quorate.server.store import Store, opened
from quorate.server.unmasking_pool import UnmaskingPool
from quorate.simulations.fleet import SimulatedFleet
from quorate.simulations.source import Simulation
from quorate.strategies import aggregators, local_rules, server_rules
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, plan, wine

CLIENTS = 12
WINE = {"kind": "simulation", "dataset": "wine", "clients": CLIENTS, "partition": "iid", "seed": 3}


def silent(report):
    pass


def run(made, seed=3, watch=silent, **options):
    return assembly.run(made, fleet=Simulation(wine(CLIENTS), seed=seed), watch=watch, **options)


def bound(**sections):
    return q.Plan(
        **{"task": q.Task(q.models.softmax(13, 3)), "rounds": q.Rounds(count=2, cohort=8), **sections}
    )


def unrecorded():
    return q.Strategy("mine", local_rules.sgd(), aggregators.mean(), server_rules.sgd())


# --- Names and objects are the same


def test_objects_bound_in_python_and_names_in_a_plan_give_the_same_run():
    named = plan(
        rounds={"count": 2, "cohort": 8},
        strategy={"name": "fedadam", "learning_rate": 0.05},
        privacy=GAUSSIAN,
        secure_aggregation=SECAGG,
        fleet=WINE,
    )
    objects = bound(
        strategy=q.strategies.fedadam(learning_rate=0.05),
        privacy=q.privacy.DistributedGaussian(clip_norm=1.0, noise_multiplier=1.0),
        secure_aggregation=q.SecAggPlus(corrupt=0.05),
    )
    first, second = assembly.run(named, watch=silent), run(objects)
    assert first.record.terms_hash == second.record.terms_hash
    assert checkpoints.encode(first.state) == checkpoints.encode(second.state)
    assert first.epsilon == second.epsilon


def test_the_public_name_is_the_same_function():
    assert q.run is assembly.run


def test_a_run_unmasks_in_a_pool_that_ends_with_it(monkeypatch):
    pools, seen = [], []

    class Eager(UnmaskingPool):
        def __init__(self):
            super().__init__(workers=2, worth_bytes=0)
            pools.append(self)

        def __call__(self, vector, masks):
            super().__call__(vector, masks)
            seen.append(self.pids)

    made = bound(privacy=q.privacy.NoPrivacy(clip_norm=10.0), secure_aggregation=q.SecAggPlus(corrupt=0.05))
    alone = run(made)
    monkeypatch.setattr(assembly, "UnmaskingPool", Eager)
    spread = run(made)
    assert checkpoints.encode(spread.state) == checkpoints.encode(alone.state)
    assert [len(pids) for pids in seen] == [2, 2]
    assert [pool.pids for pool in pools] == [()]


def test_a_strategy_that_is_not_installed_runs_without_a_state_directory():
    finished = run(bound(strategy=unrecorded()))
    assert len(finished.committed) == 2
    assert checkpoints.encode(finished.state) == checkpoints.encode(
        run(bound(strategy=q.strategies.fedavg())).state
    )


def test_a_strategy_with_no_records_is_refused_with_a_state_directory(tmp_path):
    with pytest.raises(
        PlanError, match=r"strategy: 'mine' has no settings .*; accepted: a factory decorated"
    ):
        run(bound(strategy=unrecorded()), state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_finished_run_knows_its_history_its_model_and_its_cost():
    finished = run(bound(privacy=q.privacy.DistributedGaussian(clip_norm=1.0, noise_multiplier=1.0),
                         secure_aggregation=q.IdealSum()))  # fmt: skip
    assert [past.base_version for past in finished.committed] == [0, 1]
    assert finished.metrics == finished.committed[-1].metrics
    assert finished.model.layout == finished.task.layout
    assert finished.metrics == finished.task.model.evaluate(finished.model, wine(CLIENTS).test)
    assert finished.epsilon.released == finished.committed[-1].epsilons["released"]
    assert finished.population == CLIENTS
    assert finished.record.status == "finished"


def test_a_run_is_plotted(tmp_path):
    run(plan(privacy=GAUSSIAN, secure_aggregation=IDEAL)).plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


# --- A state directory


def test_a_finished_run_gives_its_result_again_without_a_new_round(tmp_path):
    made = plan(privacy=GAUSSIAN, secure_aggregation=IDEAL)
    first = run(made, state=tmp_path)
    reports = []
    again = run(made, state=tmp_path, watch=reports.append)
    assert reports == []
    assert again.history == first.history
    assert checkpoints.encode(again.state) == checkpoints.encode(first.state)
    assert again.epsilon == first.epsilon
    assert again.record == first.record


def test_an_unseeded_run_gives_its_result_again_too(tmp_path):
    made = plan()
    assert checkpoints.encode(run(made, seed=None, state=tmp_path).state) == checkpoints.encode(
        run(made, seed=None, state=tmp_path).state
    )


@pytest.mark.parametrize(("first", "then"), [(3, None), (None, 3)])
def test_a_seeded_and_an_unseeded_run_are_not_mixed(tmp_path, first, then):
    run(plan(), seed=first, state=tmp_path)
    words = "with a seed" if first is not None else "without a seed"
    with pytest.raises(StateError, match=rf"was started {words}; go on in the same way"):
        run(plan(), seed=then, state=tmp_path)


def test_other_terms_are_another_run_in_the_same_directory(tmp_path):
    run(plan(), state=tmp_path)
    run(plan(training={"epochs": 2}), state=tmp_path)
    with opened(tmp_path) as store:
        assert len(store.runs()) == 2
        assert {found.committed for found in store.runs()} == {3}


def test_runs_in_one_directory_do_not_share_clients_states(tmp_path):
    scaffold = {"name": "scaffold"}
    run(plan(strategy=scaffold, training={"epochs": 2}), state=tmp_path)
    beside = run(plan(strategy=scaffold), state=tmp_path)
    alone = run(plan(strategy=scaffold), state=tmp_path / "alone")
    assert checkpoints.encode(beside.state) == checkpoints.encode(alone.state)


def test_a_directory_in_use_is_refused(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(StateError, match="is in use by another process"):
        run(plan(), state=tmp_path)
    store.close()


def test_a_directory_is_free_again_after_an_error(tmp_path):
    def fails(report):
        raise RuntimeError("the watcher fell over")

    with pytest.raises(RuntimeError):
        run(plan(), state=tmp_path, watch=fails)
    assert len(run(plan(), state=tmp_path).committed) == 3


def test_nothing_outlives_a_run_without_a_state_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(plan())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_killed_by_the_system_goes_on(tmp_path):
    script = f"""
import os, quorate as q
from tests.federations import *
def die(report):
    if report.version == 2:
        os.kill(os.getpid(), 9)
fleet = q.Simulation(wine(12), seed=3)
q.run(plan(privacy=GAUSSIAN, secure_aggregation=SECAGG), fleet, state={str(tmp_path)!r}, watch=die)
"""
    dead = subprocess.run([sys.executable, "-c", script], timeout=120)
    assert dead.returncode == -9
    made = plan(privacy=GAUSSIAN, secure_aggregation=SECAGG)
    numbers = []
    finished = run(made, state=tmp_path, watch=lambda report: numbers.append(report.version))
    assert numbers[-1] == 3
    assert checkpoints.encode(finished.state) == checkpoints.encode(run(made).state)


def test_what_a_run_has_spent_is_verified_when_it_goes_on(tmp_path):
    made = plan(privacy=GAUSSIAN, secure_aggregation=IDEAL)
    run(made, state=tmp_path)
    database = sqlite3.connect(tmp_path / "quorate.sqlite")
    with database:
        database.execute(
            "UPDATE ledger SET entry = replace(entry, '\"round\":1', '\"round\":9') WHERE sequence = 1"
        )
    database.close()
    with pytest.raises(q.errors.VerificationFailed, match="ledger"):
        run(made, state=tmp_path)


# --- The budget


def test_a_run_stops_at_its_budget_and_keeps_what_was_committed(tmp_path):
    spent = run(plan(privacy=GAUSSIAN, secure_aggregation=IDEAL)).committed
    enough_for_two = (spent[1].epsilons["released"] + spent[2].epsilons["released"]) / 2
    made = plan(privacy={**GAUSSIAN, "budget": enough_for_two}, secure_aggregation=IDEAL)
    rows = []
    for _ in range(2):
        with pytest.raises(BudgetExhausted, match="above the budget"):
            run(made, state=tmp_path)
        with opened(tmp_path) as store:
            (found,) = store.runs()
            assert (found.committed, found.status) == (2, "open")
            rows.append(store.ledger(found.id).entries())
    assert rows[0] == rows[1]


def test_a_target_epsilon_is_kept_by_the_whole_run():
    wanted = {"mechanism": GAUSSIAN["mechanism"], "clip_norm": 1.0, "epsilon": 2.0}
    finished = run(plan(privacy=wanted, secure_aggregation=IDEAL))
    assert len(finished.committed) == 3
    assert 1.9 < finished.epsilon.released <= 2.0


# --- What a fleet can't do


class Real:
    """A simulation that says it is not one, and that can do what it is told it can."""

    def __init__(self, abilities=frozenset(Ability), seed=None, simulated=False):
        self._inner = Simulation(wine(CLIENTS), seed=seed)
        self.size, self._abilities, self._simulated = CLIENTS, abilities, simulated

    def section(self):
        return FleetSection(kind="devices", seed=self._inner.seed)

    def open(self, made, directory):
        fleet = self._inner.open(made, directory)
        fleet.simulated, fleet.abilities = self._simulated, self._abilities
        return fleet


def refused(made, fleet, tmp_path):
    with pytest.raises(PlanError) as found:
        assembly.run(made, fleet=fleet, state=tmp_path, watch=silent)
    with opened(tmp_path) as store:
        assert store.runs() == []
    return str(found.value)


def test_a_fleet_is_told_what_ended_its_run(monkeypatch):
    told = []
    monkeypatch.setattr(SimulatedFleet, "close", lambda fleet, failure=None: told.append(failure))
    run(bound())

    def fail(report):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as failed:
        run(bound(), watch=fail)
    assert told == [None, failed.value]


def test_the_ideal_sum_is_refused_on_a_fleet_that_is_not_simulated(tmp_path):
    said = refused(plan(privacy=CLIPPED, secure_aggregation=IDEAL), Real(), tmp_path)
    assert said.startswith("secure_aggregation.protocol: ")
    assert "'ideal'" in said
    assert "accepted: 'secagg+'" in said


def test_a_seed_is_refused_on_a_fleet_that_is_not_simulated(tmp_path):
    assert "fleet.seed" in refused(plan(), Real(seed=1), tmp_path)


@pytest.mark.parametrize(
    ("sections", "missing"),
    [
        ({"privacy": CLIPPED, "secure_aggregation": SECAGG}, Ability.SECURE),
        ({"strategy": {"name": "median"}}, Ability.SINGLE_UPDATES),
        ({"strategy": {"name": "scaffold"}}, Ability.CLIENT_STATE),
    ],
)
def test_a_plan_that_needs_more_than_the_fleet_can_do_is_refused(tmp_path, sections, missing):
    said = refused(plan(**sections), Real(frozenset(Ability) - {missing}), tmp_path)
    assert said.startswith("fleet.kind: 'devices' can't do what the plan needs: ")
    assert said.endswith(missing)


def test_a_fleet_that_does_not_exist_is_refused():
    with pytest.raises(PlanError, match=r"fleet.kind: there is no 'simulatio', did you mean 'simulation'"):
        assembly.run(plan(fleet={"kind": "simulatio"}), watch=silent)


def test_a_cohort_above_the_population_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(PlanError, match=r"rounds.cohort: found 13, but the population has 12 members"):
        run(plan(rounds={"count": 1, "cohort": 13}), state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


# --- Publishing


def test_a_plan_publishes_as_often_as_it_says(tmp_path):
    registry = tmp_path / "registry"
    target = {"registry": str(registry), "model": "wine", "every": 2}
    finished = run(plan(rounds={"count": 5, "cohort": 8}, publish=target), state=tmp_path / "state")
    assert [v["version"] for v in finished.versions] == [1, 2, 3]
    after = [r.number for r in finished.committed if r.base_version + 1 in (2, 4, 5)]
    assert [v["round"] for v in finished.versions] == after
    assert len(Registry(registry).versions("wine")) == 3


def test_a_version_that_was_not_published_before_a_stop_is_published_at_the_next_start(tmp_path, monkeypatch):
    target = {"registry": str(tmp_path / "registry"), "model": "wine"}
    made = plan(publish=target)
    with monkeypatch.context() as patch:
        patch.setattr(
            "quorate.server.publishing.publish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run(made, state=tmp_path / "state")
    finished = run(made, state=tmp_path / "state")
    assert len(finished.committed) == 3
    assert [v["version"] for v in finished.versions] == [1]


def test_publishing_the_same_result_twice_gives_the_same_version(tmp_path):
    finished = run(plan())
    first = finished.publish(tmp_path / "registry", "wine")
    assert finished.publish(tmp_path / "registry", "wine").number == first.number == 1


def test_a_published_version_says_what_was_spent_and_that_it_is_simulated(tmp_path):
    finished = run(plan(privacy=GAUSSIAN, secure_aggregation=SECAGG))
    version = finished.publish(tmp_path / "registry", "wine", data_card="wines")
    privacy = version.manifest.privacy
    assert privacy.simulated
    assert float(privacy.epsilon_released) == pytest.approx(finished.epsilon.released, rel=1e-5)
    assert float(privacy.epsilon_server) == pytest.approx(finished.epsilon.server, rel=1e-5)
    assert privacy.summation == "secagg+, semi-honest"
    assert version.manifest.data_card == "wines"
    assert version.manifest.round == finished.committed[-1].number


def test_a_published_version_holds_the_learned_parameters(tmp_path):
    finished = run(plan())
    finished.publish(tmp_path / "registry", "wine")
    held = q.pull(
        tmp_path / "registry", "wine", trust=tmp_path / "registry" / "root.json", directory=tmp_path / "held"
    )
    x = wine(CLIENTS).test.x
    expected = finished.task.model.predict(finished.model, x)
    np.testing.assert_allclose(held.predict(x), expected, atol=1e-6)
