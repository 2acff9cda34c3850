"""Every key of the protocol, and what each is derived from. Primitives come from the `cryptography` package.

X25519 (RFC 7748), HKDF-SHA-256 (RFC 5869), AES-256-GCM (NIST SP 800-38D). A derivation names its purpose,
and takes in the session (a hash over the terms, the round, everything broadcast and the roster) as the
salt: members that were told different things derive different keys, so that their masks do not cancel and
their shares do not open.

A member has two X25519 keys, which live for one session: the *encryption key* never leaves it; the *mask
key* is derived from a secret that its neighbours share, and is restored when it drops out. Shares travel
sealed under a key for one direction and one use, so that the nonce may be fixed.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from quorate.errors import ProtocolViolation

__all__ = [
    "KEY_BYTES",
    "agree",
    "commitment",
    "digest",
    "is_of_low_order",
    "mask_private_key",
    "open_sealed",
    "pair_mask_key",
    "seal",
    "seal_keys",
    "self_mask_key",
]

KEY_BYTES = 32
TAG_BYTES = 16
_LABEL = b"quorate/secagg/1/"
_SEAL = _LABEL + b"seal"
_SHA256 = hashes.SHA256()
_NONCE = bytes(12)
_SHORT_BYTES = 4096  # a longer part is hashed where it lies, a shorter one with the rest
_CURVE = (1 << 255) - 19
_LOW_ORDER = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _CURVE - 1,
        _CURVE,
        _CURVE + 1,
    }
)


def digest(purpose: bytes, *parts: bytes) -> bytes:
    """SHA-256 over a purpose and parts, each with its length before it."""
    *short, last = (_LABEL + purpose, *parts)
    head = b"".join([piece for part in short for piece in (_length(part), part)]) + _length(last)
    if len(last) <= _SHORT_BYTES:
        return hashes.Hash.hash(_SHA256, head + last)
    h = hashes.Hash(_SHA256)
    h.update(head)
    h.update(last)
    return h.finalize()


def _length(part: bytes) -> bytes:
    return len(part).to_bytes(8, "big")


def mask_private_key(secret: bytes, binding: bytes) -> X25519PrivateKey:
    """The mask key of a shared secret; its salt is the binding, since it is advertised before the roster."""
    return X25519PrivateKey.from_private_bytes(_derive(secret, binding, b"mask-key"))


def commitment(self_secret: bytes, binding: bytes) -> bytes:
    """32 bytes that tell nothing about the self-mask's secret, and that no other secret gives."""
    return _derive(self_secret, binding, b"commit")


def self_mask_key(self_secret: bytes, session: bytes) -> bytes:
    """The AES key of a member's own mask."""
    return _derive(self_secret, session, b"self-mask")


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """The Diffie–Hellman secret with a peer.

    Raises:
        ProtocolViolation: the peer's key is of low order: the secret would be known to everybody.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ProtocolViolation(
            "a peer's public key is a point of low order: no secret can be agreed with it"
        ) from None


def is_of_low_order(public: bytes) -> bool:
    """Whether any secret that is agreed with this X25519 key is zero (RFC 7748, section 6.1).

    The points of order 1, 2, 4 and 8 on the curve and its twist, as D. J. Bernstein lists them, in each of
    their encodings; the highest bit is not read.
    """
    return int.from_bytes(public, "little") & ((1 << 255) - 1) in _LOW_ORDER


def pair_mask_key(agreed: bytes, session: bytes, low: int, high: int) -> bytes:
    """The AES key of the mask between two members; `low` < `high` are their places."""
    return _derive(agreed, session, b"pair-mask" + _places(low, high))


def seal_keys(
    agreed: bytes, session: bytes, own: int, peer: int, own_key: bytes, peer_key: bytes
) -> tuple[bytes, bytes]:
    """The key of what `own` seals for `peer`, and the key of what `peer` seals for `own`: one a direction.

    Each is HKDF of what was agreed; the extraction is done once for both.
    """
    extracted = HKDF.extract(_SHA256, session, agreed)
    outward = _SEAL + _places(own, peer) + own_key + peer_key
    inward = _SEAL + _places(peer, own) + peer_key + own_key
    return (
        HKDFExpand(_SHA256, KEY_BYTES, outward).derive(extracted),
        HKDFExpand(_SHA256, KEY_BYTES, inward).derive(extracted),
    )


def seal(key: bytes, session: bytes, source: int, destination: int, plain: bytes) -> bytes:
    """`plain` sealed for `destination`: 16 bytes longer. A key seals once."""
    return AESGCM(key).encrypt(_NONCE, plain, session + _places(source, destination))


def open_sealed(
    key: bytes, session: bytes, source: int, destination: int, sealed: bytes | memoryview
) -> bytes | None:
    """What was sealed, or None if it is not what `source` sealed for `destination` in this session."""
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, session + _places(source, destination))
    except InvalidTag:
        return None


def _places(first: int, second: int) -> bytes:
    return first.to_bytes(2, "big") + second.to_bytes(2, "big")


def _derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(_SHA256, KEY_BYTES, salt, _LABEL + info).derive(secret)
