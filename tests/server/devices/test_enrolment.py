"""Enrolment over real sockets with TLS."""

import datetime
import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from quorate.clients.agent.channels import Enrolled, keys_in
from quorate.clients.agent.enrolment import enrol
from quorate.errors import IdentityRefused, Unreachable
from quorate.identity import Certificate, Holder, Log, Role, Token
from quorate.identity.logfile import KeptLog
from quorate.identity.membership import utc_now
from quorate.identity.remote import RemoteAuthority
from quorate.server.authority import Authority
from quorate.server.devices.authority_server import AuthorityServer
from quorate.server.devices.enrolment import CertifiedDoor, certified
from quorate.server.devices.server import Listener, Servers
from quorate.server.devices.service import DeviceRefused
from quorate.server.devices.tls import server_credentials
from quorate.server.keeping import Keeper
from quorate.server.roll import Roll
from quorate.server.site import Site, read_request_file
from tests.clients.agent.proxy import Proxy
from tests.disks import disk
from tests.waiting import eventually

HOUR = datetime.timedelta(hours=1)


@contextmanager
def listening(folder: Path) -> Iterator[tuple[Authority, str]]:
    """An authority, and its address."""
    authority = Authority.create(folder, "Test")
    AuthorityServer.admit(authority, ["localhost"], utc_now())
    with AuthorityServer(authority, "localhost:0", "fl.example.org:9443").servers as servers:
        yield authority, f"localhost:{servers.ports[0]}"
    authority.close()


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[tuple[Authority, str]]:
    with listening(tmp_path / "authority") as made:
        yield made


def enrolled(folder: Path, authority: Authority, address: str) -> Holder:
    token = Token.parse(authority.token(HOUR).text)
    remote = RemoteAuthority.of_token(address, token)
    holder = Holder.create(folder, remote.root)
    assert remote.enrol(holder, token, utc_now()) == "fl.example.org:9443"
    return holder


def test_a_token_and_an_address_are_all_that_a_device_needs(ours, tmp_path: Path) -> None:
    authority, address = ours
    holder = enrolled(tmp_path / "device", authority, address)
    assert authority.roll.check(holder.certificate, Role.DEVICE).name == holder.name


def test_a_server_in_the_authoritys_place_is_not_shown_the_token(ours, tmp_path: Path) -> None:
    authority, _ = ours
    token = Token.parse(authority.token(HOUR).text)
    with (
        listening(tmp_path / "other") as (_, elsewhere),
        pytest.raises(IdentityRefused, match="another authority than the one that made the token"),
    ):
        RemoteAuthority.of_token(elsewhere, token)


def test_a_server_that_only_shows_the_right_root_is_not_trusted(ours, tmp_path: Path) -> None:
    """It copied the root, and has no certificate under it: the connection on which the token would go fails."""
    authority, _ = ours
    with listening(tmp_path / "other") as (other, elsewhere):
        shown = other.root
        other.root = authority.root  # what it answers to who asks for the root
        token = Token.parse(authority.token(HOUR).text)
        remote = RemoteAuthority.of_token(elsewhere, token)
        holder = Holder.create(tmp_path / "device", remote.root)
        with pytest.raises(Unreachable):
            remote.enrol(holder, token, utc_now())
        other.root = shown


def test_a_refusal_says_why(ours, tmp_path: Path) -> None:
    authority, address = ours
    token = Token.parse(authority.token(HOUR).text)
    remote = RemoteAuthority(address, authority.root)
    remote.enrol(Holder.create(tmp_path / "first", authority.root), token, utc_now())
    with pytest.raises(IdentityRefused, match="the token was used already"):
        remote.enrol(Holder.create(tmp_path / "second", authority.root), token, utc_now())


def test_an_enrolment_whose_reply_is_lost_is_made_again(ours, tmp_path: Path, monkeypatch) -> None:
    """The connection breaks when the authority has written everything down, and before it answers."""
    authority, address = ours
    text, directory = authority.token(HOUR).text, tmp_path / "agent"
    with Proxy(int(address.rpartition(":")[2])) as proxy:

        def enrols(token: str, request: bytes) -> Certificate:
            made = Authority.enrol(authority, token, request)
            proxy.cut()
            return made

        monkeypatch.setattr(authority, "enrol", enrols)
        with pytest.raises(Unreachable):
            enrol(directory, f"localhost:{proxy.port}", text)
        monkeypatch.undo()
        (party,) = [party for party in authority.parties() if party.role is Role.DEVICE]
        proxy.heal()
        enrolled = enrol(directory, f"localhost:{proxy.port}", text)
    assert enrolled.device == party.name
    assert authority.roll.check(Holder(keys_in(directory)).certificate, Role.DEVICE).name == party.name


