"""An endorsement: somebody's signature of a plan's terms, by which a device knows whose plan it is.

It is an Ed25519 signature (RFC 8032) of the terms' exact bytes, detached. It names no run and no round: those are
bound by the secure sum's session, and what a device spends it counts itself. What a device makes of a signer is its
own policy's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["Endorsement"]

_PURPOSE = b"quorate/terms/1\0"


@dataclass(frozen=True)
class Endorsement:
    """Who signed the terms.

    Args:
        signer: the Ed25519 public key, 32 bytes.
        signature: 64 bytes.
    """

    signer: bytes
    signature: bytes

    @classmethod
    def of(cls, terms: bytes, key: Ed25519PrivateKey) -> Endorsement:
        """A signature of the terms' bytes."""
        return cls.by(terms, key.public_key().public_bytes_raw(), key.sign)

    @classmethod
    def by(cls, terms: bytes, signer: bytes, sign: Callable[[bytes], bytes]) -> Endorsement:
        """A signature by somebody who keeps the key.

        Args:
            terms: the exact bytes.
            signer: the Ed25519 public key, 32 bytes.
            sign: makes an Ed25519 signature with it.
        """
        return cls(signer, sign(_PURPOSE + terms))

    def covers(self, terms: bytes) -> bool:
        """Whether the signature is the signer's, and of these terms."""
        try:
            Ed25519PublicKey.from_public_bytes(self.signer).verify(self.signature, _PURPOSE + terms)
        except (InvalidSignature, ValueError):
            return False
        return True
