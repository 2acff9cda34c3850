"""A whole coordinator: enrolment, mutual TLS, roles, revocation, and its runs over the admin service."""

from __future__ import annotations

import datetime
import threading
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import quorate as q
from quorate.coordination import Addresses, CoordinatorProcess
from quorate.errors import IdentityRefused, PlanError
from quorate.identity import Holder, Role, Root, Token
from quorate.identity.membership import utc_now
from quorate.identity.remote import RemoteAuthority
from quorate.planfile import make_plan
from quorate.rounds import Outcome
from quorate.server.issuing import Issuer, Validity
from quorate.server.site import Site
from quorate.wire import admin_pb2 as pb
from quorate.wire.admin_pb2_grpc import AdminServiceStub
from tests.server.devices.device import Conversation, Device, connected
from tests.server.devices.test_rounds import COUNT, digits
from tests.sockets import free_port
from tests.test_hosting import plan
from tests.waiting import eventually

LOCAL = Addresses("localhost:0", "localhost:0", "localhost:0", "localhost:0")
SIGNED = {"protocol": "secagg+", "min_survivors": 6, "threat_model": "semi-malicious"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site") / "fl"
    Site.create(made, ["localhost"], name="test").close()
    return made


@contextmanager
def running(folder: Path) -> Iterator[CoordinatorProcess]:
    with CoordinatorProcess(folder, LOCAL, grace_s=0.0) as process:
        yield process


@pytest.fixture
def process(folder: Path) -> Iterator[CoordinatorProcess]:
    with running(folder) as started:
        yield started


def operated(process: CoordinatorProcess, folder: Path) -> AdminServiceStub:
    return AdminServiceStub(connected(process.ports["admin"], Holder(folder / "operator")))


def enrolled(process: CoordinatorProcess, folder: Path, home: Path) -> Holder:
    """A device that was given a token, and enrolled with it."""
    token = operated(process, folder).IssueToken(pb.IssueTokenRequest(valid_s=60, note="test"))
    remote = RemoteAuthority.of_token(f"localhost:{process.ports['enrolment']}", Token.parse(token.token))
    holder = Holder.create(home, remote.root)
    service = remote.enrol(holder, Token.parse(token.token), utc_now())
    assert service == f"localhost:{process.ports['devices']}"
    return holder


def scraped(process: CoordinatorProcess) -> str:
    with urllib.request.urlopen(f"http://localhost:{process.ports['metrics']}/metrics") as answer:
        return str(answer.read().decode())


def test_devices_that_enrolled_learn_under_signed_secure_aggregation(
    process: CoordinatorProcess, folder: Path, tmp_path: Path
) -> None:
    holders = [enrolled(process, folder, tmp_path / f"device-{i}") for i in range(COUNT)]
    service = operated(process, folder)
    run = service.StartRun(pb.StartRunRequest(plan=plan(rounds=2, secure_aggregation=SIGNED))).run
    devices = [
        Device(process.ports["devices"], holder.name, digits().clients[i], holder=holder)
        for i, holder in enumerate(holders)
    ]
    for device in devices:
        threading.Thread(target=device.run, daemon=True).start()
    events = list(service.WatchRun(pb.RunRequest(run=run)))
    for device in devices:
        device.stopped = True
    assert events[-1].status == "finished"
    rounds = [event for event in events if event.round]
    assert [event.survivors for event in rounds if event.outcome == "committed"][-1] == COUNT
    shown = service.ShowRun(pb.RunRequest(run=run[:6]))
    assert (shown.status, shown.committed) == ("finished", 2)
    assert shown.epsilon_server == events[-2].epsilon_server > 0
    text = scraped(process)
    assert f'quorate_rounds_total{{outcome="committed",run="{run}"}} 2.0' in text
    assert f'quorate_epsilon{{against="server",run="{run}"}}' in text
    assert not any(holder.name in text for holder in holders)


def test_a_revoked_device_is_turned_away_and_its_live_stream_ends(
    process: CoordinatorProcess, folder: Path, tmp_path: Path
) -> None:
    holder = enrolled(process, folder, tmp_path / "device")
    service = operated(process, folder)
    run = service.StartRun(pb.StartRunRequest(plan=plan(rounds=7))).run
    with Conversation(process.ports["devices"], holder, device="") as stream:
        room = process.host.service.room
        assert eventually(lambda: room.waiting("softmax") == 1)
        service.Revoke(pb.RevokeRequest(device=holder.name, reason="lost"))
        with pytest.raises(grpc.RpcError) as ended:
            stream.read()
        assert ended.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with Conversation(process.ports["devices"], holder, device="") as stream:
        with pytest.raises(grpc.RpcError) as refused:
            stream.read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "revoked" in refused.value.details()
    service.StopRun(pb.RunRequest(run=run))


def test_a_device_that_is_revoked_in_a_round_is_out_of_it_and_the_round_goes_on(
    process: CoordinatorProcess, folder: Path, tmp_path: Path
) -> None:
    holders = [enrolled(process, folder, tmp_path / f"device-{i}") for i in range(COUNT)]
    service, thief = operated(process, folder), holders[0].name

    def revoked(count: int, frame: bytes) -> bytes:
        if count == 3:  # its masked vector is about to leave
            service.Revoke(pb.RevokeRequest(device=thief, reason="stolen"))
        return frame

    first = plan(rounds=1, secure_aggregation=SIGNED, training={"learning_rate": 0.3})
    run = service.StartRun(pb.StartRunRequest(plan=first)).run
    devices = [
        Device(process.ports["devices"], holder.name, digits().clients[i], holder=holder)
        for i, holder in enumerate(holders)
    ]
    devices[0].said = revoked
    for device in devices:
        threading.Thread(target=device.run, daemon=True).start()
    (round,) = (event for event in service.WatchRun(pb.RunRequest(run=run)) if event.round)
    for device in devices:
        device.stopped = True
    assert (round.outcome, round.survivors, dict(round.lost)) == ("committed", COUNT - 1, {"mask": 1})
    assert process.host.store.outcomes(run, 1)[thief] is Outcome.ABORTED


def test_the_log_says_which_device_was_refused(
    process: CoordinatorProcess, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the certificate that it showed: whatever it calls itself, and before it has said anything."""
    holder = enrolled(process, folder, tmp_path / "device")
    caplog.set_level("INFO", "quorate.server")

    def refused(keys: Holder, **check_in: object) -> Mapping[str, object]:
        caplog.clear()
        with Conversation(process.ports["devices"], keys, **check_in) as stream:
            stream.say(b"no check-in")
            with pytest.raises(grpc.RpcError):
                stream.read()
        (found,) = (vars(each) for each in caplog.records if each.getMessage() == "a stream was refused")
        return found

    assert refused(holder)["device"] == holder.name
    operator = Holder(folder / "operator")
    assert refused(operator, device="somebody else")["device"] == operator.name
    operated(process, folder).Revoke(pb.RevokeRequest(device=holder.name, reason="lost"))
    assert refused(holder, device="somebody else")["device"] == holder.name
    caplog.clear()
    with pytest.raises(IdentityRefused, match="revoked: lost"):
        RemoteAuthority(f"localhost:{process.ports['enrolment']}", holder.root).renew(holder, utc_now())
    (renewal,) = (vars(each) for each in caplog.records if "renewal" in each.getMessage())
    assert (renewal["device"], renewal["reason"]) == (holder.name, f"{holder.name} is revoked: lost")


def test_a_device_that_withdraws_is_in_no_round_from_then_on(
    process: CoordinatorProcess, folder: Path, tmp_path: Path
) -> None:
    """It was in the first round, it waits for the second, and it leaves by its own word."""
    holders = [enrolled(process, folder, tmp_path / f"device-{i}") for i in range(COUNT + 1)]
    leaver, store = holders[0], process.host.store
    service = operated(process, folder)
    run = service.StartRun(pb.StartRunRequest(plan=plan(rounds=9, secure_aggregation=SIGNED))).run
    devices = [
        Device(process.ports["devices"], holder.name, digits().clients[i % COUNT], holder=holder)
        for i, holder in enumerate(holders)
    ]
    threads = [threading.Thread(target=device.run, daemon=True) for device in devices]
    for thread in threads[:COUNT]:
        thread.start()
    assert eventually(lambda: store.run(run).committed >= 1)
    assert leaver.name in store.outcomes(run, 1)
    RemoteAuthority(f"localhost:{process.ports['enrolment']}", leaver.root).withdraw(leaver)
    last = len(store.rounds(run))
    with Conversation(process.ports["devices"], leaver, device="") as stream:
        with pytest.raises(grpc.RpcError) as refused:
            stream.read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    threads[COUNT].start()  # so that there are enough again
    done = store.run(run).committed
    assert eventually(lambda: store.run(run).committed >= done + 2)
    service.StopRun(pb.RunRequest(run=run))
    for device in devices:
        device.stopped = True
    later = [past.number for past in store.rounds(run) if past.number > last and past.status == "committed"]
    assert later
    # A draw may have been under way.
    assert store.outcomes(run, last + 1).get(leaver.name) is not Outcome.COMMITTED
    for number in later:
        assert number == last + 1 or leaver.name not in store.outcomes(run, number)


def test_a_revocation_by_another_process_ends_a_live_stream(
    process: CoordinatorProcess, folder: Path, tmp_path: Path
) -> None:
    holder = enrolled(process, folder, tmp_path / "device")
    service = operated(process, folder)
    run = service.StartRun(pb.StartRunRequest(plan=plan(rounds=8))).run
    with Conversation(process.ports["devices"], holder, device="") as stream:
        assert eventually(lambda: process.host.service.room.waiting("softmax") == 1)
        other = Site(folder)
        assert other.authority is not None
        other.authority.revoke(holder.name, "stolen")
        other.close()
        with pytest.raises(grpc.RpcError):
            stream.read()
    service.StopRun(pb.RunRequest(run=run))


def test_a_device_can_not_operate_and_an_operator_is_no_device(
    process: CoordinatorProcess, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder = enrolled(process, folder, tmp_path / "device")
    stub = AdminServiceStub(connected(process.ports["admin"], holder))
    with pytest.raises(grpc.RpcError) as refused:
        stub.ListRuns(pb.ListRunsRequest())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    (logged,) = (vars(each) for each in caplog.records if each.getMessage() == "who asks is no operator")
    assert holder.name in logged["reason"]
    with Conversation(process.ports["devices"], Holder(folder / "operator"), device="") as stream:
        with pytest.raises(grpc.RpcError) as turned:
            stream.read()
        assert turned.value.code() is grpc.StatusCode.PERMISSION_DENIED


def impostor(folder: Path, home: Path, validity: Validity, own_root: bool) -> Holder:
    """Keys with a certificate of another authority, or of the right one but made behind its back."""
    root = Root.load(folder / "coordinator" / "root.pem")
    when = utc_now() - datetime.timedelta(days=2)
    if own_root:
        issuer = Issuer.load((folder / "authority" / "root-key.pem").read_bytes(), root, validity)
    else:
        issuer = Issuer.create("test", when, validity)
    from quorate.identity import read_request

    holder = Holder.create(home, issuer.root)
    certificate = issuer.issue(read_request(holder.request()), Role.DEVICE, when)
    holder.install(certificate.der, when)
    if not own_root:
        (home / "root.pem").write_bytes(root.pem)
        holder.root = root
    return holder


@pytest.mark.parametrize(
    ("own_root", "days", "code"),
    [
        (False, 7, grpc.StatusCode.UNAVAILABLE),  # TLS refuses what another authority signed
        (True, 1, grpc.StatusCode.UNAVAILABLE),  # and what has expired
        (True, 7, grpc.StatusCode.PERMISSION_DENIED),  # the roll refuses what is not in the log
    ],
)
def test_a_forged_an_expired_and_an_unlogged_certificate_are_refused(
    process: CoordinatorProcess,
    folder: Path,
    tmp_path: Path,
    own_root: bool,
    days: int,
    code: grpc.StatusCode,
) -> None:
    validity = Validity(device=datetime.timedelta(days=days))
    holder = impostor(folder, tmp_path / "device", validity, own_root)
    with (
        Conversation(process.ports["devices"], holder, device="x") as stream,
        pytest.raises(grpc.RpcError) as refused,
    ):
        stream.read()
    assert refused.value.code() is code
    assert "quorate_devices" in scraped(process)


def test_without_tls_nobody_is_heard(process: CoordinatorProcess) -> None:
    with (
        Conversation(process.ports["devices"], device="d1") as stream,
        pytest.raises(grpc.RpcError) as refused,
    ):
        stream.read()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
def test_a_coordinator_keeps_its_state_in_postgresql_when_it_is_told_to(tmp_path: Path, postgresql) -> None:
    database = postgresql.fresh()
    for again in (False, True):
        with CoordinatorProcess(tmp_path, LOCAL, insecure=True, database=database, grace_s=0.0) as process:
            assert len(process.host.states()) == (1 if again else 0)
            if not again:
                process.host.start(plan())
    assert not (tmp_path / "state" / "quorate.sqlite").exists()


def test_an_insecure_coordinator_listens_on_this_machine_only(tmp_path: Path) -> None:
    for addresses in (Addresses(devices=":9443"), Addresses("localhost:0", admin="0.0.0.0:0")):
        with pytest.raises(PlanError, match="accepted without TLS: localhost:PORT"):
            CoordinatorProcess(tmp_path, addresses, insecure=True)


@pytest.mark.parametrize("secure", [False, True])
def test_in_python_real_devices_are_one_line(folder: Path, tmp_path: Path, secure: bool) -> None:
    """The plan of a simulation, on devices: with a coordinator's folder, or insecure on this machine."""
    port, holders = free_port(), [None] * COUNT
    if secure:
        with running(folder) as process:
            holders = [enrolled(process, folder, tmp_path / f"device-{i}") for i in range(COUNT)]
    wanted = make_plan(tomllib.loads(plan(rounds=2, training={"learning_rate": 0.4})))
    fleet = (
        q.Devices(f"localhost:{port}", COUNT, folder=str(folder), enrolment="localhost:0")
        if secure
        else q.Devices(f"localhost:{port}", COUNT, insecure=True)
    )
    devices = [Device(port, f"d{i}", digits().clients[i], holder=holder) for i, holder in enumerate(holders)]
    for device in devices:
        threading.Thread(target=device.run, daemon=True).start()
    found = q.run(wanted, fleet=fleet, watch=lambda report: None)
    for device in devices:
        device.stopped = True
    assert [round.survivors for round in found.committed] == [COUNT, COUNT]


def test_devices_without_a_folder_are_refused_unless_they_are_insecure_and_local() -> None:
    with pytest.raises(PlanError, match="accepted: a coordinator's folder"):
        q.Devices(":9443", 8)
    with pytest.raises(PlanError, match="localhost:PORT"):
        q.Devices(":9443", 8, insecure=True)
