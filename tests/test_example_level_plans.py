"""Plans whose clients train by DP-SGD: run, accounted for, published, and refused where they can't be."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.errors import BudgetExhausted, PlanError, PolicyRefused
from quorate.plan import Terms
from quorate.planfile import format_plan, make_plan
from quorate.privacy import example_epsilon
from quorate.server.examples import ExampleBudget, example_spend
from quorate.server.registry import Registry
from quorate.server.store import Store, opened
from quorate.simulations.source import Simulation
from tests.federations import CLIPPED, GAUSSIAN, SECAGG, content, plan, wine

SECTION = {"clip_norm": 1.0, "noise_multiplier": 0.8, "sampling_rate": 0.25}
TRAINING = {"learning_rate": 0.3, "epochs": 2, "dp_sgd": SECTION}


def silent(report):
    pass


def run(made, seed=3, engine="auto", **options):
    return assembly.run(made, fleet=Simulation(wine(), seed=seed, engine=engine), watch=silent, **options)


def test_a_model_is_learned_and_what_an_example_spent_is_that_of_the_most_frequent_client(tmp_path):
    made = plan(training=TRAINING, rounds={"count": 12, "cohort": 8})
    done = run(made, state=tmp_path)
    assert done.metrics["accuracy"] > 0.75
    assert done.epsilon is None
    spent, event = done.example_epsilon, made.training.example_event
    assert event is not None
    assert event.steps == 8
    assert spent is not None
    assert 8 <= spent.participations <= 12
    assert spent.epsilon == example_epsilon(event, spent.participations, 1e-5)
    assert (spent.delta, spent.simulated) == (1e-5, True)
    assert spent.relation == "zero-out of one example of one client"
    with opened(tmp_path) as store:
        assert example_spend(store, done.record, made.training) == spent
        first = example_spend(store, done.record, made.training, until=1)
        assert first is not None
        assert first.participations == 1


def test_both_units_are_accounted_side_by_side_under_secure_aggregation():
    made = plan(training=TRAINING, privacy=GAUSSIAN, secure_aggregation=SECAGG)
    alone, both = run(plan(privacy=GAUSSIAN, secure_aggregation=SECAGG)), run(made)
    assert both.epsilon == alone.epsilon
    assert alone.example_epsilon is None
    assert both.example_epsilon is not None


def test_a_seeded_run_is_the_same_on_every_engine_and_an_unseeded_one_never_twice():
    made = plan(training=TRAINING, rounds={"count": 2, "cohort": 8})
    one, same, forked = (run(made, engine=engine) for engine in ("auto", "sequential", "processes"))
    assert one.model.vector.tobytes() == same.model.vector.tobytes()
    np.testing.assert_allclose(one.model.vector, forked.model.vector, rtol=1e-4, atol=1e-6)
    first, second = (run(made, seed=None) for _ in range(2))
    assert not np.array_equal(first.model.vector, second.model.vector)
    assert first.example_epsilon is not None
    assert not first.example_epsilon.simulated


def test_what_clients_measure_in_training_does_not_leave_them():
    loud = run(plan(rounds={"count": 1, "cohort": 8}))
    quiet = run(plan(training=TRAINING, rounds={"count": 1, "cohort": 8}))
    evaluated = {"loss", "accuracy"}
    assert set(quiet.metrics) <= evaluated
    terms = quiet.plan.terms()
    from quorate import pipeline
    from quorate.rounds import PublicValues

    public = PublicValues(None, bytes(32))
    assert pipeline.build(terms, quiet.plan.bounds(12), public).metrics == ()
    assert pipeline.build(loud.plan.terms(), loud.plan.bounds(12), public).metrics != ()


def test_a_published_version_says_what_an_example_spent(tmp_path):
    made = plan(
        training=TRAINING, privacy=CLIPPED, publish={"registry": str(tmp_path / "r"), "model": "wine"}
    )
    done = run(made)
    manifest = Registry(tmp_path / "r").manifest("wine", 1)
    assert done.example_epsilon is not None
    assert manifest.privacy.examples is not None
    assert float(manifest.privacy.examples.epsilon) == pytest.approx(done.example_epsilon.epsilon, rel=1e-5)
    assert manifest.privacy.examples.neighbours == "zero-out of one example of one client"
    assert manifest.privacy.epsilon_released is None
    assert manifest.privacy.simulated
    again = run(plan(training=TRAINING, privacy=CLIPPED), seed=3)
    number = again.publish(tmp_path / "other", "wine").number
    assert Registry(tmp_path / "other").manifest("wine", number).privacy.examples == manifest.privacy.examples


def test_the_terms_hold_the_section_and_are_read_from_text_and_bytes():
    made = make_plan(content(training=TRAINING)).resolved(12)
    terms = made.terms()
    assert json.loads(terms.encoded())["training"]["dp_sgd"]["noise_multiplier"] == 0.8
    assert Terms.parse(terms.encoded()) == terms
    assert "dp_sgd = {" in format_plan(made)
    weaker = make_plan(
        content(training={**TRAINING, "dp_sgd": {**SECTION, "noise_multiplier": 0.7}})
    ).resolved(12)
    assert weaker.terms().encoded() != terms.encoded()


def test_clients_that_can_not_clip_by_example_end_the_run_with_a_clear_sentence():
    pytest.importorskip("sklearn")
    from sklearn.linear_model import SGDClassifier

    made = q.Plan(
        task=q.Task(q.clients.sklearn(SGDClassifier(loss="log_loss"), features=13, classes=3)),
        rounds=q.Rounds(count=1, cohort=8),
        training=q.Training(dp_sgd=q.privacy.DpSgd(**SECTION)),
    )
    with pytest.raises(PolicyRefused, match=r"training\.dp_sgd.*can't clip and noise"):
        run(made)


def test_clients_trained_together_are_refused():
    with pytest.raises(PlanError, match=r"'vectorised'.*accepted: 'sequential'"):
        run(plan(training=TRAINING), engine="vectorised")


def test_a_wrong_section_says_what_is_accepted():
    with pytest.raises(PlanError) as refused:
        plan(training={"dp_sgd": {"clip_norm": 1.0, "noise_multiplier": 0.0, "batch": 3}})
    words = str(refused.value)
    assert "training.dp_sgd.noise_multiplier" in words
    assert "training.dp_sgd.sampling_rate: missing" in words
    assert "training.dp_sgd.batch" in words


def test_an_engine_of_another_framework_does_its_own_training():
    with pytest.raises(PlanError, match=r"training\.dp_sgd: found beside \[engine\]"):
        plan(training=TRAINING, engine={"name": "tff", "process": "a:b"})


# --- A target and a budget

TARGET = {"clip_norm": 1.0, "epsilon": 4.0, "sampling_rate": 0.25}
FIXED = {"count": 3, "cohort": 4, "sampling": "fixed"}


def dp_sgd_of(rounds, **section):
    return plan(training={"epochs": 2, "dp_sgd": section}, rounds=rounds).resolved(12).training.dp_sgd


def test_a_target_is_resolved_to_the_noise_that_keeps_it_for_a_client_in_every_round():
    made = plan(training={"epochs": 2, "dp_sgd": TARGET}).resolved(12)
    found, event = made.training.dp_sgd, made.training.example_event
    assert (found.epsilon, found.budget, event.steps) == (None, 4.0, 8)
    assert example_epsilon(event, 3, 1e-5) <= 4.0
    weaker = dataclasses.replace(event, noise_multiplier=event.noise_multiplier - 2e-4)
    assert example_epsilon(weaker, 3, 1e-5) > 4.0
    assert made.resolved(12) == made
    apart = dp_sgd_of({"count": 3, "cohort": 4, "sampling": "separated", "separation": 3}, **TARGET)
    assert apart.noise_multiplier < found.noise_multiplier
    assert dp_sgd_of(FIXED, **TARGET, budget=5.0).budget == 5.0


def test_a_target_that_no_noise_keeps_says_what_can_be_had():
    with pytest.raises(PlanError, match=r"found 1e-05, which a client in 3 rounds can't keep.*gives 0\.0"):
        dp_sgd_of(FIXED, **{**TARGET, "epsilon": 1e-5, "delta": 1e-9})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"noise_multiplier": 1.0}, "exactly one of noise_multiplier and epsilon is needed, found both"),
        ({"epsilon": None}, "exactly one of noise_multiplier and epsilon is needed, found neither"),
        ({"budget": 3.0}, r"budget \(3.0\) is below the target epsilon \(4.0\)"),
    ],
)
def test_noise_is_said_by_a_multiplier_or_a_target(change, said):
    with pytest.raises(PlanError, match=said):
        plan(training={"dp_sgd": {**TARGET, **change}})


def test_noise_that_is_not_calibrated_yet_is_asked_of_nobody():
    with pytest.raises(PlanError, match="not calibrated yet"):
        assert plan(training={"dp_sgd": TARGET}).training.example_event


def test_a_run_with_a_target_keeps_it():
    done = run(plan(training={**TRAINING, "dp_sgd": TARGET}))
    assert 0 < done.example_epsilon.epsilon <= 4.0


def test_the_round_that_would_pass_the_budget_of_an_example_does_not_start(tmp_path):
    twice = example_epsilon(plan(training=TRAINING).training.example_event, 2, 1e-5)
    made = plan(
        training={**TRAINING, "dp_sgd": {**SECTION, "budget": twice * 1.0001}},
        rounds={"count": 5, "cohort": 12, "sampling": "fixed"},
    )
    for _ in range(2):  # started again it does not pass it either
        with pytest.raises(BudgetExhausted, match=r"one example of a member that was drawn 2 times"):
            run(made, state=tmp_path)
    with opened(tmp_path) as store:
        (found,) = store.runs()
        assert found.committed == 2
        spent = example_spend(store, found, made.training)
        assert (spent.participations, spent.epsilon) == (2, twice)


def test_a_budget_is_passed_by_members_and_not_by_rounds_and_what_told_nothing_is_not_counted():
    section = {**SECTION, "budget": example_epsilon(plan(training=TRAINING).training.example_event, 1, 1e-5)}
    made = plan(training={**TRAINING, "dp_sgd": section}, rounds=FIXED).resolved(12)
    with contextlib.closing(Store(None)) as store:
        found = assembly.open_run(store, made)
        budget = ExampleBudget(store, found, made)

        def drawn(members, revealing):
            number = store.open_round(found.id, 0)
            budget.check(number, members)
            store.assign(found.id, number, members)
            if revealing:
                store.journal(found.id, number).revealing()
            store.abort(found.id, number, "too few are left")

        drawn(["ann", "bob"], revealing=False)
        drawn(["ann"], revealing=True)
        drawn(["bob", "cleo"], revealing=True)
        with pytest.raises(BudgetExhausted, match="drawn 1 times"):
            drawn(["dan", "ann"], revealing=True)
        drawn(["dan"], revealing=True)
