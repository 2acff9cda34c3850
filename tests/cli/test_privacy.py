"""`quorate privacy`: spent, left, verified, calibrated, explained."""

import json
import sqlite3

import pytest

from tests.cli.commands import assert_fails, quorate


def test_spent_says_what_the_run_said(finished):
    done = quorate("privacy", "spent", "--json", cwd=finished.directory)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["run"] == finished.result["run"]
    assert row["epsilon_released"] == finished.result["epsilon_released"]
    assert row["epsilon_server"] == finished.result["epsilon_server"]
    assert row["rounds_charged"] >= finished.result["rounds"]


def test_a_ledger_verifies_until_it_is_touched(copied):
    done = quorate("privacy", "verify", cwd=copied.directory)
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout
    assert "version 1 of 'digits': row 3 was the last one" in done.stdout
    with sqlite3.connect(copied.directory / ".quorate" / "quorate.sqlite") as database:
        database.execute(
            "UPDATE ledger SET entry = replace(entry, '\"round\":1', '\"round\":9') WHERE sequence = 1"
        )
    assert "row" in assert_fails(quorate("privacy", "verify", cwd=copied.directory), 1)


def test_a_round_without_a_charge_is_found(copied):
    with sqlite3.connect(copied.directory / ".quorate" / "quorate.sqlite") as database:
        database.execute("DELETE FROM ledger WHERE sequence = (SELECT MAX(sequence) FROM ledger)")
    assert "not charged" in assert_fails(quorate("privacy", "verify", cwd=copied.directory), 1)


def test_a_published_version_names_a_row_of_the_ledger_and_a_ledger_without_it_is_found_out(copied):
    """Written anew so that the chain is whole: only who kept a head can tell."""
    (pulled,) = copied.registry.glob("targets/models/digits/1/manifest.json")
    kept = copied.directory / "manifest.json"
    kept.write_bytes(pulled.read_bytes())
    with sqlite3.connect(copied.directory / ".quorate" / "quorate.sqlite") as database:
        (row,) = database.execute("SELECT entry FROM ledger ORDER BY sequence DESC LIMIT 1").fetchone()
        content = json.loads(row)
        content["members"] = content["members"][1:]
        forged = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        database.execute(
            "UPDATE ledger SET entry = ? WHERE sequence = (SELECT MAX(sequence) FROM ledger)", [forged]
        )
    said = assert_fails(quorate("privacy", "verify", cwd=copied.directory), 1)
    assert "its last one when version 1 of 'digits' was published" in said
    copied.registry.rename(copied.directory / "elsewhere")
    told = assert_fails(quorate("privacy", "verify", "--manifest", "manifest.json", cwd=copied.directory), 1)
    assert "can't be looked at" in told
    assert "no row" in told


def test_a_budget_says_how_many_rounds_are_left(finished):
    done = quorate("privacy", "budget", "--json", cwd=finished.directory)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    if row["budget"] is not None:
        assert row["left"] == pytest.approx(row["budget"] - row["spent"])


def test_a_population_s_budget_says_what_its_runs_spent_together(copied):
    people = ["--set", "population.name=people", "--set", "population.delta=1e-3"]
    shared = quorate(
        "run", "plan.toml", *people, "--set", "population.epsilon=40", "--json", cwd=copied.directory
    )
    assert shared.returncode == 0, shared.stderr
    done = quorate("privacy", "budget", "--json", cwd=copied.directory)
    (row,) = json.loads(done.stdout)["populations"]
    assert (row["population"], row["runs"], row["budget"], row["delta"]) == ("people", 1, 40.0, 1e-3)
    assert 0 < row["spent"] == pytest.approx(40 - row["left"])
    raised = quorate(
        "run", "plan.toml", *people, "--set", "population.epsilon=80", "--json", cwd=copied.directory
    )
    assert "share a budget of 40" in assert_fails(raised, 1)


def test_calibration_is_a_table_whose_first_row_is_what_was_asked(tmp_path):
    options = ["--epsilon", 3, "--rounds", 30, "--cohort", 100, "--population", 300, "--dimension", 650]
    done = quorate("privacy", "calibrate", *map(str, options), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert (rows[0]["cohort"], rows[0]["rounds"], rows[0]["population"]) == (100, 30, 300)
    assert rows[0]["epsilon_released"] == pytest.approx(3, abs=2e-3)
    assert 1.3 < rows[0]["noise_multiplier"] < 1.6
    by_rounds = {
        row["rounds"]: row["noise_multiplier"]
        for row in rows
        if row["cohort"] == 100 and row["population"] == 300
    }
    assert [by_rounds[count] for count in sorted(by_rounds)] == sorted(by_rounds.values())


def test_what_can_not_be_had_is_refused_beside_what_can(tmp_path):
    options = ["--epsilon", 0.02, "--rounds", 500, "--cohort", 50, "--population", 1000]
    done = quorate("privacy", "calibrate", *map(str, options), "--plot", "noise.png", cwd=tmp_path)
    assert done.returncode == 2
    assert "which can't be had with 500 rounds of 50 among 1000 members" in done.stderr
    assert "accepted: 0.0363 or more, or one of the table's other rows" in done.stderr
    assert "population" in done.stdout  # the table is there all the same
    assert (
        len(done.stdout.splitlines()) == 5
    )  # what was asked for, the least ε, one other, and that it is drawn
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")


def test_a_plan_is_explained(finished):
    done = quorate("privacy", "explain", "plan.toml", cwd=finished.directory)
    assert done.returncode == 0, done.stderr
    assert "What the coordinator still learns" in done.stdout


@pytest.mark.slow
def test_what_an_example_spent_is_said_by_the_run_the_ledgers_command_and_the_explanation(empty):
    setting = (
        "training.dp_sgd={ clip_norm = 1.0, noise_multiplier = 1.0, sampling_rate = 0.5, budget = 50.0 }"
    )
    done = quorate("run", "plan.toml", "--set", setting, "--json", cwd=empty)
    assert done.returncode == 0, done.stderr
    spent = json.loads(done.stdout)["epsilon_example"]
    assert spent > 0
    told = quorate("privacy", "spent", "--json", cwd=empty)
    (row,) = json.loads(told.stdout)["rows"]
    assert row["epsilon_example"] == spent
    assert row["neighbouring_examples"] == "zero-out of one example of one client"
    (left,) = json.loads(quorate("privacy", "budget", "--json", cwd=empty).stdout)["rows"]
    assert (left["budget_example"], left["left_example"]) == (50.0, pytest.approx(50 - spent))
    explained = quorate("privacy", "explain", "plan.toml", "--set", setting, cwd=empty)
    assert "an example of any member has cost more than ε 50" in explained.stdout
    assert "zero-out of one example of one client" in explained.stdout
