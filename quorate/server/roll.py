"""The roll: who is enrolled now, as a running service asks it, and who is told when somebody is revoked.

It is a verified copy of the log. Who feeds it is another's: the authority from its own records
(`quorate.server.authority`), or a coordinator without an authority from the log that it follows.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Callable, Iterable

from quorate.errors import IdentityRefused
from quorate.identity import Certificate, Entry, Head, Log, Members, Role, Root
from quorate.identity.membership import utc_now

__all__ = ["Roll"]

log = logging.getLogger(__name__)


class Roll:
    """Thread-safe.

    Args:
        root: of the authority.
        clock: gives the time, UTC.
        log: the copy to go on from; None for an empty one.
    """

    def __init__(self, root: Root, clock: Callable[[], datetime.datetime] = utc_now, log: Log | None = None):
        self.root = root
        self._log, self._clock = log or Log(root), clock
        self.members = Members(root, self._log, clock)
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str, str], None]] = []

    @property
    def size(self) -> int:
        """How many entries of the log it knows."""
        return self._log.size

    def take(self, entries: Iterable[Entry], head: Head | None = None) -> None:
        """Takes what comes next in the log, and tells the listeners who was revoked.

        Raises:
            IdentityRefused: it does not continue the log; nothing is taken.
        """
        with self._lock:
            known = len(self._log.revoked())
            self._log.follow(entries, head)
            fresh = list(self._log.revoked().items())[known:]
            listeners = list(self._listeners)
        for name, reason in fresh:
            log.info("a party is revoked", extra={"device": name, "reason": reason})
            for listener in listeners:
                listener(name, reason)

    def on_revoked(self, listener: Callable[[str, str], None]) -> None:
        """Has a function called with the name and the reason of whoever is revoked from here on.

        The thread that takes the entries calls it. Ending the streams that a revoked party has open is its work.
        """
        with self._lock:
            self._listeners.append(listener)

    def check(self, certificate: bytes, role: Role) -> Certificate:
        """Whether whoever shows a certificate (DER or PEM) may act in a role now.

        Raises:
            IdentityRefused: the certificate is not of this authority, not valid now or for another role, or its holder
                is not enrolled or revoked.
        """
        verified = self.root.verify(certificate, self._clock(), role=role)
        if self._log.is_revoked(verified.name):
            raise IdentityRefused(f"{verified.name} is revoked")
        if self._log.identity(verified.name, role) != verified.identity:
            raise IdentityRefused(f"{verified.name} is not enrolled as {role}: the log does not have it")
        return verified

    def is_revoked(self, name: str) -> bool:
        """Whether a party was revoked."""
        return self._log.is_revoked(name)

    def names(self, role: Role) -> list[str]:
        """Who is enrolled in a role and not revoked, oldest first."""
        with self._lock:
            return self._log.names(role)
