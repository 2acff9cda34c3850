"""Engines: the same results in each of them, whichever processes do the work, and whoever dies meanwhile."""

import logging
import os
import signal

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.errors import DataError, PlanError, PolicyRefused
from quorate.parameters import Layout
from quorate.rounds import Instruction, Update
from quorate.server import checkpoints
from quorate.simulations.engines import choice
from quorate.simulations.engines.processes import deal
from quorate.simulations.source import Simulation, simulation
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, SOFTMAX_DIGITS, digits, plan, wine

CLIENTS = 12
ENGINES = ["sequential", "vectorised", "processes"]
MLP = {"name": "mlp", "inputs": 13, "hidden": [8], "classes": 3}
WIDE = {"name": "mlp", "inputs": 64, "hidden": [64, 16], "classes": 10}


def run(made, engine, data=None, watch=lambda report: None, **options):
    source = Simulation(data or wine(CLIENTS), seed=7, engine=engine, workers=2, **options)
    return assembly.run(made, fleet=source, watch=watch)


class Halves:
    """A model of one's own whose updates are the same bits wherever they are computed."""

    name, settings, metrics = "halves", {}, ("seen",)
    layout = Layout((("w", (5,)),))
    rules = frozenset({"sgd"})

    def __init__(self, data=None):
        self.data = data

    def initial(self, rng):
        return self.layout.zeros()

    def client(self, data):
        return Halves(data)

    def fit(self, parameters, instruction, state):
        seen = state.get("seen", np.zeros((), np.int64))
        rng = np.random.default_rng(instruction.seed)
        delta = (rng.integers(-8, 8, 5) / 16).astype(np.float32)
        delta += np.float32(self.data.x[0].round()[0] / 4)
        return Update({"delta": delta}, len(self.data), {"seen": float(seen)}), {"seen": seen + 1}

    def evaluate(self, parameters, data):
        return {}

    def program_spec(self):
        return ()


class Deadly(Halves):
    """Its client 4 kills the process that it is trained in."""

    def client(self, data):
        return Deadly(data)

    def fit(self, parameters, instruction, state):
        if np.array_equal(self.data.x, wine(CLIENTS).clients[4].x):
            os.kill(os.getpid(), signal.SIGKILL)
        update, kept = super().fit(parameters, instruction, state)
        return Update({"delta": np.ones(5, np.float32)}, update.examples, update.metrics), kept


def own(model, **sections):
    rounds = {"count": 3, "cohort": 12, "sampling": "fixed"}
    return q.Plan(task=q.Task(model), rounds=q.Rounds(**rounds), **sections)


EVALUATION = {
    "every": 2,
    "metrics": {"accuracy": [0, 1], "loss": [0, 4]},
    "quantiles": [0.5],
    "slices": {"label": [0, 2]},
}


# --- The same results


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"rounds": {"count": 3, "cohort": 8, "weighting": "examples"}},
        {"privacy": GAUSSIAN, "secure_aggregation": IDEAL},
        {"privacy": CLIPPED, "secure_aggregation": SECAGG},
        {"strategy": {"name": "scaffold"}},
        {"strategy": {"name": "median"}},
        {"task": MLP},
        {"evaluation": EVALUATION},
        {"strategy": {"name": "median"}, "evaluation": EVALUATION},
        {"privacy": CLIPPED, "secure_aggregation": SECAGG, "evaluation": EVALUATION},
        {
            "privacy": GAUSSIAN,
            "secure_aggregation": IDEAL,
            "evaluation": {**EVALUATION, "noise_multiplier": 1.0},
        },
    ],
)
def test_every_engine_learns_the_same_model(sections):
    made = plan(**sections)
    runs = [run(made, engine, drop_before_masking=0.1) for engine in ENGINES]
    for other in runs[1:]:
        np.testing.assert_allclose(other.state.parameters.vector, runs[0].state.parameters.vector, atol=2e-6)
        assert [(r.survivors, r.lost) for r in other.history] == [
            (r.survivors, r.lost) for r in runs[0].history
        ]
        assert [r.metrics for r in other.evaluations] == [
            pytest.approx(r.metrics, abs=2e-5) for r in runs[0].evaluations
        ]


