from pathlib import Path

import pytest

from quorate.errors import IdentityRefused
from quorate.identity import Holder, Role
from quorate.server.site import Site, authority_of, read_request_file
from tests.identity.authorities import DAY, HOUR, Clock, authority, device

HOSTS = ("fl.example.org", "192.0.2.1")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path: Path, clock: Clock):
    made = Site.create(tmp_path / "site", HOSTS, name="Test", clock=clock)
    yield made
    made.close()


def independent(folder: Path, clock: Clock):
    """A site and its authority, in folders of their own."""
    apart = authority(folder / "apart", clock)
    return Site.create(
        folder / "site", HOSTS, name="", root=apart.root, authority_address="ca.example.org:9444", clock=clock
    ), apart


def test_a_coordinator_is_certified_for_its_names_and_its_operator_for_none(site: Site) -> None:
    held = site.certificates()
    assert held[Role.COORDINATOR].hosts == HOSTS
    assert held[Role.OPERATOR].hosts == ()
    for role, certificate in held.items():
        assert site.authority.roll.check(certificate.der, role) == certificate


def test_keys_are_their_owners_only(site: Site) -> None:
    folders = {path for path in site.folder.rglob("*") if path.is_dir()} | {site.folder}
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    secret = [path for path in site.folder.rglob("*") if path.name in ("tls.pem",) or "key" in path.name]
    assert len(secret) == 5
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}


def test_a_coordinator_is_not_overwritten(site: Site, clock: Clock) -> None:
    with pytest.raises(IdentityRefused, match="not overwritten"):
        Site.create(site.folder, HOSTS, name="Test", clock=clock)


def test_a_coordinator_needs_a_name_that_is_one(tmp_path: Path) -> None:
    with pytest.raises(IdentityRefused, match="at least one name"):
        Site.create(tmp_path / "site", [], name="Test")
    with pytest.raises(IdentityRefused, match="without a port"):
        Site.create(tmp_path / "site", ["fl.example.org:9443"], name="Test")
    assert not (tmp_path / "site").exists()


def test_certificates_are_renewed_when_they_are_due(site: Site, clock: Clock) -> None:
    assert site.renew(only_due=True) == []
    clock.now += 61 * DAY
    assert site.renew(only_due=True) == [Role.COORDINATOR]
    assert (
        site.holder.root.verify(Site(site.folder, clock=clock).holder.certificate, clock.now).hosts == HOSTS
    )


def test_a_site_without_its_operators_keys_goes_on(site: Site, tmp_path: Path, clock: Clock) -> None:
    (site.folder / "operator").rename(tmp_path / "laptop")
    clock.now += 61 * DAY
    assert site.renew() == [Role.COORDINATOR]
    assert Holder(tmp_path / "laptop").valid(clock.now).role is Role.OPERATOR


def test_a_site_with_an_independent_authority_cannot_enrol_anybody(tmp_path: Path, clock: Clock) -> None:
    site, apart = independent(tmp_path, clock)
    assert site.authority is None
    assert not [path for path in site.folder.rglob("*") if "root-key" in path.name]
    with pytest.raises(IdentityRefused, match="is independent: this is done where it is"):
        authority_of(site.folder)
    apart.close()


def test_an_independent_authority_certifies_a_site_by_files(tmp_path: Path, clock: Clock) -> None:
    site, apart = independent(tmp_path, clock)
    for role, hosts in ((Role.COORDINATOR, HOSTS), (Role.OPERATOR, ())):
        request = read_request_file(site.folder / f"{role}.csr")
        assert site.install(apart.admit(request, role, hosts).pem).role is role
    assert Site(site.folder, clock=clock).holder.valid(clock.now).hosts == HOSTS
    with pytest.raises(IdentityRefused, match="as device is for nobody here"):
        site.install(device(tmp_path / "device", apart).certificate)
    apart.close()


def test_the_authority_of_a_site_makes_tokens(site: Site) -> None:
    found = authority_of(site.folder)
    assert found.root.fingerprint == site.root.fingerprint
    assert found.token(HOUR).text
    found.close()


def test_a_folder_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(IdentityRefused, match="quorate coordinator init"):
        Site(tmp_path)
    with pytest.raises(IdentityRefused, match="holds no authority"):
        authority_of(tmp_path)
    (tmp_path / "coordinator.json").write_text("{")
    with pytest.raises(IdentityRefused, match="is damaged"):
        Site(tmp_path)
