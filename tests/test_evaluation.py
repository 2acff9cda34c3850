"""Federated evaluation: what members measure on their own data, asked, summed, protected, charged and told."""

import contextlib
import dataclasses
import itertools
import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quorate as q
from quorate import assembly, pipeline, resolution
from quorate.callbacks import CsvLog, EarlyStopping, KeepBest
from quorate.cells import Bins
from quorate.errors import BudgetExhausted, DataError, PlanError, QuorumNotReached
from quorate.evaluation import Evaluation
from quorate.plan import Terms
from quorate.planfile import format_plan, make_plan
from quorate.privacy import Ledger, forecast
from quorate.randomness import Randomness
from quorate.rounds import Kind, Outcome, PublicValues, Update
from quorate.server import records
from quorate.server.registry import Registry
from quorate.server.store import Store
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, SOFTMAX_DIGITS, content, plan, wine

CLIENTS = 12
EVERYBODY = {"count": 4, "cohort": CLIENTS, "sampling": "fixed"}
ASKED = {
    "every": 2,
    "metrics": {"accuracy": [0, 1], "loss": [0, 4], "examples": [0, 40]},
    "quantiles": [0.1, 0.5],
    "slices": {"label": [0, 1, 2]},
}
NOISY = {**ASKED, "noise_multiplier": 1.0}
ONE = {"metrics": {"accuracy": [0, 1]}, "noise_multiplier": 2.0}


def fleet(**settings):
    return q.Simulation(wine(CLIENTS), seed=3, **settings)


def run(made, source=None, **more):
    return assembly.run(made, source or fleet(), watch=lambda report: None, **more)


def problems(**sections):
    with pytest.raises(PlanError) as refused:
        make_plan(content(**sections))
    return "\n".join(refused.value.problems)


# --- What is asked


def test_evaluations_come_after_every_so_many_rounds_and_after_the_last():
    asked = Evaluation(every=3, metrics={"loss": [0, 1]})
    assert [version for version in range(9) if asked.due(version, 8)] == [3, 6, 8]
    assert (asked.times(8), asked.times(6)) == (3, 2)


measured = st.dictionaries(
    st.sampled_from(
        ["accuracy", "loss", "accuracy/label=0", "examples/label=0", "examples/label=1", "loss/label=1"]
    ),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
)


@given(measured, st.integers(0, 10**6), st.sampled_from(["uniform", "examples"]))
def test_whatever_a_member_measured_it_adds_at_most_one_to_each_question(metrics, examples, weighting):
    cap = 50 if weighting == "examples" else None
    asked = Evaluation(**{**ASKED, "weighting": weighting, "example_cap": cap}).questions
    shares = {name: value for name, value in metrics.items() if not name.startswith("examples")}
    shares |= {  # as a client counts them, though not more than it has
        name: abs(float(np.nan_to_num(value, posinf=1, neginf=1)))
        for name, value in metrics.items()
        if name.startswith("examples")
    }
    update = Update({}, examples, {"accuracy": 0.5, "loss": math.inf, **shares})
    cells = asked.contribution(update)
    assert cells.shape == (asked.vectors.vectors[0].length,)
    assert np.isfinite(cells).all()
    assert (cells >= 0).all()
    for question in asked.asked:
        assert cells[question.start : question.stop].sum() <= 1 + 1e-6
    assert np.abs(cells).sum() <= len(asked) + 1e-5
    assert np.linalg.norm(cells) <= math.sqrt(len(asked)) + 1e-5


def test_a_member_that_did_not_measure_what_is_asked_is_refused():
    with pytest.raises(DataError, match="needs the metric 'accuracy'; this client measured loss"):
        Evaluation(metrics={"accuracy": [0, 1]}).questions.contribution(Update({}, 3, {"loss": 1.0}))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_without_noise_a_quantile_is_right_to_the_width_of_a_bin(values, probability):
    bins = Bins(tuple(np.linspace(0, 1, 21)))
    found = bins.quantile(bins.tally(np.array(values)), probability)
    exact = np.quantile(values, probability, method="inverted_cdf")
    assert abs(found - exact) <= 1 / 20 + 1e-9


