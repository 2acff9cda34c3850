"""Buffered asynchronous rounds in simulated time: who works, on which version of the model, and who is done when.

Nguyen et al. 2022 ("Federated Learning with Buffered Asynchronous Aggregation", AISTATS; FedBuff). At any time
`concurrency` members work. Each pulls the newest model when it begins; when it is done, or has gone, another one of
those who are there begins. The first K who are done are a round, whatever version each of them started from: its
*staleness* τ is how many rounds were committed since. Work that would be too stale for the next round is given up when
it becomes so. A member is in a buffer once, and does one thing at a time.

Who begins, when, and for how long depends on the traces and on how many examples members have, never on what they
compute: if a member's contributions were replaced by zero, the same members would be in the same buffers.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quorate.errors import QuorateError
from quorate.plan import Buffering
from quorate.randomness import Randomness, generator
from quorate.rounds import State
from quorate.simulations.clock import LONGEST_WAIT_S, WAIT_S, Clock

__all__ = ["Arrivals", "Job"]

_NEWEST = -1  # the version of the round that is under way, until its assignment says which that is
_TRIES = 200  # in a row without finding anybody who is there and free; then places stay empty for a while
_BEGUN = "begun"


@dataclass(frozen=True, order=True)
class Job:
    """What one member does.

    Args:
        ends_s: when it is done, or gone.
        number: of the job; never used twice in a run.
        index: of the member, in the population.
        version: of the model that it pulled.
        leaves_s: when the member goes; later than `ends_s` if it is done before.
    """

    ends_s: float
    number: int
    index: int
    version: int
    leaves_s: float

    def staleness(self, newest: int) -> int:
        """How many rounds were committed since the version was the newest."""
        return 0 if self.version == _NEWEST else newest - self.version


class Arrivals:
    """The work that is under way in one run.

    Args:
        clock: moves on as members end.
        buffering: of the plan.
        takes_s: how many seconds jobs take, by their members' indices; shape (members,).
        seed: of how much slower or quicker than usual a member is; None draws from the operating system.
        stays: whether a member must still be there when the buffer is full, as for a secure sum, which begins then.
        kept: what `state` gave at the end of the last committed round; empty before the first.
    """

    def __init__(
        self,
        clock: Clock,
        buffering: Buffering,
        takes_s: Callable[[np.ndarray, np.random.Generator], np.ndarray],
        seed: int | None,
        stays: bool,
        kept: State,
    ):
        self.clock = clock
        self._buffering, self._takes_s, self._seed, self._stays = buffering, takes_s, seed, stays
        self._begun = int(kept.get(_BEGUN, 0))
        columns = [kept[field.name].tolist() for field in dataclasses.fields(Job) if kept]
        self._jobs = [Job(*row) for row in zip(*columns, strict=True)]
        self._busy = {job.index for job in self._jobs}  # … and, while a buffer is filled, who is in it
        self.given_up = 0
        """How many jobs came to nothing since this round began: the member went, or its work was too stale."""

    def first_done(self, count: int, barred: Callable[[int], bool], randomness: Randomness) -> Sequence[Job]:
        """Lets time pass until so many members are done, each once; their jobs, in that order, are over.

        Args:
            count: how many.
            barred: whether the member at an index must not begin now.
            randomness: chooses who begins.

        Raises:
            QuorateError: there were not so many for a month.
        """
        buffer: list[Job] = []
        self.given_up = 0
        rng = generator(self._seed, "timing of jobs", self._begun)
        latest_s = self.clock.now_s + LONGEST_WAIT_S
        while len(buffer) < count:
            self._fill(barred, randomness, rng)
            job = self._next()
            if job is not None and job.ends_s < job.leaves_s:
                buffer.append(job)
            elif job is not None:
                self._busy.discard(job.index)
                self.given_up += 1
            if self._stays and len(buffer) == count:
                gone = [job for job in buffer if job.leaves_s <= self.clock.now_s]
                self._busy.difference_update(job.index for job in gone)
                self.given_up += len(gone)
                buffer = [job for job in buffer if job.leaves_s > self.clock.now_s]
            if self.clock.now_s > latest_s:
                raise QuorateError(
                    f"fewer than {count} of {self.clock.members} members were done in a simulated month; "
                    "rounds.cohort says how many a round waits for"
                )
        self._busy.difference_update(job.index for job in buffer)
        return buffer

    def settle(self, version: int) -> None:
        """Says which version those pulled who began in this round, and gives up what is too stale for the next."""
        known = [dataclasses.replace(job, version=version - job.staleness(version)) for job in self._jobs]
        oldest = version + 1 - self._buffering.largest_staleness
        self._jobs = sorted(job for job in known if job.version >= oldest)
        self.given_up += len(known) - len(self._jobs)
        self._busy = {job.index for job in self._jobs}

    @property
    def versions(self) -> frozenset[int]:
        """The versions that somebody works on."""
        return frozenset(job.version for job in self._jobs)

    def state(self) -> State:
        """What the next round starts from, once this one is settled."""
        jobs = sorted(self._jobs)
        columns = {
            field.name: np.array([getattr(job, field.name) for job in jobs])
            for field in dataclasses.fields(Job)
        }
        return {**columns, _BEGUN: np.array(self._begun)}

    def _fill(self, barred: Callable[[int], bool], randomness: Randomness, rng: np.random.Generator) -> None:
        """Somebody begins at every place that is empty, as long as there are members who can."""
        tried = 0
        while (places := self._buffering.concurrency - len(self._jobs)) and tried < _TRIES:
            asked = np.array(randomness.many_below(self.clock.members, places))
            stay_s = self.clock.traces.stay_s(asked, self.clock.now_s)
            found = {
                index: stays_s
                for index, stays_s in zip(asked.tolist(), stay_s.tolist(), strict=True)
                if stays_s > 0 and index not in self._busy and not barred(index)
            }
            if found:
                self._begin(found, rng)
            tried = 0 if found else tried + places

    def _begin(self, stay_s: Mapping[int, float], rng: np.random.Generator) -> None:
        """Members begin, who pull the newest version, and are there for so long."""
        now_s = self.clock.now_s
        takes_s = self._takes_s(np.array(list(stay_s)), rng).tolist()
        for (index, stays_s), needs_s in zip(stay_s.items(), takes_s, strict=True):
            ends_s = now_s + min(needs_s, stays_s)
            heapq.heappush(self._jobs, Job(ends_s, self._begun, index, _NEWEST, now_s + stays_s))
            self._busy.add(index)
            self._begun += 1

    def _next(self) -> Job | None:
        """The job that ends first, at that time; None if places are empty, and somebody may come for them before."""
        again_s = self.clock.now_s + WAIT_S
        is_full = len(self._jobs) == self._buffering.concurrency
        if not self._jobs or (not is_full and self._jobs[0].ends_s > again_s):
            self.clock.now_s = again_s
            return None
        job = heapq.heappop(self._jobs)
        self.clock.now_s = max(self.clock.now_s, job.ends_s)
        return job
