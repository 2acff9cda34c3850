"""Rounds in simulated time: who reports, who is late or gone, and how long it takes."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.errors import PlanError, QuorateError
from quorate.server import checkpoints
from quorate.simulations import datasets
from quorate.simulations.clock import Clock, Work
from quorate.simulations.source import Simulation, simulation
from quorate.simulations.traces import Diurnal, Speeds
from tests.federations import IDEAL, SECAGG, plan


@dataclasses.dataclass(frozen=True)
class Given:
    """Members that leave when they are told to, each with its own speed."""

    leaves: Mapping[int, float]
    examples_per_s: Mapping[int, float]

    def present(self, members, now_s):
        return (self.stay_s(np.arange(members), now_s) > 0).sum()

    def stay_s(self, indices, now_s):
        return np.array([max(0.0, self.leaves.get(i, math.inf) - now_s) for i in indices.tolist()])

    def speeds(self, indices):
        own = np.array([self.examples_per_s.get(index, 1.0) for index in indices.tolist()])
        return Speeds(own, np.full(len(own), 100.0))


class Steady(np.random.RandomState):
    """Nobody is faster or slower than usual."""

    def standard_normal(self, size):
        return np.zeros(size)


WORK = Work(np.full(4, 10), 300, 200, deadline_s=100.0, close_after=None, phases_after=2)
NAMES = ["a", "b", "c", "d"]


def passed(clock, work=WORK):
    return clock.run(NAMES, np.arange(4), work, Steady(0))


def test_a_round_takes_as_long_as_its_slowest_member_and_the_phases_after():
    clock = Clock(Given({}, {2: 0.5}), 4, now_s=1000.0)
    report = passed(clock)
    assert report.seconds == 10 / 0.5 + 500 / 100 + 2  # training, network, two phases
    assert clock.now_s == 1000 + 27
    assert not report.unreported
    assert not report.unfinished


def test_who_leaves_before_its_report_is_lost_and_the_round_waits_until_its_deadline():
    report = passed(Clock(Given({1: 14.9}, {}), 4))
    assert report.unreported == {"b"}
    assert report.seconds == 102


def test_who_leaves_after_its_report_is_lost_in_the_phases_after_it():
    report = passed(Clock(Given({1: 16.0}, {}), 4))
    assert not report.unreported
    assert report.unfinished == {"b"}


def test_who_is_slower_than_the_deadline_is_late():
    report = passed(Clock(Given({}, {3: 0.1}), 4))
    assert report.unreported == {"d"}
    assert report.seconds == 102


def test_a_round_that_closes_early_takes_the_fastest_only():
    work = dataclasses.replace(WORK, close_after=2)
    report = passed(Clock(Given({}, {0: 5.0, 2: 2.0}), 4), work)
    assert report.unreported == {"b", "d"}
    assert report.seconds == 10 / 2 + 5 + 2


def test_time_passes_until_enough_are_there():
    class Night(Given):
        def stay_s(self, indices, now_s):
            return np.full(len(indices), 60.0 * (now_s > 7000))

    clock = Clock(Night({}, {}), 10)
    clock.wait_for(5)
    assert clock.now_s == 7200


def test_a_wait_without_end_is_an_error():
    with pytest.raises(QuorateError, match="never there at the same time in a simulated month"):
        Clock(Given(dict.fromkeys(range(9), -1.0), {}), 9).wait_for(1)


# --- In a run

AFTERNOON = Diurnal(hours=3, peak_hour=14, spread_hours=1, examples_per_s=0.01)


def federation(**more):
    data = datasets.population(clients=400, examples=8, features=6, classes=3)
    return Simulation(data, traces=AFTERNOON, present=60, seed=3, **more)


def made(protocol=IDEAL, count=4, privacy=None):
    return plan(
        rounds={"count": count, "cohort": 12},
        task={"name": "softmax", "inputs": 6, "classes": 3},
        privacy=privacy or {"mechanism": "none", "clip_norm": 1.0},
        secure_aggregation={**protocol, "min_survivors": 4},
    )


def quiet(report):
    """Nobody looks."""


@pytest.mark.parametrize("protocol", [IDEAL, SECAGG])
def test_a_run_over_traces_tells_its_simulated_hours_and_loses_those_who_leave(protocol):
    finished = assembly.run(made(protocol), fleet=federation(), watch=quiet)
    hours = [round.metrics["simulated_hours"] for round in finished.committed]
    assert hours == sorted(hours)
    assert hours[0] > 12  # nobody is there at midnight
    assert sum(sum(round.lost.values()) for round in finished.committed) > 0


def test_a_run_that_goes_on_after_a_restart_goes_on_at_the_same_time(tmp_path):
    straight = assembly.run(made(), fleet=federation(), watch=quiet)

    class Enough(Exception):
        pass

    def stop(report):
        if report.version == 2:
            raise Enough

    with pytest.raises(Enough):
        assembly.run(made(), fleet=federation(), state=tmp_path, watch=stop)
    resumed = assembly.run(made(), fleet=federation(), state=tmp_path, watch=quiet)
    assert checkpoints.encode(resumed.state) == checkpoints.encode(straight.state)
    assert resumed.committed[-1].metrics == straight.committed[-1].metrics


def test_privacy_is_accounted_for_those_who_are_there_not_for_the_population():
    gaussian = {"mechanism": "central-gaussian", "clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3}
    data = datasets.population(clients=400, examples=8, features=6, classes=3)
    few = assembly.run(made(privacy=gaussian, count=1), fleet=federation(), watch=quiet)
    all_there = assembly.run(made(privacy=gaussian, count=1), fleet=Simulation(data, seed=3), watch=quiet)
    assert few.epsilon.released > 2 * all_there.epsilon.released


def test_traces_can_be_named_in_a_plan(tmp_path):
    made = simulation(dataset="population", clients=1000, traces={"hours": 3.0}, present=50, seed=0)
    assert made.traces == Diurnal(hours=3.0)
    assert made.size == 50
    with pytest.raises(PlanError, match=r"traces\.ours: unknown key \(did you mean 'hours'\?\)"):
        simulation(dataset="population", traces={"ours": 3.0})
    with pytest.raises(PlanError, match="present: without traces, everybody is there"):
        simulation(dataset="population", present=5)


@pytest.mark.parametrize("protocol", [IDEAL, SECAGG])
def test_over_selection_takes_the_fastest_and_less_simulated_time(protocol):
    def hours(over_selection):
        sections = made(protocol).model_dump()
        sections["rounds"] |= {"sampling": "fixed", "over_selection": over_selection}
        data = datasets.population(clients=400, examples=8, features=6, classes=3)
        fleet = Simulation(data, traces=Diurnal(hours=23, examples_per_s=0.01, speed_sigma=1.5), seed=3)
        finished = assembly.run(q.Plan(**sections), fleet=fleet, watch=quiet)
        assert all(round.survivors <= 12 for round in finished.committed)
        return finished.metrics["simulated_hours"]

    assert hours(1.5) < 0.75 * hours(1.0)


@pytest.mark.slow
def test_a_million_clients_cost_what_their_cohorts_cost():
    data = datasets.population(clients=1_000_000, examples=20, features=64)
    fleet = q.Simulation(data, traces=Diurnal(), present=200_000, seed=0)
    finished = assembly.run(
        plan(
            rounds={"count": 3, "cohort": 1000},
            task={"name": "softmax", "inputs": 64, "classes": 10},
            secure_aggregation={"protocol": "none"},
        ),
        fleet=fleet,
        watch=quiet,
    )
    assert finished.metrics["accuracy"] > 0.5
