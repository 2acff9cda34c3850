"""Whom a member believes to be a member: certificates of the pinned authority, and the log where it is at hand."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from quorate.errors import IdentityRefused
from quorate.identity.certificates import Role, Root
from quorate.identity.log import Log

__all__ = ["Members", "utc_now"]


def utc_now() -> datetime.datetime:
    """The system's clock."""
    return datetime.datetime.now(datetime.UTC)


class Members:
    """Enrolment by certificate: see `quorate.fleets.Enrolment`.

    Args:
        root: the pinned authority.
        log: a verified copy, which may grow; without one a revoked member counts until its certificate expires.
        clock: gives the time, UTC.
    """

    def __init__(self, root: Root, log: Log | None = None, clock: Callable[[], datetime.datetime] = utc_now):
        self._root, self._log, self._clock = root, log, clock

    def public_key(self, certificate: bytes) -> bytes | None:
        """The Ed25519 key (32 bytes) of a device with a valid certificate (DER) that the log does not contradict."""
        try:
            verified = self._root.verify(certificate, self._clock(), role=Role.DEVICE)
        except IdentityRefused:
            return None
        if self._log is not None and self._log.identity(verified.name, Role.DEVICE) != verified.identity:
            return None
        return verified.identity
