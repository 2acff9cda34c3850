"""Certificates: what they say, and what makes one acceptable.

X.509 (RFC 5280), ECDSA with P-256 and SHA-256, one level deep: a root, and what it signed. The subject's common name is
the party's name, its organisational unit the role. An extension of our own holds the Ed25519 identity key, so that one
certificate serves TLS and secure aggregation; it takes some 500 bytes, an advertisement has room for 1,024.

What is left out: certificate revocation lists and OCSP. The log says who is revoked (`quorate.identity.log`).
"""

from __future__ import annotations

import datetime
import enum
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from quorate.errors import IdentityRefused

__all__ = [
    "IDENTITY_EXTENSION",
    "LARGEST_CERTIFICATE_BYTES",
    "UNREADABLE",
    "Certificate",
    "Role",
    "Root",
    "hosts_of",
    "name_of",
]

IDENTITY_EXTENSION = x509.ObjectIdentifier("2.25.105973350802615417514537290420378510384")
"""An object identifier made from a random UUID (ITU-T X.667), under which the 32 bytes of the identity key stand."""

LARGEST_CERTIFICATE_BYTES = 1024

UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the reading of somebody else's X.509 raises; a test with changed bytes looks for others."""


class Role(enum.StrEnum):
    """What a certificate is for; nothing else accepts it."""

    DEVICE = "device"
    OPERATOR = "operator"
    COORDINATOR = "coordinator"
    AUTHORITY = "authority"

    @property
    def serves(self) -> bool:
        """Whether its holder is the server of a TLS connection; else it is the client."""
        return self in (Role.COORDINATOR, Role.AUTHORITY)


def name_of(identity: bytes) -> str:
    """The name of the party with an identity key (32 bytes): the first half of its SHA-256, 32 hex digits.

    Nobody chooses a name, so nobody can give one to somebody else.
    """
    return hashlib.sha256(identity).hexdigest()[:32]


@dataclass(frozen=True)
class Certificate:
    """What a certificate says. It was verified if it came from `Root.verify`.

    Args:
        role: what it is for.
        name: of its holder.
        identity: the Ed25519 identity key, 32 bytes.
        begins: UTC.
        expires: UTC.
        hosts: the DNS names and addresses of a server.
        der: the certificate itself.
    """

    role: Role
    name: str
    identity: bytes
    begins: datetime.datetime
    expires: datetime.datetime
    hosts: tuple[str, ...]
    der: bytes = field(repr=False)

    @classmethod
    def read(cls, data: bytes) -> Certificate:
        """What a certificate says of itself; `Root.verify` says whether it is true.

        Args:
            data: DER or PEM.

        Raises:
            IdentityRefused: it is not a certificate of this kind.
        """
        return cls._from(_parse(data))

    @classmethod
    def _from(cls, parsed: x509.Certificate) -> Certificate:
        der = parsed.public_bytes(Encoding.DER)
        if len(der) > LARGEST_CERTIFICATE_BYTES:
            raise IdentityRefused(
                f"a certificate has {len(der)} bytes, at most {LARGEST_CERTIFICATE_BYTES} are accepted"
            )
        try:
            (name,) = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            (role,) = parsed.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
            extension = parsed.extensions.get_extension_for_oid(IDENTITY_EXTENSION).value
            hosts = hosts_of(parsed.extensions)
        except UNREADABLE as error:
            raise IdentityRefused("a certificate does not say who its holder is") from error
        identity = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
        if role.value not in list(Role) or len(identity) != 32 or name.value != name_of(identity):
            raise IdentityRefused("a certificate's name, role and identity key do not go together")
        return cls(
            role=Role(str(role.value)),
            name=str(name.value),
            identity=identity,
            begins=parsed.not_valid_before_utc,
            expires=parsed.not_valid_after_utc,
            hosts=hosts,
            der=der,
        )

    @property
    def pem(self) -> bytes:
        """The certificate as text, as gRPC takes it."""
        return x509.load_der_x509_certificate(self.der).public_bytes(Encoding.PEM)

    def renewal_due(self, at: datetime.datetime) -> bool:
        """Whether two thirds of its life are over; or it has not begun, as by a clock that was set back."""
        return not self.begins <= at < self.begins + (self.expires - self.begins) * 2 / 3


class Root:
    """The authority's own certificate: what everybody pins.

    Args:
        data: DER or PEM.

    Raises:
        IdentityRefused: it is not a root that signs itself with P-256.
    """

    def __init__(self, data: bytes):
        self._parsed = _parse(data)
        try:
            key = self._parsed.public_key()
            constraints = self._parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
            self._parsed.verify_directly_issued_by(self._parsed)
        except UNREADABLE as error:
            raise IdentityRefused(
                "an authority's certificate is signed by itself, this one is not"
            ) from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise IdentityRefused("an authority's key is a P-256 key, this one is another")
        self._key = key
        if not constraints.ca:
            raise IdentityRefused("this is no authority's certificate: it may not sign others")
        self.der = self._parsed.public_bytes(Encoding.DER)
        self.pem = self._parsed.public_bytes(Encoding.PEM)
        self.fingerprint = hashlib.sha256(self.der).digest()
        self.expires = self._parsed.not_valid_after_utc

    @classmethod
    def load(cls, path: Path) -> Root:
        """Reads a root from a file.

        Raises:
            IdentityRefused: it can't be read or is not one.
        """
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise IdentityRefused(f"the authority's certificate can't be read: {error}") from error

    def verify(self, data: bytes, at: datetime.datetime, *, role: Role | None = None) -> Certificate:
        """What a certificate says, if this authority issued it and it is valid.

        Args:
            data: DER or PEM.
            at: now.
            role: the role that is asked for; None for any.

        Raises:
            IdentityRefused: with the reason.
        """
        parsed = _parse(data)
        try:
            parsed.verify_directly_issued_by(self._parsed)
        except UNREADABLE:
            raise IdentityRefused(
                "a certificate was not issued by the authority that is trusted here"
            ) from None
        certificate = Certificate._from(parsed)
        if at >= self.expires:
            raise IdentityRefused(f"the authority's own certificate expired at {self.expires}")
        if at < certificate.begins:
            raise IdentityRefused(
                f"the certificate of {certificate.name} is valid from {certificate.begins} on"
            )
        if at >= certificate.expires:
            raise IdentityRefused(f"the certificate of {certificate.name} expired at {certificate.expires}")
        if role is not None and certificate.role is not role:
            raise IdentityRefused(
                f"{certificate.name} has a certificate as {certificate.role}, not as {role}"
            )
        return certificate

    def has_signed(self, signature: bytes, message: bytes) -> bool:
        """Whether an ECDSA signature (DER) on a message is the authority's."""
        try:
            self._key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def hosts_of(extensions: x509.Extensions) -> tuple[str, ...]:
    """The DNS names and addresses that a certificate, or a request for one, is for."""
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    )


def _parse(data: bytes) -> x509.Certificate:
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except UNREADABLE as error:
        raise IdentityRefused("a certificate can't be read: it is neither DER nor PEM") from error
