"""`quorate demo`: the whole main job, and nothing but a demo's own directory is ever removed."""

import json
import resource
import urllib.error
import urllib.request

import pytest

from tests.cli.commands import assert_fails, quorate, quorate_process, rows, started, wait_until


def processor_s() -> float:
    """What all processes that have ended used: how long a demo takes, on a machine that has nothing else to do."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_demo_does_the_whole_job_and_says_so_in_one_json_object(tmp_path):
    before = processor_s()
    done = quorate_process("demo", "--json", cwd=tmp_path, timeout_s=280)
    assert done.returncode == 0, done.stderr
    assert processor_s() - before < 60
    found = json.loads(done.stdout)
    assert set(found) == {
        "accuracy", "epsilon_released", "epsilon_server", "delta", "rounds", "dropouts", "version", "url",
        "predictions_agree", "seconds",
    }  # fmt: skip
    assert found["accuracy"] >= 0.90
    assert 0 < found["epsilon_released"] <= 5
    assert found["epsilon_server"] > found["epsilon_released"]
    assert 0 < found["delta"] <= 300**-1.1
    assert found["rounds"] == 30
    assert found["dropouts"] > 0
    assert found["version"] == 1
    assert found["predictions_agree"] is True
    seconds = found["seconds"]
    assert set(seconds) == {"setup", "rounds", "publish", "serve", "pull", "predict", "total"}
    assert all(value > 0 for value in seconds.values())
    # the artefacts are there, and good; the endpoint is not there any more
    directory = tmp_path / "quorate-demo"
    assert rows(directory / "state", "SELECT COUNT(*) FROM rounds WHERE status = 'committed'") == [(30,)]
    assert rows(directory / "state", "SELECT MIN(revealing) FROM rounds WHERE status = 'committed'") == [(1,)]
    checked = quorate("models", "verify", directory / "registry", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    assert found["url"].startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(found["url"], timeout=5)


@pytest.mark.slow
def test_the_demo_tells_a_person_what_happened_and_what_to_type_next(tmp_path):
    done = quorate_process("demo", cwd=tmp_path, timeout_s=280)
    assert done.returncode == 0, done.stderr
    for expected in (
        "30 rounds committed", "accuracy 0.9", "ε released", "ε server", "the same predictions",
        "the server saw", "it did not see", "next",
    ):  # fmt: skip
        assert expected in done.stdout
    assert "round 30/30" in done.stderr
    assert "survivors" in done.stderr
    following = [line.strip() for line in done.stdout.splitlines() if "quorate models list" in line]
    (listed,) = following
    assert quorate(*listed.split()[1:], cwd=tmp_path).returncode == 0


def test_a_demo_starts_afresh(tmp_path):
    directory = tmp_path / "quorate-demo"
    mark, state = directory / ".quorate-demo", directory / "state"
    with started("demo", "--json", cwd=tmp_path) as process:
        wait_until(lambda: rows(state, "SELECT id FROM runs"), process)
        second = quorate("demo", "--json", cwd=tmp_path)
        assert "in use by another process" in assert_fails(second, code=1)
    first, made = rows(state, "SELECT id FROM runs"), mark.stat().st_mtime_ns
    (directory / "left-over").touch()
    with started("demo", "--json", cwd=tmp_path) as process:
        # only then look at the state: reading it would put files where the demo removes some
        wait_until(lambda: mark.exists() and mark.stat().st_mtime_ns > made, process)
        wait_until(lambda: rows(state, "SELECT id FROM runs"), process)
    assert rows(state, "SELECT id FROM runs") != first
    assert not (directory / "left-over").exists()


def test_a_demo_leaves_a_directory_alone_that_is_not_its_own(tmp_path):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "holiday.jpg").write_bytes(b"irreplaceable")
    message = assert_fails(quorate("demo", "--directory", mine, cwd=tmp_path), code=1)
    assert "photos is not empty and no demo made it" in message
    assert [file.name for file in mine.iterdir()] == ["holiday.jpg"]
