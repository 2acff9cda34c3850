"""A coordinator in a process of its own, for tests: over sockets, and killed where it is told to be."""

from __future__ import annotations

import datetime
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate import assembly
from quorate.coordination import Addresses, CoordinatorProcess
from quorate.fleets import Fleet
from quorate.plan import FleetSection, Plan
from quorate.planfile import make_plan
from quorate.rounds import Member
from quorate.server import faults
from quorate.server.authority import Authority
from quorate.server.remote import RemoteFleet
from tests.sockets import SocketTransport


@dataclass(frozen=True)
class Everybody:
    """A population of those who are connected."""

    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def present(self) -> int:
        return len(self.members)

    def those_present(self, indices):
        return indices

    def member(self, index: int) -> Member:
        return self.members[index]


@dataclass(frozen=True)
class Connected:
    """A fleet's source: members that dial in, at a port that is written to a file."""

    members: tuple[Member, ...]
    port_file: Path

    @property
    def size(self) -> int:
        return len(self.members)

    def section(self) -> FleetSection:
        return FleetSection(kind="connected")

    def open(self, plan: Plan, directory: Path | None) -> Fleet:
        transport = SocketTransport()
        beside = self.port_file.with_suffix(".new")
        beside.write_text(str(transport.port))
        beside.replace(self.port_file)
        transport.wait_for(self.members, timeout_s=60)
        return RemoteFleet(transport, Everybody(self.members))


@dataclass(frozen=True)
class Job:
    """What a coordinator's process is to do.

    Args:
        plan: its content.
        directory: of the state; the port and the trace are beside it.
        members: who dials in.
        database: a URL, or None.
        kill_at: the moment at which it kills itself, as a line of the trace; None: it goes on to the end.
    """

    plan: dict[str, Any]
    directory: Path
    members: tuple[Member, ...]
    database: str | None = None
    kill_at: str | None = None

    @property
    def port_file(self) -> Path:
        return self.directory / "port"

    @property
    def trace(self) -> Path:
        return self.directory / "trace"


def main(job: Job) -> None:
    """Runs the plan to its end, and notes each moment that it passes: a round, a point, which time, before or after."""
    seen: Counter[tuple[int, str, str, bool]] = Counter()
    round_, trace = 0, os.open(job.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def watch(point: faults.Point, which: str, over: bool) -> None:
        nonlocal round_
        if point is faults.Point.OPEN_ROUND and not over:
            round_ += 1
        seen[round_, point, which, over] += 1
        count = 1 if point.sends else seen[round_, point, which, over]
        moment = f"{round_} {'after' if over else 'before'} {point.name} {which} {count}"
        os.write(trace, f"{moment}\n".encode())
        if moment == job.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    faults.watch(watch)
    source = Connected(job.members, job.port_file)
    assembly.run(
        make_plan(job.plan),
        source,
        state=job.directory / "state",
        database=job.database,
        watch=lambda report: None,
    )
    os._exit(0)  # the sockets' threads are not waited for


def host(directory: Path, plan: str, kill_at: str) -> None:
    """A coordinator of several runs that is told to start one, and to pause it; killed on the way."""

    _kill_at(kill_at)
    addresses = Addresses("localhost:0", "localhost:0", "localhost:0", None)
    with CoordinatorProcess(directory, addresses, insecure=True) as running:
        running.host.pause(running.host.start(plan).run)
        os._exit(0)


def administer(folder: Path, token: str, request: bytes, leaver: str, kill_at: str) -> None:
    """An authority that makes a token, enrols who asks with one, renews its certificate, and revokes somebody else."""
    _kill_at(kill_at)
    authority = Authority(folder)
    authority.token(datetime.timedelta(hours=1))
    authority.enrol(token, request)
    authority.renew(request)
    authority.revoke(leaver, "lost")
    os._exit(0)


def _kill_at(moment: str) -> None:
    """Kills this process before or after a point."""

    def watch(point: faults.Point, which: str, over: bool) -> None:
        if f"{'after' if over else 'before'} {point.name}" == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    faults.watch(watch)
