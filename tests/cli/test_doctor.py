"""`quorate doctor`."""

import json

from tests.cli.commands import quorate


def test_the_doctor_says_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("QUORATE_INTEROP_PYTHON", "/nowhere/python")
    found = json.loads(quorate("doctor", "--json", cwd=tmp_path).stdout)
    assert found["good"]
    assert found["base_problems"] == []
    assert found["extras"]["server"]["works"]
    assert found["cores"] >= 1
    assert set(found["ports"]) == {"8501", "9443", "9444", "9445"}


def test_what_is_missing_comes_with_the_command_that_mends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("QUORATE_INTEROP_PYTHON", "/nowhere/python")
    done = quorate("doctor", cwd=tmp_path)
    assert done.returncode == 0  # nothing that is installed is broken
    said = " ".join(done.stdout.split())
    assert "/nowhere/python, and there is no such file" in said
    assert "make interop" in said or "-m pip install --no-deps --require-hashes" in said
