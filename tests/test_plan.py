"""The plan and its terms: what is resolved, what is hashed, and what can't be."""

import hashlib
import json
import math
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quorate as q
from quorate.errors import PlanError
from quorate.plan import Plan, Terms
from quorate.planfile import format_plan, make_plan, read_plan
from quorate.privacy import default_delta
from quorate.resolution import terms_hash
from quorate.strategies import local_rules, server_rules
from quorate.strategies.aggregators import mean
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, SOFTMAX_DIGITS, content, plan

DIGITS = """
[task]
name = "softmax"
inputs = 64
classes = 10

[rounds]
count = 3
cohort = 100

[strategy]
name = "fedadam"
learning_rate = 1

[privacy]
mechanism = "distributed-discrete-gaussian"
clip_norm = 2
noise_multiplier = 1.5

[secure_aggregation]
protocol = "secagg+"
"""


def digits_in_python() -> Plan:
    return q.Plan(
        task=q.Task(q.models.softmax(64, 10)),
        rounds=q.Rounds(count=3, cohort=100),
        strategy=q.strategies.fedadam(learning_rate=1),
        privacy=q.privacy.DistributedGaussian(clip_norm=2, noise_multiplier=1.5),
        secure_aggregation=q.SecAggPlus(),
    )


def digits_in_toml(tmp_path, text=DIGITS, settings=()) -> Plan:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return read_plan(path, settings)


def only_problem(sections: dict) -> str:
    with pytest.raises(PlanError) as refused:
        make_plan(content(**sections))
    assert len(refused.value.problems) == 1, refused.value
    return refused.value.problems[0]


# --- What a resolved plan holds


def test_every_default_is_written_out_when_a_plan_is_resolved():
    resolved = plan(
        task=SOFTMAX_DIGITS, rounds={"count": 3, "cohort": 100}, privacy=GAUSSIAN, secure_aggregation=SECAGG
    ).resolved(300)
    assert resolved.rounds.largest_cohort == 140  # 100 + 4·√100
    assert resolved.secure_aggregation.min_survivors == 70
    assert resolved.privacy.delta == default_delta(300)
    assert resolved.strategy.settings == {"learning_rate": 1.0, "momentum": 0.0}
    assert resolved.training.settings() == {"learning_rate": 0.1, "epochs": 1, "batch_size": 20}


def test_a_target_epsilon_is_resolved_to_the_noise_that_keeps_it():
    wanted = {"mechanism": GAUSSIAN["mechanism"], "clip_norm": 1.0, "epsilon": 4.0}
    resolved = plan(privacy=wanted, secure_aggregation=IDEAL).resolved(100)
    assert resolved.privacy.epsilon is None
    assert resolved.privacy.budget == 4.0
    assert resolved.privacy.noise_multiplier > 0


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"privacy": GAUSSIAN, "secure_aggregation": SECAGG},
        {"privacy": {**GAUSSIAN, "noise_multiplier": None, "epsilon": 4.0}, "secure_aggregation": SECAGG},
    ],
)
def test_a_resolved_plan_is_resolved_to_itself(sections):
    resolved = plan(**sections).resolved(50)
    assert resolved.resolved(50) == resolved


def test_more_members_than_there_are_can_t_be_drawn():
    wanted = plan(rounds={"count": 1, "cohort": 10, "sampling": "fixed", "over_selection": 1.3})
    assert wanted.rounds.drawn == 13
    assert wanted.resolved(13).bounds(13).largest == 10
    with pytest.raises(PlanError, match=r"draws 13 members.*has 12"):
        wanted.resolved(12)


def test_a_largest_cohort_is_never_above_the_population():
    assert plan(rounds={"count": 1, "cohort": 10}).resolved(12).rounds.largest_cohort == 12


def test_a_fixed_cohort_has_no_larger_one():
    fixed = {"count": 1, "cohort": 10, "sampling": "fixed"}
    assert plan(rounds=fixed).resolved(50).rounds.largest_cohort == 10


