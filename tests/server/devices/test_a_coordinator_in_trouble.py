"""A coordinator's machine fails it: its disk is full. `quorate coordinator run` as a process, devices over sockets."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from quorate.privacy import Ledger
from quorate.server.store import opened
from quorate.wire import admin_pb2 as pb
from quorate.wire.admin_pb2_grpc import AdminServiceStub
from tests.disks import disk
from tests.server.devices.device import Device, connected
from tests.server.devices.test_rounds import NAMES, digits
from tests.test_hosting import plan

pytestmark = pytest.mark.slow

COMMAND = str(Path(sys.executable).with_name("quorate"))
ROUNDS = 40


@contextlib.contextmanager
def coordinator(
    folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """A process, and its ports."""
    arguments = [
        "--insecure",
        "--listen",
        "localhost:0",
        "--admin",
        "localhost:0",
        "--metrics",
        "",
        "--grace",
        "0",
    ]
    with log.open("a") as written:
        process = subprocess.Popen(
            [COMMAND, "coordinator", "run", str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            env=environment,
        )
    assert process.stdout is not None
    with process:
        ports = {}
        for _ in range(2):
            name, _, port = process.stdout.readline().split()
            ports[name] = int(port)
        try:
            yield process, ports
        finally:
            process.kill()


@contextlib.contextmanager
def devices(port: int) -> Iterator[None]:
    """All of them, in threads."""
    made = [Device(port, name, digits().clients[i]) for i, name in enumerate(NAMES)]
    threads = [threading.Thread(target=device.run, daemon=True) for device in made]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for device in made:
            device.stopped = True


def events(service: AdminServiceStub, run: str) -> Iterator[pb.RunEvent]:
    """What happens in a run."""
    return iter(service.WatchRun(pb.RunRequest(run=run), timeout=120))


def test_a_run_whose_disk_is_full_fails_in_good_order_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with disk(tmp_path / "fl", 8) as full:
        with (
            coordinator(full.path, log) as (process, ports),
            devices(ports["devices"]),
            connected(ports["admin"]) as channel,
        ):
            service = AdminServiceStub(channel)
            run = service.StartRun(pb.StartRunRequest(plan=plan(rounds=ROUNDS))).run
            watched = events(service, run)
            next(event for event in watched if event.outcome == "committed")
            full.fill()
            *_, last = watched
            assert last.status == "failed"
            assert "database or disk is full" in last.reason
            with opened(full.path / "state") as store:
                before = {r.number: r for r in store.rounds(run) if r.status == "committed"}
            assert 1 <= len(before) < ROUNDS
            assert process.poll() is None
            full.free()
            service.ResumeRun(pb.RunRequest(run=run))
            *_, last = events(service, run)
            assert last.status == "finished"
        with opened(full.path / "state") as store:
            after = store.rounds(run)
            assert [r.number for r in after] == list(range(1, len(after) + 1))
            committed = {r.number: r for r in after if r.status == "committed"}
            assert len(committed) == ROUNDS
            assert {number: committed[number] for number in before} == before
            assert {r.status for r in after} <= {"committed", "aborted"}
            ledger = Ledger(store.ledger(run), delta=1e-5)
            ledger.verify()
            assert set(ledger.charged_rounds) >= set(committed)
        assert "database or disk is full" in log.read_text()
