"""The messages of a session: frozen, self-validating, each with one strict binary form.

`docs/secagg.md` describes every byte; `encoding` holds what they have in common.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np

from quorate.privacy.secagg.encoding import (
    VERSION,
    Encoded,
    Kind,
    Listed,
    Sizes,
    bitmap_bytes,
    refuse,
    require,
    require_canonical,
    require_length,
)
from quorate.privacy.secagg.keys import digest, is_of_low_order

__all__ = [
    "CERTIFICATE_BYTES",
    "LEAF_BYTES",
    "SEALED_BYTES",
    "SHARE_BYTES",
    "SIGNATURE_BYTES",
    "Acknowledgement",
    "Acknowledgements",
    "Advertisement",
    "Inbox",
    "MaskedInput",
    "Neighbours",
    "Reveal",
    "Roster",
    "SealedShares",
    "Survivors",
    "signed_keys",
    "signed_survivors",
]

LEAF_BYTES = 32
SHARE_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + 16
CERTIFICATE_BYTES = 1024
SIGNATURE_BYTES = 64
_KEY_BYTES = 32
_KEYS_BYTES = 3 * _KEY_BYTES


@dataclass(frozen=True)
class Advertisement(Encoded):
    """Client to server, and on to its neighbours: its public keys of this session.

    Certificate and signature are there in the signed threat models, and empty otherwise.

    Args:
        tag: of the binding.
        encryption_key: X25519, 32 bytes: shares are sealed under what is agreed with it.
        mask_key: X25519, 32 bytes: masks are made from what is agreed with it.
        commitment: to the self-mask's secret, 32 bytes.
        certificate: of the member's identity, 1 to 1,024 bytes.
        signature: of that identity over `signed_keys`, 64 bytes.
    """

    kind = Kind.ADVERTISEMENT
    encryption_key: bytes
    mask_key: bytes
    commitment: bytes
    certificate: bytes = b""
    signature: bytes = b""

    def _check(self) -> None:
        for part in (self.encryption_key, self.mask_key, self.commitment):
            if len(part) != _KEY_BYTES:
                refuse(self.kind, f"has a part of {len(part)} bytes, not {_KEY_BYTES}")
        if self.encryption_key == self.mask_key:
            refuse(self.kind, "has the same key twice")
        if is_of_low_order(self.encryption_key) or is_of_low_order(self.mask_key):
            refuse(self.kind, "has a key of low order: no secret can be agreed with it")
        if self.certificate or self.signature:
            size = len(self.certificate)
            require(
                1 <= size <= CERTIFICATE_BYTES,
                self.kind,
                f"has a certificate of {size} bytes, 1 to {CERTIFICATE_BYTES} are accepted",
            )
            require(len(self.signature) == SIGNATURE_BYTES, self.kind, "has no whole signature")

    @cached_property
    def body(self) -> bytes:
        """What follows the header."""
        keys = self.encryption_key + self.mask_key + self.commitment
        if not self.signature:
            return keys
        return keys + len(self.certificate).to_bytes(2, "big") + self.certificate + self.signature

    def _body(self) -> bytes:
        return self.body

    @classmethod
    def _parse(cls, tag: bytes, body: memoryview, sizes: Sizes) -> Self:
        require_length(cls.kind, body, cls._length(body, sizes))
        keys = bytes(body[:32]), bytes(body[32:64]), bytes(body[64:_KEYS_BYTES])
        if not sizes.signed:
            return cls(tag, *keys)
        end = len(body) - SIGNATURE_BYTES
        return cls(tag, *keys, bytes(body[_KEYS_BYTES + 2 : end]), bytes(body[end:]))

    @classmethod
    def _length(cls, body: memoryview, sizes: Sizes) -> int:
        """How long the body is that begins here."""
        if not sizes.signed:
            return _KEYS_BYTES
        require(len(body) > _KEYS_BYTES + 2, cls.kind, "ends within its certificate")
        size = int.from_bytes(body[_KEYS_BYTES : _KEYS_BYTES + 2], "big")
        require(1 <= size <= CERTIFICATE_BYTES, cls.kind, f"has a certificate of {size} bytes")
        return _KEYS_BYTES + 2 + size + SIGNATURE_BYTES


@dataclass(frozen=True)
class Roster(Encoded):
    """Server to every client: who takes part, as the digests of their advertisements in increasing order.

    Args:
        tag: of the binding.
        leaves: n digests of 32 bytes, strictly increasing.
    """

    kind = Kind.ROSTER
    leaf_bytes: ClassVar[int] = LEAF_BYTES
    leaves: bytes

    def _check(self) -> None:
        size, each = len(self.leaves), self.leaf_bytes
        require(size % each == 0, self.kind, f"has {size} bytes, not whole leaves of {each}")
        words = np.frombuffer(self.leaves, ">u8").reshape(-1, each // 8)[:, : LEAF_BYTES // 8]
        require(_increasing(words), self.kind, "has leaves that are not strictly increasing")

    @property
    def members(self) -> int:
        """N."""
        return len(self.leaves) // self.leaf_bytes

    def _body(self) -> bytes:
        return self.leaves

    @classmethod
    def _parse(cls, tag: bytes, body: memoryview, sizes: Sizes) -> Self:
        longest = sizes.largest * cls.leaf_bytes
        require(len(body) <= longest, cls.kind, f"has {len(body)} bytes, at most {longest} are accepted")
        return cls(tag, bytes(body))


@dataclass(frozen=True)
class SignedRoster(Roster):
    """The roster in the signed threat models: before each digest stands that of the member's identity.

    The identities' digests are strictly increasing: everybody sees that none takes part twice.
    """

    leaf_bytes = 2 * LEAF_BYTES


@dataclass(frozen=True)
class Neighbours(Encoded):
    """Server to a client: the advertisements of its neighbours.

    Args:
        tag: of the binding.
        advertisements: k of them, by the neighbours' numbers.
    """

    kind = Kind.NEIGHBOURS
    advertisements: tuple[Advertisement, ...]

    def _check(self) -> None:
        for advertisement in self.advertisements:
            if advertisement.tag != self.tag:
                refuse(self.kind, "has an advertisement of another binding")

    @classmethod
    def encoded(cls, tag: bytes, bodies: Iterable[bytes]) -> bytes:
        """The message from the bodies of checked advertisements: what a server sends n times."""
        return bytes((VERSION, cls.kind)) + tag + b"".join(bodies)

    def _body(self) -> bytes:
        return b"".join(advertisement.body for advertisement in self.advertisements)

    @classmethod
    def _parse(cls, tag: bytes, body: memoryview, sizes: Sizes) -> Self:
        found = []
        for _ in range(sizes.neighbours):
            length = Advertisement._length(body, sizes)
            found.append(Advertisement._parse(tag, body[:length], sizes))
            body = body[length:]
        require_length(cls.kind, body, 0)
        return cls(tag, tuple(found))


@dataclass(frozen=True)
class SealedShares(Encoded):
    """Client to server: for each neighbour, shares of both secrets, sealed for it.

    Args:
        tag: of the session.
        sealed: k times 80 bytes, by the neighbours' numbers.
    """

    kind = Kind.SEALED_SHARES
    sealed: bytes

    def _check(self) -> None:
        require(len(self.sealed) % SEALED_BYTES == 0, self.kind, "does not hold whole sealed shares")

    def _body(self) -> bytes:
        return self.sealed

    @classmethod
    def _parse(cls, tag: bytes, body: memoryview, sizes: Sizes) -> Self:
        require_length(cls.kind, body, sizes.neighbours * SEALED_BYTES)
        return cls(tag, bytes(body))


@dataclass(frozen=True)
class Inbox(Listed):
    """Server to a client: the sealed shares of the neighbours that are still there.

    Args:
        tag: of the session.
        present: bitmap over the client's neighbours.
        entries: 80 bytes for each that is set.
    """

    kind = Kind.INBOX
    entry_bytes = SEALED_BYTES


@dataclass(frozen=True)
class MaskedInput(Encoded):
    """Client to server: its vector under all its masks.

    Args:
        tag: of the session.
        packed: the ring elements, little-endian.
    """

    kind = Kind.MASKED_INPUT
    packed: bytes | memoryview

    def _check(self) -> None:
        require(len(self.packed) > 0, self.kind, "is empty")

    def _body(self) -> bytes:
        return bytes(self.packed)

    @classmethod
    def _parse(cls, tag: bytes, body: memoryview, sizes: Sizes) -> Self:
        require_length(cls.kind, body, sizes.vector_bytes)
        return cls(tag, body)


@dataclass(frozen=True)
class Survivors(Encoded):
    """Server to every client: whose masked vectors are in the sum; everybody else with shares out is dead.

    Args:
        tag: of the session.
        alive: bitmap over the places of the ring.
    """

    kind = Kind.SURVIVORS
    alive: bytes

    def _check(self) -> None:
        require(any(self.alive), self.kind, "is empty")

    def _body(self) -> bytes:
        return self.alive

    @classmethod
    def _parse(cls, tag: bytes, body: memoryview, sizes: Sizes) -> Self:
        require_length(cls.kind, body, bitmap_bytes(sizes.members))
        require_canonical(cls.kind, body, sizes.members)
        return cls(tag, bytes(body))


@dataclass(frozen=True)
class Acknowledgement(Encoded):
    """Client to server: its identity's signature on the survivor set.

    Args:
        tag: of the session.
        signature: over `signed_survivors`, 64 bytes.
    """

    kind = Kind.ACKNOWLEDGEMENT
    signature: bytes

    def _check(self) -> None:
        require(len(self.signature) == SIGNATURE_BYTES, self.kind, "has no whole signature")

    def _body(self) -> bytes:
        return self.signature

    @classmethod
    def _parse(cls, tag: bytes, body: memoryview, sizes: Sizes) -> Self:
        require_length(cls.kind, body, SIGNATURE_BYTES)
        return cls(tag, bytes(body))


@dataclass(frozen=True)
class Acknowledgements(Listed):
    """Server to a client: its neighbours' signatures on the survivor set.

    Args:
        tag: of the session.
        present: bitmap over the client's neighbours.
        entries: 64 bytes for each that is set.
    """

    kind = Kind.ACKNOWLEDGEMENTS
    entry_bytes = SIGNATURE_BYTES


def signed_keys(
    binding: bytes, encryption_key: bytes, mask_key: bytes, commitment: bytes, certificate: bytes
) -> bytes:
    """What an identity signs of its advertisement: 32 bytes."""
    return digest(b"advertisement", binding, encryption_key, mask_key, commitment, certificate)


def signed_survivors(session: bytes, alive: bytes) -> bytes:
    """What is signed of a survivor set: 32 bytes over the session and the whole set."""
    return digest(b"survivors", session, alive)


@dataclass(frozen=True)
class Reveal(Listed):
    """Client to server: one share for each neighbour: of its self mask if it is alive, else of its mask key.

    Args:
        tag: of the session.
        present: bitmap over the client's neighbours.
        entries: 32 bytes for each that is set.
    """

    kind = Kind.REVEAL
    entry_bytes = SHARE_BYTES


def _increasing(words: np.ndarray) -> bool:
    """Whether rows of big-endian words increase strictly; nearly always the first word decides."""
    first = words[:, 0]
    if bool((first[1:] > first[:-1]).all()):
        return True
    rows = words.tolist()
    return all(low < high for low, high in pairwise(rows))
