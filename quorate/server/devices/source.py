"""`Devices`: the fleet of a run whose members are real devices that check in here.

    run(plan, fleet=Devices(":9443", population=300, folder="fl"))

`Hosted` is the same for one run of several, on a coordinator that listens already (`quorate coordinator run`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quorate.errors import PlanError
from quorate.fleets import Enrolment
from quorate.plan import FleetSection, Plan
from quorate.rounds import Deadlines
from quorate.server.devices.fleet import DeviceFleet
from quorate.server.devices.local import check_local
from quorate.server.devices.service import DeviceService
from quorate.server.devices.standing import stand
from quorate.server.devices.waiting import Demand
from quorate.server.metrics import Metrics
from quorate.server.site import Site

__all__ = ["Devices", "Hosted", "devices"]


@dataclass(frozen=True)
class Hosted:
    """One run's fleet on a coordinator that serves several.

    Args:
        service: where devices check in.
        fleet: `[fleet]` of the run's plan.
        size: of the population: devices that must wait before a round opens.
        enrolment: who is a member, where devices have certificates.
        deadlines: of every round.
    """

    service: DeviceService
    fleet: FleetSection
    size: int
    enrolment: Enrolment | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)

    def section(self) -> FleetSection:
        """As it stands in the plan."""
        return self.fleet

    def open(self, plan: Plan, directory: Path | None) -> DeviceFleet:
        """The fleet."""
        demand = Demand(plan.task.resolve().name, self.size)
        return DeviceFleet(self.service, demand, enrolment=self.enrolment, deadlines=self.deadlines)


@dataclass(frozen=True)
class Devices:
    """Real devices, of one run, that check in at this process.

    Args:
        listen: `host:port`; an empty host is every interface.
        population: devices that must wait before a round opens; amplification by sampling is claimed for so many.
        folder: the coordinator's, made by `quorate coordinator init`: its keys, and the authority if it has its own.
        enrolment: `host:port` where devices enrol.
        insecure: without a folder and TLS, on this machine's own address only: every device is who it says it is.
        training_s: see `Deadlines`.
        phase_s: see `Deadlines`.
    """

    listen: str
    population: int
    folder: str | None = None
    enrolment: str = ":9444"
    insecure: bool = False
    training_s: float = Deadlines.training_s
    phase_s: float = Deadlines.phase_s

    def __post_init__(self) -> None:
        if self.population < 1:
            raise PlanError(f"population: found {self.population}; accepted: a whole number of at least 1")
        if (self.folder is None) is not self.insecure:
            raise PlanError(
                f"folder: found {self.folder!r} with insecure {self.insecure}; accepted: a coordinator's folder, or "
                "insecure = true to try things out on this machine"
            )
        if self.insecure:
            check_local(self.listen)
        Deadlines(self.training_s, self.phase_s)

    @property
    def size(self) -> int:
        """The population's size."""
        return self.population

    def section(self) -> FleetSection:
        """How it stands in a plan."""
        settings: dict[str, Any] = {"listen": self.listen, "population": self.population}
        settings.update(training_s=self.training_s, phase_s=self.phase_s)
        if self.insecure:
            settings["insecure"] = True
        else:
            settings.update(folder=self.folder, enrolment=self.enrolment)
        return FleetSection(kind="devices", **settings)

    def open(self, plan: Plan, directory: Path | None) -> DeviceFleet:
        """The fleet; closing it stops listening."""
        with contextlib.ExitStack() as stack:
            site = None if self.folder is None else Site(Path(self.folder))
            standing = stand(stack, site, self.listen, self.enrolment, Metrics())
            demand = Demand(plan.task.resolve().name, self.size)
            return DeviceFleet(
                standing.service,
                demand,
                enrolment=standing.members,
                endorse=standing.endorse,
                on_close=stack.pop_all().close,
                deadlines=Deadlines(self.training_s, self.phase_s),
            )


def devices(
    listen: str,
    population: int,
    folder: str | None = None,
    enrolment: str = ":9444",
    insecure: bool = False,
    training_s: float = Deadlines.training_s,
    phase_s: float = Deadlines.phase_s,
    seed: int | None = None,
) -> Devices:
    """`[fleet] kind = "devices"`.

    Args:
        listen: see `Devices`.
        population: see `Devices`.
        folder: see `Devices`.
        enrolment: see `Devices`.
        insecure: see `Devices`.
        training_s: see `Deadlines`.
        phase_s: see `Deadlines`.
        seed: there can be none: devices are real.
    """
    if seed is not None:
        raise PlanError(f"seed: found {seed}; a seed is for simulations, devices are real; accepted: none")
    return Devices(listen, population, folder, enrolment, insecure, training_s, phase_s)