def test_a_cohort_above_the_population_is_refused():
    with pytest.raises(
        PlanError, match=r"rounds.cohort: found 8, but the population has 5 .* accepted: 1 to 5"
    ):
        plan().resolved(5)


@given(cohort=st.integers(1, 500), corrupt=st.floats(0, 0.49), extra=st.integers(0, 500))
def test_bounds_leave_room_for_the_members_that_are_corrupt(cohort, corrupt, extra):
    rounds = {"count": 1, "cohort": cohort}
    summing = {"protocol": "ideal", "corrupt": corrupt}
    bounds = plan(rounds=rounds, privacy=CLIPPED, secure_aggregation=summing).bounds(cohort + extra)
    assert 1 <= bounds.honest <= bounds.min_survivors <= cohort <= bounds.largest <= cohort + extra
    assert bounds.honest == max(1, math.ceil((1 - corrupt) * bounds.min_survivors))
    assert bounds.denominator == cohort


# --- What the hash covers


def test_the_hash_is_that_of_the_exact_bytes():
    made = plan()
    assert terms_hash(made) == hashlib.sha256(made.terms().encoded()).hexdigest()


def test_toml_python_and_set_give_the_same_terms(tmp_path):
    python = digits_in_python().resolved(300)
    toml = digits_in_toml(tmp_path).resolved(300)
    other = DIGITS.replace("cohort = 100", "cohort = 5").replace("learning_rate = 1", "")
    settings = ["rounds.cohort=100", "strategy.learning_rate=1.0"]
    assert terms_hash(toml) == terms_hash(python)
    assert terms_hash(digits_in_toml(tmp_path, other, settings).resolved(300)) == terms_hash(python)


def test_the_hash_does_not_depend_on_fleet_publish_or_population():
    fleet = {"kind": "simulation", "seed": 7, "dataset": "wine", "clients": 12}
    publish = {"registry": "somewhere", "model": "wine"}
    people = {"name": "drinkers", "epsilon": 4.0, "delta": 1e-5}
    other = plan(fleet=fleet, publish=publish, population=people, privacy=GAUSSIAN, secure_aggregation=IDEAL)
    assert terms_hash(other) == terms_hash(plan(privacy=GAUSSIAN, secure_aggregation=IDEAL))


def test_the_hash_does_not_depend_on_the_order_of_keys():
    def reversed_keys(value):
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return value

    sections = content(privacy=GAUSSIAN, secure_aggregation=SECAGG)
    assert terms_hash(make_plan(reversed_keys(sections))) == terms_hash(make_plan(sections))


def test_the_hash_does_not_depend_on_whether_defaults_are_written_out():
    written = plan(
        rounds={"count": 3, "cohort": 8, "sampling": "poisson", "weighting": "uniform"},
        training={"learning_rate": 0.1, "epochs": 1, "batch_size": 20},
        strategy={"name": "fedavg", "learning_rate": 1.0, "momentum": 0.0},
        privacy={"mechanism": "none"},
        secure_aggregation={"protocol": "none"},
    )
    assert terms_hash(written) == terms_hash(plan())


@given(rate=st.integers(1, 2**53 - 1))
def test_a_whole_number_is_the_same_with_and_without_a_fraction(rate):
    assert terms_hash(plan(training={"learning_rate": rate})) == terms_hash(
        plan(training={"learning_rate": float(rate)})
    )


def test_a_setting_from_numpy_is_the_same_as_a_number():
    def terms(rate):
        return terms_hash(digits_in_python().model_copy(update={"strategy": strategy_section(rate)}))

    def strategy_section(rate):
        return q.Plan(
            task=q.Task(q.models.softmax(64, 10)),
            rounds=q.Rounds(count=1, cohort=5),
            strategy=q.strategies.fedavg(learning_rate=rate),
        ).strategy

    assert terms(np.float32(0.5)) == terms(np.float64(0.5)) == terms(0.5)


