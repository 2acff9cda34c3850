"""The fleet's side of buffered rounds: members train from the version that they pulled, and their work is discounted.

Members are trained when they are done in simulated time: what they give depends on the version that they pulled and on
nothing that happened since, so that it might as well have been computed before. The versions that somebody works on are
kept here, as the members themselves would keep them; the server needs the newest only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from quorate import pipeline
from quorate.errors import PlanError
from quorate.plan import Plan, RingSum
from quorate.randomness import Randomness
from quorate.rounds import Assignment, Member, State
from quorate.simulations.arrivals import Arrivals, Job
from quorate.simulations.clock import PHASES_AFTER_MASKING, PHASES_BEFORE_MASKING, Clock, Report
from quorate.simulations.datasets import FederatedDataset
from quorate.simulations.engines.contract import Done, Engine, Order

__all__ = ["BufferedRounds"]

_JOBS, _VECTOR = "jobs", "vector"


class BufferedRounds:
    """The buffered rounds of one run.

    Args:
        plan: resolved, with `[rounds.buffering]`.
        data: of the members.
        clock: of the run; None where the fleet has no traces.
        kept: what the last committed round staged, by name: see `staged`.

    Raises:
        PlanError: nobody knows how long members take, or there are too few of them.
    """

    def __init__(self, plan: Plan, data: FederatedDataset, clock: Clock | None, kept: Callable[[str], State]):
        assert plan.rounds.buffering is not None
        self._buffering, self._data, self._kept = plan.rounds.buffering, data, kept
        if clock is None:
            raise PlanError(
                "fleet.traces: missing; with rounds.sampling 'buffered' it matters how long members take; accepted: "
                "the settings of traces"
            )
        if self._buffering.concurrency > len(data):
            raise PlanError(
                f"rounds.buffering.concurrency: found {self._buffering.concurrency}, but the population has "
                f"{len(data)} members; accepted: 1 to {len(data)}"
            )
        self._clock = clock
        self._in_ring = isinstance(plan.secure_aggregation, RingSum)
        self._arrivals = Arrivals(
            clock, self._buffering, _durations(plan, data, clock), plan.fleet.seed, self._in_ring, kept(_JOBS)
        )
        self._buffer: Mapping[Member, Job] = {}

    def first_done(
        self, count: int, barred: Collection[Member], randomness: Randomness
    ) -> tuple[Member, ...]:
        """Lets simulated time pass until so many members are done; they are the round's."""
        jobs = self._arrivals.first_done(count, lambda index: self._data.member(index) in barred, randomness)
        self._buffer = {self._data.member(job.index): job for job in jobs}
        return tuple(self._buffer)

    def session(self) -> Report:
        """Lets the sum's phases pass, in a ring; who has gone by then."""
        begun_s = self._clock.now_s
        masked_s = begun_s + (PHASES_BEFORE_MASKING if self._in_ring else 0)
        self._clock.now_s = masked_s + (PHASES_AFTER_MASKING if self._in_ring else 0)
        leave_s = {member: job.leaves_s for member, job in self._buffer.items() if self._in_ring}
        early = frozenset(member for member, at_s in leave_s.items() if at_s < masked_s)
        late = frozenset(member for member, at_s in leave_s.items() if masked_s <= at_s < self._clock.now_s)
        return Report(early, late, self._clock.now_s - begun_s)

    def train(self, engine: Engine, order: Order) -> Done:
        """What an engine makes of the members of an order, each from its own version."""
        parts = []
        for part in self._by_version(order):
            done = engine.run(part)
            # What an engine gives is its own until the next order.
            parts.append(Done([(members, vector.copy()) for members, vector in done.encoded], done.states))
        return Done(
            [encoded for part in parts for encoded in part.encoded],
            {member: state for part in parts for member, state in part.states.items()},
        )

    def measured(self, assignment: Assignment) -> dict[str, float]:
        """`staleness`, the mean of the buffer's, and `given_up`, how many members worked in vain since it began."""
        ages = [job.staleness(assignment.base_version) for job in self._buffer.values()]
        return {"staleness": float(np.mean(ages)), "given_up": float(self._arrivals.given_up)}

    def staged(self, assignment: Assignment) -> dict[str, State]:
        """What the next round starts from if this one is committed: the work under way, and this round's version.

        A version stands in the place of one that nobody can work on any more.
        """
        newest = assignment.base_version
        self._arrivals.settle(newest)
        staged = {_JOBS: self._arrivals.state()}
        if newest in self._arrivals.versions:
            staged[self._place(newest)] = {_VECTOR: assignment.broadcast.parameters.vector}
        return staged

    def _by_version(self, order: Order) -> Iterator[Order]:
        """The newest version first."""
        newest, assignment = order.assignment.base_version, order.assignment
        ages = {member: self._buffer[member].staleness(newest) for member in order.members}
        for age in sorted(set(ages.values())):
            parameters = assignment.broadcast.parameters
            if age > 0:
                vector = self._kept(self._place(newest - age))[_VECTOR]
                parameters = parameters.layout.unflatten(vector)
            broadcast = dataclasses.replace(assignment.broadcast, parameters=parameters)
            yield dataclasses.replace(
                order,
                assignment=dataclasses.replace(assignment, broadcast=broadcast),
                members=tuple(member for member in order.members if ages[member] == age),
                discount=self._buffering.discount(age),
            )

    def _place(self, version: int) -> str:
        """The name that a version is kept by, until nobody can work on it any more."""
        return f"version {version % (self._buffering.largest_staleness + 1)}"


def _durations(
    plan: Plan, data: FederatedDataset, clock: Clock
) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """How many seconds jobs take, by their members' indices."""
    length, dtype = pipeline.encoded(plan.terms(), plan.bounds(len(data)))
    pulled = plan.strategy.resolve().shared(plan.task.resolve().layout)
    transferred_bytes = 4 * pulled.size + length * dtype.itemsize

    def takes_s(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        examples = np.array([data.examples_of(data.member(index)) for index in indices.tolist()])
        return clock.takes(indices, examples * plan.training.epochs, transferred_bytes, rng)

    return takes_s