def test_an_authority_that_is_away_is_unreachable(ours, tmp_path: Path) -> None:
    authority, address = ours
    holder = enrolled(tmp_path / "device", authority, address)
    gone = RemoteAuthority("localhost:1", authority.root, timeout_s=5)
    with pytest.raises(Unreachable):
        gone.renew(holder, utc_now())
    with pytest.raises(Unreachable):
        RemoteAuthority.of_token("localhost:1", Token.draw(bytes(32)), timeout_s=5)
    assert Holder(holder.folder).certificate == holder.certificate


def test_an_agent_renews_its_certificate_by_itself_before_it_expires_and_after(tmp_path: Path) -> None:
    """A week is its life, and two thirds of it are over after 4.7 days; while the authority is away it uses it up."""
    directory, began, days = tmp_path / "agent", utc_now(), 0.0

    def clock() -> datetime.datetime:
        return began + datetime.timedelta(days=days)

    def shown() -> bytes:
        agent.prepare()
        return Holder(keys_in(directory)).certificate

    with listening(tmp_path / "authority") as (authority, address):
        authority._clock = clock
        enrol(directory, address, authority.token(HOUR).text)
        agent = Enrolled(directory, "fl.example.org:9443", address, clock)
        first = shown()
        days = 4.5
        assert shown() == first
        days = 5.0
        second = shown()
        assert second != first
        days = 40.0  # it was off for a month
        third = shown()
        assert Certificate.read(third).expires > clock()
    days = 45.5  # it is due, and nobody answers
    assert shown() == third
    days = 50.0
    with pytest.raises(IdentityRefused, match="expired"):
        agent.prepare()


def test_an_authority_whose_disk_is_full_enrols_nobody_until_there_is_room(tmp_path: Path, caplog) -> None:
    with disk(tmp_path / "small", 4) as full, listening(full.path / "authority") as (authority, address):
        token = Token.parse(authority.token(HOUR).text)
        remote = RemoteAuthority(address, authority.root)
        holder = Holder.create(tmp_path / "device", authority.root)
        full.fill()
        with pytest.raises(Unreachable, match="can't answer now"):
            remote.enrol(holder, token, utc_now())
        assert "the authority's records can't be used" in caplog.text
        assert authority.open_tokens() == 1
        full.free()
        remote.enrol(holder, token, utc_now())
        assert authority.roll.check(holder.certificate, Role.DEVICE).name == holder.name


def test_a_device_renews_and_leaves(ours, tmp_path: Path) -> None:
    authority, address = ours
    holder = enrolled(tmp_path / "device", authority, address)
    remote, before = RemoteAuthority(address, authority.root), holder.certificate
    remote.renew(holder, utc_now())
    assert holder.certificate != before
    remote.withdraw(holder)
    assert authority.roll.is_revoked(holder.name)
    with pytest.raises(IdentityRefused, match="revoked: withdrawn"):
        remote.renew(holder, utc_now())


def test_a_device_follows_the_log_from_where_it_was(ours, tmp_path: Path) -> None:
    authority, address = ours
    first = enrolled(tmp_path / "first", authority, address)
    remote = RemoteAuthority(address, authority.root)
    kept = KeptLog(authority.root, tmp_path / "log")
    assert len(remote.follow(kept)) == 2  # the authority's own server is the first
    second = enrolled(tmp_path / "second", authority, address)
    authority.revoke(first.name, "lost")
    kept = KeptLog(authority.root, tmp_path / "log")
    assert kept.size == 2
    assert len(remote.follow(kept)) == 2
    assert kept.names(Role.DEVICE) == [second.name]
    assert remote.follow(kept) == []


