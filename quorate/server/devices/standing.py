"""A device service that stands: listening, with whoever says who devices are, and the authority beside it.

What `Devices` (one run of this process) and `quorate coordinator run` (several, administered) have in common.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from quorate.endorsement import Endorsement
from quorate.fleets import Enrolment
from quorate.server.devices.enrolment import ENROLMENT_SERVICE, CertifiedDoor, EnrolmentService
from quorate.server.devices.local import LocalDoor, check_local
from quorate.server.devices.server import Listener, Servers
from quorate.server.devices.service import SERVICE, DeviceService, Limits, Recorded
from quorate.server.devices.tls import server_credentials
from quorate.server.devices.waiting import WaitingRoom
from quorate.server.keeping import Keeper
from quorate.server.metrics import Metrics
from quorate.server.roll import Roll
from quorate.server.site import Site

__all__ = ["Standing", "stand"]

ANY_HOST = ("", "0.0.0.0", "[::]")
_STOP_S = 2.0


@dataclass(frozen=True)
class Standing:
    """What stands.

    Args:
        service: where devices check in.
        servers: listen; more can be added.
        devices: the port where devices check in.
        enrolment: the port where they enrol; None if that is elsewhere.
        roll: who is enrolled; None without certificates.
        endorse: signs terms with the coordinator's identity; None without one.
    """

    service: DeviceService
    servers: Servers
    devices: int
    enrolment: int | None = None
    roll: Roll | None = None
    endorse: Callable[[bytes], Endorsement] | None = None

    @property
    def members(self) -> Enrolment | None:
        """Whom the fleet believes to be a member."""
        return None if self.roll is None else self.roll.members


def stand(
    stack: contextlib.ExitStack,
    site: Site | None,
    devices: str,
    enrolment: str,
    metrics: Metrics,
    recorded: Recorded | None = None,
    limits: Limits | None = None,
) -> Standing:
    """Listens for devices, and for those that enrol where the authority is the coordinator's own.

    Args:
        stack: closes it.
        site: the coordinator's folder, which is closed too; None for no certificates, on this machine only.
        devices: `host:port` of the device service.
        enrolment: `host:port` of the enrolment service.
        metrics: see `DeviceService`.
        recorded: see `DeviceService`.
        limits: see `DeviceService`.

    Raises:
        PlanError: without certificates, the address is not this machine's own.
        IdentityRefused: there is no valid certificate.
        StateError: an address can't be used.
    """
    if site is None:
        check_local(devices)
        service = DeviceService(LocalDoor(), WaitingRoom(), metrics, recorded, limits)
        servers = _servers(stack, Listener(devices, _methods(service)))
        return Standing(service, servers, servers.ports[0])
    stack.callback(site.close)
    keeper = stack.enter_context(Keeper(site))
    service = DeviceService(CertifiedDoor(keeper.roll), WaitingRoom(), metrics, recorded, limits)
    mutual = server_credentials(site.holder, mutual=True)
    servers = _servers(stack, Listener(devices, _methods(service), mutual))
    keeper.roll.on_revoked(lambda name, reason: servers.soon(service.revoke, name))
    port = None
    if site.authority is not None:
        # Devices learn there where to check in, which is known only now if the port was a free one.
        host, _, _ = devices.rpartition(":")
        asked = EnrolmentService(site.authority, f"{'' if host in ANY_HOST else host}:{servers.ports[0]}")
        credentials = server_credentials(site.holder, mutual=False)
        port = servers.add(Listener(enrolment, {ENROLMENT_SERVICE: asked.handlers}, credentials))
    endorse = partial(_endorsed, site)
    return Standing(service, servers, servers.ports[0], port, keeper.roll, endorse)


def _servers(stack: contextlib.ExitStack, listener: Listener) -> Servers:
    servers = Servers([listener])
    stack.callback(servers.stop, _STOP_S)
    return servers.start()


def _methods(service: DeviceService) -> dict[str, dict[str, object]]:
    return {SERVICE: {"Participate": service.handler}}


def _endorsed(site: Site, terms: bytes) -> Endorsement:
    """The coordinator stands behind the terms with its identity key."""
    certificate = site.holder.valid(site.now())
    return Endorsement.by(terms, certificate.identity, site.holder.sign)
