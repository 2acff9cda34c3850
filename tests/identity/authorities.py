"""An authority with a clock that tests move, and devices that enrol with it."""

from __future__ import annotations

import datetime
from pathlib import Path

from quorate.identity import Holder, Role
from quorate.server.authority import Authority

START = datetime.datetime(2026, 11, 1, 12, 0, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime.datetime:
        return self.now


def authority(folder: Path, clock: Clock, name: str = "Test authority") -> Authority:
    return Authority.create(folder, name, clock=clock)


def device(folder: Path, by: Authority) -> Holder:
    """A device that has enrolled."""
    holder = Holder.create(folder, by.root)
    token = by.token(HOUR).text
    holder.install(by.enrol(token, holder.request()).der, by._clock())
    return holder


def party(folder: Path, by: Authority, role: Role, *hosts: str) -> Holder:
    """An operator or a server."""
    holder = Holder.create(folder, by.root)
    holder.install(by.admit(holder.request(hosts), role, hosts).der, by._clock(), role)
    return holder
