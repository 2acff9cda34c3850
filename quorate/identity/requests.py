"""What a party asks of the authority, proven with its keys: a certificate, or to leave.

A request is PKCS #10 (RFC 2986), signed with the TLS key, and holds the identity key together with that key's signature
over the TLS key: who asks holds both. The authority takes nothing else from it but a server's names, which it shows to
its operator.

A request proves itself, so a renewal needs no token and no valid certificate: a device that was off for a month renews
with the identity key that the log knows, unless it is revoked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from quorate.errors import IdentityRefused
from quorate.identity.certificates import IDENTITY_EXTENSION, UNREADABLE, hosts_of, name_of

__all__ = [
    "LARGEST_REQUEST_BYTES",
    "Request",
    "Withdrawal",
    "alternative_names",
    "make_request",
    "read_request",
]

LARGEST_REQUEST_BYTES = 4096

_BINDING = b"quorate/identity/request/1\0"
_WITHDRAWAL = b"quorate/identity/withdrawal/1\0"


@dataclass(frozen=True)
class Request:
    """A request whose proofs were verified.

    Args:
        identity: the identity key, 32 bytes.
        tls_key: the key of the certificate.
        hosts: the names and addresses that a server asks for.
    """

    identity: bytes
    tls_key: ec.EllipticCurvePublicKey
    hosts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of who asks."""
        return name_of(self.identity)


def make_request(
    identity: Ed25519PrivateKey, tls_key: ec.EllipticCurvePrivateKey, hosts: Sequence[str] = ()
) -> bytes:
    """A request for a certificate: PKCS #10, DER."""
    public = identity.public_key().public_bytes_raw()
    binding = identity.sign(_BINDING + _encoded(tls_key.public_key()))
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name_of(public))]))
        .add_extension(x509.UnrecognizedExtension(IDENTITY_EXTENSION, public + binding), critical=False)
    )
    if hosts:
        builder = builder.add_extension(alternative_names(hosts), critical=False)
    return builder.sign(tls_key, hashes.SHA256()).public_bytes(Encoding.DER)


def read_request(der: bytes) -> Request:
    """Reads a request and verifies both proofs.

    Raises:
        IdentityRefused: with the reason.
    """
    if len(der) > LARGEST_REQUEST_BYTES:
        raise IdentityRefused(f"a request has {len(der)} bytes, at most {LARGEST_REQUEST_BYTES} are accepted")
    try:
        parsed = x509.load_der_x509_csr(der)
        signed, key = parsed.is_signature_valid, parsed.public_key()
        extension = parsed.extensions.get_extension_for_oid(IDENTITY_EXTENSION).value
        hosts = hosts_of(parsed.extensions)
    except UNREADABLE as error:
        raise IdentityRefused("a request is not PKCS #10 with an identity key in it") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityRefused("a request is for another key than a P-256 key")
    value = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    identity, binding = value[:32], value[32:]
    if not signed or not _verifies(identity, binding, _BINDING + _encoded(key)):
        raise IdentityRefused("a request is not signed by both of its keys")
    return Request(identity, key, hosts)


@dataclass(frozen=True)
class Withdrawal:
    """A party's word that it leaves for good.

    Args:
        identity: its identity key, 32 bytes.
        signature: of that key.
    """

    identity: bytes
    signature: bytes

    @classmethod
    def make(cls, identity: Ed25519PrivateKey, root_fingerprint: bytes) -> Withdrawal:
        """Signs the withdrawal from the authority with that fingerprint."""
        return cls(identity.public_key().public_bytes_raw(), identity.sign(_WITHDRAWAL + root_fingerprint))

    def verify(self, root_fingerprint: bytes) -> str:
        """The name of who leaves.

        Raises:
            IdentityRefused: it is not signed by the identity that it names.
        """
        if not _verifies(self.identity, self.signature, _WITHDRAWAL + root_fingerprint):
            raise IdentityRefused("a withdrawal is not signed by the identity that it names")
        return name_of(self.identity)


def alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    """DNS names and addresses as an extension.

    Raises:
        IdentityRefused: one of them is neither.
    """
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not host.isascii() or not host or any(part in host for part in (" ", ":", "/")):
                raise IdentityRefused(
                    f"{host!r} is no name of a host; a DNS name or an address is accepted, without a port"
                ) from None
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _encoded(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _verifies(identity: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
