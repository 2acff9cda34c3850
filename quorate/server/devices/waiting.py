"""The waiting room: which devices wait on their streams, and which run may draw from them now.

A round opens when at least as many devices wait as its run's population says. The run then holds all of them for the
moment of its draw, so that no two runs draw the same device; those that it does not draw go on waiting. Runs are served
in the order in which they asked, but a run whose devices are not there holds up none that could draw.

What amplification by sampling rests on: of W devices that are held, with W no less than the declared population N, each
is drawn independently with probability cohort / W, which is at most the cohort / N that is accounted. Devices that do
not wait are drawn with probability 0. Who waits depends on batteries and networks, not on the data of a round.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from quorate.errors import QuorateError
from quorate.rounds import Member
from quorate.server.devices.streams import Hearer, Stream

__all__ = ["Demand", "Stopped", "WaitingPopulation", "WaitingRoom"]


_SMOOTHING = 0.3  # how far one round moves what is known of their duration


class Stopped(QuorateError):
    """The run was stopped from outside; started again, it goes on after its last committed round."""


@dataclass(eq=False)
class Demand:
    """What one run wants of the room.

    Args:
        task: that its devices have installed.
        fewest: devices that must wait before a round opens.
        round_s: how long its rounds take; measured as it goes, None before the first.
        paused: whether it wants no devices at the moment.
        stopped: whether it will want none any more.
    """

    task: str
    fewest: int
    round_s: float | None = None
    paused: bool = False
    stopped: bool = False
    asking: bool = field(default=False, init=False)
    held: dict[Member, Stream] = field(default_factory=dict, init=False)

    def measured(self, seconds: float) -> None:
        """Takes note of how long a round took."""
        self.round_s = (
            seconds if self.round_s is None else self.round_s + _SMOOTHING * (seconds - self.round_s)
        )

    @property
    def most(self) -> int:
        """How many devices are let wait for it; more than enough come back another time."""
        return max(2 * self.fewest, self.fewest + 32)


@dataclass(frozen=True)
class WaitingPopulation:
    """The devices that waited when a round was drawn."""

    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """How many."""
        return len(self.members)

    @property
    def present(self) -> int:
        """All of them: who waits is there."""
        return self.size

    def those_present(self, indices: Sequence[int]) -> Sequence[int]:
        """All are."""
        return indices

    def member(self, index: int) -> Member:
        """The device at an index."""
        return self.members[index]


class WaitingRoom:
    """Devices by what is installed on them. Streams come and go in the event loop, runs draw in their own threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[frozenset[str], dict[Member, Stream]] = {}
        self._demands: list[Demand] = []
        self._expected: dict[str, int] = {}  # what the largest run of a task has wanted here

    # --- runs

    def open(self, demand: Demand) -> None:
        """A run begins to want devices."""
        with self._changed:
            self._demands.append(demand)
            self._expected[demand.task] = max(demand.fewest, self._expected.get(demand.task, 0))

    def close(self, demand: Demand) -> list[Stream]:
        """A run wants no more devices; returns those that nobody else wants, who wait no longer."""
        with self._changed:
            self._release(demand)
            demand.stopped = True
            self._demands.remove(demand)
            self._changed.notify_all()
            unwanted: list[Stream] = []
            for tasks, group in self._waiting.items():
                if not any(other.task in tasks for other in self._demands):
                    unwanted += group.values()
                    group.clear()
            return unwanted

    def change(self, demand: Demand, *, paused: bool | None = None, stopped: bool | None = None) -> None:
        """A run is paused, resumed or stopped, from any thread."""
        with self._changed:
            demand.paused = demand.paused if paused is None else paused
            demand.stopped = demand.stopped if stopped is None else stopped
            self._changed.notify_all()

    def hold(self, demand: Demand) -> WaitingPopulation:
        """Waits until enough devices are there, and holds them for the draw.

        Raises:
            Stopped: the run was stopped meanwhile.
        """
        with self._changed:
            self._release(demand)
            demand.asking = True
            self._demands.remove(demand)
            self._demands.append(demand)  # who asked last is served last
            try:
                while True:
                    if demand.stopped:
                        raise Stopped("the run was stopped")
                    if self._is_next(demand):
                        break
                    self._changed.wait()
            finally:
                demand.asking = False
            for group in self._groups(demand.task):
                demand.held.update(group)
                group.clear()
            return WaitingPopulation(tuple(demand.held))

    def take(self, demand: Demand, members: Collection[Member], hearer: Hearer) -> Mapping[Member, Stream]:
        """The drawn devices, which `hearer` hears from now on; the others wait again. Some may have gone."""
        with self._changed:
            drawn = {m: stream for m in members if (stream := demand.held.pop(m, None)) is not None}
            for stream in drawn.values():
                stream.hearer = hearer
            self._release(demand)
            self._changed.notify_all()
            return drawn

    # --- devices

    def join(self, stream: Stream) -> bool:
        """A device waits from now on; False if nobody wants it now."""
        with self._changed:
            wanting = self._wanting(stream.tasks)
            if all(self._count(demand) >= demand.most for demand in wanting):
                return False
            self._waiting.setdefault(stream.tasks, {})[stream.device] = stream
            if any(demand.asking for demand in wanting):
                self._changed.notify_all()
            return True

    def leave(self, stream: Stream) -> bool:
        """A device is gone; whether it was waiting. One that was drawn is its hearer's to miss."""
        with self._changed:
            for holder in [self._waiting.get(stream.tasks, {}), *(demand.held for demand in self._demands)]:
                if holder.get(stream.device) is stream:
                    del holder[stream.device]
                    return True
            return False

    def demands(self, tasks: frozenset[str]) -> list[Demand]:
        """The runs that want devices with these tasks."""
        with self._changed:
            return self._wanting(tasks)

    def expected(self, tasks: frozenset[str]) -> int:
        """How many devices with these tasks the next run would want, by what earlier ones have wanted."""
        with self._changed:
            return max((self._expected.get(task, 0) for task in tasks), default=0)

    def waiting(self, task: str) -> int:
        """How many devices with a task wait now, those that are held for a draw included."""
        with self._changed:
            held = sum(len(demand.held) for demand in self._demands if demand.task == task)
            return held + sum(map(len, self._groups(task)))

    @property
    def total(self) -> int:
        """How many devices wait, whatever for."""
        with self._changed:
            held = sum(len(demand.held) for demand in self._demands)
            return held + sum(map(len, self._waiting.values()))

    # --- under the lock

    def _groups(self, task: str) -> Iterator[dict[Member, Stream]]:
        return (group for tasks, group in self._waiting.items() if task in tasks)

    def _count(self, demand: Demand) -> int:
        return len(demand.held) + sum(map(len, self._groups(demand.task)))

    def _wanting(self, tasks: frozenset[str]) -> list[Demand]:
        return [d for d in self._demands if d.task in tasks and not (d.paused or d.stopped)]

    def _is_next(self, demand: Demand) -> bool:
        """Whether this run, and none that asked before it, can draw now."""
        for other in self._demands:
            if other.asking and not other.paused and self._count(other) >= other.fewest:
                return other is demand
        return False

    def _release(self, demand: Demand) -> None:
        """Those that were held and not drawn wait again."""
        for device, stream in demand.held.items():
            self._waiting.setdefault(stream.tasks, {})[device] = stream
        demand.held.clear()