def test_noise_leaves_quantiles_in_order_and_near_where_they_were():
    rng = np.random.default_rng(0)
    bins = Bins(tuple(np.linspace(0, 1, 21)))
    exact = bins.tally(rng.beta(8, 2, 1000))
    noisy = [exact + rng.normal(0, 5, 20) for _ in range(200)]
    low, middle, high = (np.array([bins.quantile(cells, p) for cells in noisy]) for p in (0.1, 0.5, 0.9))
    assert (low <= middle).all()
    assert (middle <= high).all()
    for found, p in ((low, 0.1), (middle, 0.5), (high, 0.9)):
        assert abs(np.median(found) - bins.quantile(exact, p)) < 0.05


def test_cells_that_noise_left_nothing_of_have_no_answer():
    asked = Evaluation(**ASKED).questions
    assert asked.answers(-np.ones(asked.vectors.vectors[0].length)) == {}


# --- What can't be asked


def test_what_can_not_be_measured_is_refused_with_what_can():
    assert "evaluation.metrics: missing" in problems(evaluation={})
    assert "unknown metric; the task 'softmax' measures loss, accuracy, examples" in problems(
        evaluation={"metrics": {"acuracy": [0, 1]}}
    )
    assert "accepted: a low and a high end, low < high" in problems(evaluation={"metrics": {"loss": [1, 1]}})
    assert "the task 'softmax' declares label" in problems(
        evaluation={"metrics": {"loss": [0, 1]}, "slices": {"country": ["at"]}}
    )
    assert "at least one value, none twice" in problems(
        evaluation={"metrics": {"loss": [0, 1]}, "slices": {"label": [1, 1]}}
    )
    assert "evaluation.quantiles.0" in problems(evaluation={"metrics": {"loss": [0, 1]}, "quantiles": [1.0]})
    statistic = q.Task(q.statistics.histogram([0, 1, 2]))
    with pytest.raises(PlanError, match="measures nothing"):
        q.Plan(
            task=statistic,
            rounds=q.Rounds(count=1, cohort=8),
            evaluation=q.Evaluation(metrics={"loss": [0, 1]}),
        )


def test_noise_is_asked_for_where_something_is_claimed_and_only_there():
    private = {"privacy": GAUSSIAN, "secure_aggregation": IDEAL}
    assert "found neither of noise_multiplier and epsilon" in problems(evaluation=ASKED, **private)
    assert "found both" in problems(evaluation={**NOISY, "epsilon": 1.0}, **private)
    assert "nothing is claimed" in problems(evaluation=NOISY)
    target = {**GAUSSIAN, "noise_multiplier": None, "epsilon": 2.0}
    assert "below that of the whole run (2)" in problems(
        evaluation={**ASKED, "epsilon": 2.0}, privacy=target, secure_aggregation=IDEAL
    )
    local = {**GAUSSIAN, "mechanism": "local-discrete-gaussian"}
    assert problems(evaluation={**ASKED, "epsilon": 1.0}, privacy=local).startswith("evaluation: ")


