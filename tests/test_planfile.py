"""Plans as text: TOML, `--set`, and errors that a stranger can act on."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import PlanError
from quorate.planfile import format_plan, make_plan, read_plan
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, content

TOML = """
[task]
name = "softmax"
inputs = 13
classes = 3

[rounds]
count = 3
cohort = 8
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(TOML)
    return path


def problems(sections: dict) -> tuple[str, ...]:
    with pytest.raises(PlanError) as refused:
        make_plan(sections)
    return refused.value.problems


# --- Reading and writing


positive = st.floats(1e-6, 1e6)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
fleets = st.fixed_dictionaries(
    {"kind": st.just("simulation")},
    optional={
        "seed": st.integers(-(2**60), 2**60),
        "dataset": names,
        "clients": st.integers(1, 10**6),
        "alpha": positive,
        "labels": st.lists(st.integers(0, 9) | st.booleans() | names, max_size=3),
        "nested": st.dictionaries(
            st.from_regex(r"[a-z_-]{1,8}", fullmatch=True), names | positive, max_size=2
        ),
    },
)
publishes = st.fixed_dictionaries(
    {"registry": names, "model": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True)},
    optional={"every": st.integers(0, 9), "data_card": names},
)
strategies = st.one_of(
    st.fixed_dictionaries(
        {"name": st.just("fedavg")}, optional={"learning_rate": positive, "momentum": st.floats(0, 0.99)}
    ),
    st.fixed_dictionaries(
        {"name": st.just("fedadam")}, optional={"tau": positive, "beta2": st.floats(0, 0.99)}
    ),
    st.fixed_dictionaries({"name": st.just("fedprox")}, optional={"mu": st.floats(0, 10)}),
    st.fixed_dictionaries({"name": st.just("scaffold")}, optional={"control_bound": positive}),
)
private = st.fixed_dictionaries(
    {"privacy": st.fixed_dictionaries(
        {"mechanism": st.just("distributed-discrete-gaussian"), "clip_norm": positive, "noise_multiplier": positive},
        optional={"delta": st.floats(1e-12, 0.5), "budget": positive},
    )}
)  # fmt: skip
open_ = st.fixed_dictionaries(
    {"privacy": st.fixed_dictionaries({"mechanism": st.just("none"), "clip_norm": positive})}
)
ideal = st.fixed_dictionaries(
    {"protocol": st.just("ideal")},
    optional={
        "corrupt": st.floats(0, 0.49),
        "dropout": st.floats(0, 0.49),
        "min_survivors": st.integers(1, 8),
    },
)
secure = st.fixed_dictionaries(  # survivors that outvote the corrupt, whatever the cohort
    {"protocol": st.just("secagg+")},
    optional={"corrupt": st.floats(0, 0.1), "dropout": st.floats(0, 0.2), "complete": st.booleans()},
)


@st.composite
def plans(draw):
    made = {
        "task": draw(
            st.sampled_from(
                [
                    {"name": "softmax", "inputs": 13, "classes": 3},
                    {"name": "mlp", "inputs": 13, "hidden": [7, 5], "classes": 3},
                    {"name": "linear", "inputs": 4},
                ]
            )
        ),
        "rounds": {"count": draw(st.integers(1, 10**6)), "cohort": draw(st.integers(8, 500))},
        "training": draw(
            st.fixed_dictionaries({}, optional={"learning_rate": positive, "epochs": st.integers(1, 99)})
        ),
        "strategy": draw(strategies),
        "secure_aggregation": draw(ideal | secure),
        "fleet": draw(fleets),
        **draw(private | open_),
    }
    if draw(st.booleans()):
        made["publish"] = draw(publishes)
    return make_plan(made)


@settings(deadline=None)
@given(plan=plans())
def test_a_plan_that_is_written_is_read_as_the_same_plan(plan, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "written.toml"
    path.write_text(format_plan(plan), encoding="utf-8")
    assert read_plan(path) == plan


@settings(deadline=None)
@given(plan=plans())
def test_a_resolved_plan_survives_being_written_too(plan, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "resolved.toml"
    resolved = plan.resolved(10_000)
    path.write_text(format_plan(resolved), encoding="utf-8")
    assert read_plan(path).terms().encoded() == resolved.terms().encoded()


def test_every_default_stands_in_what_is_written():
    text = format_plan(make_plan(content()))
    for line in ('sampling = "poisson"', 'name = "fedavg"', "batch_size = 20", 'protocol = "none"'):
        assert line in text


# --- What is set from elsewhere


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("rounds.count=10", lambda plan: plan.rounds.count == 10),
        (" rounds.count = 10 ", lambda plan: plan.rounds.count == 10),
        ("training.learning_rate=1e-3", lambda plan: plan.training.learning_rate == 0.001),
        ("strategy.name=fedprox", lambda plan: plan.strategy.name == "fedprox"),
        ('strategy.name="fedprox"', lambda plan: plan.strategy.name == "fedprox"),
        ("fleet.labels=[1, 2]", lambda plan: plan.fleet.settings["labels"] == [1, 2]),
        ("fleet.balanced=true", lambda plan: plan.fleet.settings["balanced"] is True),
        ("fleet.note=a = b", lambda plan: plan.fleet.settings["note"] == "a = b"),
        ("fleet.deep.er=1", lambda plan: plan.fleet.settings["deep"] == {"er": 1}),
    ],
)
def test_a_value_is_set_as_toml_or_as_a_string(file, setting, found):
    assert found(read_plan(file, [setting]))


