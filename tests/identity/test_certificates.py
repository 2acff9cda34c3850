import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from quorate.errors import IdentityRefused
from quorate.identity import Certificate, Members, Role, Root, name_of
from quorate.identity.certificates import IDENTITY_EXTENSION
from quorate.identity.requests import make_request, read_request
from quorate.server.issuing import Issuer, Validity
from tests.identity.authorities import DAY, HOUR, START

SECOND = datetime.timedelta(seconds=1)


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer.create("ours", START, Validity())


def issue(issuer: Issuer, role: Role = Role.DEVICE, *hosts: str) -> Certificate:
    request = make_request(Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1()), hosts)
    return issuer.issue(read_request(request), role, START, hosts)


def forged(issuer: Issuer, *, name: str, role: str, extension: bytes) -> bytes:
    """A certificate that the authority would never make, under its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
        x509.NameAttribute(NameOID.COMMON_NAME, name),
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(issuer._issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + DAY)
        .add_extension(x509.UnrecognizedExtension(IDENTITY_EXTENSION, extension), critical=False)
    )
    return builder.sign(issuer._key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("at", "accepted"),
    [
        (START - HOUR - SECOND, False),
        (START - HOUR, True),
        (START + 7 * DAY - SECOND, True),
        (START + 7 * DAY, False),
    ],
)
def test_a_devices_certificate_is_valid_for_a_week(
    issuer: Issuer, at: datetime.datetime, accepted: bool
) -> None:
    certificate = issue(issuer)
    members = Members(issuer.root, clock=lambda: at)
    assert members.public_key(certificate.der) == (certificate.identity if accepted else None)


def test_a_certificate_of_another_authority_is_refused(issuer: Issuer) -> None:
    other = Issuer.create("ours", START, Validity())  # of the same name
    with pytest.raises(IdentityRefused, match="not issued by the authority that is trusted"):
        issuer.root.verify(issue(other).der, START)


def test_a_changed_certificate_is_refused(issuer: Issuer) -> None:
    certificate = issue(issuer)
    changed = certificate.der.replace(certificate.identity, bytes(32))
    assert changed != certificate.der
    with pytest.raises(IdentityRefused, match="not issued by the authority"):
        issuer.root.verify(changed, START)


def test_nobody_can_have_the_name_of_another(issuer: Issuer) -> None:
    identity = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    forgery = forged(issuer, name="ab" * 16, role="device", extension=identity)
    with pytest.raises(IdentityRefused, match="do not go together"):
        issuer.root.verify(forgery, START)
    with pytest.raises(IdentityRefused, match="do not go together"):
        issuer.root.verify(forged(issuer, name=name_of(identity), role="king", extension=identity), START)
    with pytest.raises(IdentityRefused, match="do not go together"):
        issuer.root.verify(
            forged(issuer, name=name_of(identity[:31]), role="device", extension=identity[:31]), START
        )


def test_the_root_itself_is_nobody(issuer: Issuer) -> None:
    with pytest.raises(IdentityRefused, match="does not say who its holder is"):
        issuer.root.verify(issuer.root.der, START)


def test_what_is_no_certificate_is_refused(issuer: Issuer) -> None:
    for data in (
        b"",
        b"hello",
        b"-----BEGIN CERTIFICATE-----\n",
        issue(issuer).der[:-1],
        issue(issuer).der + b"\0",
    ):
        with pytest.raises(IdentityRefused, match="can't be read"):
            issuer.root.verify(data, START)


def test_a_certificate_that_is_no_root_is_refused_as_one(issuer: Issuer) -> None:
    with pytest.raises(IdentityRefused, match="signed by itself"):
        Root(issue(issuer).der)


@pytest.mark.parametrize(
    ("role", "hosts"), [(Role.DEVICE, ()), (Role.OPERATOR, ()), (Role.COORDINATOR, ("fl.example.org", "::1"))]
)
def test_a_certificate_says_what_it_was_issued_for(
    issuer: Issuer, role: Role, hosts: tuple[str, ...]
) -> None:
    certificate = issue(issuer, role, *hosts)
    for data in (certificate.der, certificate.pem):
        verified = issuer.root.verify(data, START, role=role)
        assert (verified.role, verified.hosts) == (role, hosts)
        assert verified == certificate


def test_a_certificate_of_a_device_is_half_of_what_an_advertisement_may_hold(issuer: Issuer) -> None:
    assert len(issue(issuer).der) <= 560


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(issuer: Issuer) -> None:
    certificate = issue(issuer)
    assert not certificate.renewal_due(START + 4 * DAY)
    assert certificate.renewal_due(START + 5 * DAY)


def test_a_root_is_read_from_a_file(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_bytes(issuer.root.pem)
    assert Root.load(tmp_path / "root.pem").fingerprint == issuer.root.fingerprint
    with pytest.raises(IdentityRefused, match=r"other\.pem"):
        Root.load(tmp_path / "other.pem")
