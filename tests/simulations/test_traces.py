import math

import numpy as np
import pytest

from quorate.errors import DataError, PlanError
from quorate.simulations.traces import Diurnal, Recorded, recorded

HOUR = 3600.0


def there(traces, index, now_s):
    return bool(traces.stay_s(np.array([index]), now_s)[0] > 0)


def presence(traces, members, hour):
    return traces.stay_s(np.arange(members), hour * HOUR) > 0


def test_more_members_are_there_in_the_evening_than_in_the_morning():
    traces = Diurnal(hours=6, peak_hour=20, spread_hours=2)
    evening, morning = presence(traces, 2000, 22).mean(), presence(traces, 2000, 10).mean()
    assert evening > 0.7
    assert morning < 0.05


def test_members_are_there_for_as_many_hours_as_is_said_on_average():
    traces = Diurnal(hours=6, spread_hours=5)
    shares = [presence(traces, 400, hour).mean() for hour in range(24)]
    assert np.mean(shares) * 24 == pytest.approx(6, rel=0.1)


def test_a_member_that_is_there_is_there_until_it_leaves():
    traces = Diurnal(hours=5)
    present = np.flatnonzero(presence(traces, 200, 21))
    for index, stays in zip(present, traces.stay_s(present, 21 * HOUR), strict=True):
        assert there(traces, index, 21 * HOUR + stays - 1)
        assert math.isinf(stays) or not there(traces, index, 21 * HOUR + stays + 1)


@pytest.mark.parametrize("members", [200, 50_000, 200_000])
def test_no_fewer_are_there_than_are_said_to_be(members):
    traces = Diurnal(hours=8, seed=3)
    for hour in (3.0, 13.7, 20.0, 27.3):
        came, stays = traces._hours(np.arange(members))
        there = int(((hour * HOUR - came) % 86_400 < stays).sum())
        said = traces.present(members, hour * HOUR)
        assert said <= there
        assert said > 0.85 * there - 20


def test_counting_those_who_are_there_agrees_with_asking_each():
    traces = Diurnal(hours=8, seed=1)
    assert traces.present(700, 19 * HOUR) == presence(traces, 700, 19).sum()


def test_speeds_are_log_normal_around_the_median():
    traces = Diurnal(examples_per_s=50, bytes_per_s=2e6, speed_sigma=1.5)
    speeds = traces.speeds(np.arange(4000))
    training, network = np.log(speeds.examples_per_s), np.log(speeds.bytes_per_s)
    assert np.median(training) == pytest.approx(math.log(50), abs=0.1)
    assert np.median(network) == pytest.approx(math.log(2e6), abs=0.1)
    assert training.std() == pytest.approx(1.5, rel=0.1)
    assert abs(np.corrcoef(training, network)[0, 1]) < 0.06


def test_traces_are_the_same_for_the_same_seed_only():
    one, same, other = (Diurnal(seed=seed).speeds(np.array([7, 12345])) for seed in (5, 5, 6))
    alone = Diurnal(seed=5).speeds(np.array([12345]))
    np.testing.assert_array_equal(one.examples_per_s, same.examples_per_s)
    np.testing.assert_array_equal(one.bytes_per_s[1:], alone.bytes_per_s)
    assert (one.examples_per_s != other.examples_per_s).all()


@pytest.mark.parametrize("wrong", [{"hours": 0}, {"hours": 25}, {"spread_hours": -1}, {"examples_per_s": 0}])
def test_impossible_traces_are_refused(wrong):
    with pytest.raises(PlanError, match="traces"):
        Diurnal(**wrong)


def write(tmp_path, suffix, availability, capacity):
    import pandas

    paths = []
    for name, columns in (("availability", availability), ("capacity", capacity)):
        path = tmp_path / f"{name}{suffix}"
        frame = pandas.DataFrame(columns)
        frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False)
        paths.append(str(path))
    return paths


AVAILABILITY = {
    "client": ["b", "a", "a"],
    "active": [50, 200, 0],
    "inactive": [80, 260, 100],
    "finish_time": [100, 300, 300],
}
CAPACITY = {"client": ["a", "b"], "computation": [10.0, 40.0], "communication": [8000.0, 800.0]}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_recorded_traces_are_read_and_repeat(tmp_path, suffix):
    traces = recorded(*write(tmp_path, suffix, AVAILABILITY, CAPACITY))
    assert isinstance(traces, Recorded)
    assert [there(traces, 0, t) for t in (0, 99, 100, 199, 200, 259, 260, 300, 399, 400)] == [
        *(True, True, False, False, True, True, False, True, True, False)
    ]
    assert [there(traces, 1, t) for t in (49, 50, 79, 80, 150, 180)] == [
        *(False, True, True, False, True, False)
    ]
    assert there(traces, 2, 10)  # the third member is the first device again
    assert traces.stay_s(np.array([0, 1]), 320).tolist() == [80, 0]
    assert traces.present(5, 60) == 5
    assert traces.present(5, 10) == 3
    speeds = traces.speeds(np.array([0, 3]))
    assert speeds.examples_per_s.tolist() == pytest.approx([1000 / 30, 1000 / 120])
    assert speeds.bytes_per_s.tolist() == [1e6, 1e5]


@pytest.mark.parametrize(
    ("availability", "capacity", "said"),
    [
        ({"client": [1], "active": [5]}, CAPACITY, "no column inactive"),
        ({"client": [1], "active": [5], "inactive": [5]}, CAPACITY, "0 ≤ active < inactive"),
        (AVAILABILITY, {"client": [1], "computation": [0.0], "communication": [1.0]}, "are above 0"),
    ],
)
def test_files_that_are_no_traces_are_refused(tmp_path, availability, capacity, said):
    with pytest.raises(DataError, match=said):
        recorded(*write(tmp_path, ".csv", availability, capacity))
