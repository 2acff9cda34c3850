import json
from pathlib import Path

import pytest

from quorate.identity import Holder, Token
from quorate.identity.membership import utc_now
from quorate.identity.remote import RemoteAuthority
from tests.cli.commands import assert_fails, quorate, started


@pytest.fixture
def made(tmp_path: Path) -> Path:
    done = quorate("coordinator", "init", "fl", "--host", "localhost", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_a_token_is_all_that_is_printed(made: Path) -> None:
    done = quorate("coordinator", "token", "fl", "--valid", "90m", "--note", "Ada's phone", cwd=made)
    assert done.returncode == 0
    assert done.stdout.startswith("quorate1.")
    assert len(done.stdout.splitlines()) == 1
    assert "good for one device until" in done.stderr
    assert "tokens  1 can be used now" in quorate("coordinator", "keys", "fl", cwd=made).stdout


@pytest.mark.parametrize("valid", ["90", "1w", "-1h", "h", "1.5h"])
def test_a_time_that_is_none_is_refused(made: Path, valid: str) -> None:
    message = assert_fails(quorate("coordinator", "token", "fl", f"--valid={valid}", cwd=made), 2)
    assert "such as 90m or 12h" in message


def test_keys_show_who_is_enrolled_and_who_is_revoked(made: Path) -> None:
    shown = quorate("coordinator", "keys", "fl", cwd=made).stdout
    (operator,) = [line.split()[0] for line in shown.splitlines() if " operator " in line]
    done = quorate("coordinator", "revoke", "fl", operator, "--reason", "laptop stolen", cwd=made)
    assert done.returncode == 0, done.stderr
    assert "revoked: laptop stolen" in quorate("coordinator", "keys", "fl", cwd=made).stdout


def test_what_cannot_be_done_is_refused_with_what_to_do(made: Path) -> None:
    again = quorate("coordinator", "init", "fl", "--host", "localhost", cwd=made)
    assert "not overwritten" in assert_fails(again, 1)
    nobody = quorate("coordinator", "revoke", "fl", "ada", "--reason", "x", cwd=made)
    assert "quorate coordinator keys" in assert_fails(nobody, 1)
    nowhere = quorate("coordinator", "token", "elsewhere", cwd=made)
    assert "quorate coordinator init" in assert_fails(nowhere, 1)


def test_an_independent_authority_is_set_up_by_commands_alone(tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = quorate(*arguments, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    run("authority", "init", "ca", "--host", "localhost")
    run(
        "coordinator", "init", "fl", "--host", "localhost", "--authority", "ca/root.pem",
        "--authority-at", "localhost:9444",
    )  # fmt: skip
    unconfirmed = run("authority", "admit", "ca", "fl/coordinator.csr", "--role", "coordinator", code=1)
    assert "asks for the names localhost; confirm each with --host" in unconfirmed
    run("authority", "admit", "ca", "fl/coordinator.csr", "--role", "coordinator", "--host", "localhost")
    run("authority", "admit", "ca", "fl/operator.csr", "--role", "operator")
    assert "valid until" in run("coordinator", "install", "fl", "fl/coordinator.crt", "fl/operator.crt")
    assert "independent" in run("coordinator", "token", "fl", code=1)
    assert run("authority", "token", "ca").startswith("quorate1.")


def test_an_authority_runs_apart_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    done = quorate("authority", "init", "ca", "--host", "localhost", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    token = Token.parse(quorate("authority", "token", "ca", cwd=tmp_path).stdout)
    command = ("authority", "run", "ca", "--listen", "localhost:0", "--coordinator", "fl.example.org:9443")
    with started(*command, cwd=tmp_path) as process:
        assert process.stderr is not None
        address = json.loads(process.stderr.readline())["address"]
        remote = RemoteAuthority.of_token(address, token)
        holder = Holder.create(tmp_path / "device", remote.root)
        assert remote.enrol(holder, token, utc_now()) == "fl.example.org:9443"
        assert "token" not in process.stderr.readline()
        process.terminate()
        assert process.wait(60) == 0
    assert holder.name in quorate("authority", "keys", "ca", cwd=tmp_path).stdout