@pytest.mark.parametrize(
    "other",
    [
        {"task": {"name": "softmax", "inputs": 13, "classes": 4}},
        {"rounds": {"count": 4, "cohort": 8}},
        {"rounds": {"count": 3, "cohort": 9}},
        {"rounds": {"count": 3, "cohort": 8, "weighting": "examples"}},
        {"training": {"epochs": 2}},
        {"strategy": {"name": "fedavg", "learning_rate": 0.5}},
        {"strategy": {"name": "fedprox", "mu": 0.0}},
        {"privacy": {"mechanism": "none", "clip_norm": 1.0}},
        {"secure_aggregation": {"protocol": "none", "min_survivors": 2}},
    ],
)
def test_the_hash_changes_with_the_terms(other):
    assert terms_hash(plan(**other)) != terms_hash(plan())


def test_the_seed_is_not_in_the_terms():
    seeded = plan(fleet={"kind": "simulation", "seed": 424242})
    assert b"424242" not in seeded.terms().encoded()
    assert b"seed" not in seeded.terms().encoded()


# --- What travels


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedprox", "scaffold"])
def test_terms_come_back_from_their_bytes(name):
    made = plan(strategy={"name": name}, privacy=GAUSSIAN, secure_aggregation=SECAGG).resolved(40).terms()
    read = Terms.parse(made.encoded())
    assert read.encoded() == made.encoded()
    assert read.strategy.resolve() == made.strategy.resolve()
    assert read.privacy == made.privacy
    assert read.bounds(40) == made.bounds(40)


def altered(change) -> bytes:
    terms = json.loads(plan().terms().encoded())
    change(terms)
    return json.dumps(terms).encode()


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        (altered(lambda t: t.update(format=2)), "format"),
        (altered(lambda t: t.pop("format")), "format"),
        (b"[]", "format"),
        (b"not json", "can't be read"),
        (b"\xff", "can't be read"),
        (b"[" * 100_000, "can't be read"),
        (altered(lambda t: t.pop("task")), "can't be read"),
        (altered(lambda t: t.update(task="softmax")), "can't be read"),
        (altered(lambda t: t["task"].pop("layout")), "can't be read"),
        (altered(lambda t: t["task"].update(layout="00" * 32)), "layout"),
        (altered(lambda t: t["task"].update(inputs=14)), "layout"),
        (altered(lambda t: t["task"].update(name="unheard-of")), "there is no 'unheard-of'"),
        (altered(lambda t: t["task"].update(name="os:system")), "installed parts only"),
        (altered(lambda t: t["strategy"].update(name="os:system")), "installed parts only"),
        (altered(lambda t: t["strategy"].update(mu=1)), "strategy.mu: unknown key"),
        (altered(lambda t: t["rounds"].update(count=0)), "rounds.count: found 0"),
        (altered(lambda t: t["rounds"].update(cohort=float("nan"))), "rounds.cohort: found nan"),
        (altered(lambda t: t.update(fleet={})), "fleet: unknown section"),
    ],
)
def test_bytes_that_are_no_terms_are_refused(encoded, said):
    with pytest.raises(PlanError, match=said):
        Terms.parse(encoded)


def test_a_name_from_the_network_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for part in ("task", "strategy"):
        with pytest.raises(PlanError):
            Terms.parse(altered(lambda t, part=part: t[part].update(name="trap:x")))


def test_a_live_task_and_strategy_stay_bound():
    task, strategy = q.Task(q.models.softmax(64, 10)), q.strategies.fedavg(momentum=0.9)
    made = q.Plan(task=task, rounds=q.Rounds(count=1, cohort=5), strategy=strategy).resolved(10)
    assert made.terms().task.resolve() is task
    assert made.terms().strategy.resolve() == strategy