def test_a_long_log_comes_in_pages(ours, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority, address = ours
    monkeypatch.setattr("quorate.server.devices.enrolment._PAGE", 2)
    for number in range(5):
        enrolled(tmp_path / str(number), authority, address)
    log = Log(authority.root)
    RemoteAuthority(address, authority.root).follow(log)
    assert log.size == 6


def test_a_fork_of_the_log_is_refused_by_who_has_seen_more(ours, tmp_path: Path) -> None:
    authority, address = ours
    shutil.copytree(authority.folder, tmp_path / "copy")
    kept = KeptLog(authority.root, tmp_path / "log")
    enrolled(tmp_path / "device", authority, address)
    RemoteAuthority(address, authority.root).follow(kept)
    fork = Authority(
        tmp_path / "copy"
    )  # the authority's records as they were, and another history from there
    with AuthorityServer(fork, "localhost:0", "").servers as servers:
        remote = RemoteAuthority(f"localhost:{servers.ports[0]}", authority.root)
        with pytest.raises(IdentityRefused, match="does not hold the 2 that are known"):
            remote.follow(kept)
        enrolled_at = Holder.create(tmp_path / "elsewhere", fork.root)
        fork.enrol(fork.token(HOUR).text, enrolled_at.request())
        with pytest.raises(IdentityRefused, match="rewritten or forked"):
            remote.follow(kept)
    fork.close()


# --- mutual TLS, as the device service and the admin API have it


class Greeter:
    """Says whom it takes its caller for."""

    def __init__(self, roll: Roll, role: Role):
        self._roll, self._role, self._door = roll, role, CertifiedDoor(roll)

    async def greet(self, _request: bytes, context) -> bytes:
        try:
            if self._role is Role.DEVICE:
                return self._door.device(context, "somebody else").encode()
            return certified(context, self._roll, self._role).encode()
        except DeviceRefused as refused:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(refused))


@contextmanager
def greeting(authority: Authority, holder: Holder, role: Role) -> Iterator[int]:
    handler = grpc.unary_unary_rpc_method_handler(Greeter(authority.roll, role).greet)
    listener = Listener(
        "localhost:0", {"test.Greeter": {"Greet": handler}}, server_credentials(holder, mutual=True)
    )
    with Servers([listener]) as servers:
        yield servers.ports[0]


def greet(port: int, root_pem: bytes, pair: tuple[bytes, bytes] | None) -> str:
    key, chain = pair or (None, None)
    credentials = grpc.ssl_channel_credentials(root_pem, key, chain)
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        return channel.unary_unary("/test.Greeter/Greet")(b"", timeout=20).decode()


@pytest.fixture
def server(ours, tmp_path: Path) -> Holder:
    authority, _ = ours
    holder = Holder.create(tmp_path / "server", authority.root)
    holder.install(
        authority.admit(holder.request(["localhost"]), Role.COORDINATOR, ["localhost"]).der,
        utc_now(),
        Role.COORDINATOR,
    )
    return holder


def test_a_device_is_who_its_certificate_says(ours, server: Holder, tmp_path: Path) -> None:
    authority, address = ours
    holder = enrolled(tmp_path / "device", authority, address)
    with greeting(authority, server, Role.DEVICE) as port:
        assert greet(port, holder.root.pem, holder.tls_pair) == holder.name


def test_without_a_certificate_of_this_authority_nobody_is_let_in(
    ours, server: Holder, tmp_path: Path
) -> None:
    authority, _ = ours
    other = Authority.create(tmp_path / "other", "Test")
    stranger = Holder.create(tmp_path / "stranger", other.root)
    stranger.install(other.enrol(other.token(HOUR).text, stranger.request()).der, utc_now())
    other.close()
    with greeting(authority, server, Role.DEVICE) as port:
        for pair in (None, stranger.tls_pair):
            with pytest.raises(grpc.RpcError) as error:
                greet(port, authority.root.pem, pair)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE  # TLS itself refused


def test_an_expired_certificate_is_refused_by_tls(ours, server: Holder, tmp_path: Path) -> None:
    authority, address = ours
    holder = enrolled(tmp_path / "device", authority, address)
    month_ago = utc_now() - datetime.timedelta(days=30)
    past = Authority(authority.folder, clock=lambda: month_ago)
    holder.install(past.renew(holder.request()).der, month_ago)
    past.close()
    with greeting(authority, server, Role.DEVICE) as port, pytest.raises(grpc.RpcError) as error:
        greet(port, holder.root.pem, holder.tls_pair)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_revoked_device_is_let_in_nowhere(ours, server: Holder, tmp_path: Path) -> None:
    authority, address = ours
    holder = enrolled(tmp_path / "device", authority, address)
    authority.revoke(holder.name, "stolen")
    with greeting(authority, server, Role.DEVICE) as port, pytest.raises(grpc.RpcError) as error:
        greet(port, holder.root.pem, holder.tls_pair)
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert f"{holder.name} is revoked" in error.value.details()


