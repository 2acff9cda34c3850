"""Sums of random buckets of a cohort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.buckets import BucketedSummation, bucketed
from quorate.errors import ProtocolViolation, QuorumNotReached
from quorate.privacy.secagg import SecAggParameters
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds
from quorate.summation import SumSession
from quorate.sums import BucketSums, DirectSummation
from tests.privacy.secagg.sessions import TestSink, drive, prepare, session, summation


def prepare_buckets(members=20, count=4, fewest=2, **kwargs):
    """A run whose server is one of buckets; the clients are those of ordinary sessions."""
    run = prepare(members, largest=10, **kwargs)
    inner = summation(session(largest=10, **kwargs), SecAggParameters())
    run.sink = TestSink()
    made = BucketedSummation(inner, count, fewest, Randomness.from_seed(7))
    run.server = made.server(run.sink)
    return run


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 50))
def test_buckets_are_a_partition_into_nearly_equal_parts(members, count, seed):
    names = [str(i) for i in range(members)]
    buckets = bucketed(names, count, Randomness.from_seed(seed))
    assert sorted(name for bucket in buckets for name in bucket) == sorted(names)
    sizes = {len(bucket) for bucket in buckets}
    assert max(sizes) - min(sizes) <= 1
    assert len(buckets) == count


def test_each_bucket_gives_its_own_sum_with_its_own_survivors():
    run = prepare_buckets()
    drive(run, {"mask": {"client-3"}, "unmask": {"client-4"}})
    assert len(run.sink.added) == 4
    for total, members in run.sink.added:
        assert (total == run.expected(members)).all()
    assert sorted(name for _, members in run.sink.added for name in members) == sorted(
        set(run.names) - {"client-3"}
    )


def test_a_bucket_that_is_not_quorate_is_left_out():
    run = prepare_buckets(min_survivors=4)
    probe = prepare_buckets(min_survivors=4)
    probe.server.begin(probe.names)
    first = list(probe.server._open[0][0].awaited)
    drive(run, {"mask": set(first[:2])})
    assert len(run.sink.added) == 3
    assert not set(first) & {name for _, members in run.sink.added for name in members}


def test_too_few_buckets_release_nothing():
    run = prepare_buckets(fewest=4, min_survivors=4)
    probe = prepare_buckets(fewest=4, min_survivors=4)
    probe.server.begin(probe.names)
    lost = set(list(probe.server._open[2][0].awaited)[:3])
    with pytest.raises(QuorumNotReached) as refusal:
        drive(run, {"unmask": lost, "mask": lost})
    assert refusal.value.needed == 4
    assert run.sink.added == []
    with pytest.raises(ValueError, match="aborted"):
        run.server.advance()


def test_a_stranger_is_in_no_bucket():
    run = drive(prepare_buckets(), until="mask")
    with pytest.raises(ProtocolViolation, match="in no bucket"):
        run.server.receive("stranger", b"")
    run.server.lose("stranger")
    assert "client-0" in run.server.awaited
    assert len(run.server.awaited) == len(list(run.server.awaited)) == 20


def test_a_bucket_that_would_be_too_large_is_refused():
    run = prepare_buckets(members=41)
    with pytest.raises(ValueError, match="a bucket of 11 members, a session has at most 10"):
        run.server.begin(run.names)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.float32])
def test_sums_without_a_protocol_come_in_buckets_too(dtype):
    bounds = CohortBounds(largest=4, min_survivors=2, honest=2, denominator=3.0)
    inner = DirectSummation(SumSession(bytes(32), 2, np.dtype(dtype), bounds), None)
    summed = BucketedSummation(inner, 3, 2, Randomness.from_seed(2))
    assert not summed.direct
    sink = BucketSums(2, np.dtype(dtype))
    server, names = summed.server(sink), [f"m{i}" for i in range(9)]
    assert server.begin(names) == []
    assert server.reveals
    values = {name: np.array([i, 60_000], dtype) for i, name in enumerate(names)}
    first = [name for name in names if server._bucket[name] is server._open[0][0]]
    for name in set(names) - set(first[1:]):
        server.receive(name, summed.client(values[name], Randomness.from_seed(0)).begin())
    server.advance()
    result = sink.result()
    assert result.sizes == (3, 3)
    assert set(result.survivors) == set(names) - set(first)
    for row, members in zip(result.sums, (result.survivors[:3], result.survivors[3:]), strict=True):
        wrap = 1 << (8 * np.dtype(dtype).itemsize) if np.dtype(dtype).kind == "u" else 1 << 60
        assert row.tolist() == [sum(int(values[name][i]) for name in members) % wrap for i in range(2)]


def test_a_session_of_buckets_looks_like_one_to_the_driver():
    run = prepare_buckets()
    assert not run.server.done
    drive(run)
    assert run.server.done
    assert run.server.phase == "done"
    assert run.server.reveals
    assert np.array([total for total, _ in run.sink.added]).shape == (4, 40)
