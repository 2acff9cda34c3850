"""The authority's signing: its root, the certificates below it, and the heads of its log.

What goes into a certificate is decided here and nowhere else: of a request only the two keys are taken. Each role has
one extended key usage (RFC 5280, 4.2.1.12), so that TLS itself refuses a device's certificate in a server's place.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from quorate.errors import IdentityRefused
from quorate.identity import Certificate, Head, Request, Role, Root
from quorate.identity.certificates import IDENTITY_EXTENSION
from quorate.identity.requests import alternative_names

__all__ = ["Issuer", "Validity"]

_BACKDATED = timedelta(hours=1)
"""A certificate is valid from before it was made: devices' clocks are slow at times."""


@dataclass(frozen=True)
class Validity:
    """How long what is issued is valid. A revocation does not wait for it; a stolen key that nobody misses does."""

    root: timedelta = timedelta(days=10 * 365)
    device: timedelta = timedelta(days=7)
    coordinator: timedelta = timedelta(days=90)
    authority: timedelta = timedelta(days=90)
    operator: timedelta = timedelta(days=365)

    def of(self, role: Role) -> timedelta:
        """For a role."""
        found: timedelta = getattr(self, role.value)
        return found


class Issuer:
    """The authority's key and its root.

    Args:
        key: P-256.
        root: the certificate of that key.
        validity: of what is issued.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, root: Root, validity: Validity):
        self._key, self.root, self._validity = key, root, validity
        self._issuer = x509.load_der_x509_certificate(root.der).subject

    @classmethod
    def create(cls, name: str, at: datetime.datetime, validity: Validity) -> Issuer:
        """A new authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        public = key.public_key()
        root = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - _BACKDATED)
            .not_valid_after(at + validity.root)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, Root(root.public_bytes(Encoding.DER)), validity)

    @classmethod
    def load(cls, key_pem: bytes, root: Root, validity: Validity) -> Issuer:
        """An authority whose key was kept.

        Raises:
            IdentityRefused: it is not the root's key.
        """
        try:
            key = load_pem_private_key(key_pem, None)
        except (ValueError, TypeError) as error:
            raise IdentityRefused(f"the authority's key is damaged: {error}") from error
        public = x509.load_der_x509_certificate(root.der).public_key()
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != public:
            raise IdentityRefused("the authority's key is not the key of its certificate")
        return cls(key, root, validity)

    @property
    def key_pem(self) -> bytes:
        """The key, to be kept."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def issue(
        self, request: Request, role: Role, at: datetime.datetime, hosts: Sequence[str] = ()
    ) -> Certificate:
        """A certificate for the keys of a request.

        Args:
            request: verified.
            role: what it is for.
            at: now.
            hosts: the names and addresses of a server.
        """
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if role.serves else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
                        x509.NameAttribute(NameOID.COMMON_NAME, request.name),
                    ]
                )
            )
            .issuer_name(self._issuer)
            .public_key(request.tls_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - _BACKDATED)
            .not_valid_after(min(at + self._validity.of(role), self.root.expires))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .add_extension(x509.UnrecognizedExtension(IDENTITY_EXTENSION, request.identity), critical=False)
        )
        if hosts:
            builder = builder.add_extension(alternative_names(hosts), critical=False)
        return Certificate.read(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER))

    def head(self, size: int, hash: bytes, at: datetime.datetime) -> Head:
        """Signs how far the log has come."""
        unsigned = Head(size, hash, at.replace(microsecond=0), b"")
        signature = self._key.sign(unsigned.signed, ec.ECDSA(hashes.SHA256()))
        return Head(size, hash, unsigned.at, signature)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
