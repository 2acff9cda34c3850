"""An authority that is independent of the coordinator: its own process, address and server certificate."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from quorate.identity import Holder, Role
from quorate.server.authority import Authority
from quorate.server.devices.enrolment import ENROLMENT_SERVICE, EnrolmentService
from quorate.server.devices.server import Listener, Servers
from quorate.server.devices.tls import server_credentials

__all__ = ["AuthorityServer"]

_SERVER = "server"


class AuthorityServer:
    """What listens for an authority.

    Args:
        authority: in whose folder the server's keys are.
        listen: `host:port`.
        coordinator: where devices check in, `host:port`.

    Raises:
        IdentityRefused: the authority has no server's keys.
    """

    def __init__(self, authority: Authority, listen: str, coordinator: str):
        self._authority = authority
        self._holder = Holder(authority.folder / _SERVER)
        service = EnrolmentService(authority, coordinator)
        credentials = server_credentials(self._holder, mutual=False)
        self.servers = Servers([Listener(listen, {ENROLMENT_SERVICE: service.handlers}, credentials)])

    @staticmethod
    def admit(authority: Authority, hosts: Sequence[str], at: datetime.datetime) -> Path:
        """Makes the server's keys, and has the authority certify them; gives their folder."""
        holder = Holder.create(authority.folder / _SERVER, authority.root)
        certificate = authority.admit(holder.request(hosts), Role.AUTHORITY, hosts, note=_SERVER)
        holder.install(certificate.der, at, Role.AUTHORITY)
        return holder.folder

    def renew_if_due(self, at: datetime.datetime) -> bool:
        """Renews the server's certificate when two thirds of its life are over; connections that are open stay."""
        if self._holder.held is not None and not self._holder.held.renewal_due(at):
            return False
        certificate = self._authority.renew(self._holder.request())
        self._holder.install(certificate.der, at, Role.AUTHORITY)
        return True
