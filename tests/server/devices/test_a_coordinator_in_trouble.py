"""A coordinator's machine fails it: its disk is full, its clock jumps. Its process is real, devices are threads."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from quorate.errors import IdentityRefused
from quorate.identity import Holder, Token
from quorate.identity.membership import utc_now
from quorate.identity.remote import RemoteAuthority
from quorate.privacy import Ledger
from quorate.server.site import Site
from quorate.server.store import opened
from quorate.wire import admin_pb2 as pb
from quorate.wire.admin_pb2_grpc import AdminServiceStub
from tests.clocks import DAY, HOUR, Clock
from tests.disks import disk
from tests.server.devices.device import Device, connected
from tests.server.devices.test_rounds import COUNT, NAMES, digits
from tests.test_hosting import plan
from tests.waiting import eventually

pytestmark = pytest.mark.slow

COMMAND = str(Path(sys.executable).with_name("quorate"))
ROUNDS = 40


@contextlib.contextmanager
def coordinator(
    folder: Path, log: Path, environment: Mapping[str, str] | None = None, secure: bool = False
) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """A process, and its ports."""
    where = [
        "--listen",
        "localhost:0",
        "--admin",
        "localhost:0",
        "--enrolment",
        "localhost:0",
        "--metrics",
        "",
    ]
    arguments = [*where, "--grace", "0"] if secure else [*where, "--grace", "0", "--insecure"]
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
        for _ in range(3 if secure else 2):
            name, _, port = process.stdout.readline().split()
            ports[name] = int(port)
        try:
            yield process, ports
        finally:
            process.kill()


@contextlib.contextmanager
def devices(port: int, holders: Sequence[Holder | None] = (None,) * COUNT) -> Iterator[None]:
    """All of them, in threads."""
    made = [Device(port, NAMES[i], digits().clients[i], holder=holder) for i, holder in enumerate(holders)]
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


def test_a_coordinator_whose_clock_jumps_goes_on_once_certificates_are_valid_again(tmp_path: Path) -> None:
    """By hours, in a run: nothing happens. By months: devices are refused, until the clock is right again."""
    clock, log, folder = Clock(tmp_path / "clock"), tmp_path / "log", tmp_path / "fl"
    site = Site.create(folder, ["localhost"], name="test")
    operator, holders = Holder(folder / "operator"), []
    assert site.authority is not None
    for i in range(COUNT):
        holders.append(Holder.create(tmp_path / f"device-{i}", site.root))
        token = site.authority.token(timedelta(hours=1)).text
        holders[-1].install(site.authority.enrol(token, holders[-1].request()).der, utc_now())
    unused = site.authority.token(timedelta(hours=1)).text
    site.close()
    signed = {"protocol": "secagg+", "min_survivors": 6, "threat_model": "semi-malicious"}
    with (
        coordinator(folder, log, clock.environment, secure=True) as (process, ports),
        devices(ports["devices"], holders),
        connected(ports["admin"], operator) as channel,
    ):
        service = AdminServiceStub(channel)
        run = service.StartRun(pb.StartRunRequest(plan=plan(rounds=6, secure_aggregation=signed))).run
        rounds = (event for event in events(service, run) if event.round)
        for by, event in zip((5 * HOUR, 0.0, 70 * DAY), rounds, strict=False):
            assert event.outcome == "committed"
            clock.jump(by)
        assert eventually(lambda: "expired at" in log.read_text(), 30.0)
        authority = RemoteAuthority(f"localhost:{ports['enrolment']}", site.root)
        with pytest.raises(IdentityRefused, match="the token expired"):
            authority.enrol(Holder.create(tmp_path / "late", site.root), Token.parse(unused), utc_now())
        assert process.poll() is None
        clock.jump(0.0)
        *_, last = events(service, run)
        assert last.status == "finished"
    with opened(folder / "state") as store:
        assert [past.status for past in store.rounds(run)].count("committed") == 6
        Ledger(store.ledger(run), delta=1e-5).verify()
