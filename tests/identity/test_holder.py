from pathlib import Path

import pytest

from quorate.errors import IdentityRefused
from quorate.identity import Holder, Role
from quorate.privacy.secagg.identity import verifies
from quorate.server.authority import Authority
from tests.identity.authorities import DAY, HOUR, Clock, authority, device, party


def test_keys_are_their_owners_only(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    holder.request()
    modes = {path.name: path.stat().st_mode & 0o777 for path in holder.folder.iterdir()}
    assert modes == {
        "identity-key.pem": 0o600,
        "tls.pem": 0o600,
        "tls-key.next.pem": 0o600,
        "root.pem": 0o644,
    }
    assert holder.folder.stat().st_mode & 0o777 == 0o700


def test_a_key_that_others_may_read_is_refused(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    (holder.folder / "identity-key.pem").chmod(0o640)
    with pytest.raises(IdentityRefused, match="chmod 600"):
        Holder(holder.folder)


def test_what_it_signs_verifies_under_the_key_that_peers_read_from_its_certificate(
    ours: Authority, tmp_path: Path
) -> None:
    holder = device(tmp_path / "device", ours)
    key = ours.roll.members.public_key(holder.certificate)
    assert key is not None
    assert verifies(key, holder.sign(b"keys"), b"keys")


def test_a_reopened_holder_is_the_same(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    again = Holder(holder.folder)
    assert (again.name, again.certificate, again.tls_pair) == (
        holder.name,
        holder.certificate,
        holder.tls_pair,
    )


def test_a_renewal_brings_a_new_tls_key_and_keeps_the_name(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    key, name = holder.tls_pair[0], holder.name
    holder.install(ours.renew(holder.request()).der, ours._clock())
    assert holder.tls_pair[0] != key
    assert holder.name == name


def test_a_renewal_that_was_cut_short_leaves_what_was_held(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    held = holder.tls_pair
    ours.renew(holder.request())  # the reply is lost
    again = Holder(holder.folder)
    assert again.tls_pair == held
    again.install(ours.renew(again.request()).der, ours._clock())
    assert again.tls_pair != held


def test_a_certificate_for_other_keys_is_not_installed(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    holder, other = device(tmp_path / "device", ours), device(tmp_path / "other", ours)
    held = holder.certificate
    holder.request()
    for wrong in (other.certificate, held):
        with pytest.raises(IdentityRefused, match="for other keys"):
            holder.install(wrong, clock.now)
    operator = party(tmp_path / "operator", ours, Role.OPERATOR)
    with pytest.raises(IdentityRefused, match="as operator, not as device"):
        holder.install(operator.certificate, clock.now)
    assert Holder(holder.folder).certificate == held


def test_a_holder_says_when_its_certificate_is_no_longer_valid(
    ours: Authority, clock: Clock, tmp_path: Path
) -> None:
    holder = device(tmp_path / "device", ours)
    assert holder.valid(clock.now).name == holder.name
    with pytest.raises(IdentityRefused, match="expired"):
        holder.valid(clock.now + 7 * DAY)
    with pytest.raises(IdentityRefused, match="holds no certificate yet"):
        Holder.create(tmp_path / "fresh", ours.root).valid(clock.now)


def test_a_folder_stays_with_its_authority(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    assert Holder.create(holder.folder, ours.root).name == holder.name
    other = authority(tmp_path / "other", clock)
    with pytest.raises(IdentityRefused, match="belongs to another authority"):
        Holder.create(holder.folder, other.root)
    other.close()


def test_nothing_is_left_of_an_erased_holder(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    holder.request()
    holder.erase()
    assert list(holder.folder.iterdir()) == []
    assert not Holder.exists(holder.folder)


def test_a_damaged_key_is_refused(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    (holder.folder / "identity-key.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----")
    with pytest.raises(IdentityRefused, match="damaged"):
        Holder(holder.folder)


def test_an_enrolment_that_was_cut_short_is_finished_by_a_renewal(ours: Authority, tmp_path: Path) -> None:
    holder = Holder.create(tmp_path / "device", ours.root)
    ours.enrol(ours.token(HOUR).text, holder.request())  # the reply is lost
    again = Holder(holder.folder)
    again.install(ours.renew(again.request()).der, ours._clock())
    assert ours.roll.check(again.certificate, Role.DEVICE)
