"""Federated statistics, end to end: whole runs, under every sum and mechanism, within the error that is stated."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

import quorate as q
from quorate.cli import tables
from quorate.errors import PlanError
from quorate.plan import Terms
from quorate.planfile import make_plan
from quorate.privacy import CentralDiscreteLaplaceEvent
from quorate.simulations.datasets import FederatedDataset
from tests.federations import IDEAL, SECAGG, digits

ROOT = Path(__file__).parents[2]
MEMBERS = 20
CATEGORIES = {"name": "categories", "values": list(range(10))}
LAPLACE = {"mechanism": "central-laplace", "clip_norm": 1.0, "noise_multiplier": 1.0}
GAUSSIAN = {"mechanism": "distributed-discrete-gaussian", "clip_norm": 1.0, "noise_multiplier": 1.0}
NONE = {"mechanism": "none", "clip_norm": 1.0}


def ask(privacy, summing, task=CATEGORIES, data: FederatedDataset | None = None, seed=3, **rounds):
    made = make_plan(
        {
            "task": task,
            "rounds": {"count": 1, "cohort": MEMBERS, "sampling": "fixed", **rounds},
            "privacy": privacy,
            "secure_aggregation": summing,
        }
    )
    fleet = q.Simulation(digits(MEMBERS) if data is None else data, seed=seed)
    return q.run(made, fleet=fleet, watch=lambda report: None)


def exact(finished, data: FederatedDataset):
    return np.mean([finished.task.model.contribution(one) for one in data.clients], axis=0)


@pytest.mark.parametrize("summing", [IDEAL, SECAGG], ids=["ideal", "secagg+"])
def test_without_noise_the_answer_is_the_mean_over_the_members(summing):
    done = ask(NONE, summing)
    np.testing.assert_allclose(done.model["cells"], exact(done, digits(MEMBERS)), atol=1e-6)
    assert sum(done.task.model.answer(done.model).values()) == pytest.approx(1)


@pytest.mark.parametrize("summing", [IDEAL, SECAGG, {"protocol": "none"}], ids=["ideal", "secagg+", "none"])
def test_laplace_noise_moves_a_cell_by_what_is_stated(summing):
    """P(a cell is off by more than t·z/members) ≤ e^-t; here t = 15, for ten cells."""
    done = ask(LAPLACE, summing)
    error = np.abs(done.model["cells"] - exact(done, digits(MEMBERS)))
    assert 0 < error.max() < 15 / MEMBERS
    assert error.mean() > 0.1 / MEMBERS  # the noise is there
    assert done.epsilon.released <= 1.0
    assert math.isinf(done.epsilon.server)


def test_the_error_over_many_runs_is_the_noise_s():
    cells = [ask(LAPLACE, IDEAL, seed=seed) for seed in range(30)]
    errors = np.concatenate([done.model["cells"] - exact(done, digits(MEMBERS)) for done in cells])
    assert errors.std() == pytest.approx(math.sqrt(2) / MEMBERS, rel=0.2)  # √2·z / members
    assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(len(errors))


@pytest.mark.parametrize(
    "mechanism", ["distributed-discrete-gaussian", "central-gaussian", "distributed-skellam"]
)
def test_gaussian_histograms_are_the_same_question_with_another_mechanism(mechanism):
    done = ask({**GAUSSIAN, "mechanism": mechanism}, SECAGG)
    error = np.abs(done.model["cells"] - exact(done, digits(MEMBERS)))
    assert 0 < error.max() < 8 / MEMBERS
    assert math.isfinite(done.epsilon.server) == (mechanism != "central-gaussian")


def test_a_finished_run_has_the_answer_and_says_when_noise_left_none():
    done = ask(NONE, IDEAL)
    assert done.answer == done.task.model.answer(done.model)
    drowned = done.task.layout.unflatten(np.full(10, -1, np.float32))
    spoiled = dataclasses.replace(done, state=dataclasses.replace(done.state, parameters=drowned))
    assert tables.as_json(spoiled)["answer"] is None
    assert any("more noise than answer" in value for _, value in tables.rows(spoiled))


def test_more_rounds_are_added_up_and_charged():
    once, four = ask(LAPLACE, IDEAL), ask(LAPLACE, IDEAL, count=4)
    assert once.epsilon.released < four.epsilon.released <= 4.0
    assert four.model["cells"].sum() == pytest.approx(4, abs=40 / MEMBERS)
    assert sum(four.task.model.answer(four.model).values()) == pytest.approx(1)


def test_the_ledger_has_the_event_of_the_round():
    done = ask(LAPLACE, SECAGG)
    event = done.plan.privacy.event(done.plan.terms().shape(done.plan.bounds(MEMBERS)))
    assert isinstance(event, CentralDiscreteLaplaceEvent)
    assert event.epsilon == pytest.approx(1.0)


def test_a_bounded_mean_comes_out_of_a_secret_draw():
    data = digits(MEMBERS)
    task = {"name": "bounded-mean", "low": 0, "high": 9}
    done = ask({**LAPLACE, "noise_multiplier": 0.05}, SECAGG, task=task, sampling="poisson", cohort=16)
    truth = np.mean([one.y.mean() for one in data.clients])
    assert done.task.model.answer(done.model)["mean"] == pytest.approx(truth, abs=0.5)


def test_other_local_rules_are_refused_by_the_members():
    made = make_plan(
        {
            "task": CATEGORIES,
            "rounds": {"count": 1, "cohort": MEMBERS, "sampling": "fixed"},
            "strategy": {"name": "fedprox", "mu": 0.1},
            "privacy": NONE,
        }
    )
    with pytest.raises(q.QuorateError, match="proximal"):
        q.run(made, fleet=q.Simulation(digits(MEMBERS), seed=0), watch=lambda report: None)


def test_a_statistic_is_not_published(tmp_path):
    made = make_plan(
        {
            "task": CATEGORIES,
            "rounds": {"count": 1, "cohort": MEMBERS, "sampling": "fixed"},
            "publish": {"registry": str(tmp_path), "model": "answer"},
        }
    )
    with pytest.raises(PlanError, match=r"predicts nothing; accepted: no \[publish\]"):
        q.run(made, fleet=q.Simulation(digits(MEMBERS), seed=0), watch=lambda report: None)


def test_what_the_documentation_shows_runs(capsys, tmp_path):
    shown = (ROOT / "docs/statistics.md").read_text(encoding="utf-8")
    python, toml = (
        re.search(rf"^```{kind}\n(.*?)^```", shown, re.S | re.M)[1] for kind in ("python", "toml")
    )
    exec(python, {})
    printed = capsys.readouterr().out
    assert printed.startswith("{'0': 0.")
    assert float(printed.split()[-1]) <= 1.0
    (tmp_path / "plan.toml").write_text(toml, encoding="utf-8")
    read = q.read_plan(tmp_path / "plan.toml")
    assert read.task.resolve().model.name == "categories"
    assert read.resolved(300).privacy.event(read.terms().shape(read.bounds(300))).epsilon == pytest.approx(
        1.0
    )


def test_members_read_the_question_from_the_terms():
    terms = ask(LAPLACE, IDEAL).plan.terms()
    read = Terms.parse(terms.encoded())
    assert read.task.resolve().model == terms.task.resolve().model
    assert read.encoded() == terms.encoded()