def test_what_an_evaluation_would_break_is_refused():
    asked = {"metrics": {"loss": [0, 1]}}
    examples = {"dp_sgd": {"clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.1, "delta": 1e-5}}
    assert "evaluation: found beside [training.dp_sgd]" in problems(evaluation=asked, training=examples)
    query = {"mechanism": "dp-query", "query": "module:query"}
    with pytest.raises(PlanError, match="dp-query"):
        plan(evaluation={**asked, "noise_multiplier": 1.0}, privacy=query)


def test_an_evaluation_s_own_cohort_is_refused_in_its_own_words():
    small = {**ASKED, "cohort": 2}
    assert "evaluation.cohort: found 2" in problems(
        evaluation=small, privacy=CLIPPED, secure_aggregation=SECAGG
    )
    few = {**ASKED, "cohort": 6, "min_survivors": 7}
    assert "evaluation.min_survivors: found 7" in problems(evaluation=few)
    with pytest.raises(PlanError, match=r"evaluation\.cohort: found 20, but the population has 12"):
        plan(evaluation={**ASKED, "cohort": 20}).resolved(CLIENTS)


def test_weights_need_a_bound_where_noise_or_a_ring_does():
    by_examples = {**ASKED, "weighting": "examples"}
    assert "evaluation.example_cap: missing" in problems(
        evaluation=by_examples, privacy=CLIPPED, secure_aggregation=IDEAL
    )
    assert "evaluation.example_cap: found 5" in problems(evaluation={**ASKED, "example_cap": 5})
    assert plan(evaluation=by_examples).evaluation.weighting == "examples"


# --- The terms


def test_a_plan_without_evaluation_has_the_terms_that_it_had():
    assert b"evaluation" not in plan().resolved(CLIENTS).terms().encoded()
    with pytest.raises(PlanError, match="these terms have none"):
        plan().at(Kind.EVALUATE)


def test_a_resolved_plan_says_everything_and_is_read_again():
    made = plan(evaluation={**NOISY, "cohort": 9}, privacy=GAUSSIAN, secure_aggregation=IDEAL).resolved(
        CLIENTS
    )
    asked = made.evaluation
    assert (asked.cohort, asked.largest_cohort, asked.min_survivors) == (9, 12, 7)
    text = format_plan(made)
    assert "metrics = { accuracy = [0.0, 1.0], loss = [0.0, 4.0], examples = [0.0, 40.0] }" in text
    terms = made.terms()
    read = Terms.parse(terms.encoded())
    assert read.encoded() == terms.encoded()
    theirs, ours = read.at(Kind.EVALUATE), terms.at(Kind.EVALUATE)
    assert theirs.bounds(CLIENTS) == ours.bounds(CLIENTS)
    assert theirs.event(theirs.bounds(CLIENTS), CLIENTS) == ours.event(ours.bounds(CLIENTS), CLIENTS)


@pytest.mark.parametrize(
    "privacy",
    [
        GAUSSIAN,
        {**GAUSSIAN, "mechanism": "distributed-skellam"},
        {**GAUSSIAN, "mechanism": "central-gaussian"},
        {"mechanism": "central-laplace", "clip_norm": 1.0, "noise_multiplier": 4.0},
    ],
)
def test_an_epsilon_of_its_own_is_kept_and_the_run_s_covers_both(privacy):
    target = {name: value for name, value in privacy.items() if name != "noise_multiplier"} | {"epsilon": 6.0}
    made = plan(
        rounds={"count": 10, "cohort": 100, "sampling": "fixed"},
        privacy=target,
        secure_aggregation=IDEAL,
        evaluation={"metrics": {"loss": [0, 4]}, "every": 5, "epsilon": 1.0},
    ).resolved(1000)
    delta = made.privacy.delta
    ((event, count),) = made.beside(1000).items()
    assert count == 2
    assert 0.9 < forecast(event, count, delta) <= 1.0
    training = made.terms().event(made.bounds(1000), 1000)
    assert 5.9 < forecast(training, 10, delta, {event: count}) <= 6.0
    assert forecast(training, 10, delta) < 6.0


def test_what_can_not_be_kept_is_refused_by_the_section_that_asks_for_it():
    privacy = {**GAUSSIAN, "delta": 1e-6}
    asked = {**ASKED, "epsilon": 0.01}
    with pytest.raises(PlanError, match=r"evaluation\.epsilon: found 0\.01, which 2 rounds can't keep"):
        plan(rounds=EVERYBODY, privacy=privacy, secure_aggregation=IDEAL, evaluation=asked).resolved(CLIENTS)


# --- Rounds


def exact(finished, metric):
    """Of all members, on the model that the run ended with."""
    model = finished.task.model
    return np.array(
        [model.evaluate(finished.model, wine(CLIENTS).clients[i])[metric] for i in range(CLIENTS)]
    )


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"privacy": CLIPPED, "secure_aggregation": IDEAL},
        {"privacy": CLIPPED, "secure_aggregation": SECAGG},
        {"privacy": CLIPPED, "secure_aggregation": {**IDEAL, "buckets": 3}},
        {"strategy": {"name": "median"}},
        {"strategy": {"name": "scaffold"}},
    ],
)
def test_the_metrics_are_those_of_the_members_whose_sum_it_is(sections):
    found = run(plan(rounds=EVERYBODY, evaluation=ASKED, **sections))
    assert [(past.kind, past.base_version) for past in found.history] == [
        (Kind.FIT, 0),
        (Kind.FIT, 1),
        (Kind.EVALUATE, 2),
        (Kind.FIT, 2),
        (Kind.FIT, 3),
        (Kind.EVALUATE, 4),
    ]
    said = found.metrics
    assert said["federated/accuracy"] == pytest.approx(exact(found, "accuracy").mean(), abs=1e-3)
    assert said["federated/loss"] == pytest.approx(exact(found, "loss").mean(), abs=1e-3)
    assert said["federated/examples"] == pytest.approx(wine(CLIENTS).mean_examples, abs=1e-2)
    medians = np.quantile(exact(found, "loss"), 0.5, method="inverted_cdf")
    assert said["federated/loss/p50"] == pytest.approx(medians, abs=0.2)
    assert set(found.evaluations[-1].metrics) < set(said)


