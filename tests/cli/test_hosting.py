"""`quorate coordinator run` and `quorate runs` as commands: started, operated, killed, and started again."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from quorate.server.store import Round, opened
from tests.cli.commands import COMMAND, assert_fails, environment, quorate
from tests.server.devices.device import Device
from tests.server.devices.test_rounds import COUNT, NAMES, digits
from tests.sockets import free_port
from tests.test_hosting import plan
from tests.waiting import eventually

pytestmark = pytest.mark.slow


@contextmanager
def running(directory: Path, port: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, until the block is left, or it was killed within."""
    command = [
        COMMAND, "coordinator", "run", "fl", "--insecure", "--listen", f"localhost:{port}",
        "--admin", "localhost:0", "--metrics", "localhost:0", "--grace", "0", *options,
    ]  # fmt: skip
    with (directory / "log.jsonl").open("a") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=environment(), stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:  # it is up when it has said where
                if line.startswith("metrics"):
                    break
            yield process
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def devices(port: int) -> Iterator[None]:
    started = [Device(port, name, digits().clients[i]) for i, name in enumerate(NAMES)]
    threads = [threading.Thread(target=device.run, daemon=True) for device in started]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for device in started:
            device.stopped = True


def rounds(directory: Path) -> list[Round]:
    with contextlib.suppress(Exception), opened(directory / "fl" / "state") as store:
        (run,) = store.runs()
        return store.rounds(run.id)
    return []


def more_rounds(directory: Path, than: int) -> bool:
    return len(rounds(directory)) > than


def test_an_operator_starts_watches_pauses_and_stops_a_run(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(plan(rounds=500))
    port = free_port()
    with running(tmp_path, port) as process, devices(port):
        started = quorate("runs", "start", "plan.toml", "--at", "fl", cwd=tmp_path)
        assert started.returncode == 0, started.stderr
        run = started.stdout.split()[1]
        again = quorate("runs", "start", "plan.toml", "--at", "fl", cwd=tmp_path)
        assert "already" in assert_fails(again, 1)
        assert eventually(lambda: len(rounds(tmp_path)) > 2, 30)
        assert run in quorate("runs", "list", "--at", "fl", cwd=tmp_path).stdout
        assert ": paused" in quorate("runs", "pause", run[:6], "--at", "fl", cwd=tmp_path).stdout
        shown = quorate("runs", "show", run[:6], "--at", "fl", cwd=tmp_path).stdout
        assert f"run      {run} (softmax): paused" in shown
        assert f"a round needs {COUNT}" in shown
        watching = subprocess.Popen(
            [COMMAND, "runs", "watch", run, "--at", "fl"],
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("paused")
        resumed = quorate("runs", "resume", run, "--at", "fl", cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        lines = [watching.stdout.readline() for _ in range(3)]
        assert any("committed" in line and f"of {COUNT}" in line for line in lines), lines
        stopped = quorate("runs", "stop", run, "--at", "fl", cwd=tmp_path)
        assert ": stopped" in stopped.stdout
        assert "spent    ε" in stopped.stdout
        assert watching.wait(20) == 0
        nobody = quorate("runs", "show", "nobody", "--at", "fl", cwd=tmp_path)
        assert "no run with an id" in assert_fails(nobody, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    gone = quorate("runs", "list", "--at", "fl", cwd=tmp_path)
    assert "quorate coordinator run fl" in assert_fails(gone, 1)
    assert all(round.status != "open" for round in rounds(tmp_path))


def test_a_coordinator_that_is_killed_aborts_its_round_and_goes_on(tmp_path: Path) -> None:
    wanted = 12
    (tmp_path / "plan.toml").write_text(plan(rounds=wanted))
    port = free_port()
    before: list[Round] = []
    with devices(port):
        for attempt in range(4):
            options = ["--plan", "plan.toml"] if attempt == 0 else []
            with running(tmp_path, port, *options) as process:
                count = len(before)
                assert eventually(partial(more_rounds, tmp_path, count + 1), 60)
                assert eventually(lambda: rounds(tmp_path)[-1].status == "open", 30)
                time.sleep(0.03 * attempt)  # in another phase each time
                process.kill()
                process.wait(60)
            after = rounds(tmp_path)
            committed = [round for round in before if round.status == "committed"]
            assert [r for r in after if r.number in {c.number for c in committed}] == committed
            before = after
        with running(tmp_path, port):
            assert eventually(lambda: sum(r.status == "committed" for r in rounds(tmp_path)) == wanted, 60)
            with opened(tmp_path / "fl" / "state") as store:
                assert eventually(lambda: store.runs()[0].status == "finished")
                (run,) = store.runs()
                rows = [json.loads(row) for row in store.ledger(run.id).entries()]
    found = rounds(tmp_path)
    assert [round.number for round in found] == list(range(1, len(found) + 1))
    killed = [r for r in found if r.reason == "the coordinator was stopped in this round"]
    assert killed
    reserved = {row["round"] for row in rows if row["kind"] == "reserve"}
    refunded = {row["round"] for row in rows if row["kind"] == "refund"}
    assert reserved >= {r.number for r in found if r.status == "committed" or r.revealing}
    assert not refunded & {r.number for r in found if r.status == "committed" or r.revealing}
    assert reserved - refunded == {r.number for r in found if r.status == "committed" or r.revealing}