@pytest.mark.parametrize("privacy", [{"mechanism": "none"}, {"mechanism": "none", "clip_norm": 0.5}])
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_a_sum_without_its_vectors_is_the_same(privacy, weighting):
    """Of clients whose updates are products, which the engines that train blocks never make one by one."""
    rounds = {"count": 3, "cohort": 20, "sampling": "fixed", "weighting": weighting}
    made, data = plan(task=WIDE, rounds=rounds, privacy=privacy), digits(60)
    model = made.resolved(60).task.resolve().model
    told = Instruction("sgd", {"learning_rate": 0.1, "epochs": 1, "batch_size": 10}, seed=0)
    start = model.initial(np.random.default_rng(0))
    assert model.fit_many(start, [data.clients[0]], [told], [{}])[0].rows
    runs = [run(made, engine, data) for engine in ENGINES]
    for other in runs[1:]:
        np.testing.assert_allclose(other.state.parameters.vector, runs[0].state.parameters.vector, atol=2e-6)
        for theirs, ours in zip(other.history, runs[0].history, strict=True):
            assert theirs.metrics == pytest.approx(ours.metrics, abs=2e-5)


def test_threads_learn_what_one_does_and_the_same_bits_every_time(monkeypatch):
    made = plan(task={"name": "softmax", "inputs": 64, "classes": 10})
    alone = run(made, "vectorised", data=digits())
    monkeypatch.setattr(choice, "_WORTH_THREADS", 0)
    monkeypatch.setattr(choice, "cores", lambda: 3)
    first, second = (run(made, "vectorised", data=digits()) for _ in range(2))
    np.testing.assert_allclose(first.state.parameters.vector, alone.state.parameters.vector, atol=2e-6)
    assert checkpoints.encode(first.state) == checkpoints.encode(second.state)
    assert [r.survivors for r in first.history] == [r.survivors for r in alone.history]


def test_a_thread_s_refusal_is_the_run_s(monkeypatch):
    monkeypatch.setattr(choice, "_WORTH_THREADS", 0)
    monkeypatch.setattr(choice, "cores", lambda: 2)
    with pytest.raises(DataError, match="takes 64 features, got 13"):
        run(plan(task=SOFTMAX_DIGITS), "vectorised")


@pytest.mark.parametrize("summing", [q.PlainSum(), q.IdealSum(), q.SecAggPlus()])
def test_equal_updates_give_the_same_sum_to_the_bit_in_this_process_and_in_others(summing):
    privacy = q.privacy.NoPrivacy(clip_norm=2.0)
    made = own(Halves(), privacy=privacy, secure_aggregation=summing)
    here, there = run(made, "sequential"), run(made, "processes")
    assert checkpoints.encode(here.state) == checkpoints.encode(there.state)
    assert [r.metrics for r in here.history] == [r.metrics for r in there.history]
    assert here.committed[-1].metrics["seen"] == pytest.approx(2)


def test_a_seeded_run_over_processes_gives_the_same_bits_twice():
    made = plan(task=SOFTMAX_DIGITS, rounds={"count": 3, "cohort": 15})
    first, second = (run(made, "processes", data=digits()) for _ in range(2))
    assert checkpoints.encode(first.state) == checkpoints.encode(second.state)


def test_unseeded_workers_draw_noise_of_their_own():
    made = plan(privacy=GAUSSIAN, secure_aggregation=IDEAL)
    source = Simulation(wine(CLIENTS), engine="processes", workers=2)
    first, second = (assembly.run(made, fleet=source, watch=lambda report: None) for _ in range(2))
    assert checkpoints.encode(first.state) != checkpoints.encode(second.state)


# --- Workers that die


