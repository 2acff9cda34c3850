"""`quorate coordinator run`: everything of a coordinator in one process.

    devices     the device service; mutual TLS
    enrolment   the authority, where it is the coordinator's own; TLS on the server's side
    admin       `quorate runs` and tokens; mutual TLS with an operator's certificate
    metrics     Prometheus, over HTTP without TLS: for this machine, or behind something that guards it

Insecure, there are no certificates and no enrolment, and it listens on this machine's own address only.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from quorate.errors import StateError
from quorate.files import replace_file
from quorate.hosting import Host
from quorate.identity import Role
from quorate.plan import Population
from quorate.rounds import Member, Outcome
from quorate.server.administration import ADMIN, admin_methods
from quorate.server.devices import (
    Limits,
    Listener,
    check_local,
)
from quorate.server.devices.enrolment import certified
from quorate.server.devices.standing import ANY_HOST, stand
from quorate.server.devices.tls import server_credentials
from quorate.server.metrics import Metrics
from quorate.server.site import Site
from quorate.server.store import Store

__all__ = ["ADMIN_FILE", "Addresses", "CoordinatorProcess"]

ADMIN_FILE = "admin.json"
"""In the coordinator's folder while it runs: how an operator on this machine reaches it."""


@dataclass(frozen=True)
class Addresses:
    """Where a coordinator listens; `host:port` each, an empty host is every interface, port 0 a free one.

    Args:
        devices: the device service.
        enrolment: the enrolment service.
        admin: the admin service.
        metrics: None for none.
    """

    devices: str = ":9443"
    enrolment: str = ":9444"
    admin: str = "localhost:9445"
    metrics: str | None = "localhost:9446"


class CoordinatorProcess:
    """A context manager: runs that were wanted go on; leaving it aborts what is open after a while of grace.

    Args:
        folder: the coordinator's: state is in `state/`.
        addresses: where it listens.
        database: `postgresql://…`, in the place of one in the folder.
        population: whose budget every run counts towards; None: those of plans with a `[population]` only.
        insecure: without certificates, on this machine only.
        limits: what devices may cost.
        grace_s: how long open rounds may take when it goes down.

    Raises:
        PlanError: it would listen without TLS where others could come.
        IdentityRefused: the folder is no coordinator's, or its certificate is not there yet.
        StateError: the state is in use, or an address is.
    """

    def __init__(
        self,
        folder: Path,
        addresses: Addresses,
        *,
        database: str | None = None,
        population: Population | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        grace_s: float = 30.0,
    ):
        if insecure:
            check_local(addresses.devices)
            check_local(addresses.admin)
        self._folder, self._addresses, self._grace_s = folder, addresses, grace_s
        self._site = None if insecure else Site(folder)
        self._limits, self._database, self._population = limits, database, population
        self._stack = contextlib.ExitStack()
        self.ports: Mapping[str, int] = {}
        """By name: devices, admin, enrolment, metrics."""
        self.host: Host

    def __enter__(self) -> CoordinatorProcess:
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self, stack: contextlib.ExitStack) -> None:
        """In this order; it is closed in the reverse one: the runs end before the streams are cut."""
        site, metrics, addresses = self._site, Metrics(), self._addresses
        store = stack.enter_context(
            contextlib.closing(Store(self._folder / "state", database=self._database))
        )
        recorded = partial(_recorded, store)
        standing = stand(stack, site, addresses.devices, addresses.enrolment, metrics, recorded, self._limits)
        self.host = Host(store, standing.service, standing.members, standing.endorse, self._population)
        ports = {"devices": standing.devices}
        if standing.enrolment is not None:
            ports["enrolment"] = standing.enrolment
        if site is None or standing.roll is None:
            admin = Listener(addresses.admin, {ADMIN: admin_methods(self.host, None)})
        else:
            operator = partial(certified, roll=standing.roll, role=Role.OPERATOR)
            methods = admin_methods(self.host, site.authority, operator)
            admin = Listener(addresses.admin, {ADMIN: methods}, server_credentials(site.holder, mutual=True))
        ports["admin"] = standing.servers.add(admin)
        if self._addresses.metrics is not None:
            host, _, port = self._addresses.metrics.rpartition(":")
            try:
                number, scraped = metrics.serve(host or "0.0.0.0", int(port))
            except (OSError, ValueError) as error:
                raise StateError(f"{self._addresses.metrics} can't be listened on: {error}") from error
            stack.callback(scraped.server_close)
            stack.callback(scraped.shutdown)
            ports["metrics"] = number
        self.ports = ports
        stack.callback(self.host.close, self._grace_s)
        self.host.recover()
        self._say_where(stack)

    def _say_where(self, stack: contextlib.ExitStack) -> None:
        path, site = self._folder / ADMIN_FILE, self._site
        host, _, _ = self._addresses.admin.rpartition(":")
        found = {
            "address": f"{'localhost' if host in ANY_HOST else host}:{self.ports['admin']}",
            "name": None if site is None else site.hosts[0],
            "process": os.getpid(),
        }
        replace_file(path, json.dumps(found).encode() + b"\n")
        stack.callback(path.unlink, missing_ok=True)


def _recorded(store: Store, run: str, round: int, device: Member) -> Outcome | None:
    """How a round ended for a device: None while it is open; aborted if the device, or nobody, was in it."""
    outcome = store.outcome(run, round, device)
    if outcome is None and not store.is_open(run, round):
        return Outcome.ABORTED
    return outcome
