"""Pace steering: few devices come together, many are spread; the count of devices is about right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.server.devices import pacing
from quorate.server.devices.pacing import DistinctDevices, after_s, idle_s
from quorate.server.devices.waiting import Demand, WaitingRoom


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def test_a_small_population_comes_back_together() -> None:
    assert after_s(known=100, wanted=100, round_s=60) <= 6


def test_in_a_large_population_about_as_many_come_in_a_rounds_time_as_it_wants() -> None:
    known, wanted, round_s = 1e6, 300, 60.0
    arrivals = known / after_s(known, wanted, round_s, middle) * round_s
    assert (
        wanted <= arrivals <= 20 * wanted or after_s(known, wanted, round_s, middle) > pacing.LATEST_S * 0.7
    )


@given(st.floats(1, 1e8), st.integers(1, 10_000), st.floats(0.1, 3600))
def test_a_device_is_never_sent_away_for_long_or_in_no_time_by_the_thousands(
    known: float, wanted: int, round_s: float
) -> None:
    away = after_s(known, wanted, round_s)
    assert 0 <= away <= pacing.LATEST_S
    if known > 2 * wanted:
        assert away >= pacing.SOONEST_S


def test_devices_that_come_at_one_time_are_not_sent_back_to_one_time() -> None:
    assert len({round(after_s(1e5, 100, 60), 3) for _ in range(100)}) > 90
    assert len({round(idle_s(1e5), 3) for _ in range(100)}) > 90


def test_few_idle_devices_ask_often_and_many_cost_no_more_than_some_check_ins_a_second() -> None:
    assert idle_s(10, uniform=middle) == 20
    assert 10_000 / idle_s(10_000, uniform=middle) == pytest.approx(20)
    assert idle_s(1e8, uniform=middle) == pacing.LATEST_IDLE_S


@pytest.mark.parametrize("known", [10, 300, 3_000, 50_000])
@pytest.mark.parametrize("wanted", [4, 100, 2_000, 10_000])
def test_a_run_that_opens_has_the_devices_that_it_wants_in_about_a_minute(known: int, wanted: int) -> None:
    away = idle_s(known, wanted, uniform=middle)
    assert known * min(60 / away, 1) >= 0.99 * min(wanted, known)


def test_a_device_that_one_run_does_not_need_is_back_as_soon_as_if_there_were_none() -> None:
    assert after_s(5_000, wanted=4, round_s=300.0, uniform=middle) == idle_s(5_000, uniform=middle) == 250


def test_the_devices_that_a_run_of_their_task_may_want_are_not_sent_away_for_minutes() -> None:
    room, tasks = WaitingRoom(), frozenset(["softmax"])
    assert room.expected(tasks) == 0
    demand = Demand("softmax", fewest=4_000)
    room.open(demand)
    room.close(demand)
    assert room.expected(tasks) == 4_000
    assert room.expected(frozenset(["another"])) == 0
    assert idle_s(5_000, 0, middle) == 250
    assert idle_s(5_000, room.expected(tasks), middle) == pytest.approx(75)


@pytest.mark.parametrize("count", [1, 10, 300, 3_000, 10_000, 100_000])
def test_the_count_of_devices_is_about_right(count: int) -> None:
    known = DistinctDevices()
    for _ in range(2):  # one that comes twice counts once
        for i in range(count):
            known.add(f"device-{i}")
    assert known.count() == pytest.approx(count, rel=0.12)


def test_devices_that_stay_away_are_forgotten() -> None:
    now = [0.0]
    known = DistinctDevices(period_s=10, clock=lambda: now[0])
    for i in range(1000):
        known.add(f"device-{i}")
    for now[0] in (11.0, 22.0):
        known.add("one")
    assert known.count() < 3