@pytest.mark.parametrize(
    "summing", [q.PlainSum(), q.IdealSum(min_survivors=8), q.SecAggPlus(min_survivors=8)]
)
def test_a_client_that_kills_its_worker_is_lost_and_the_others_of_its_share_are_not(summing):
    clipped = q.privacy.NoPrivacy(clip_norm=8.0)
    finished = run(own(Deadly(), secure_aggregation=summing, privacy=clipped), "processes")
    assert [(r.status, r.survivors) for r in finished.history] == [("committed", CLIENTS - 1)] * 3
    assert [sum(r.lost.values()) for r in finished.history] == [1, 1, 1]
    np.testing.assert_allclose(finished.model["w"], 3, atol=1e-4)


def test_workers_killed_between_rounds_lose_no_client():
    pids = []

    class Watched(Simulation):
        def open(self, plan, directory):
            self.__dict__["live"] = super().open(plan, directory)
            return self.live

    source = Watched(wine(CLIENTS), seed=7, engine="processes", workers=2)

    def kill(report):
        pids.extend(source.live.engine.pids)
        for pid in source.live.engine.pids:
            os.kill(pid, signal.SIGKILL)

    killed = assembly.run(plan(), fleet=source, watch=kill)
    assert len(set(pids)) == 6
    assert checkpoints.encode(killed.state) == checkpoints.encode(run(plan(), "processes").state)


def test_no_worker_outlives_its_fleet():
    source = Simulation(wine(CLIENTS), seed=7, engine="processes", workers=3)
    fleet = source.open(plan().model_copy(update={"fleet": source.section()}).resolved(CLIENTS), None)
    pids = fleet.engine.pids
    assert len(pids) == 3
    fleet.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_a_worker_refuses_is_refused_here():
    with pytest.raises(DataError, match="takes 64 features, got 13"):
        run(plan(task=SOFTMAX_DIGITS), "processes")


def test_a_rule_that_the_client_does_not_have_is_refused_by_a_worker():
    with pytest.raises(PolicyRefused, match="needs the local rule 'proximal'"):
        run(own(Halves(), strategy=q.strategies.fedprox(mu=0.1)), "processes")


# --- Who gets what


def test_members_are_dealt_longest_first():
    assert deal([3, 9, 4, 4, 2], 2) == [[1, 4], [2, 3, 0]]
    assert deal([], 2) == [[], []]
    assert deal([5], 3) == [[0], [], []]


# --- Which engine


@pytest.mark.parametrize(
    ("task", "workers", "picked"),
    [
        (SOFTMAX_DIGITS, 2, "vectorised"),
        ({"name": "mlp", "inputs": 64, "hidden": [2000, 2000], "classes": 10}, 2, "processes"),
        ({"name": "mlp", "inputs": 64, "hidden": [2000, 2000], "classes": 10}, 1, "vectorised"),
    ],
)
def test_auto_picks_an_engine_and_says_why(caplog, task, workers, picked):
    source = Simulation(digits(), seed=1, workers=workers)
    made = plan(task=task).model_copy(update={"fleet": source.section()}).resolved(source.size)
    with caplog.at_level(logging.INFO):
        source.open(made, None).close()
    (said,) = [r.getMessage() for r in caplog.records if "auto picks" in r.getMessage()]
    assert f"auto picks '{picked}': about" in said


def test_auto_trains_a_model_of_one_s_own_in_this_process(caplog):
    with caplog.at_level(logging.INFO):
        run(own(Halves()), "auto")
    assert "auto picks 'sequential': 'halves' trains one client at a time" in caplog.text


def test_a_model_that_can_not_be_vectorised_is_refused_with_what_can():
    with pytest.raises(PlanError, match=r"fleet.engine: .* 'halves' does not; accepted: 'sequential'"):
        run(own(Halves()), "vectorised")


@pytest.mark.parametrize(
    ("settings", "said"), [({"engine": "fast"}, "engine: found 'fast'"), ({"workers": 0}, "workers: found 0")]
)
def test_an_engine_that_there_is_not_is_refused(settings, said):
    with pytest.raises(PlanError, match=said):
        simulation("wine", 12, "iid", **settings)
