"""Who signs, and who is enrolled: the interfaces to long-term identities, for the signed threat models.

A member's identity signs its advertisement (so that a lying server can't put its own keys in the place of a
member's) and, once, the survivor set. Signatures are Ed25519 (RFC 8032). How identities are enrolled is not
the protocol's: a certificate is opaque here, and an `Enrolment` says which public key it stands for, or
that it is not enrolled. What the threat models ask of it: `semi-malicious`, that enrolment is trusted;
`malicious`, that it is independent of the coordinator and its log public, since else Sybils are free.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from quorate.fleets import Enrolment, Identity
from quorate.randomness import Randomness

__all__ = ["AnyKey", "Ed25519Identity", "EnrolledKeys", "Enrolment", "Identity", "Trust", "verifies"]


@dataclass(frozen=True)
class Trust:
    """What a client brings to the signed threat models.

    Args:
        identity: its own.
        enrolment: whom it believes to be a member.
    """

    identity: Identity
    enrolment: Enrolment


class Ed25519Identity:
    """An identity whose key is in memory.

    Args:
        private: the signing key.
        certificate: None for the raw public key.
    """

    def __init__(self, private: Ed25519PrivateKey, certificate: bytes | None = None):
        self._private = private
        self.certificate = private.public_key().public_bytes_raw() if certificate is None else certificate

    @classmethod
    def draw(cls, randomness: Randomness) -> Ed25519Identity:
        """A fresh identity, its certificate being its raw public key."""
        return cls(Ed25519PrivateKey.from_private_bytes(randomness.bytes(32)))

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature: 64 bytes."""
        return self._private.sign(message)


class EnrolledKeys:
    """Enrolment by a list: a certificate is a raw public key of the list.

    Args:
        keys: 32 bytes each.
    """

    def __init__(self, keys: frozenset[bytes]):
        self._keys = keys

    def public_key(self, certificate: bytes) -> bytes | None:
        """The certificate itself, if it is listed."""
        return certificate if certificate in self._keys else None


class AnyKey:
    """Enrols every raw public key: protects nobody from a server that makes up members. For simulations."""

    def public_key(self, certificate: bytes) -> bytes | None:
        """The certificate itself, if it has the length of a key."""
        return certificate if len(certificate) == 32 else None


def verifies(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature is right."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
