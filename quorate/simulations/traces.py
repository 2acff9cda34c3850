"""When simulated members are there, and how fast: availability and speed traces.

`Diurnal` makes them up, from the member's index alone, so that a population of any size costs nothing: everybody is
there once a day, most of them at the same hours, and speeds and bandwidths are log-normal. `Recorded` reads them from
files with FedScale's columns (Lai et al. 2022, "FedScale: Benchmarking Model and System Performance of Federated
Learning at Scale"). Times are simulated seconds; the first is midnight of the first day.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pydantic.dataclasses

from quorate.errors import DataError, MissingExtra, PlanError

__all__ = ["Diurnal", "Recorded", "Speeds", "Traces", "recorded"]

_DAY_S = 86_400.0
_SAMPLE = 50_000
_TRAINING_PASSES = 3.0  # forward and backward, over the forward pass that capacities are given for


@dataclass(frozen=True)
class Speeds:
    """How fast members are; float64, shape (members,).

    Args:
        examples_per_s: that they train with.
        bytes_per_s: of their networks, either way.
    """

    examples_per_s: np.ndarray
    bytes_per_s: np.ndarray


class Traces(Protocol):
    """When each member of a population is there, and how fast it is. The same for the same index and time.

    Members are asked about by their indices, int64, shape (members,).
    """

    def present(self, members: int, now_s: float) -> int:
        """How many of the first `members` are there, at least."""
        ...

    def stay_s(self, indices: np.ndarray, now_s: float) -> np.ndarray:
        """How long members are still there: 0 for those who are not, perhaps infinite; float64, shape (members,)."""
        ...

    def speeds(self, indices: np.ndarray) -> Speeds:
        """How fast members are."""
        ...


@pydantic.dataclasses.dataclass(frozen=True)
class Diurnal:
    """Everybody is there once a day: from an hour of its own, for a time of its own.

    Args:
        hours: how long members are there, on average; log-normal with σ 0.5, at most a day.
        peak_hour: when members come, on average.
        spread_hours: the standard deviation of that hour.
        examples_per_s: the median member's speed.
        bytes_per_s: the median member's bandwidth.
        speed_sigma: σ of the logarithms of speeds and bandwidths.
        seed: of everybody's hours and speeds.
    """

    hours: float = 8.0
    peak_hour: float = 20.0
    spread_hours: float = 3.0
    examples_per_s: float = 100.0
    bytes_per_s: float = 1e6
    speed_sigma: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.hours <= 24 or self.spread_hours < 0 or self.speed_sigma < 0:
            raise PlanError(
                f"traces: hours {self.hours}, spread_hours {self.spread_hours} and speed_sigma {self.speed_sigma} were "
                "found; hours above 0 and up to 24, the others of at least 0 are accepted"
            )
        if not (self.examples_per_s > 0 and self.bytes_per_s > 0):
            raise PlanError("traces: examples_per_s and bytes_per_s are above 0")

    def present(self, members: int, now_s: float) -> int:
        """Counted, of 50,000 members at most; of more, what five standard deviations below that share comes to."""
        counted = min(members, _SAMPLE)
        hour = round(now_s % _DAY_S / 60) * 60.0 if members > _SAMPLE else now_s
        there = self._count(counted, hour)
        if counted == members:
            return there
        share = there / counted
        deviation = math.sqrt(max(share * (1 - share), 1 / counted) * (1 / counted + 1 / members))
        return max(0, math.floor(members * (share - 5 * deviation)))

    def stay_s(self, indices: np.ndarray, now_s: float) -> np.ndarray:
        """Until the end of today's hours; for ever, if they are the whole day."""
        came, stays = self._hours(indices)
        return np.where(stays >= _DAY_S, math.inf, np.maximum(0.0, stays - (now_s - came) % _DAY_S))

    def speeds(self, indices: np.ndarray) -> Speeds:
        """Log-normal around the medians."""
        training, network = np.exp(self.speed_sigma * _normals(self.seed, indices, 2))
        return Speeds(self.examples_per_s * training, self.bytes_per_s * network)

    def _hours(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """When each comes, and how long it stays; seconds."""
        when, long = _normals(self.seed, indices, 0), _normals(self.seed, indices, 1)
        came = (self.peak_hour + self.spread_hours * when[0]) * 3600.0
        stays = self.hours * 3600.0 * np.exp(0.5 * long[0] - 0.125)  # whose mean is `hours`
        return came, np.minimum(stays, _DAY_S)

    @lru_cache(maxsize=4096)  # noqa: B019 - frozen, and as long-lived as the run
    def _count(self, members: int, now_s: float) -> int:
        return int((self.stay_s(np.arange(members), now_s) > 0).sum())


@dataclass(frozen=True, eq=False)
class Recorded:
    """Traces of real devices, given to members in turn, and repeated when they end.

    Args:
        intervals: of each recorded device: when it was there, float64, shape (intervals, 2), in order, in seconds.
        period_s: after which a device's trace starts again; shape (devices,).
        capacities: of recorded devices, given to members in turn.
    """

    intervals: Sequence[np.ndarray]
    period_s: np.ndarray
    capacities: Speeds

    def present(self, members: int, now_s: float) -> int:
        """Counted."""
        devices = len(self.intervals)
        there = self.stay_s(np.arange(min(devices, members)), now_s) > 0
        rounds, rest = divmod(members, devices)
        return int(rounds * there.sum() + there[:rest].sum()) if rounds else int(there.sum())

    def stay_s(self, indices: np.ndarray, now_s: float) -> np.ndarray:
        """Until the end of the interval that their devices are in."""
        stay_s = np.zeros(len(indices))
        for i, device in enumerate((indices % len(self.intervals)).tolist()):
            own, at_s = self.intervals[device], now_s % self.period_s[device]
            place = int(np.searchsorted(own[:, 0], at_s, side="right")) - 1
            if place >= 0:
                stay_s[i] = max(0.0, own[place, 1] - at_s)
        return stay_s

    def speeds(self, indices: np.ndarray) -> Speeds:
        """Their devices'."""
        devices = indices % len(self.capacities.bytes_per_s)
        return Speeds(self.capacities.examples_per_s[devices], self.capacities.bytes_per_s[devices])


def recorded(availability: str, capacity: str) -> Recorded:
    """Traces from files with FedScale's columns, CSV or Parquet.

    Args:
        availability: a file with columns `client`, `active` and `inactive` (seconds: from when to when), one row an
            interval, and perhaps `finish_time`, after which the trace starts again (the last `inactive` otherwise).
        capacity: a file with columns `client`, `computation` (milliseconds to infer one example; training takes three
            times that, as in FedScale) and `communication` (kilobits a second).

    Raises:
        DataError: there is no such file or column, or its values are not intervals.
        MissingExtra: pandas is not installed.
    """
    rows = _columns(availability, ("client", "active", "inactive"))
    order = np.lexsort((rows["active"], rows["client"]))
    client, begin, end = (rows[name][order] for name in ("client", "active", "inactive"))
    if (begin < 0).any() or (end <= begin).any() or not len(client):
        raise DataError(f"{availability}: an interval is 0 ≤ active < inactive, in seconds")
    starts = np.flatnonzero(np.concatenate([[True], client[1:] != client[:-1]]))
    intervals = [
        np.stack([b, e], axis=1).astype(np.float64)
        for b, e in zip(np.split(begin, starts[1:]), np.split(end, starts[1:]), strict=True)
    ]
    period = np.array([own[-1, 1] for own in intervals])
    if "finish_time" in rows:
        period = np.maximum(period, rows["finish_time"][order][starts])
    speeds = _columns(capacity, ("client", "computation", "communication"))
    if (speeds["computation"] <= 0).any() or (speeds["communication"] <= 0).any():
        raise DataError(f"{capacity}: computation and communication are above 0")
    return Recorded(
        intervals,
        period,
        Speeds(1000.0 / (_TRAINING_PASSES * speeds["computation"]), 125.0 * speeds["communication"]),
    )


def _columns(path: str, names: Sequence[str]) -> Mapping[str, np.ndarray]:
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra("data", "recorded traces") from error
    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no file {path}")
    table: Any = pandas.read_parquet(file) if file.suffix == ".parquet" else pandas.read_csv(file)
    missing = [name for name in names if name not in table]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; needed: {', '.join(names)}")
    return {str(name): table[name].to_numpy() for name in table}


def _normals(seed: int, indices: np.ndarray, purpose: int) -> np.ndarray:
    """Two standard normal numbers for each index, shape (2, indices): the same for the same seed, index and purpose."""
    u = _uniforms(seed, indices, 2 * purpose), _uniforms(seed, indices, 2 * purpose + 1)
    radius = np.sqrt(-2 * np.log1p(-u[0]))
    return np.asarray(radius * np.stack([np.cos(2 * np.pi * u[1]), np.sin(2 * np.pi * u[1])]))


def _uniforms(seed: int, indices: np.ndarray, purpose: int) -> np.ndarray:
    """Numbers in [0, 1) by SplitMix64 (Steele, Lea, Flood 2014), whose state is (index, purpose, seed)."""
    with np.errstate(over="ignore"):
        z = indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64((purpose * 0xD1B54A32D192ED03 + seed * 0x8CB92BA72F3D8DD7) % 2**64)
        for multiplier, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(multiplier)
        z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)) * 2.0**-53)