def test_members_may_count_by_their_examples():
    sections = {"privacy": CLIPPED, "secure_aggregation": IDEAL}
    asked = {
        "metrics": {"accuracy": [0, 1]},
        "weighting": "examples",
        "example_cap": 100,
        "slices": {"label": [0, 2]},
    }
    found = run(plan(rounds=EVERYBODY, evaluation=asked, **sections))
    x = np.concatenate([wine(CLIENTS).clients[i].x for i in range(CLIENTS)])
    y = np.concatenate([wine(CLIENTS).clients[i].y for i in range(CLIENTS)])
    right = found.task.model.predict(found.model, x).argmax(axis=1) == y
    assert found.metrics["federated/accuracy"] == pytest.approx(right.mean(), abs=1e-3)
    for label in (0, 2):
        said = found.metrics[f"federated/accuracy/label={label}"]
        assert said == pytest.approx(right[y == label].mean(), abs=1e-3)
    assert "federated/accuracy/label=1" not in found.metrics


def test_an_evaluation_leaves_the_model_and_what_follows_as_it_was():
    with_, without = (
        run(plan(rounds=EVERYBODY, evaluation={**ASKED, "every": 9})),
        run(plan(rounds=EVERYBODY)),
    )
    np.testing.assert_array_equal(with_.model.vector, without.model.vector)
    assert with_.metrics["accuracy"] == without.metrics["accuracy"]


def test_what_clients_keep_survives_an_evaluation():
    """Control variates: after an evaluation the next round goes on from them."""

    class Watched(q.Simulation):
        def open(self, plan, directory):
            self.__dict__["live"] = super().open(plan, directory)
            return self.live

    made = plan(rounds=EVERYBODY, strategy={"name": "scaffold"}, evaluation=ASKED)
    source = Watched(wine(CLIENTS), seed=3)
    kept = []

    def watch(report):
        rows = source.live._states._connection.execute(
            "SELECT member, state FROM states WHERE kept = 1"
        ).fetchall()
        kept.append((report.kind, dict(rows)))

    assembly.run(made, source, watch=watch)
    for (_, before), (kind, after) in itertools.pairwise(kept):
        if kind is Kind.EVALUATE:
            assert len(before) == CLIENTS
            assert before == after


