"""kill -9 of devices in every phase of a signed round: 5 % of them, 30 %, and one more than is tolerated.

Devices are processes with certificates, over mutual TLS. They are killed when a message of theirs arrives,
so that the phase is known.
"""

from __future__ import annotations

import contextlib
import datetime
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.server.devices.device
from quorate import assembly
from quorate.identity import Holder
from quorate.identity.membership import utc_now
from quorate.plan import FleetSection, Plan
from quorate.planfile import make_plan
from quorate.privacy import Ledger
from quorate.rounds import Deadlines, Member, Outcome
from quorate.server.coordinator import RoundReport
from quorate.server.devices import Demand, DeviceFleet
from quorate.server.devices.standing import Standing, stand
from quorate.server.devices.streams import Stream
from quorate.server.metrics import Metrics
from quorate.server.site import Site
from quorate.server.store import opened
from quorate.simulations import datasets
from tests.server.devices.test_faults import PROCESSES

pytestmark = pytest.mark.slow

COUNT, FEWEST = 20, 13
HOLDERS = 11
"""Neighbours that restore a secret, once the vectors are there."""
ADVERTISED, SHARED, MASKED, ACKNOWLEDGED = 1, 2, 3, 4
"""A device's messages."""


def make() -> Plan:
    """Everybody takes part."""
    return make_plan(
        {
            "task": {"name": "softmax", "inputs": 64, "classes": 10},
            "rounds": {"count": 1, "cohort": COUNT, "sampling": "fixed"},
            "privacy": {
                "mechanism": "distributed-discrete-gaussian",
                "clip_norm": 1.0,
                "noise_multiplier": 0.5,
            },
            "secure_aggregation": {
                "protocol": "secagg+",
                "min_survivors": FEWEST,
                "threat_model": "semi-malicious",
            },
            "fleet": {"kind": "devices", "population": COUNT},
        }
    )


@dataclass
class Certified:
    """A coordinator's service over mutual TLS, and devices as processes.

    Args:
        standing: what listens.
        directory: the devices'.
        keys: their folders, by name.
        at: who is killed when its n-th message of the run has come.
    """

    standing: Standing
    directory: Path
    keys: dict[Member, Path]
    at: set[tuple[Member, int]] = field(default_factory=set)
    processes: dict[Member, Any] = field(default_factory=dict)

    def start(self, *names: Member) -> None:
        for name in names:
            arguments = (
                str(self.standing.devices),
                "",
                str(self.directory / "data.npz"),
                str(self.keys[name] / "states.sqlite"),
                "",
                str(self.keys[name]),
            )
            process = PROCESSES.Process(target=tests.server.devices.device.main, args=arguments, daemon=True)
            process.start()
            self.processes[name] = process

    def kill(self, *names: Member) -> None:
        for name in names:
            self.processes[name].kill()
            self.processes[name].join(60)

    # --- the fleet's source

    @property
    def size(self) -> int:
        return COUNT

    def section(self) -> FleetSection:
        return FleetSection(kind="devices")

    def open(self, plan: Plan, directory: Path | None) -> DeviceFleet:
        heard = Counter[Member]()
        fleet = DeviceFleet(
            self.standing.service,
            Demand("softmax", COUNT),
            enrolment=self.standing.members,
            endorse=self.standing.endorse,
            deadlines=Deadlines(60.0, 30.0),
        )
        deliver = fleet._streams.deliver

        def noticing(stream: Stream, frame: bytes) -> None:
            heard[stream.device] += 1
            deliver(stream, frame)
            if (stream.device, heard[stream.device]) in self.at:
                self.kill(stream.device)

        fleet._streams.deliver = noticing  # type: ignore[method-assign]
        return fleet


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certified]:
    directory = tmp_path_factory.mktemp("kills")
    site = Site.create(directory / "fl", ["localhost"], name="test")
    assert site.authority is not None
    keys = {}
    for number in range(COUNT):
        holder = Holder.create(directory / f"device-{number}", site.root)
        token = site.authority.token(datetime.timedelta(hours=1)).text
        holder.install(site.authority.enrol(token, holder.request()).der, utc_now())
        keys[holder.name] = holder.folder
    own = datasets.digits().partition("iid", clients=COUNT, seed=0).clients[0]
    np.savez(directory / "data.npz", x=own.x, y=own.y)
    with contextlib.ExitStack() as stack:
        standing = stand(stack, site, "localhost:0", "localhost:0", Metrics())
        yield Certified(standing, directory, keys)


@pytest.mark.parametrize("share", ["5 %", "30 %", "too many"])
@pytest.mark.parametrize(
    ("after", "phase", "too_many"),
    [
        (ADVERTISED, "share", COUNT - FEWEST + 1),
        (SHARED, "mask", COUNT - FEWEST + 1),
        (MASKED, "consistency", COUNT - HOLDERS),
        (ACKNOWLEDGED, "unmask", COUNT - HOLDERS),
    ],
)
def test_devices_that_are_killed_in_a_phase_of_a_signed_round_cost_it_no_more_than_themselves(
    certified: Certified, after: int, phase: str, too_many: int, share: str, tmp_path: Path
) -> None:
    names, killed = tuple(certified.keys), {"5 %": 1, "30 %": 6, "too many": too_many}[share]
    victims = names[:killed]
    certified.at = {(name, after) for name in victims}

    def restart(report: RoundReport) -> None:
        if report.outcome is Outcome.ABORTED:
            certified.start(*victims)

    certified.start(*names)
    try:
        found = assembly.run(make(), fleet=certified, state=tmp_path, watch=restart)
    finally:
        certified.kill(*names)
    *aborted, last = found.history
    assert last.status == "committed"
    with opened(tmp_path) as store:
        ledger = Ledger(store.ledger(found.record.id), delta=found.plan.privacy.delta)
        ledger.verify()
    if share != "too many":
        assert not aborted
        assert last.lost == {phase: killed}
        assert last.survivors == (COUNT - killed if after < MASKED else COUNT)
    else:
        (first,) = aborted
        assert phase in str(first.reason)
        # Once shares were asked for the charge stays, though the sum was never opened.
        assert first.revealing is ledger.is_charged(first.number) is (after == ACKNOWLEDGED)
        assert last.survivors == COUNT
