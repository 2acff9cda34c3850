"""A party's own keys and certificate, in a folder that nobody else may read.

    identity-key.pem   Ed25519, made once; never leaves the folder
    tls.pem            the newest certificate's P-256 key, the certificate, and the root: one file, replaced as one
    root.pem           the pinned authority

A new TLS key waits in `tls-key.next.pem` for its certificate, so that a renewal that was cut short leaves the old pair.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from quorate.errors import IdentityRefused
from quorate.files import replace_file
from quorate.identity.certificates import Certificate, Role, Root, name_of
from quorate.identity.requests import Withdrawal, make_request

__all__ = ["Holder", "private_folder"]

_IDENTITY, _NEXT, _TLS, _ROOT = "identity-key.pem", "tls-key.next.pem", "tls.pem", "root.pem"


class Holder:
    """A party's keys. It is the party's `quorate.fleets.Identity` once it has a certificate.

    Args:
        folder: where they are.

    Raises:
        IdentityRefused: there are none, they are damaged, or others may read them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        key = _load(folder / _IDENTITY)
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityRefused(f"{folder / _IDENTITY} is no Ed25519 key")
        self._identity = key
        self.root = Root.load(folder / _ROOT)
        self._tls_key_pem, self._held = self._read_pair()

    @classmethod
    def create(cls, folder: Path, root: Root) -> Holder:
        """Makes an identity key and pins an authority. A folder that has one already keeps it.

        Raises:
            IdentityRefused: the folder pins another authority.
        """
        private_folder(folder)
        if (folder / _ROOT).exists() and Root.load(folder / _ROOT).fingerprint != root.fingerprint:
            raise IdentityRefused(f"{folder} belongs to another authority; use another folder, or erase it")
        if not (folder / _IDENTITY).exists():
            replace_file(folder / _IDENTITY, _pem(Ed25519PrivateKey.generate()), mode=0o600)
        replace_file(folder / _ROOT, root.pem)
        return cls(folder)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds keys."""
        return (folder / _IDENTITY).exists() and (folder / _ROOT).exists()

    @property
    def name(self) -> str:
        """The party's name."""
        return name_of(self._identity.public_key().public_bytes_raw())

    @property
    def held(self) -> Certificate | None:
        """The certificate, whether it is valid still or not; None before the first."""
        return self._held

    def request(self, hosts: Sequence[str] = ()) -> bytes:
        """A request for a certificate with a fresh TLS key, which waits for `install`.

        A request that was made and not answered is made again with the same key.
        """
        path = self.folder / _NEXT
        if not path.exists():
            replace_file(path, _pem(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
        return make_request(self._identity, _tls_key(path), hosts)

    def install(self, certificate: bytes, at: datetime.datetime, role: Role = Role.DEVICE) -> Certificate:
        """Takes the certificate that a request brought.

        Args:
            certificate: DER or PEM.
            at: now.
            role: that was asked for.

        Raises:
            IdentityRefused: it is not valid, or not for these keys; what was held stays.
        """
        verified = self.root.verify(certificate, at, role=role)
        key = _tls_key(self.folder / _NEXT)
        if verified.name != self.name or not _is_for(verified, key):
            raise IdentityRefused("the certificate that came is for other keys than those that asked for it")
        pair = _pem(key) + verified.pem + self.root.pem
        replace_file(self.folder / _TLS, pair, mode=0o600)
        (self.folder / _NEXT).unlink()
        self._tls_key_pem, self._held = self._read_pair()
        return verified

    def valid(self, at: datetime.datetime) -> Certificate:
        """The certificate, if it is valid now.

        Raises:
            IdentityRefused: there is none, or it is not.
        """
        if self._held is None:
            raise IdentityRefused(f"{self.folder} holds no certificate yet")
        return self.root.verify(self._held.der, at)

    @property
    def tls_pair(self) -> tuple[bytes, bytes]:
        """The TLS key and the certificate with its root, PEM, as `grpc.ssl_*_credentials` take them.

        Raises:
            IdentityRefused: there is no certificate yet.
        """
        if self._held is None:
            raise IdentityRefused(f"{self.folder} holds no certificate yet")
        return self._tls_key_pem, self._held.pem + self.root.pem

    @property
    def certificate(self) -> bytes:
        """The certificate, DER, as it goes into an advertisement.

        Raises:
            IdentityRefused: there is none yet.
        """
        if self._held is None:
            raise IdentityRefused(f"{self.folder} holds no certificate yet")
        return self._held.der

    def sign(self, message: bytes) -> bytes:
        """The identity key's signature: 64 bytes."""
        return self._identity.sign(message)

    def withdrawal(self) -> Withdrawal:
        """The party's word that it leaves for good."""
        return Withdrawal.make(self._identity, self.root.fingerprint)

    def erase(self) -> None:
        """Deletes every key and certificate."""
        for name in (_IDENTITY, _NEXT, _TLS, _ROOT):
            (self.folder / name).unlink(missing_ok=True)

    def _read_pair(self) -> tuple[bytes, Certificate | None]:
        path = self.folder / _TLS
        if not path.exists():
            return b"", None
        key = _tls_key(path)
        text = path.read_bytes()
        held = Certificate.read(text[text.index(b"-----BEGIN CERTIFICATE") :])
        return _pem(key), held


def private_folder(folder: Path) -> None:
    """Makes a folder that only its owner may enter.

    Raises:
        IdentityRefused: it can't be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise IdentityRefused(f"the folder {folder} can't be used: {error}") from error


def _load(path: Path) -> object:
    try:
        if os.stat(path).st_mode & 0o077:
            raise IdentityRefused(f"{path} may be read by others: chmod 600 {path}")
        return load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise IdentityRefused(f"a key can't be read: {error}") from error
    except (ValueError, TypeError) as error:
        raise IdentityRefused(f"the key {path} is damaged: {error}") from error


def _tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = _load(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityRefused(f"{path} is no P-256 key")
    return key


def _pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _is_for(certificate: Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    from cryptography import x509

    return x509.load_der_x509_certificate(certificate.der).public_key() == key.public_key()