def test_slices_are_what_the_task_declares():
    sizes = {"small": 1, "large": 2}
    task = q.Task(
        q.models.softmax(13, 3),
        slices={
            "alcohol": lambda examples: (examples.x[:, 0] > 0).astype(int),
            "size": lambda examples: "small" if len(examples) < 12 else "large",
        },
    )
    asked = q.Evaluation(
        metrics={"accuracy": [0, 1]}, slices={"alcohol": [0, 1], "size": list(sizes), "label": [1]}
    )
    made = q.Plan(task=task, rounds=q.Rounds(**{**EVERYBODY, "count": 1}), evaluation=asked)
    found = run(made)
    by_size = {"small": [], "large": []}
    for value, i in zip(exact(found, "accuracy"), range(CLIENTS), strict=True):
        by_size["small" if len(wine(CLIENTS).clients[i]) < 12 else "large"].append(value)
    for size, values in by_size.items():
        assert found.metrics[f"federated/accuracy/size={size}"] == pytest.approx(np.mean(values), abs=1e-3)
    assert {"federated/accuracy/alcohol=0", "federated/accuracy/label=1"} <= set(found.metrics)


def test_a_slice_of_another_shape_than_the_data_is_refused():
    task = q.Task(q.models.softmax(13, 3), slices={"odd": lambda examples: np.zeros(3)})
    asked = q.Evaluation(metrics={"accuracy": [0, 1]}, slices={"odd": [0]})
    with pytest.raises(DataError, match="one for each example, or one for all"):
        run(q.Plan(task=task, rounds=q.Rounds(**EVERYBODY), evaluation=asked))


# --- The charge


def test_every_evaluation_is_charged_with_its_own_event_before_it_begins():
    made = plan(
        rounds={"count": 4, "cohort": 8}, privacy=GAUSSIAN, secure_aggregation=IDEAL, evaluation=NOISY
    )
    with contextlib.closing(Store(None)) as store:
        source, resolved = resolution.bound(made, fleet())
        found = assembly.run_in(store, source, resolved, lambda report: None)
        ledger = Ledger(store.ledger(found.record.id), delta=resolved.privacy.delta)
        assert list(ledger.charged_rounds) == [past.number for past in found.history]
        events = {number: event for number, (event, _) in ledger._reserved.items()}
    evaluations = {past.number for past in found.evaluations}
    ((event, count),) = resolved.beside(CLIENTS).items()
    training = resolved.terms().event(resolved.bounds(CLIENTS), CLIENTS)
    assert count == len(evaluations) == 2
    assert {number for number, charged in events.items() if charged == event} == evaluations
    assert event.probability == 8 / CLIENTS
    assert event.event.vectors[0].name == "cells"
    expected = forecast(training, len(found.committed), resolved.privacy.delta, {event: 2})
    assert found.epsilon.released == pytest.approx(expected)
    assert found.epsilon.released > forecast(training, len(found.committed), resolved.privacy.delta)


def test_an_evaluation_that_would_pass_the_budget_does_not_begin():
    free = plan(rounds=EVERYBODY, privacy=GAUSSIAN, secure_aggregation=IDEAL).resolved(CLIENTS)
    training = free.terms().event(free.bounds(CLIENTS), CLIENTS)
    budget = forecast(training, 2, free.privacy.delta) * 1.001
    made = plan(
        rounds=EVERYBODY, privacy={**GAUSSIAN, "budget": budget}, secure_aggregation=IDEAL, evaluation=NOISY
    )
    reports = []
    with pytest.raises(BudgetExhausted, match="round 3"):
        assembly.run(made, fleet(), watch=reports.append)
    assert [report.kind for report in reports] == [Kind.FIT, Kind.FIT]