def test_a_device_is_not_let_into_the_operators_door(ours, server: Holder, tmp_path: Path) -> None:
    authority, address = ours
    holder = enrolled(tmp_path / "device", authority, address)
    with greeting(authority, server, Role.OPERATOR) as port, pytest.raises(grpc.RpcError) as error:
        greet(port, holder.root.pem, holder.tls_pair)
    assert "as device, not as operator" in error.value.details()


def test_a_device_cannot_pass_for_a_server(ours, tmp_path: Path) -> None:
    authority, address = ours
    holder = enrolled(tmp_path / "device", authority, address)
    with greeting(authority, holder, Role.DEVICE) as port, pytest.raises(grpc.RpcError) as error:
        greet(port, holder.root.pem, holder.tls_pair)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_renewed_server_certificate_is_shown_without_a_restart(
    ours, server: Holder, tmp_path: Path
) -> None:
    authority, address = ours
    holder = enrolled(tmp_path / "device", authority, address)
    with greeting(authority, server, Role.DEVICE) as port:
        before = ssl.get_server_certificate(("localhost", port))
        server.install(authority.renew(server.request()).der, utc_now(), Role.COORDINATOR)
        assert greet(port, holder.root.pem, holder.tls_pair) == holder.name
        assert ssl.get_server_certificate(("localhost", port)) != before


# --- a coordinator that keeps up


def test_a_coordinator_hears_of_a_revocation_by_its_own_authority(tmp_path: Path) -> None:
    site = Site.create(tmp_path / "site", ["localhost"], name="Test")
    elsewhere = Authority(site.folder / "authority")  # as the command has it
    holder = Holder.create(tmp_path / "device", site.root)
    elsewhere.enrol(elsewhere.token(HOUR).text, holder.request())
    with Keeper(site, every_s=0.05) as keeper:
        revoked = threading.Event()
        keeper.roll.on_revoked(lambda name, reason: revoked.set())
        elsewhere.revoke(holder.name, "stolen")
        assert revoked.wait(30)
        assert keeper.roll.is_revoked(holder.name)
    elsewhere.close()
    site.close()


def test_a_coordinator_follows_an_independent_authority(ours, tmp_path: Path) -> None:
    authority, address = ours
    site = Site.create(
        tmp_path / "site", ["localhost"], name="", root=authority.root, authority_address=address
    )
    admitted = authority.admit(
        read_request_file(site.folder / "coordinator.csr"), Role.COORDINATOR, ["localhost"]
    )
    site.install(admitted.der)
    first = enrolled(tmp_path / "first", authority, address)
    with Keeper(site, every_s=0.05) as keeper:
        assert keeper.roll.check(first.certificate, Role.DEVICE).name == first.name
        second = enrolled(tmp_path / "second", authority, address)
        authority.revoke(first.name, "stolen")
        assert eventually(lambda: keeper.roll.is_revoked(first.name))
        assert keeper.roll.check(second.certificate, Role.DEVICE).name == second.name
    assert site.renew() == [Role.COORDINATOR]  # the operator was never admitted


def test_a_coordinator_knows_whom_it_knew_while_the_authority_is_away(tmp_path: Path) -> None:
    with listening(tmp_path / "authority") as (authority, address):
        site = Site.create(
            tmp_path / "site", ["localhost"], name="", root=authority.root, authority_address=address
        )
        csr = read_request_file(site.folder / "coordinator.csr")
        site.install(authority.admit(csr, Role.COORDINATOR, ["localhost"]).der)
        device = enrolled(tmp_path / "device", authority, address)
        Keeper(site)
    away = Keeper(Site(site.folder))
    assert away.roll.check(device.certificate, Role.DEVICE).name == device.name


def test_a_torn_copy_of_the_log_is_mended_and_a_changed_one_refused(ours, tmp_path: Path) -> None:
    authority, address = ours
    for name in ("first", "second"):
        enrolled(tmp_path / name, authority, address)
    remote, path = RemoteAuthority(address, authority.root), tmp_path / "log"
    remote.follow(KeptLog(authority.root, path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    kept = KeptLog(authority.root, path)
    assert kept.size == 2
    remote.follow(kept)
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"device"', b'"oldest"', 1))
    with pytest.raises(IdentityRefused, match="is damaged"):
        KeptLog(authority.root, path)
    path.write_bytes(
        whole.replace(b"11-21", b"11-22", 1) if b"11-21" in whole else whole.replace(b"20", b"21", 1)
    )
    with pytest.raises(IdentityRefused, match="rewritten or forked"):
        remote.follow(KeptLog(authority.root, path))
