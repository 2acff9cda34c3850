"""When a device may train."""

import dataclasses
import datetime

import pytest

from quorate.clients.agent.conditions import Conditions, Readings, System, metered_in, unmet

GOOD = Readings(
    on_mains=True, metered=False, load=0.1, free_memory_mb=4000, free_disk_mb=4000, time=datetime.time(23, 30)
)
STRICT = Conditions(
    on_mains=True, unmetered=True, idle_load=0.5, free_memory_mb=500, free_disk_mb=500, window="22:00-06:00"
)


def test_everything_holds_on_a_good_night():
    assert not unmet(STRICT, GOOD)


@pytest.mark.parametrize(
    ("reading", "word"),
    [
        ({"on_mains": False}, "battery"),
        ({"metered": True}, "metered"),
        ({"load": 0.6}, "busy"),
        ({"free_memory_mb": 400}, "memory"),
        ({"free_disk_mb": 400}, "disk"),
        ({"time": datetime.time(12, 0)}, "22:00-06:00"),
    ],
)
def test_each_condition_is_checked_and_named(reading, word):
    (only,) = unmet(STRICT, dataclasses.replace(GOOD, **reading))
    assert word in only


def test_what_cant_be_known_counts_as_met():
    assert not unmet(STRICT, dataclasses.replace(GOOD, on_mains=None, metered=None))


def test_training_is_itself_a_load():
    busy = dataclasses.replace(GOOD, load=3.0)
    assert unmet(STRICT, busy)
    assert not unmet(STRICT, busy, training=True)


@pytest.mark.parametrize(
    ("window", "hour", "within"),
    [
        ("22:00-06:00", 22, True),
        ("22:00-06:00", 3, True),
        ("22:00-06:00", 6, False),
        ("09:00-17:00", 9, True),
        ("09:00-17:00", 17, False),
        ("09:00-17:00", 3, False),
    ],
)
def test_a_window_may_go_over_midnight(window, hour, within):
    readings = dataclasses.replace(GOOD, time=datetime.time(hour))
    assert (not unmet(Conditions(window=window), readings)) is within


@pytest.mark.parametrize(
    ("said", "metered"),
    [
        ("100 (connected)\nno (guessed)\n\n100 (connected (externally))\nunknown\n", False),
        ("100 (connected)\nyes (guessed)\n\n100 (connected)\nno\n", True),
        ("20 (unavailable)\nyes\n\n100 (connected)\nno\n", False),
        ("10 (unmanaged)\nunknown\n", None),
        ("", None),
    ],
)
def test_networkmanagers_word_is_understood(said, metered):
    assert metered_in(said) is metered


def test_this_machines_sensors_say_something(tmp_path):
    readings = System(tmp_path).read()
    assert readings.free_memory_mb > 0
    assert readings.free_disk_mb > 0
    assert readings.load >= 0