def test_separation_is_counted_in_rounds_of_training():
    """DP-FTRL: members drawn for an evaluation are not kept from training, and evaluations are no rounds between."""
    ftrl = {"mechanism": "dp-ftrl", "clip_norm": 1.0, "noise_multiplier": 1.0, "span": 3}
    rounds = {"count": 6, "cohort": 4, "sampling": "separated", "separation": 3}
    made = plan(rounds=rounds, privacy=ftrl, evaluation={**ONE, "every": 1})
    with contextlib.closing(Store(None)) as store:
        source, resolved = resolution.bound(made, fleet())
        found = assembly.run_in(store, source, resolved, lambda report: None)
        cohorts = [set(store.outcomes(found.record.id, past.number)) for past in found.committed]
    assert len(found.evaluations) == 6
    for first, second, third in zip(cohorts, cohorts[1:], cohorts[2:], strict=False):
        assert not first & second
        assert not (first | second) & third
    assert type(resolved.at(Kind.EVALUATE).privacy).__name__ == "CentralGaussian"


@pytest.mark.parametrize("mechanism", ["central-gaussian", "distributed-discrete-gaussian"])
def test_what_is_released_has_the_noise_that_is_charged(mechanism):
    """Members that all say the same, again and again: the sums have the spread of the event's noise at least."""
    made = plan(
        rounds={"count": 1, "cohort": 100, "sampling": "fixed"},
        privacy={**GAUSSIAN, "mechanism": mechanism},
        secure_aggregation=IDEAL,
        evaluation={"metrics": {"accuracy": [0, 1], "loss": [0, 4]}, "noise_multiplier": 2.0},
    ).resolved(100)
    terms = made.at(Kind.EVALUATE)
    bounds = terms.bounds(100)
    encoding = pipeline.build(terms, bounds, PublicValues(terms.privacy.clip_norm, bytes(range(32))))
    update = Update({}, 10, {"accuracy": 1.0, "loss": 0.0})
    found = []
    for number in range(30):
        sink = encoding.sink()
        for member in range(bounds.min_survivors):
            stream = Randomness.from_seed(1000 * number + member)
            sink.add(encoding.encode(update, stream)[None], [str(member)])
        decoded = encoding._sums(
            encoding.segments[0], sink.result(), Randomness.from_seed(number + 10**6), {}
        )[0][0]
        found.append(decoded - bounds.min_survivors * np.array([0.0, 1.0, 1.0, 0.0]))
    deviation = 2.0 * math.sqrt(2)  # z times the norm of two questions
    assert np.std(found) > 0.8 * deviation
    assert abs(np.mean(found)) < 4 * deviation / math.sqrt(120)


# --- Durable


class Killed(BaseException):
    """Nothing catches it."""


def test_a_run_that_was_killed_in_an_evaluation_goes_on_with_a_new_one(tmp_path):
    made = plan(
        rounds={"count": 2, "cohort": 8}, privacy=GAUSSIAN, secure_aggregation=IDEAL, evaluation=NOISY
    )

    class Dies(q.Simulation):
        def open(self, plan, directory):
            live = super().open(plan, directory)
            collect = live.collect

            def dies(assignment, *arguments):
                closed = collect(assignment, *arguments)
                if assignment.kind is Kind.EVALUATE:
                    raise Killed
                return closed

            live.collect = dies
            return live

    with pytest.raises(Killed):
        run(made, Dies(wine(CLIENTS), seed=3), state=tmp_path)
    found = run(made, state=tmp_path)
    assert [(past.kind, past.status) for past in found.history] == [
        (Kind.FIT, "committed"),
        (Kind.FIT, "committed"),
        (Kind.EVALUATE, "aborted"),
        (Kind.EVALUATE, "committed"),
    ]
    undisturbed = run(made)
    np.testing.assert_array_equal(found.model.vector, undisturbed.model.vector)
    assert found.epsilon.released > undisturbed.epsilon.released  # what may have been released stays charged
    assert run(made, state=tmp_path).history == found.history


