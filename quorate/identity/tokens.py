"""Enrolment tokens: what an operator gives to somebody who sets up a device, once.

A token holds a secret that the authority knows the hash of, and the fingerprint of the authority's root, so that a
device that knows nothing yet can tell the true server from another before it shows the secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass

from quorate.errors import IdentityRefused

__all__ = ["Token"]

_PREFIX = "quorate1"


@dataclass(frozen=True)
class Token:
    """A token in its parts; `str` gives its text.

    Args:
        fingerprint: SHA-256 of the root certificate's DER, 32 bytes.
        secret: 256 random bits.
    """

    fingerprint: bytes
    secret: bytes

    @classmethod
    def draw(cls, fingerprint: bytes) -> Token:
        """A fresh token."""
        return cls(fingerprint, os.urandom(32))

    @classmethod
    def parse(cls, text: str) -> Token:
        """Reads a token.

        Raises:
            IdentityRefused: it is not one. The message does not repeat it.
        """
        parts = text.strip().split(".")
        try:
            fingerprint, secret = (
                base64.b64decode(part + "=", altchars=b"-_", validate=True) for part in parts[1:]
            )
        except (ValueError, binascii.Error):
            fingerprint = secret = b""
        if parts[0] != _PREFIX or len(fingerprint) != 32 or len(secret) != 32:
            raise IdentityRefused(
                f"this is not an enrolment token: {_PREFIX}.… is accepted, as `quorate coordinator token` prints it"
            )
        return cls(fingerprint, secret)

    def __str__(self) -> str:
        parts = (
            base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (self.fingerprint, self.secret)
        )
        return ".".join((_PREFIX, *parts))

    def __repr__(self) -> str:
        return f"Token({self.fingerprint.hex()[:16]}…)"

    @property
    def digest(self) -> bytes:
        """What the authority keeps: SHA-256 of the secret, 32 bytes. It is random, so it needs no salt."""
        return hashlib.sha256(self.secret).digest()