def test_a_setting_that_can_not_be_written_down_is_refused():
    with pytest.raises(PlanError, match=r"strategy.learning_rate: found .* can't be written into the terms"):
        q.Plan(
            task=q.Task(q.models.softmax(64, 10)),
            rounds=q.Rounds(count=1, cohort=5),
            strategy=q.strategies.fedavg(learning_rate=lambda t: 1.0),
        )


def test_a_strategy_without_records_needs_no_settings():
    made = q.Strategy("mine", local_rules.sgd(), mean(), server_rules.sgd(lambda t: 1 / (t + 1)))
    bound = q.Plan(task=q.Task(q.models.softmax(64, 10)), rounds=q.Rounds(count=1, cohort=5), strategy=made)
    assert bound.terms().strategy.resolve() is made


# --- What can't be


IMPOSSIBLE = [
    (
        {"rounds": {"count": 3, "cohort": 8, "largest_cohort": 7}},
        ["rounds.largest_cohort", "rounds.cohort (8)"],
    ),
    (
        {"rounds": {"count": 3, "cohort": 8, "over_selection": 1.3}},
        ["rounds.over_selection: found 1.3", "rounds.sampling 'poisson'", "sampling = 'fixed'"],
    ),
    (
        {"rounds": {"count": 3, "cohort": 8, "largest_cohort": 9, "sampling": "fixed"}},
        ["rounds.largest_cohort: found 9", "rounds.sampling 'fixed'", "rounds.cohort (8)"],
    ),
    (
        {"secure_aggregation": {"protocol": "none", "min_survivors": 9}},
        ["secure_aggregation.min_survivors: found 9", "rounds.cohort (8)"],
    ),
    (
        {"strategy": {"name": "median"}, "secure_aggregation": SECAGG, "privacy": CLIPPED},
        ["strategy.name: 'median'", "secure_aggregation.protocol 'secagg+'", "fedavg", "protocol = 'none'"],
    ),
    (
        {"strategy": {"name": "median"}, "secure_aggregation": IDEAL, "privacy": CLIPPED},
        ["strategy.name: 'median'", "secure_aggregation.protocol 'ideal'"],
    ),
    (
        {"privacy": GAUSSIAN},
        [
            "privacy.mechanism: 'distributed-discrete-gaussian'",
            "secure_aggregation.protocol 'none'",
            "'secagg+'",
        ],
    ),
    (
        {"privacy": {**GAUSSIAN, "mechanism": "central-gaussian"}, "strategy": {"name": "median"}},
        ["strategy.name: 'median'", "privacy.mechanism 'central-gaussian'", "linear aggregator"],
    ),
    (
        {"secure_aggregation": {"protocol": "none", "ring_bits": 16}},
        ["secure_aggregation.ring_bits: found 16", "accepted: no value"],
    ),
    ({"secure_aggregation": SECAGG}, ["privacy.clip_norm: missing", "secure_aggregation.protocol 'secagg+'"]),
    ({"secure_aggregation": IDEAL}, ["privacy.clip_norm: missing", "secure_aggregation.protocol 'ideal'"]),
    (
        {
            "rounds": {"count": 3, "cohort": 8, "weighting": "examples"},
            "secure_aggregation": SECAGG,
            "privacy": CLIPPED,
        },
        [
            "rounds.example_cap: missing",
            "secure_aggregation.protocol 'secagg+'",
            "rounds.weighting 'examples'",
        ],
    ),
    (
        {"rounds": {"count": 3, "cohort": 8, "example_cap": 5}},
        ["rounds.example_cap: found 5", "rounds.weighting 'uniform'"],
    ),
    (
        {
            "rounds": {"count": 3, "cohort": 8, "weighting": "examples", "example_cap": 9},
            "secure_aggregation": SECAGG,
            "privacy": GAUSSIAN,
        },
        ["rounds.weighting: found 'examples'", "privacy.mechanism 'distributed-discrete-gaussian'"],
    ),
    (
        {"rounds": {"count": 3, "cohort": 2}, "secure_aggregation": SECAGG, "privacy": CLIPPED},
        ["rounds.cohort: found 2", "secure_aggregation.protocol 'secagg+'", "at least 3"],
    ),
    (
        {"rounds": {"count": 3, "cohort": 70_000}, "secure_aggregation": SECAGG, "privacy": CLIPPED},
        ["rounds.largest_cohort: found 71059", "secure_aggregation.protocol 'secagg+'", "at most 65520"],
    ),
]


