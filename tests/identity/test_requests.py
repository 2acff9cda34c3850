import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quorate.errors import IdentityRefused
from quorate.identity import Withdrawal, name_of, read_request
from quorate.identity.certificates import IDENTITY_EXTENSION
from quorate.identity.requests import LARGEST_REQUEST_BYTES, make_request


def test_a_request_names_who_asks() -> None:
    identity, tls = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    read = read_request(make_request(identity, tls, ["fl.example.org", "192.0.2.1"]))
    assert read.identity == identity.public_key().public_bytes_raw()
    assert read.name == name_of(read.identity)
    assert read.tls_key == tls.public_key()
    assert read.hosts == ("fl.example.org", "192.0.2.1")


def test_nobody_asks_in_the_name_of_another() -> None:
    victim = make_request(Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1()))
    stolen = x509.load_der_x509_csr(victim).extensions.get_extension_for_oid(IDENTITY_EXTENSION).value
    with pytest.raises(IdentityRefused, match="not signed by both of its keys"):
        read_request(_request_with(stolen))


def test_a_key_that_the_asker_does_not_hold_gets_no_certificate() -> None:
    theirs = ec.generate_private_key(ec.SECP256R1()).public_key()
    mine = ec.generate_private_key(ec.SECP256R1())
    encoded = [
        k.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for k in (mine.public_key(), theirs)
    ]
    der = make_request(Ed25519PrivateKey.generate(), mine).replace(encoded[0], encoded[1])
    with pytest.raises(IdentityRefused, match="not signed by both of its keys"):
        read_request(der)


def test_a_request_for_another_kind_of_key_is_refused() -> None:
    with pytest.raises(IdentityRefused, match="another key than a P-256 key"):
        read_request(make_request(Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())))


def test_a_request_without_an_identity_is_refused() -> None:
    with pytest.raises(IdentityRefused, match="not PKCS #10 with an identity key"):
        read_request(_request_with(None))
    with pytest.raises(IdentityRefused, match="not PKCS #10 with an identity key"):
        read_request(b"\x30\x00")


def test_a_huge_request_is_not_read() -> None:
    with pytest.raises(IdentityRefused, match="5000 bytes, at most 4096"):
        read_request(bytes(5000))
    assert LARGEST_REQUEST_BYTES == 4096


@pytest.mark.parametrize(
    "host", ["", "fl.example.org:9443", "https://fl.example.org", "two words", "bücher.example"]
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(IdentityRefused, match="is no name of a host"):
        make_request(Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1()), [host])


def test_a_withdrawal_is_from_one_authority() -> None:
    identity = Ed25519PrivateKey.generate()
    withdrawal = Withdrawal.make(identity, bytes(32))
    assert withdrawal.verify(bytes(32)) == name_of(withdrawal.identity)
    with pytest.raises(IdentityRefused):
        withdrawal.verify(bytes(31) + b"\1")


def _request_with(extension: x509.ExtensionType | None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)
