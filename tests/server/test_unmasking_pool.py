"""The unmasking pool: the same sums as in one process, whatever happens to its workers."""

import os
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quorate.privacy.secagg import Mask, add_masks
from quorate.server import unmasking_pool
from quorate.server.unmasking_pool import UnmaskingPool

DTYPES = [np.uint16, np.uint32]


@pytest.fixture(scope="module")
def pool():
    with UnmaskingPool(workers=2, worth_bytes=0) as started:
        yield started


def masks(count):
    return [Mask(bytes([i]) * 32, bool(i % 3)) for i in range(count)]


def alone(vector, wanted):
    expected = vector.copy()
    add_masks(expected, wanted)
    return expected


@pytest.fixture
def small_buffer(monkeypatch):
    """A pool whose buffer holds a sixteenth of a mebibyte, so that a short vector has several chunks."""
    monkeypatch.setattr(unmasking_pool, "_BUFFER_BYTES", 1 << 16)
    with UnmaskingPool(workers=2, worth_bytes=0) as started:
        yield started


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(dtype=st.sampled_from(DTYPES), length=st.integers(1, 5000), count=st.integers(1, 40))
def test_what_workers_add_is_what_one_process_adds(pool, dtype, length, count):
    vector = np.arange(length, dtype=dtype)
    expected = alone(vector, masks(count))
    pool(vector, masks(count))
    assert (vector == expected).all()
    assert len(pool.pids) == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_longer_than_the_buffer_goes_in_chunks(small_buffer, dtype):
    vector = np.arange(100_003, dtype=dtype)
    expected = alone(vector, masks(7))
    small_buffer(vector, masks(7))
    assert (vector == expected).all()


def test_workers_stay_for_the_next_sum(pool):
    pool(np.zeros(10, np.uint32), masks(1))
    first = pool.pids
    pool(np.zeros(10, np.uint32), masks(1))
    assert pool.pids == first


def test_a_sum_that_is_not_worth_it_starts_no_workers():
    with UnmaskingPool(workers=2, worth_bytes=4 * 1000 * 5 + 1) as pool:
        vector = np.zeros(1000, np.uint32)
        pool(vector, masks(5))
        assert pool.pids == ()
        assert (vector == alone(np.zeros(1000, np.uint32), masks(5))).all()


def test_one_core_starts_no_workers():
    with UnmaskingPool(workers=1, worth_bytes=0) as pool:
        vector = np.zeros(1000, np.uint32)
        pool(vector, masks(5))
        assert pool.pids == ()
        assert (vector == alone(np.zeros(1000, np.uint32), masks(5))).all()


@pytest.mark.parametrize("victims", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["first", "second", "both"])
def test_workers_that_were_killed_between_two_sums_change_no_sum(small_buffer, victims):
    small_buffer(np.zeros(10, np.uint32), masks(2))
    for pid in small_buffer.pids[victims]:
        os.kill(pid, signal.SIGKILL)
    vector = np.arange(100_003, dtype=np.uint32)
    expected = alone(vector, masks(20))
    small_buffer(vector, masks(20))
    assert (vector == expected).all()


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_worker_that_is_killed_at_work_changes_no_sum(small_buffer, monkeypatch, chunk):
    """It has added some of its masks to the chunk; the other worker may be done with its own."""
    sent = unmasking_pool.write_task
    tasks = []

    def killing(pipe, task):
        tasks.append(task)
        sent(pipe, task)
        if len(tasks) == 2 * chunk + 2:
            os.kill(small_buffer.pids[0], signal.SIGKILL)

    small_buffer(np.zeros(10, np.uint32), masks(2))
    monkeypatch.setattr(unmasking_pool, "write_task", killing)
    many = masks(250) * 40  # far more work than the kill needs to arrive
    vector = np.arange(70_003, dtype=np.uint32)
    expected = alone(vector, many)
    small_buffer(vector, many)
    assert (vector == expected).all()
    assert small_buffer.pids == ()
    assert len(tasks) == 2 * chunk + 2


def test_workers_are_started_again_for_the_sum_after_a_death(small_buffer):
    small_buffer(np.zeros(10, np.uint32), masks(2))
    first = small_buffer.pids
    os.kill(first[1], signal.SIGKILL)
    small_buffer(np.zeros(10, np.uint32), masks(2))
    vector = np.zeros(1000, np.uint32)
    small_buffer(vector, masks(3))
    assert len(small_buffer.pids) == 2
    assert not set(small_buffer.pids) & set(first)
    assert (vector == alone(np.zeros(1000, np.uint32), masks(3))).all()


def test_workers_are_gone_when_the_pool_is_closed():
    with UnmaskingPool(workers=2, worth_bytes=0) as pool:
        pool(np.zeros(10, np.uint32), masks(1))
        pids = pool.pids
        assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_ends_when_its_input_does(small_buffer):
    small_buffer(np.zeros(10, np.uint32), masks(2))
    worker = small_buffer._workers[0]
    worker.stdin.close()
    assert worker.wait(30) == 0
    worker.stdin = None
