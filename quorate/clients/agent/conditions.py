"""`[conditions]`: when a device may train, and what its sensors say.

    [conditions]
    on_mains = true          # a machine without a battery is on mains power
    unmetered = true         # as far as it can be known: NetworkManager's word; unknown counts as unmetered
    idle_load = 0.5          # the load average of the last minute, a core: below this the device counts as idle
    free_memory_mb = 500
    free_disk_mb = 500
    window = "22:00-06:00"   # local time

They are checked before the device checks in, and during training, which is stopped when they no longer hold: a dropout.
Training is itself a load, so idleness is asked for before it only.
"""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import psutil
from pydantic import Field, field_validator

from quorate.sections import Section

__all__ = ["Conditions", "Readings", "Sensors", "System", "unmet"]

_MEGABYTE = 10**6
_METERED = {"yes": True, "yes (guessed)": True, "no": False, "no (guessed)": False}


class Conditions(Section):
    """`[conditions]` of a policy. What is left out is not asked for.

    Args:
        on_mains: whether the device must be on mains power.
        unmetered: whether the network must be unmetered; where that is unknown, it counts as unmetered.
        idle_load: the load average of the last minute, divided by the number of cores, must be below this.
        free_memory_mb: the least available memory.
        free_disk_mb: the least free space where the agent keeps its state.
        window: local time, `HH:MM-HH:MM`; one that ends before it starts goes over midnight.
    """

    on_mains: bool = False
    unmetered: bool = False
    idle_load: Annotated[float | None, Field(gt=0)] = None
    free_memory_mb: Annotated[int, Field(ge=0)] = 200
    free_disk_mb: Annotated[int, Field(ge=0)] = 100
    window: str | None = None

    @field_validator("window")
    @classmethod
    def _is_window(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                _bounds(value)
            except ValueError:
                raise ValueError(f"found {value!r}; accepted: HH:MM-HH:MM, such as 22:00-06:00") from None
        return value


@dataclass(frozen=True)
class Readings:
    """What the sensors say at one moment.

    Args:
        on_mains: None where there is nothing to tell it by; that is a machine without a battery.
        metered: None where it is unknown.
        load: the load average of the last minute, a core.
        free_memory_mb: available to a process without swapping.
        free_disk_mb: where the agent keeps its state.
        time: local.
    """

    on_mains: bool | None
    metered: bool | None
    load: float
    free_memory_mb: int
    free_disk_mb: int
    time: datetime.time


class Sensors(Protocol):
    """Where readings come from."""

    def read(self) -> Readings:
        """What holds now."""
        ...


@dataclass(frozen=True)
class System:
    """The sensors of this machine.

    Args:
        directory: where the agent keeps its state.
    """

    directory: Path

    def read(self) -> Readings:
        """What holds now: psutil's word, and NetworkManager's for the network."""
        battery = psutil.sensors_battery()
        return Readings(
            on_mains=None if battery is None else bool(battery.power_plugged),
            metered=_metered(),
            load=os.getloadavg()[0] / (os.cpu_count() or 1),
            free_memory_mb=psutil.virtual_memory().available // _MEGABYTE,
            free_disk_mb=psutil.disk_usage(str(self.directory)).free // _MEGABYTE,
            time=datetime.datetime.now().time(),
        )


def unmet(conditions: Conditions, readings: Readings, *, training: bool = False) -> list[str]:
    """The conditions that do not hold, in words.

    Args:
        conditions: of the policy.
        readings: of the sensors.
        training: whether training is under way, so that a load says nothing about idleness.
    """
    wrong = []
    if conditions.on_mains and readings.on_mains is False:
        wrong.append("the device is on battery")
    if conditions.unmetered and readings.metered:
        wrong.append("the network is metered")
    if not training and conditions.idle_load is not None and readings.load >= conditions.idle_load:
        wrong.append(f"the device is busy: a load of {readings.load:.2f} a core")
    if readings.free_memory_mb < conditions.free_memory_mb:
        wrong.append(
            f"{readings.free_memory_mb} MB of memory are free, {conditions.free_memory_mb} are asked for"
        )
    if readings.free_disk_mb < conditions.free_disk_mb:
        wrong.append(f"{readings.free_disk_mb} MB of disk are free, {conditions.free_disk_mb} are asked for")
    if conditions.window is not None and not _within(conditions.window, readings.time):
        wrong.append(f"it is not within {conditions.window}")
    return wrong


def _bounds(window: str) -> tuple[datetime.time, datetime.time]:
    start, _, end = window.partition("-")
    return _clock(start), _clock(end)


def _clock(text: str) -> datetime.time:
    return datetime.datetime.strptime(text.strip(), "%H:%M").time()


def _within(window: str, time: datetime.time) -> bool:
    start, end = _bounds(window)
    return start <= time < end if start < end else time >= start or time < end


def _metered() -> bool | None:
    """What NetworkManager thinks of the devices that are connected; None where it is not asked or does not know."""
    if shutil.which("nmcli") is None:
        return None
    asked = ["nmcli", "--terse", "--get-values", "GENERAL.STATE,GENERAL.METERED", "device", "show"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return metered_in(said)


def metered_in(said: str) -> bool | None:
    """What nmcli said: two lines a device, `100 (connected)` and `yes`, `no (guessed)` or `unknown`."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    pairs = zip(lines[::2], lines[1::2], strict=False)
    known = [_METERED[word] for state, word in pairs if state.startswith("100") and word in _METERED]
    return any(known) if known else None
