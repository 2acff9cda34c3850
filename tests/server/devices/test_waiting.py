"""The waiting room: a run draws when enough devices wait, and no two runs draw the same one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from quorate.server.devices.streams import Calls, Stream
from quorate.server.devices.transport import StreamTransport
from quorate.server.devices.waiting import Demand, Stopped, WaitingPopulation, WaitingRoom


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def streams(loop: asyncio.AbstractEventLoop, count: int, *tasks: str, prefix: str = "d") -> list[Stream]:
    return [Stream(f"{prefix}{i}", frozenset(tasks), False, Calls(loop), lambda: None) for i in range(count)]


class Holding(threading.Thread):
    """A run that asks for devices."""

    def __init__(self, room: WaitingRoom, demand: Demand):
        super().__init__(daemon=True)
        self.room, self.demand = room, demand
        self.found: WaitingPopulation | Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.found = self.room.hold(self.demand)
        except Stopped as stopped:
            self.found = stopped

    @property
    def waits(self) -> bool:
        self.join(0.2)
        return self.is_alive()


def test_a_round_opens_when_enough_devices_wait(loop: asyncio.AbstractEventLoop) -> None:
    room, demand = WaitingRoom(), Demand("a", fewest=3)
    room.open(demand)
    holding = Holding(room, demand)
    for stream in streams(loop, 2, "a", "b"):
        assert room.join(stream)
    assert holding.waits
    assert room.join(*streams(loop, 1, "a", prefix="e"))
    holding.join(60)
    assert isinstance(holding.found, WaitingPopulation)
    assert set(holding.found.members) == {"d0", "d1", "e0"}


def test_devices_that_are_not_drawn_wait_for_the_next_run(loop: asyncio.AbstractEventLoop) -> None:
    room, first, second = WaitingRoom(), Demand("a", 4), Demand("a", 2)
    for demand in (first, second):
        room.open(demand)
    for stream in streams(loop, 4, "a"):
        room.join(stream)
    room.hold(first)
    holding = Holding(room, second)
    assert holding.waits  # all are held
    hearer = StreamTransport()
    drawn = room.take(first, ["d0", "d1"], hearer)
    assert {stream.hearer for stream in drawn.values()} == {hearer}
    holding.join(60)
    assert isinstance(holding.found, WaitingPopulation)
    assert set(holding.found.members) == {"d2", "d3"}


def test_a_run_without_devices_does_not_hold_up_one_that_has_them(loop: asyncio.AbstractEventLoop) -> None:
    room, large, small = WaitingRoom(), Demand("a", 100), Demand("a", 2)
    for demand in (large, small):
        room.open(demand)
    holding = Holding(room, large)
    for stream in streams(loop, 3, "a"):
        room.join(stream)
    assert holding.waits
    assert room.hold(small).size == 3
    room.change(large, stopped=True)
    holding.join(60)
    assert isinstance(holding.found, Stopped)


def test_runs_take_turns(loop: asyncio.AbstractEventLoop) -> None:
    room, first, second = WaitingRoom(), Demand("a", 2), Demand("a", 2)
    for demand in (first, second):
        room.open(demand)
    waiting = [Holding(room, first)]
    assert waiting[0].waits
    waiting.append(Holding(room, second))
    assert waiting[1].waits
    for stream in streams(loop, 2, "a"):
        room.join(stream)
    waiting[0].join(60)
    assert waiting[0].found is not None
    assert waiting[1].waits
    room.take(first, ["d0", "d1"], StreamTransport())
    again = Holding(room, first)
    for stream in streams(loop, 2, "a", prefix="e"):
        room.join(stream)
    waiting[1].join(60)
    assert waiting[1].found is not None
    assert again.waits
    room.change(first, stopped=True)


def test_a_device_that_left_while_it_was_held_is_not_drawn(loop: asyncio.AbstractEventLoop) -> None:
    room, demand = WaitingRoom(), Demand("a", 2)
    room.open(demand)
    gone, stays = streams(loop, 2, "a")
    for stream in (gone, stays):
        room.join(stream)
    room.hold(demand)
    assert room.leave(gone)
    assert set(room.take(demand, ["d0", "d1"], StreamTransport())) == {"d1"}
    assert not room.leave(stays)  # it is its hearer's to miss


def test_nobody_waits_for_a_task_that_no_run_wants(loop: asyncio.AbstractEventLoop) -> None:
    room, demand = WaitingRoom(), Demand("a", 1)
    assert not room.join(*streams(loop, 1, "a"))
    room.open(demand)
    assert not room.join(*streams(loop, 1, "b"))
    room.change(demand, paused=True)
    assert not room.join(*streams(loop, 1, "a"))
    room.change(demand, paused=False)
    assert room.join(*streams(loop, 1, "a"))


def test_more_devices_than_a_run_needs_are_not_kept_waiting(loop: asyncio.AbstractEventLoop) -> None:
    room, demand = WaitingRoom(), Demand("a", 100)
    room.open(demand)
    joined = [room.join(stream) for stream in streams(loop, 300, "a")]
    assert sum(joined) == demand.most == 200
    assert room.waiting("a") == 200


def test_who_waited_for_a_run_that_ended_waits_no_longer_unless_another_wants_it(
    loop: asyncio.AbstractEventLoop,
) -> None:
    room, first, second = WaitingRoom(), Demand("a", 5), Demand("b", 5)
    for demand in (first, second):
        room.open(demand)
    for stream in [*streams(loop, 2, "a"), *streams(loop, 2, "a", "b", prefix="e")]:
        room.join(stream)
    assert {stream.device for stream in room.close(first)} == {"d0", "d1"}
    assert room.total == room.waiting("b") == 2
