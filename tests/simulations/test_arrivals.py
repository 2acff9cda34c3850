"""Who works when in buffered rounds: concurrency, staleness, who comes to nothing."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest

from quorate.errors import QuorateError
from quorate.plan import Buffering
from quorate.randomness import Randomness
from quorate.simulations.arrivals import Arrivals
from quorate.simulations.clock import Clock
from quorate.simulations.traces import Speeds


@dataclasses.dataclass(frozen=True)
class There:
    """Everybody is there, some until they leave for good."""

    leaves: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def present(self, members, now_s):
        return members

    def stay_s(self, indices, now_s):
        return np.array([max(0.0, self.leaves.get(i, math.inf) - now_s) for i in indices.tolist()])

    def speeds(self, indices):
        return Speeds(np.ones(len(indices)), np.ones(len(indices)))


def arrivals(members=20, concurrency=4, leaves=None, stays=False, kept=None, takes_s=None, **settings):
    """Member i takes i + 1 seconds, unless said otherwise."""
    clock = Clock(There(leaves or {}), members)
    one = takes_s or (lambda number, index: index + 1.0)

    def many(indices, rng):
        return np.array([one(work._begun + i, index) for i, index in enumerate(indices.tolist())])

    work = Arrivals(clock, Buffering(concurrency=concurrency, **settings), many, 0, stays, kept or {})
    return work


def nobody(index):
    return False


def drawn(number=0):
    return Randomness.from_seed(5).spawn(number)


def rounds(work, count, size, barred=nobody):
    """Buffers with each job's staleness, and when they were full."""
    seen = []
    for version in range(count):
        jobs = work.first_done(size, barred, drawn(version))
        seen.append(([(job.index, job.staleness(version)) for job in jobs], work.clock.now_s))
        work.settle(version)
    return seen


def test_a_buffer_is_who_is_done_first_and_whoever_ends_is_replaced_at_once():
    numbers = iter([9.0, 1.0, 2.0, 7.0, 1.5, 50.0, 50.0, 50.0])
    work = arrivals(takes_s=lambda number, index: next(numbers))
    ends = [job.ends_s for job in work.first_done(3, nobody, drawn())]
    assert ends == [1.0, 2.0, 2.5]  # the fifth began when the second was done
    assert work.clock.now_s == 2.5


def test_so_many_work_at_any_time_and_none_at_two_things_or_twice_in_a_buffer():
    at_work = []
    work = arrivals(members=12, concurrency=5, takes_s=lambda number, index: 1 + (number * 7 + index) % 11)
    for version in range(30):
        buffer = [job.index for job in work.first_done(4, nobody, drawn(version))]
        assert len(set(buffer)) == 4
        at_work = [job.index for job in work._jobs]
        assert len(at_work) in (4, 5)  # the last one's place is filled when the next round begins
        assert len(set(at_work)) == len(at_work)
        work.settle(version)


def test_staleness_is_how_many_rounds_were_committed_since_a_member_began():
    slow = arrivals(members=6, concurrency=3, takes_s=lambda number, index: 10.5 if number == 0 else 1.0)
    ages = [age for buffer, _ in rounds(slow, 12, 2) for _, age in buffer]
    assert max(ages) == 10
    assert sorted(ages)[-2] <= 1


def test_work_that_would_be_too_stale_is_given_up_and_its_place_is_filled():
    slow = arrivals(
        members=6,
        concurrency=3,
        largest_staleness=4,
        takes_s=lambda number, index: 10.5 if number == 0 else 1.0,
    )
    given_up = []
    for version in range(12):
        jobs = slow.first_done(2, nobody, drawn(version))
        assert all(job.staleness(version) <= 4 for job in jobs)
        slow.settle(version)
        given_up.append(slow.given_up)
    assert given_up == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_with_no_staleness_every_round_begins_anew():
    ages = [age for buffer, _ in rounds(arrivals(largest_staleness=0), 5, 3) for _, age in buffer]
    assert set(ages) == {0}


def test_who_goes_before_being_done_comes_to_nothing():
    work = arrivals(members=8, concurrency=8, leaves={0: 0.5, 1: 1.9})
    assert [job.index for job in work.first_done(2, nobody, drawn())] == [2, 3]
    assert work.given_up == 2


@pytest.mark.parametrize(("stays", "buffer"), [(False, [0, 1, 2]), (True, [1, 2, 3])])
def test_who_is_done_and_goes_is_in_the_buffer_unless_the_sum_needs_it_there(stays, buffer):
    work = arrivals(members=8, concurrency=8, leaves={0: 2.5}, stays=stays)
    assert [job.index for job in work.first_done(3, nobody, drawn())] == buffer


def test_who_is_barred_does_not_begin():
    seen = rounds(arrivals(members=10, concurrency=3), 6, 2, barred=lambda index: index < 5)
    assert {index for buffer, _ in seen for index, _ in buffer} <= set(range(5, 10))


def test_what_is_kept_goes_on_as_if_nothing_had_happened():
    takes_s = {"takes_s": lambda number, index: 1 + (number * 7 + index) % 11}
    work = arrivals(**takes_s)
    rounds(work, 4, 3)
    again = arrivals(kept=work.state(), **takes_s)
    again.clock.now_s = work.clock.now_s
    for version in range(4, 9):
        assert work.first_done(3, nobody, drawn(version)) == again.first_done(3, nobody, drawn(version))
        work.settle(version)
        again.settle(version)


def test_a_wait_without_end_is_an_error():
    with pytest.raises(QuorateError, match="fewer than 3 of 20 members were done in a simulated month"):
        arrivals(leaves=dict.fromkeys(range(20), -1.0)).first_done(3, nobody, drawn())
