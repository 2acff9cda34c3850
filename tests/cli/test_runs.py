"""`quorate run` and `quorate runs`."""

import json

import pytest

from tests.cli.commands import assert_fails, quorate, rows


def test_a_run_gives_its_result_as_one_json_object(finished):
    found = finished.result
    assert set(found) == {
        "run", "terms", "rounds", "aborted", "dropouts", "metrics", "epsilon_released", "epsilon_server",
        "delta", "simulated", "versions", "epsilon_example", "delta_example", "evaluations",
    }  # fmt: skip
    assert found["rounds"] == 3
    assert set(found["metrics"]) == {"loss", "accuracy"}
    assert 0 < found["epsilon_released"] < found["epsilon_server"]
    assert found["simulated"] is False
    (version,) = found["versions"]
    assert version["model"] == "digits"
    assert version["version"] == 1


def test_a_finished_run_gives_the_same_result_again_without_a_round(finished):
    state = finished.directory / ".quorate"
    before = rows(state, "SELECT * FROM rounds"), rows(state, "SELECT * FROM ledger")
    again = quorate("run", "plan.toml", "--json", cwd=finished.directory)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == finished.result
    assert (rows(state, "SELECT * FROM rounds"), rows(state, "SELECT * FROM ledger")) == before


def test_a_person_sees_the_same_result_as_a_table(finished):
    done = quorate("run", "plan.toml", cwd=finished.directory)
    assert done.returncode == 0, done.stderr
    assert (
        f"{finished.result['run']} (3 rounds committed, {finished.result['aborted']} aborted)" in done.stdout
    )
    assert f"ε released  {finished.result['epsilon_released']:.3f}" in done.stdout
    assert f"ε server    {finished.result['epsilon_server']:.3f}" in done.stdout


HISTOGRAM = """\
[task]
name = "histogram"
edges = [0, 3, 6, 9]

[rounds]
count = 1
cohort = 40
sampling = "fixed"

[privacy]
mechanism = "central-laplace"
clip_norm = 1.0
noise_multiplier = 1.0

[fleet]
kind = "simulation"
dataset = "digits"
clients = 40
"""


def test_a_statistic_s_run_prints_its_answer(tmp_path):
    (tmp_path / "plan.toml").write_text(HISTOGRAM)
    done = quorate("run", "plan.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["answer"]
    assert list(answer) == ["[0, 3)", "[3, 6)", "[6, 9]"]
    assert sum(answer.values()) == pytest.approx(1)
    table = quorate("run", "plan.toml", cwd=tmp_path).stdout
    assert "metrics" not in table
    for name, share in answer.items():
        assert f"{name}: {share:.4g}" in table


def test_a_value_that_is_set_makes_another_run(copied):
    done = quorate(
        "run", "plan.toml", "--set", "rounds.count=1", "--set", "strategy.name=fedavg",
        "--set", "publish.model=other", "--json", cwd=copied.directory,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rounds"] == 1
    assert found["run"] != copied.result["run"]
    assert [version["model"] for version in found["versions"]] == ["other"]
    assert found["epsilon_released"] < copied.result["epsilon_released"]


@pytest.mark.slow
def test_a_seeded_run_gives_the_same_model_in_another_state_directory_and_is_marked(empty):
    results = []
    for state in ("one", "two"):
        done = quorate(
            "run", "plan.toml", "--set", "fleet.seed=7", "--set", f"publish.registry={state}-registry",
            "--state", state, "--json", cwd=empty,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    assert results[0]["metrics"] == results[1]["metrics"]
    assert [found["simulated"] for found in results] == [True, True]
    models = [
        (empty / f"{state}-registry/targets/models/digits/1/parameters.safetensors").read_bytes()
        for state in ("one", "two")
    ]
    assert models[0] == models[1]


def test_runs_are_listed(finished):
    done = quorate("runs", "list", cwd=finished.directory)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if finished.result["run"] in line]
    assert "finished" in line
    assert " 3 " in line
    assert finished.result["terms"][:16] in line


def test_a_run_is_shown_by_how_its_id_begins(finished):
    done = quorate("runs", "show", finished.result["run"][:6], cwd=finished.directory)
    assert done.returncode == 0, done.stderr
    assert finished.result["terms"] in done.stdout
    assert f"{finished.result['epsilon_released']:.3f}" in done.stdout
    committed = [line for line in done.stdout.splitlines() if "committed" in line and "accuracy" in line]
    assert len(committed) == 3
    assert "digits version 1 in registry" in done.stdout


def test_a_run_that_does_not_exist_is_an_error_that_names_those_that_do(finished):
    message = assert_fails(quorate("runs", "show", "zzz", cwd=finished.directory), code=1)
    assert "zzz" in message
    assert finished.result["run"] in message


def test_looking_for_runs_where_none_was_made_makes_nothing(tmp_path):
    message = assert_fails(quorate("runs", "list", cwd=tmp_path), code=1)
    assert "no state in .quorate" in message
    assert not list(tmp_path.iterdir())


def test_a_state_directory_that_can_t_be_made_is_an_error(empty):
    (empty / "file").touch()
    message = assert_fails(quorate("run", "plan.toml", "--json", "--state", "file/state", cwd=empty), code=1)
    assert "file/state" in message


@pytest.mark.slow
def test_a_seed_can_t_be_added_to_a_run_under_way_or_finished(copied):
    done = quorate("run", "plan.toml", "--set", "fleet.seed=1", "--json", cwd=copied.directory)
    assert "without a seed" in assert_fails(done, code=1)


@pytest.mark.slow
def test_a_run_that_would_pass_its_budget_stops_before_the_round_and_keeps_what_it_has(empty):
    done = quorate(
        "run", "plan.toml", "--set", "privacy.budget=0.65", "--set", "rounds.count=50",
        "--json", cwd=empty,
    )  # fmt: skip
    message = assert_fails(done, code=1)
    assert "budget" in message
    committed = rows(empty / ".quorate", "SELECT epsilons FROM rounds WHERE status = 'committed'")
    assert 0 < len(committed) < 50
    assert all(json.loads(epsilons)["released"] <= 0.65 for (epsilons,) in committed)


def test_a_run_is_kept_in_postgresql_and_goes_on_there(empty, postgresql):
    url = postgresql.fresh()
    first = quorate("run", "plan.toml", "--json", "--database", url, cwd=empty)
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert not (empty / ".quorate" / "quorate.sqlite").exists()
    assert found["run"] in quorate("runs", "list", "--database", url, cwd=empty).stdout
    assert "3" in quorate("runs", "show", found["run"], "--database", url, cwd=empty).stdout
    again = quorate("run", "plan.toml", "--json", "--database", url, cwd=empty)
    assert json.loads(again.stdout) == found
    assert quorate("privacy", "verify", "--database", url, cwd=empty).returncode == 0