def test_what_is_set_last_counts(file):
    assert read_plan(file, ["rounds.count=10", "rounds.count=20"]).rounds.count == 20


@pytest.mark.parametrize("setting", ["rounds.count", "=3", "rounds.=3", ".count=3", ""])
def test_a_setting_of_another_form_is_refused_with_an_example(file, setting):
    with pytest.raises(PlanError, match=r"accepted: section.key=value, such as rounds.count=10"):
        read_plan(file, [setting])


def test_a_setting_below_a_value_is_refused(file):
    with pytest.raises(PlanError, match=r"--set rounds.count.x=3: 'count' is not a section"):
        read_plan(file, ["rounds.count.x=3"])


def test_a_wrong_value_is_refused_wherever_it_came_from(file):
    with pytest.raises(PlanError, match=r"rounds.count: found -1; accepted: a whole number of at least 1"):
        read_plan(file, ["rounds.count=-1"])


# --- What is wrong


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"nowhere\.toml: there is no such file"):
        read_plan(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("written", "said"), [(b"[task", "is not TOML"), (b"\xff\xfe", "can't be read"), (None, "can't be read")]
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, written, said):
    path = tmp_path / "plan.toml"
    path.mkdir() if written is None else path.write_bytes(written)
    with pytest.raises(PlanError, match=said):
        read_plan(path)


def test_a_problem_in_a_file_names_the_file(file):
    file.write_text(TOML.replace("count = 3", "count = 0"))
    with pytest.raises(PlanError) as refused:
        read_plan(file)
    assert str(refused.value) == f"{file}: rounds.count: found 0; accepted: a whole number of at least 1"


def test_all_problems_are_named_at_once():
    found = problems({"task": {"name": "softmax"}, "rounds": {"count": "x", "cohrt": 8}, "fleat": {}})
    assert len(found) == 4


