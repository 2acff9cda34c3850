import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quorate.errors import IdentityRefused
from quorate.identity import Holder, Role, Token
from quorate.identity.certificates import LARGEST_CERTIFICATE_BYTES
from quorate.server.authority import Authority
from tests.identity.authorities import DAY, HOUR, START, Clock, authority, device, party


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ours(tmp_path: Path, clock: Clock) -> Iterator[Authority]:
    made = authority(tmp_path / "authority", clock)
    yield made
    made.close()


def test_a_token_gives_a_device_a_certificate_that_the_roll_accepts(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    verified = ours.roll.check(holder.certificate, Role.DEVICE)
    assert verified.name == holder.name
    assert ours.roll.members.public_key(holder.certificate) == verified.identity
    assert len(holder.certificate) <= LARGEST_CERTIFICATE_BYTES


def test_a_token_is_good_for_one_device(ours: Authority, tmp_path: Path) -> None:
    token = ours.token(HOUR).text
    first, second = (Holder.create(tmp_path / name, ours.root) for name in ("first", "second"))
    ours.enrol(token, first.request())
    with pytest.raises(IdentityRefused, match="used already"):
        ours.enrol(token, second.request())


def test_a_device_whose_reply_was_lost_enrols_again_with_its_token_and_its_keys(
    ours: Authority, tmp_path: Path, clock: Clock
) -> None:
    token, holder = ours.token(HOUR).text, Holder.create(tmp_path / "device", ours.root)
    lost = ours.enrol(token, holder.request())
    clock.now += 2 * HOUR  # the token has expired meanwhile, which is nothing to who has used it
    again = ours.enrol(token, holder.request())
    assert holder.install(again.der, clock.now).name == lost.name
    assert len(ours.roll.names(Role.DEVICE)) == len(ours.parties()) == 1
    other = Holder.create(tmp_path / "other", ours.root)
    with pytest.raises(IdentityRefused, match="used already"):
        ours.enrol(token, other.request())
    ours.revoke(holder.name, "stolen")
    with pytest.raises(IdentityRefused, match="revoked: stolen"):
        ours.enrol(token, holder.request())


def test_of_two_threads_with_one_token_exactly_one_is_enrolled(ours: Authority, tmp_path: Path) -> None:
    for attempt in range(10):
        token, start = ours.token(HOUR).text, threading.Barrier(2)
        requests = [Holder.create(tmp_path / f"{attempt}-{i}", ours.root).request() for i in range(2)]

        def enrol(request: bytes, token: str = token, start: threading.Barrier = start) -> str:
            start.wait()
            return ours.enrol(token, request).name

        with ThreadPoolExecutor(2) as threads:
            tries = [threads.submit(enrol, request) for request in requests]
            errors = [each.exception() for each in tries]
        (refused,) = (error for error in errors if error is not None)
        assert "used already" in str(refused)
        assert len(ours.roll.names(Role.DEVICE)) == attempt + 1


def test_an_expired_token_is_refused(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    token = ours.token(HOUR).text
    clock.now += HOUR
    with pytest.raises(IdentityRefused, match="token expired at 2026-11-01T13:00"):
        ours.enrol(token, Holder.create(tmp_path / "device", ours.root).request())


def test_a_forged_token_is_refused(ours: Authority, tmp_path: Path) -> None:
    forged = str(Token.draw(ours.root.fingerprint))
    with pytest.raises(IdentityRefused, match="not one that this authority has made"):
        ours.enrol(forged, Holder.create(tmp_path / "device", ours.root).request())


def test_another_authoritys_token_is_refused(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    other = authority(tmp_path / "other", clock)
    token = other.token(HOUR).text
    other.close()
    with pytest.raises(IdentityRefused, match="another authority's"):
        ours.enrol(token, Holder.create(tmp_path / "device", ours.root).request())


def test_the_records_hold_no_token(ours: Authority) -> None:
    token = Token.parse(ours.token(HOUR).text)
    written = b"".join(path.read_bytes() for path in ours.folder.iterdir())
    assert token.digest in written
    assert token.secret not in written
    assert str(token).encode() not in written


def test_a_refused_request_leaves_the_token_as_it_was(ours: Authority, tmp_path: Path) -> None:
    token, holder = ours.token(HOUR).text, Holder.create(tmp_path / "device", ours.root)
    with pytest.raises(IdentityRefused):
        ours.enrol(token, holder.request()[:-1])
    device(tmp_path / "enrolled", ours)
    with pytest.raises(IdentityRefused, match="enrolled already"):
        ours.enrol(token, Holder(tmp_path / "enrolled").request())
    assert ours.enrol(token, holder.request()).name == holder.name


def test_a_device_renews_after_its_certificate_expired(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    before = holder.certificate
    clock.now += 40 * DAY
    with pytest.raises(IdentityRefused, match="expired"):
        ours.roll.check(before, Role.DEVICE)
    holder.install(ours.renew(holder.request()).der, clock.now)
    assert ours.roll.check(holder.certificate, Role.DEVICE).name == holder.name
    assert ours.roll.size == 1  # a renewal is not an enrolment


def test_who_is_not_enrolled_renews_nothing(ours: Authority, tmp_path: Path) -> None:
    with pytest.raises(IdentityRefused, match="is not enrolled"):
        ours.renew(Holder.create(tmp_path / "device", ours.root).request())


def test_a_revoked_device_is_refused_everywhere(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    ours.revoke(holder.name, "stolen")
    assert ours.roll.is_revoked(holder.name)
    assert ours.roll.members.public_key(holder.certificate) is None
    with pytest.raises(IdentityRefused, match="revoked"):
        ours.roll.check(holder.certificate, Role.DEVICE)
    with pytest.raises(IdentityRefused, match="revoked: stolen"):
        ours.renew(holder.request())
    with pytest.raises(IdentityRefused, match="revoked, which is for good"):
        ours.enrol(ours.token(HOUR).text, holder.request())


def test_a_revocation_by_another_process_is_heard(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    heard: list[tuple[str, str]] = []
    ours.roll.on_revoked(lambda name, reason: heard.append((name, reason)))
    other = Authority(ours.folder, clock=clock)
    other.revoke(holder.name, "lost")
    other.close()
    assert heard == []
    ours.refresh()
    ours.refresh()
    assert heard == [(holder.name, "lost")]


def test_a_revocation_is_logged_once(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    ours.revoke(holder.name, "lost")
    ours.revoke(holder.name, "lost again")
    assert ours.roll.size == 2
    assert [party.revoked for party in ours.parties()] == ["lost"]


def test_nobody_is_revoked_who_is_not_enrolled(ours: Authority) -> None:
    with pytest.raises(IdentityRefused, match="nobody with the name 'ffff' is enrolled"):
        ours.revoke("ffff", "a guess")


def test_a_device_withdraws_by_its_own_word_only(ours: Authority, tmp_path: Path) -> None:
    holder, other = device(tmp_path / "device", ours), device(tmp_path / "other", ours)
    mine, theirs = holder.withdrawal(), other.withdrawal()
    with pytest.raises(IdentityRefused, match="not signed by the identity"):
        ours.withdraw(type(mine)(mine.identity, theirs.signature))
    ours.withdraw(mine)
    assert ours.roll.is_revoked(holder.name)
    assert not ours.roll.is_revoked(other.name)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.COORDINATOR])
def test_a_devices_certificate_is_good_for_no_other_role(ours: Authority, tmp_path: Path, role: Role) -> None:
    holder = device(tmp_path / "device", ours)
    with pytest.raises(IdentityRefused, match=f"as device, not as {role}"):
        ours.roll.check(holder.certificate, role)


def test_an_operator_is_no_device(ours: Authority, tmp_path: Path) -> None:
    holder = party(tmp_path / "operator", ours, Role.OPERATOR)
    assert ours.roll.check(holder.certificate, Role.OPERATOR).name == holder.name
    assert ours.roll.members.public_key(holder.certificate) is None


def test_a_server_keeps_its_names_when_it_renews(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    holder = party(tmp_path / "server", ours, Role.COORDINATOR, "fl.example.org", "192.0.2.1")
    clock.now += 60 * DAY
    renewed = ours.renew(holder.request(["evil.example.org"]))
    assert renewed.hosts == ("fl.example.org", "192.0.2.1")
    assert renewed.role is Role.COORDINATOR


def test_what_was_issued_is_never_valid_for_longer_than_the_root(
    ours: Authority, clock: Clock, tmp_path: Path
) -> None:
    holder = device(tmp_path / "device", ours)
    clock.now = ours.root.expires - DAY
    assert ours.renew(holder.request()).expires == ours.root.expires


def test_an_authority_is_not_overwritten(ours: Authority, clock: Clock) -> None:
    with pytest.raises(IdentityRefused, match="not overwritten"):
        authority(ours.folder, clock)


def test_the_authoritys_folder_is_its_owners_only(ours: Authority) -> None:
    assert ours.folder.stat().st_mode & 0o777 == 0o700
    assert (ours.folder / "root-key.pem").stat().st_mode & 0o777 == 0o600
    assert (ours.folder / "authority.sqlite").stat().st_mode & 0o777 == 0o600


def test_an_authority_that_is_opened_again_knows_everybody(
    ours: Authority, clock: Clock, tmp_path: Path
) -> None:
    holder = device(tmp_path / "device", ours)
    again = Authority(ours.folder, clock=clock)
    assert again.roll.check(holder.certificate, Role.DEVICE).name == holder.name
    again.close()


def test_records_that_were_changed_are_not_opened(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    device(tmp_path / "first", ours)
    device(tmp_path / "second", ours)
    with sqlite3.connect(ours.folder / "authority.sqlite") as connection:
        connection.execute(
            "update log set content = cast(replace(cast(content as text), 'device', 'oldest') as blob)"
        )
    with pytest.raises(IdentityRefused, match=r"entry 0 .* rewritten or forked"):
        Authority(ours.folder, clock=clock)


@pytest.mark.parametrize("valid", [0 * HOUR, -HOUR, 31 * DAY])
def test_a_token_is_valid_for_some_time_and_not_for_months(ours: Authority, valid) -> None:
    with pytest.raises(IdentityRefused, match="valid for up to 30 days"):
        ours.token(valid)


def test_notes_stay_with_the_operator(ours: Authority, tmp_path: Path) -> None:
    holder = Holder.create(tmp_path / "device", ours.root)
    ours.enrol(ours.token(HOUR, "Ada's phone").text, holder.request())
    assert [party.note for party in ours.parties()] == ["Ada's phone"]
    assert b"Ada" not in b"".join(entry.content for entry in ours.entries(0))
    assert ours.parties()[0].enrolled == START.isoformat(timespec="milliseconds")
