"""Grids and random searches: which cases there are, that what is done is not done again, and what is reported."""

import sqlite3

import numpy as np
import pytest

from quorate import sweeps
from quorate.errors import DataError, PlanError
from quorate.sweeps import Case, Result
from tests.cli.commands import PLAN, quorate

SMALL = (
    PLAN.replace('"digits"', '"wine"')
    .replace("inputs = 64", "inputs = 13")
    .replace("classes = 10", "classes = 3")
)


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text(SMALL.replace("count = 3", "count = 2"))
    return file


def test_a_grid_has_every_combination_with_every_seed():
    cases = sweeps.expand(["rounds.cohort=10,20", 'strategy.name="fedavg","fedadam"'], seeds=2)
    assert len(cases) == len(set(cases)) == 8
    assert cases[0] == Case(("rounds.cohort=10", 'strategy.name="fedavg"'), 0)
    assert cases[-1] == Case(("rounds.cohort=20", 'strategy.name="fedadam"'), 1)


def test_values_with_commas_of_their_own_stay_whole():
    cases = sweeps.expand(["task.hidden=[8, 8],[16]"], seeds=1)
    assert [case.settings for case in cases] == [("task.hidden=[8, 8]",), ("task.hidden=[16]",)]


@pytest.mark.parametrize("axis", ["rounds.cohort", "rounds.cohort=", "=1,2"])
def test_an_axis_without_values_is_refused(axis):
    with pytest.raises(PlanError, match=r"accepted: section\.key=value,value"):
        sweeps.expand([axis], seeds=1)


def test_a_random_search_stays_within_its_ends_and_is_the_same_for_the_same_seed():
    space = ["a.x=0.5:2", "a.y=log:1e-4:1", "a.n=int:1:3", "a.s=red,blue"]
    cases = sweeps.sampled(space, 300, seeds=1)
    values = [dict(setting.split("=") for setting in case.settings) for case in cases]
    x, y = (np.array([float(value[name]) for value in values]) for name in ("a.x", "a.y"))
    assert 0.5 <= x.min() <= x.max() <= 2
    assert 1e-4 <= y.min() <= y.max() <= 1
    assert 0.4 < (y < 1e-2).mean() < 0.6
    assert {value["a.n"] for value in values} == {"1", "2", "3"}
    assert {value["a.s"] for value in values} == {"red", "blue"}
    assert sweeps.sampled(space, 300, seeds=1) == cases
    assert sweeps.sampled(space, 300, seeds=1, seed=1) != cases


@pytest.mark.parametrize("axis", ["a.x=2:1", "a.x=log:0:1", "a.x=one:two"])
def test_an_axis_whose_ends_are_not_in_order_is_refused(axis):
    with pytest.raises(PlanError, match="--space"):
        sweeps.sampled([axis], 1, seeds=1)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(plan, tmp_path):
    file, cases = tmp_path / "results.sqlite", sweeps.expand(["training.epochs=1,2"], seeds=2)
    told = []
    first = sweeps.run(plan, cases[:2], file, told=told.append)
    assert len(first) == len(told) == 2
    told.clear()
    found = sweeps.run(plan, cases, file, jobs=2, told=told.append)
    assert {(result.case.settings, result.case.seed) for result in told} == {
        (c.settings, c.seed) for c in cases[2:]
    }
    assert [result.case for result in found] == sorted(cases, key=lambda c: (c.settings, c.seed))
    assert all(result.error is None and len(result.history) == 2 for result in found)
    assert found[0].metrics == found[0].history[-1]
    again = sweeps.run(plan, cases[:1], tmp_path / "other.sqlite")
    assert again[0].metrics == first[0].metrics


@pytest.mark.slow
def test_a_case_that_fails_is_told_and_tried_again(plan, tmp_path):
    file, cases = tmp_path / "results.sqlite", sweeps.expand(["fleet.drop_before_masking=0.95"], seeds=1)
    for _ in range(2):
        told = []
        (failed,) = sweeps.run(plan, cases, file, told=told.append)
        assert "10 rounds in a row were aborted" in failed.error
        assert len(told) == 1
    (group,) = sweeps.summary([failed])
    assert (group.count, group.failed) == (0, 1)


def test_an_impossible_case_stops_the_sweep_before_it_begins(plan, tmp_path):
    cases = sweeps.expand(["rounds.cohort=12,-1"], seeds=1)
    with pytest.raises(PlanError, match=r"rounds\.cohort"):
        sweeps.run(plan, cases, tmp_path / "results.sqlite")
    assert not (tmp_path / "results.sqlite").exists()


def result(settings, seed, *values, epsilon=None):
    history = [{"accuracy": value} for value in values]
    return Result(Case(settings, seed), history[-1], history, epsilon, 2.0)


def test_a_summary_has_mean_and_deviation_over_seeds():
    found = [result(("a=1",), 0, 0.1, 0.5, epsilon=1.0), result(("a=1",), 1, 0.3, 0.7, epsilon=1.5)]
    (group,) = sweeps.summary(found)
    mean, spread = group.metrics["accuracy"]
    assert mean == pytest.approx(0.6)
    assert spread == pytest.approx(0.2 / np.sqrt(2))
    assert group.epsilon == 1.5


def test_a_plot_needs_a_metric_that_was_measured(tmp_path):
    found = [result(("a=1",), 0, 0.1, 0.5), result(("a=2",), 0, 0.3)]
    sweeps.plot(found, "accuracy", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="no metric 'f1'; these are measured: accuracy"):
        sweeps.plot(found, "f1", tmp_path / "plot.png")


def test_a_file_that_is_no_sweep_is_refused(tmp_path):
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE results (name TEXT)")
    with pytest.raises(DataError, match="is not the file of a sweep"):
        sweeps.results(other)
    with pytest.raises(DataError, match="there is no file"):
        sweeps.results(tmp_path / "nowhere.sqlite")


@pytest.mark.slow
def test_the_commands_run_and_report_a_sweep(plan, tmp_path):
    ran = quorate("sweep", "run", "plan.toml", "--grid", "training.epochs=1,2", "--seeds", "2", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("±") >= 2
    shown = quorate("sweep", "report", "--plot", "accuracy.png", cwd=tmp_path)
    assert shown.stdout.startswith(ran.stdout.splitlines()[0][:20])
    assert (tmp_path / "accuracy.png").exists()
    neither = quorate("sweep", "run", "plan.toml", cwd=tmp_path)
    assert "either --grid or --space" in neither.stderr