ROUNDS = (
    "count, cohort, largest_cohort, sampling, separation, weighting, example_cap, over_selection, buffering"
)
SENTENCES = [
    (
        {"rounds": {"count": 3, "cohort": 8, "largest_chort": 9}},
        f"rounds.largest_chort: unknown key (did you mean 'largest_cohort'?); accepted: {ROUNDS}",
    ),
    (
        {"trainning": {}},
        "trainning: unknown section (did you mean 'training'?); accepted: task, rounds, training, strategy, privacy, "
        "secure_aggregation, evaluation, engine, fleet, publish, population",
    ),
    ({"rounds": {"count": 3}}, "rounds.cohort: missing; accepted: a whole number of at least 1"),
    (
        {"rounds": {"count": "3", "cohort": 8}},
        "rounds.count: found '3'; accepted: a whole number of at least 1",
    ),
    (
        {"rounds": {"count": 3.5, "cohort": 8}},
        "rounds.count: found 3.5; accepted: a whole number of at least 1",
    ),
    (
        {"rounds": {"count": True, "cohort": 8}},
        "rounds.count: found True; accepted: a whole number of at least 1",
    ),
    ({"rounds": 7}, f"rounds: found 7; accepted: a section with {ROUNDS}"),
    (
        {"rounds": {"count": 3, "cohort": 8, "sampling": "random"}},
        "rounds.sampling: found 'random'; accepted: 'poisson', 'fixed', 'separated' or 'buffered'",
    ),
    (
        {"training": {"learning_rate": 0}},
        "training.learning_rate: found 0; accepted: a finite number above 0",
    ),
    (
        {"privacy": {**GAUSSIAN, "clip_norm": -1}, "secure_aggregation": SECAGG},
        "privacy.clip_norm: found -1; accepted: a finite number above 0",
    ),
    (
        {"privacy": {**GAUSSIAN, "clip_norm": math.nan}, "secure_aggregation": SECAGG},
        "privacy.clip_norm: found nan; accepted: a finite number above 0",
    ),
    (
        {"privacy": {**CLIPPED, "clip_norm": math.inf}, "secure_aggregation": SECAGG},
        "privacy.clip_norm: found inf; accepted: a finite number above 0",
    ),
    (
        {"privacy": {"clip_norm": 1.0}},
        "privacy.mechanism: missing; accepted: none, central-gaussian, central-laplace, dp-ftrl, dp-query, "
        "local-discrete-gaussian, distributed-discrete-gaussian, distributed-skellam",
    ),
    (
        {"privacy": {"mechanism": "gaussian"}},
        "privacy.mechanism: found 'gaussian'; accepted: 'none', 'central-gaussian', 'central-laplace', 'dp-ftrl', "
        "'dp-query', 'local-discrete-gaussian', 'distributed-discrete-gaussian', 'distributed-skellam'",
    ),
    (
        {"privacy": "none"},
        "privacy: found 'none'; accepted: a section with mechanism, which is one of none, "
        "central-gaussian, central-laplace, dp-ftrl, dp-query, local-discrete-gaussian, distributed-discrete-gaussian, "
        "distributed-skellam",
    ),
    (
        {"privacy": {"mechanism": GAUSSIAN["mechanism"], "clip_norm": 1.0}, "secure_aggregation": IDEAL},
        "privacy: exactly one of noise_multiplier and epsilon is needed, found neither",
    ),
    (
        {"secure_aggregation": {"protocol": "secagg"}},
        "secure_aggregation.protocol: found 'secagg'; accepted: 'none', 'ideal', 'secagg+'",
    ),
    (
        {"secure_aggregation": {"protocol": "ideal", "corrupt": 0.5}, "privacy": CLIPPED},
        "secure_aggregation.corrupt: found 0.5; accepted: a finite number of at least 0 and below 0.5",
    ),
    (
        {"secure_aggregation": {"protocol": "ideal", "threat_model": "semi-honest"}, "privacy": CLIPPED},
        "secure_aggregation.threat_model: unknown key; accepted: min_survivors, corrupt, dropout, ring_bits, buckets, "
        "min_buckets, protocol",
    ),
    ({"fleet": {"seed": "a"}}, "fleet.seed: found 'a'; accepted: a whole number"),
    (
        {"publish": {"registry": "r", "model": "My Model"}},
        "publish.model: found 'My Model'; accepted: a string that matches ^[a-z0-9][a-z0-9._-]{0,63}$",
    ),
    (
        {"population": {"name": "drinkers", "epsilon": 4.0, "delta": 1e-5}},
        "population: found the budget of 'drinkers', but with privacy.mechanism 'none' no round has an ε that could be "
        "charged to it; accepted: another mechanism, or no [population]",
    ),
    (
        {"population": {"name": "drinkers", "epsilon": 4.0}},
        "population.delta: missing; accepted: a finite number above 0 and below 1",
    ),
    ({"publish": {"model": "m"}}, "publish.registry: missing; accepted: a string"),
    ({"task": {"inputs": 13}}, "task.name: missing; accepted: a string"),
    (
        {"task": {"name": "softmx"}},
        "task.name: there is no 'softmx', did you mean 'softmax'?; these exist: bounded-mean, categories, histogram, "
        "linear, mlp, softmax (or give module:attribute)",
    ),
    (
        {"task": {"name": "linear", "input": 3, "inputs": 4}},
        "task.input: unknown key (did you mean 'inputs'?); accepted: inputs",
    ),
    (
        {"task": {"name": "linear", "inputs": "many"}},
        "task.inputs: found 'many'; accepted: a whole number",
    ),
    (
        {"strategy": {"name": "fedavg", "learning_rat": 1}},
        "strategy.learning_rat: unknown key (did you mean 'learning_rate'?); accepted: learning_rate, momentum",
    ),
    (
        {"strategy": {"name": "fedavg", "momentum": "much"}},
        "strategy.momentum: found 'much'; accepted: a number",
    ),
    (
        {"strategy": {"name": "fedavg", "momentum": 1.5}},
        "strategy.momentum: 1.5 was found; a number in [0, 1) is accepted",
    ),
    (
        {"strategy": {"name": "nowhere:at_all"}},
        "strategy.name: the module of 'nowhere:at_all' can't be imported: No module named 'nowhere'",
    ),
]


@pytest.mark.parametrize(("sections", "sentence"), SENTENCES)
def test_a_problem_is_a_sentence_with_path_found_and_accepted(sections, sentence):
    assert problems(content(**sections)) == (sentence,)


def test_a_missing_section_says_what_goes_in_it():
    assert problems({"task": {"name": "linear", "inputs": 1}}) == (
        f"rounds: missing; accepted: a section with {ROUNDS}",
    )


def test_a_factory_that_needs_more_says_what_is_missing():
    assert problems(content(task={"name": "softmax"})) == ("task.inputs: missing", "task.classes: missing")


def test_a_plan_may_name_a_task_that_a_module_holds(tmp_path, monkeypatch):
    (tmp_path / "an_application.py").write_text(
        "import quorate as q\ntask = q.Task(q.models.softmax(13, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan = make_plan({"task": {"name": "an_application:task"}, "rounds": {"count": 1, "cohort": 4}})
    assert plan.task.resolve().name == "softmax"
    with pytest.raises(PlanError, match=r"task\.inputs: unknown key"):
        make_plan({"task": {"name": "an_application:task", "inputs": 3}, "rounds": {"count": 1, "cohort": 4}})
