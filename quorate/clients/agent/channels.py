"""How an agent reaches its coordinator, and as whom: enrolled, over mutual TLS; or by name, on one machine.

An enrolled device's folder holds its keys and certificate (`keys/`, `quorate.identity.holder`), and its copy of the
enrolment log (`log.jsonl`), which only ever grows: what was seen once can't be taken back.
"""

from __future__ import annotations

import datetime
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import grpc

from quorate.clients.agent.state import AgentState
from quorate.clients.agent.stream import OPTIONS
from quorate.errors import IdentityRefused, PlanError, Unreachable
from quorate.identity import Holder, Root
from quorate.identity.logfile import KeptLog
from quorate.identity.membership import Members, utc_now
from quorate.identity.remote import RemoteAuthority

if TYPE_CHECKING:
    from quorate.fleets import Identities
    from quorate.rounds import Member

__all__ = ["Connection", "Enrolled", "Local", "authority", "connection", "keys_in", "log_in"]

log = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FRESH_S = 600.0
"""A copy of the log that is younger is not fetched again before a check-in."""


class Connection(Protocol):
    """Where the agent checks in."""

    @property
    def address(self) -> str:
        """`host:port`."""
        ...

    @property
    def device(self) -> Member:
        """The device's name."""
        ...

    @property
    def claimed(self) -> str:
        """What the check-in says that the device is called: empty where its certificate says it."""
        ...

    @property
    def identities(self) -> Identities | None:
        """The device's own identity and whom it believes to be a member; None without certificates."""
        ...

    def prepare(self) -> None:
        """Before a check-in: sees that the certificate is valid, and that the log is not old.

        Raises:
            IdentityRefused: this device is not, or no longer, enrolled; or the log was rewritten.
        """
        ...

    def refresh(self) -> None:
        """Before a round in which members are known by their certificates: brings the log up to date.

        Raises:
            IdentityRefused: the log was rewritten.
        """
        ...

    def channel(self) -> grpc.Channel:
        """A fresh channel to the coordinator."""
        ...


class Local:
    """Without TLS, to a coordinator on this machine: everybody is who they say they are.

    Args:
        address: `host:port` of this machine itself.
        device: the device's name: 1 to 64 letters, digits, dots, dashes and underscores.

    Raises:
        PlanError: the address is not this machine's own, or the name is none.
    """

    identities = None

    def __init__(self, address: str | None, device: str | None):
        host = (address or "").rpartition(":")[0]
        if address is None or host not in _LOOPBACK:
            raise PlanError(
                f"--coordinator: found {address!r}; accepted with --insecure: localhost:PORT, since whoever is on the "
                "way could read and change everything"
            )
        if device is None or not _NAME.fullmatch(device):
            raise PlanError(
                f"--device: found {device!r}; accepted with --insecure: 1 to 64 letters, digits, dots, dashes and "
                "underscores"
            )
        self.address, self.device, self.claimed = address, device, device

    def prepare(self) -> None:
        """Nothing."""

    def refresh(self) -> None:
        """Nothing."""

    def channel(self) -> grpc.Channel:
        """An insecure channel."""
        return grpc.insecure_channel(self.address, options=list(OPTIONS))


class Enrolled:
    """Over mutual TLS, with the certificate that enrolment brought; it is renewed when two thirds of its life are over.

    Args:
        directory: the agent's.
        address: `host:port` of the coordinator.
        authority: `host:port` of the enrolment authority.
        clock: gives the time, UTC.

    Raises:
        IdentityRefused: the keys or the log can't be used.
    """

    claimed = ""

    def __init__(
        self,
        directory: Path,
        address: str,
        authority: str,
        clock: Callable[[], datetime.datetime] = utc_now,
    ):
        self._holder, self._clock = Holder(keys_in(directory)), clock
        self._authority = RemoteAuthority(authority, self._holder.root)
        self._log = KeptLog(self._holder.root, log_in(directory))
        self._followed: float | None = None
        self.address, self.device = address, self._holder.name

    @property
    def identities(self) -> Identities:
        """The device's keys, and the certificates of the pinned authority that the log does not contradict."""
        from quorate.fleets import Identities

        members = Members(self._holder.root, self._log, self._clock)
        return Identities(members, own=lambda randomness: self._holder)

    def prepare(self) -> None:
        """Renews the certificate if it is due, and follows the log if the copy is old.

        Raises:
            IdentityRefused: see `Connection.prepare`.
        """
        held, now = self._holder.held, self._clock()
        if held is None or held.renewal_due(now):
            try:
                renewed = self._authority.renew(self._holder, now)
                log.info(
                    "the certificate was renewed", extra={"fields": {"until": renewed.expires.isoformat()}}
                )
            except (Unreachable, IdentityRefused) as error:  # what is held may be good still
                log.warning("the certificate can't be renewed now: %s", error)
        self._holder.valid(now)
        if self._followed is None or time.monotonic() - self._followed > _FRESH_S:
            self.refresh()

    def refresh(self) -> None:
        """Follows the log; an authority that does not answer leaves the copy as it is.

        Raises:
            IdentityRefused: the log does not continue what is held here, or this device was revoked.
        """
        try:
            self._authority.follow(self._log)
            self._followed = time.monotonic()
        except Unreachable as error:
            log.warning("the enrolment log can't be read now: %s", error)
        if self._log.is_revoked(self.device):
            raise IdentityRefused("this device was revoked; `quorate agent forget` and enrol it again")

    def channel(self) -> grpc.Channel:
        """A channel with the device's certificate, to a server under the pinned root."""
        key, chain = self._holder.tls_pair
        credentials = grpc.ssl_channel_credentials(self._holder.root.pem, key, chain)
        return grpc.secure_channel(self.address, credentials, options=list(OPTIONS))


def keys_in(directory: Path) -> Path:
    """Where an agent's keys are."""
    return directory / "keys"


def log_in(directory: Path) -> Path:
    """Where an agent's copy of the enrolment log is."""
    return directory / "log.jsonl"


def authority(state: AgentState) -> RemoteAuthority:
    """The enrolment authority of an enrolled device.

    Raises:
        IdentityRefused: the device is not enrolled.
    """
    address = state.fact("authority")
    if address is None:
        raise IdentityRefused(f"{state.directory} is not enrolled; `quorate agent enrol` does it")
    return RemoteAuthority(address, Root.load(keys_in(state.directory) / "root.pem"))


def connection(state: AgentState, address: str | None, device: str | None, *, insecure: bool) -> Connection:
    """How the agent reaches its coordinator.

    Args:
        state: the agent's memory.
        address: `host:port`; None: where the device enrolled.
        device: without TLS, the device's name.
        insecure: without TLS, on this machine.

    Raises:
        PlanError: the address can't be used so.
        IdentityRefused: the device is not enrolled.
    """
    if insecure:
        return Local(address, device)
    enrolled_at = authority(state).address
    return Enrolled(state.directory, address or state.fact("service") or enrolled_at, enrolled_at)