def test_an_evaluation_that_is_not_quorate_is_aborted_refunded_and_tried_again():
    made = plan(
        rounds={"count": 1, "cohort": 8}, privacy=GAUSSIAN, secure_aggregation=IDEAL, evaluation=NOISY
    )

    class Short(q.Simulation):
        def open(self, plan, directory):
            live = super().open(plan, directory)
            collect, tries = live.collect, []

            def short(assignment, *arguments):
                if assignment.kind is Kind.EVALUATE and not tries:
                    tries.append(1)
                    raise QuorumNotReached("update", 1, 7)
                return collect(assignment, *arguments)

            live.collect = short
            return live

    found = run(made, Short(wine(CLIENTS), seed=3))
    assert [(past.kind, past.status) for past in found.history][1:] == [
        (Kind.EVALUATE, "aborted"),
        (Kind.EVALUATE, "committed"),
    ]
    assert found.epsilon.released == pytest.approx(run(made).epsilon.released)


# --- Who is told


def test_callbacks_stop_and_keep_the_best_by_a_federated_metric(tmp_path):
    made = plan(rounds={**EVERYBODY, "count": 9}, evaluation={"metrics": {"accuracy": [0, 1]}, "every": 2})
    best = KeepBest(tmp_path / "best.safetensors", "federated/accuracy")
    stopping = EarlyStopping("federated/accuracy", patience=1)
    log = CsvLog(tmp_path / "log.csv")
    found = run(made, callbacks=[best, log, stopping])
    assert len(found.committed) < 9
    assert best.path.exists()
    lines = (tmp_path / "log.csv").read_text().splitlines()
    header = lines[0].split(",")
    assert header[:2] == ["round", "kind"]
    assert header[-1] == "federated/accuracy"
    assert len(lines) == 1 + len(found.history)
    kinds = [line.split(",")[1] for line in lines[1:]]
    assert kinds == [past.kind.value for past in found.history]


def test_an_early_stop_counts_the_evaluations_of_earlier_processes():
    past = [
        dataclasses.replace(ROW, number=i, kind=Kind.EVALUATE, metrics={"federated/loss": loss})
        for i, loss in enumerate([1.0, 1.5])
    ]
    stopping = EarlyStopping("federated/loss", patience=2)
    stopping.begin([*past, dataclasses.replace(ROW, metrics={"loss": 9.0})])
    assert (stopping._since, -stopping._best) == (1, 1.0)


ROW = records.Round(1, Kind.FIT, 1, Outcome.COMMITTED.value, True, "", None, 8, 8, {}, {}, {}, None)


def test_a_published_version_says_what_its_evaluation_came_to(tmp_path):
    made = plan(
        rounds=EVERYBODY,
        evaluation=ASKED,
        publish={"registry": str(tmp_path / "registry"), "model": "wine", "every": 2},
    )
    found = run(made)
    registry = Registry(tmp_path / "registry")
    assert [version["round"] for version in found.versions] == [2, 5]
    for version, evaluation in zip(registry.versions("wine"), found.evaluations, strict=True):
        told = registry.manifest("wine", version).evaluation
        assert float(told["federated/accuracy"]) == evaluation.metrics["federated/accuracy"]
        assert "accuracy" in told


@pytest.mark.slow
def test_what_the_documentation_shows_runs():
    shown = (Path(__file__).parents[1] / "docs/evaluation.md").read_text(encoding="utf-8")
    section = re.search(r"^```toml\n(.*?)^```", shown, re.DOTALL | re.MULTILINE)[1]
    read = tomllib.loads(section)["evaluation"]
    made = plan(task=SOFTMAX_DIGITS, privacy=GAUSSIAN, secure_aggregation=IDEAL, evaluation=read)
    assert made.evaluation.quantiles == [0.1, 0.5, 0.9]
    code = re.search(r"^```python\n(.*?)^```", shown, re.DOTALL | re.MULTILINE)[1]
    said = {}
    exec(
        code.replace("epsilon=8.0", "noise_multiplier=1.0").replace("epsilon=2.0", "noise_multiplier=2.0"),
        said,
    )
    assert "federated/accuracy/dark=1" in said["run"].metrics