@pytest.mark.parametrize(("sections", "named"), IMPOSSIBLE)
def test_an_impossible_combination_is_refused_naming_both_keys(sections, named):
    problem = only_problem(sections)
    for words in (*named, "accepted"):
        assert words in problem


def test_all_impossible_combinations_of_a_plan_are_named_at_once():
    with pytest.raises(PlanError) as refused:
        plan(rounds={"count": 1, "cohort": 8, "largest_cohort": 2}, secure_aggregation=SECAGG)
    assert len(refused.value.problems) == 2


def test_impossible_combinations_are_refused_in_python_too():
    with pytest.raises(PlanError, match=r"privacy.clip_norm: missing"):
        q.Plan(
            task=q.Task(q.models.softmax(64, 10)),
            rounds=q.Rounds(count=1, cohort=5),
            secure_aggregation=q.SecAggPlus(),
        )


def test_a_wrong_section_in_python_is_refused_as_in_a_file():
    with pytest.raises(PlanError, match="Rounds: count: found 0; accepted: a whole number of at least 1"):
        q.Rounds(count=0, cohort=5)


def test_a_plan_can_not_be_changed():
    made = plan()
    with pytest.raises(ValueError, match="frozen"):
        made.rounds.count = 5


def test_a_target_that_no_noise_keeps_is_refused_when_the_plan_is_resolved():
    wanted = {"mechanism": GAUSSIAN["mechanism"], "clip_norm": 1.0, "epsilon": 1e-6, "delta": 1e-9}
    with pytest.raises(PlanError, match=r"privacy.epsilon: found 1e-06, .* accepted: a larger"):
        plan(privacy=wanted, secure_aggregation=IDEAL).resolved(50)


MINIMAL = {"task": {"name": "softmax", "inputs": 64, "classes": 10}, "rounds": {"count": 3, "cohort": 10}}
ENGINE = {"name": "tff", "process": "job:build", "clip_norm": 0.5}


def test_an_engine_is_in_the_terms_and_what_it_replaces_is_not():
    plan = make_plan({**MINIMAL, "engine": ENGINE})
    content = json.loads(plan.terms().encoded())
    assert content["engine"] == ENGINE
    assert not {"strategy", "privacy", "secure_aggregation"} & set(content)
    assert make_plan(tomllib.loads(format_plan(plan.resolved(20)))).terms() == plan.resolved(20).terms()


@pytest.mark.parametrize(
    "section",
    [
        {"strategy": {"name": "fedavg"}},
        {"privacy": {"mechanism": "none"}},
        {"secure_aggregation": {"protocol": "none"}},
    ],
)
def test_an_engine_does_its_own_aggregation(section):
    (name,) = section
    with pytest.raises(PlanError, match=rf"{name}: found beside \[engine\]"):
        make_plan({**MINIMAL, "engine": ENGINE, **section})


def test_an_engine_that_is_not_there_is_refused():
    with pytest.raises(PlanError, match=r"engine\.name: there is no 'tf', did you mean 'tff'"):
        make_plan({**MINIMAL, "engine": {"name": "tf", "process": "job:build"}})
    with pytest.raises(PlanError, match=r"engine\.process: found 'build'"):
        make_plan({**MINIMAL, "engine": {"name": "tff", "process": "build"}})
