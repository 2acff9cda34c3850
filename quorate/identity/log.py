"""The public log: every enrolment and every revocation, in order, so that nobody is enrolled in secret.

An entry's content is canonical JSON. Each entry is hashed over the one before it, SHA-256(previous ‖ content), from a
beginning that is bound to the authority's root, and the authority signs the newest hash with the log's length and the
time (`Head`). Who has followed the log so far accepts only what continues it: an entry that was changed, left out or
put in later, and a log that is shorter than it was, are refused.

What it does not show: that everybody is shown the same log, unless they compare heads. A Merkle tree (RFC 6962) would
prove single entries to a device that does not hold them all.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quorate.errors import IdentityRefused
from quorate.identity.certificates import Role, Root, name_of

__all__ = ["Entry", "Head", "Log", "beginning", "canonical", "enrolled", "entry_hash", "revoked"]

LARGEST_ENTRY_BYTES = 1024

_HEAD = b"quorate/identity/head/1\0"


@dataclass(frozen=True)
class Entry:
    """An entry of the log.

    Args:
        index: from 0.
        content: canonical JSON.
        hash: SHA-256(previous hash ‖ content), 32 bytes.
    """

    index: int
    content: bytes
    hash: bytes


@dataclass(frozen=True)
class Head:
    """How long the log is, and its last hash, signed by the authority.

    Args:
        size: how many entries it has.
        hash: of the last one.
        at: when the authority said so, UTC.
        signature: ECDSA by the authority's key; DER.
    """

    size: int
    hash: bytes
    at: datetime.datetime
    signature: bytes

    @property
    def signed(self) -> bytes:
        """What is signed."""
        return _HEAD + canonical({"size": self.size, "hash": self.hash.hex(), "at": self.at.isoformat()})


class Log:
    """A verified copy of the log: who is enrolled, and who is revoked.

    Args:
        root: of the authority whose log it is.
    """

    def __init__(self, root: Root):
        self._root = root
        self.size = 0
        self.hash = beginning(root)
        self._parties: dict[str, tuple[Role, bytes]] = {}
        self._revoked: dict[str, str] = {}

    def follow(self, entries: Iterable[Entry], head: Head | None = None) -> list[Entry]:
        """Takes what comes after what is held; gives it back. On a refusal the log stays as it was.

        Args:
            entries: from index `size` on.
            head: what the entries must lead up to; None when they come from the authority's own records.

        Raises:
            IdentityRefused: they do not continue the log, or do not come to the signed head.
        """
        if head is not None:
            self._check(head)
        taken: list[tuple[Entry, Mapping[str, Any]]] = []
        size, hash = self.size, self.hash
        for entry in entries:
            if entry.index != size or entry.hash != entry_hash(hash, entry.content):
                raise IdentityRefused(
                    f"entry {entry.index} of the log does not continue the {size} entries that are known: the log "
                    "was rewritten or forked"
                )
            taken.append((entry, _parse(entry)))
            size, hash = size + 1, entry.hash
        if head is not None and (size, hash) != (head.size, head.hash):
            raise IdentityRefused(
                "the entries of the log do not lead up to the head that the authority signed"
            )
        for _, content in taken:
            self._apply(content)
        self.size, self.hash = size, hash
        return [entry for entry, _ in taken]

    def identity(self, name: str, role: Role) -> bytes | None:
        """The identity key of a party that is enrolled in a role and not revoked; else None."""
        known = self._parties.get(name)
        return known[1] if known is not None and known[0] is role and name not in self._revoked else None

    def is_revoked(self, name: str) -> bool:
        """Whether a party was revoked; that is for good."""
        return name in self._revoked

    def revoked(self) -> Mapping[str, str]:
        """Who was revoked, by name, with the reason."""
        return self._revoked

    def names(self, role: Role) -> list[str]:
        """Who is enrolled in a role and not revoked, oldest first."""
        return [
            name for name, (held, _) in self._parties.items() if held is role and name not in self._revoked
        ]

    def _check(self, head: Head) -> None:
        if not self._root.has_signed(head.signature, head.signed):
            raise IdentityRefused("the head of the log is not signed by the authority that is trusted here")
        if head.size < self.size or (head.size == self.size and head.hash != self.hash):
            raise IdentityRefused(
                f"the log has {head.size} entries and does not hold the {self.size} that are known: it was "
                "rewritten or forked"
            )

    def _apply(self, content: Mapping[str, Any]) -> None:
        if content["kind"] == "enrolled":
            identity = bytes.fromhex(content["identity"])
            self._parties.setdefault(name_of(identity), (Role(content["role"]), identity))
        else:
            self._revoked.setdefault(content["name"], content["reason"])


def beginning(root: Root) -> bytes:
    """The hash before the first entry."""
    return hashlib.sha256(b"quorate/identity/log/1\0" + root.fingerprint).digest()


def entry_hash(previous: bytes, content: bytes) -> bytes:
    """The hash of an entry after another."""
    return hashlib.sha256(previous + content).digest()


def enrolled(identity: bytes, role: Role, at: datetime.datetime) -> bytes:
    """The content that says that a party was enrolled."""
    return canonical({"kind": "enrolled", "role": role.value, "identity": identity.hex(), "at": _seconds(at)})


def revoked(name: str, reason: str, at: datetime.datetime) -> bytes:
    """The content that says that a party was revoked."""
    return canonical({"kind": "revoked", "name": name, "reason": reason, "at": _seconds(at)})


def canonical(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and without spaces, in UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


_KEYS = {"enrolled": {"kind", "role", "identity", "at"}, "revoked": {"kind", "name", "reason", "at"}}


def _parse(entry: Entry) -> Mapping[str, Any]:
    try:
        if len(entry.content) > LARGEST_ENTRY_BYTES:
            raise ValueError(f"{len(entry.content)} bytes")
        content = json.loads(entry.content)
        if canonical(content) != entry.content or set(content) != _KEYS[content["kind"]]:
            raise ValueError("not canonical")
        if not all(isinstance(value, str) for value in content.values()):
            raise ValueError("not text")
        if content["kind"] == "enrolled" and (
            content["role"] not in list(Role) or len(bytes.fromhex(content["identity"])) != 32
        ):
            raise ValueError("no identity")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IdentityRefused(f"entry {entry.index} of the log is not an entry: {error}") from error
    return content  # type: ignore[no-any-return]


def _seconds(at: datetime.datetime) -> str:
    return at.astimezone(datetime.UTC).isoformat(timespec="seconds")
