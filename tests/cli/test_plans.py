"""`quorate plan`, and what every command says to a plan that can't be run."""

import tomllib

import pytest

from tests.cli.commands import PLAN, assert_fails, quorate


def test_a_good_plan_is_good_and_has_the_terms_of_its_run(finished):
    done = quorate("plan", "check", "plan.toml", cwd=finished.directory)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"plan.toml: good; terms {finished.result['terms'][:16]}\n"


def test_what_is_shown_is_a_plan_with_the_same_terms_and_every_default(finished):
    shown = quorate("plan", "show", "plan.toml", cwd=finished.directory)
    assert shown.returncode == 0, shown.stderr
    content = tomllib.loads(shown.stdout)
    assert content["privacy"]["delta"] == pytest.approx(40**-1.1)
    assert content["rounds"]["largest_cohort"] == 26
    assert content["strategy"]["beta1"] == 0.9
    (finished.directory / "shown.toml").write_text(shown.stdout)
    checked = quorate("plan", "check", "shown.toml", cwd=finished.directory)
    assert checked.stdout == f"shown.toml: good; terms {finished.result['terms'][:16]}\n"


@pytest.mark.slow
def test_a_target_epsilon_is_shown_as_the_noise_multiplier_that_reaches_it(empty):
    (empty / "target.toml").write_text(PLAN.replace("noise_multiplier = 1.0", "epsilon = 2.0"))
    shown = quorate("plan", "show", "target.toml", cwd=empty)
    assert shown.returncode == 0, shown.stderr
    content = tomllib.loads(shown.stdout)
    assert content["privacy"]["noise_multiplier"] > 0


def test_the_data_of_a_plan_s_clients_are_shown_and_drawn(empty):
    (empty / "plan.toml").write_text(PLAN)
    shown = quorate("plan", "data", "plan.toml", "--plot", "data.png", cwd=empty)
    assert shown.returncode == 0, shown.stderr
    assert "clients        40" in shown.stdout
    assert "largest share" in shown.stdout
    assert (empty / "data.png").read_bytes().startswith(b"\x89PNG")


def test_data_without_labels_have_no_table_of_labels(empty):
    (empty / "plan.toml").write_text(PLAN.replace('"softmax"', '"linear"').replace("classes = 10\n", ""))
    sets = ("--set=fleet.dataset=diabetes", "--set=task.inputs=10")
    shown = quorate("plan", "data", "plan.toml", *sets, cwd=empty)
    assert shown.returncode == 0, shown.stderr
    assert "largest share" not in shown.stdout


WRONG = {
    "an unknown key": ("rounds.cohorts=3", ["rounds.cohorts", "unknown key", "did you mean 'cohort'?"]),
    "an unknown section": ("round.count=3", ["round", "unknown section", "rounds"]),
    "a negative clip norm": ("privacy.clip_norm=-0.5", ["privacy.clip_norm", "-0.5", "above 0"]),
    "more survivors than the cohort": (
        "secure_aggregation.min_survivors=13",
        ["secure_aggregation.min_survivors", "13", "1 to rounds.cohort (12)"],
    ),
    "a median of what can't be seen": (
        "strategy.name=median",
        ["strategy.name", "median", "secagg+", "accepted", "secure_aggregation.protocol = 'none'"],
    ),
    "a word for a number": ("rounds.count=many", ["rounds.count", "'many'", "accepted"]),
    "a cohort above the population": ("rounds.cohort=41", ["rounds.cohort", "41", "40"]),
    "a task that is not installed": ("task.name=softmaks", ["softmaks", "did you mean 'softmax'?"]),
    "a setting that the task does not take": ("task.depth=3", ["task.depth", "inputs, classes"]),
    "a dataset that is not installed": ("fleet.dataset=digitz", ["digitz", "digits"]),
    "a setting without a value": ("rounds.count", ["--set rounds.count", "section.key=value"]),
}


@pytest.mark.parametrize("problem", WRONG)
def test_a_wrong_plan_is_refused_in_words_that_a_stranger_can_act_on(problem, empty):
    setting, expected = WRONG[problem]
    message = assert_fails(quorate("plan", "check", "plan.toml", "--set", setting, cwd=empty), code=2)
    assert len(message.splitlines()) == 1
    for words in expected:
        assert words in message


def test_a_wrong_plan_is_refused_by_a_run_before_anything_is_written(empty):
    done = quorate("run", "plan.toml", "--set", "privacy.clip_norm=-1", cwd=empty)
    assert_fails(done, code=2)
    assert [file.name for file in empty.iterdir()] == ["plan.toml"]


def test_every_problem_of_a_plan_is_told_at_once(empty):
    done = quorate(
        "plan", "check", "plan.toml", "--set", "privacy.clip_norm=-1", "--set", "rounds.count=0", cwd=empty
    )
    message = assert_fails(done, code=2)
    assert "2 problems" in message
    assert "privacy.clip_norm" in message
    assert "rounds.count" in message


def test_a_plan_that_is_not_there_is_refused(tmp_path):
    assert "there is no such file" in assert_fails(quorate("run", "none.toml", cwd=tmp_path), code=2)


def test_a_plan_that_is_not_toml_is_refused(tmp_path):
    (tmp_path / "plan.toml").write_text("rounds: 3\n")
    message = assert_fails(quorate("run", "plan.toml", cwd=tmp_path), code=2)
    assert "plan.toml: the file is not TOML" in message


def test_a_plan_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "plan.toml").write_bytes(bytes(range(256)))
    assert "plan.toml: the file can't be read" in assert_fails(
        quorate("run", "plan.toml", cwd=tmp_path), code=2
    )


def test_a_directory_is_no_plan(tmp_path):
    assert "is a directory" in assert_fails(quorate("run", tmp_path, cwd=tmp_path), code=2)
