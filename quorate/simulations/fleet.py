"""The simulated fleet: clients that do not exist, over partitioned data.

An engine trains them: one by one, many at once, or in worker processes. The sum is the real one: with secure
aggregation each client has its own keys and masks and the whole protocol runs (*exact*), with the plain and the ideal
sum encoded vectors are added where they are made and no message is made. Clients drop out as they are told to, in the
phases that matter. In buffered rounds each trains from the version that it pulled (`quorate.simulations.buffering`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.clients.states import ClientStates
from quorate.errors import QuorumNotReached
from quorate.fleets import Ability, Identities
from quorate.plan import Plan, RingSum, SecAggPlus
from quorate.privacy.secagg import AnyKey, Ed25519Identity
from quorate.randomness import Randomness, generator
from quorate.rounds import Assignment, Close, Closed, Kind, Member, Outcome, State
from quorate.server.sessions import drive
from quorate.simulations.buffering import BufferedRounds
from quorate.simulations.clock import PHASES_AFTER_MASKING, Clock, Report, Work
from quorate.simulations.datasets import FederatedDataset
from quorate.simulations.engines.choice import make_engine
from quorate.simulations.engines.contract import Order
from quorate.simulations.traces import Traces
from quorate.simulations.transport import InProcess
from quorate.summation import Sink, Summation

__all__ = ["Parts", "SimulatedFleet"]

_NO_MESSAGE = 0
_MESSAGES_BEFORE_MASKING = 2  # advertise, share
_MESSAGES_BEFORE_UNMASKING = 3  # … and the masked input
_CLOCK = ""  # among the states: no member has this name


class Parts(Protocol):
    """What the fleet is made of; see `quorate.simulations.source.Simulation`."""

    @property
    def data(self) -> FederatedDataset:
        """The clients' data, and the server's."""
        ...

    @property
    def size(self) -> int:
        """How many clients a cohort is drawn from, at least."""
        ...

    @property
    def drop_before_masking(self) -> float:
        """A probability."""
        ...

    @property
    def drop_before_unmasking(self) -> float:
        """A probability."""
        ...

    @property
    def engine(self) -> str:
        """Its name."""
        ...

    @property
    def workers(self) -> int | None:
        """Of an engine with processes."""
        ...

    @property
    def address(self) -> str | None:
        """Of a Ray cluster."""
        ...

    @property
    def traces(self) -> Traces | None:
        """When clients are there, and how fast."""
        ...


class SimulatedFleet:
    """A fleet of the clients of a simulation.

    Args:
        simulation: what it is made of.
        plan: resolved.
        directory: where clients' states are kept; None keeps them in memory.
    """

    abilities = frozenset(Ability)
    simulated = True
    identities = Identities(AnyKey(), Ed25519Identity.draw)  # there is nobody to enrol

    def __init__(self, simulation: Parts, plan: Plan, directory: Path | None):
        self._simulation, self._seed = simulation, plan.fleet.seed
        self._linear = not plan.single_updates
        self._masked = isinstance(plan.secure_aggregation, SecAggPlus)
        self._in_ring = isinstance(plan.secure_aggregation, RingSum)
        self._states = ClientStates(None if directory is None else directory / "clients.sqlite")
        self._randomness = Randomness.system() if self._seed is None else Randomness.from_seed(self._seed)
        self._data = simulation.data
        self._clock_of = f"clock of {hashlib.sha256(plan.terms().encoded()).hexdigest()}"
        self.clock = self._clock()
        self._buffered: BufferedRounds | None = None
        if plan.rounds.buffering is not None:
            self._buffered = BufferedRounds(plan, self._data, self.clock, self._of_the_last_round)
        self.engine = make_engine(
            simulation.engine, simulation.workers, simulation.address, simulation.data, plan
        )

    def population(self) -> SimulatedFleet:
        """Itself: the clients of the dataset; with traces, once enough are there for a round that begins with them."""
        if self.clock is not None and self._buffered is None:
            self.clock.wait_for(self._simulation.size)
        return self

    @property
    def size(self) -> int:
        """How many clients there are."""
        return len(self._data)

    @property
    def present(self) -> int:
        """All of them; with traces, as many as a round waits for."""
        return self._simulation.size

    def member(self, index: int) -> Member:
        """The name of a client."""
        return self._data.member(index)

    def those_present(self, indices: Sequence[int]) -> Sequence[int]:
        """All are, without traces."""
        if self.clock is None:
            return indices
        asked = np.array(indices, np.int64)
        there: list[int] = asked[self.clock.traces.stay_s(asked, self.clock.now_s) > 0].tolist()
        return there

    def first_done(
        self, count: int, barred: Collection[Member], randomness: Randomness
    ) -> tuple[Member, ...]:
        """Where rounds are buffered: lets simulated time pass until so many are done."""
        assert self._buffered is not None, "the plan says how many work"
        return self._buffered.first_done(count, barred, randomness)

    def data_of(self, member: Member) -> Examples:
        """A client's examples."""
        return self._data.clients[self._data.index(member)]

    def held_out(self) -> Any:
        """The dataset's test split."""
        return self._data.test

    def collect(self, assignment: Assignment, summation: Summation, sink: Sink, close: Close) -> Closed:
        """Has the engine train and encode, and sums what it gives."""
        drops = self._drops(assignment) | self._too_late(assignment, summation, close)
        members = tuple(m for m in assignment.members if drops.get(m) != _NO_MESSAGE)
        if not self._masked:  # a vector is the first message
            members = tuple(m for m in members if drops.get(m) != _MESSAGES_BEFORE_MASKING)
        if summation.direct:
            members = members[: close.after]  # the first that report; in a simulation none is slow
            _check_quorum(assignment, len(members))
        states = self._states.among(assignment.run, members)
        linear = self._linear or assignment.kind is Kind.EVALUATE  # the cells of an evaluation are added up
        order = Order(assignment, members, states, summation.direct and linear)
        done = self.engine.run(order) if self._buffered is None else self._buffered.train(self.engine, order)
        if summation.direct:  # what is not finite, or was lost with a worker, is not there
            _check_quorum(assignment, len(done.members))
            lost = Counter({"update": len(assignment.members) - len(done.members)})
            summation.journal.revealing()
            for chosen, encoded in done.encoded:
                sink.add(encoded if linear else encoded[None, :], chosen)
        else:
            streams = self._randomness.spawn("sums", assignment.round)
            halves = {
                chosen[0]: summation.client(encoded, streams.spawn(chosen[0]))
                for chosen, encoded in done.encoded
            }
            drawn = assignment.members
            transport = InProcess(halves, drops, absent=[m for m in drawn if m not in halves])
            lost = drive(
                summation.server(sink), transport, drawn, assignment.deadlines, summation.journal, close
            )
        survivors = set(sink.survivors)
        kept = {member: state for member, state in done.states.items() if member in survivors}
        self._states.stage(assignment.run, assignment.round, kept)
        measured = {}
        if self.clock is not None:
            staged: dict[str, State] = {_CLOCK: {"now_s": np.array(self.clock.now_s)}}
            measured = {"simulated_hours": self.clock.now_s / 3600}
            if self._buffered is not None:
                staged |= self._buffered.staged(assignment)
                measured |= self._buffered.measured(assignment)
            self._states.stage(self._clock_of, assignment.round, staged)
        return Closed(tuple(m for m in members if m in survivors), lost=+lost, measured=measured)

    def conclude(self, run: str, round: int, outcomes: Mapping[Member, Outcome]) -> None:
        """The clients keep or drop what they staged; only those in the sum have staged anything."""
        committed = Outcome.COMMITTED in outcomes.values()
        for kept in (run, self._clock_of):
            self._states.conclude(kept, round, Outcome.COMMITTED if committed else Outcome.ABORTED)

    def close(self, failure: BaseException | None = None) -> None:
        """Ends the engine's workers, and closes the file with the clients' states."""
        self.engine.close()
        self._states.close()

    def _clock(self) -> Clock | None:
        """At the time that the last committed round left."""
        traces = self._simulation.traces
        if traces is None:
            return None
        kept = self._of_the_last_round(_CLOCK)
        return Clock(traces, len(self._data), float(kept["now_s"]) if kept else 0.0)

    def _of_the_last_round(self, name: str) -> State:
        """What was staged by that name, in the last committed round that staged any; empty if there is none."""
        return self._states.get(self._clock_of, name)

    def _too_late(self, assignment: Assignment, summation: Summation, close: Close) -> dict[Member, int]:
        """Lets simulated time pass; who is lost by it, and after how many messages."""
        if self.clock is None:
            return {}
        if self._buffered is not None:
            return _silent(self._buffered.session())
        broadcast, members = assignment.broadcast, assignment.members
        epochs = broadcast.instruction.settings.get("epochs", 1)
        extras = sum(vector.size for vector in broadcast.instruction.extras.values())
        work = Work(
            examples=np.array([self._data.examples_of(member) for member in members]) * epochs,
            download_bytes=4 * (broadcast.parameters.vector.size + extras),
            upload_bytes=summation.session.length * summation.session.dtype.itemsize,
            deadline_s=assignment.deadlines.training_s,
            close_after=close.after,
            phases_after=PHASES_AFTER_MASKING if self._in_ring else 0,
        )
        rng = generator(self._seed, "timing", assignment.round)
        indices = np.array([self._data.index(member) for member in members], np.int64)
        report = self.clock.run(members, indices, work, rng)
        return _silent(report)

    def _drops(self, assignment: Assignment) -> dict[Member, int]:
        """After how many messages each member that drops out falls silent."""
        masking = self._simulation.drop_before_masking
        unmasking = masking + (1 - masking) * self._simulation.drop_before_unmasking
        if not unmasking:
            return {}
        draws = generator(self._seed, "dropouts", assignment.round).random(len(assignment.members))
        drops = {}
        for member, draw in zip(assignment.members, draws, strict=True):
            if draw < masking:
                drops[member] = _MESSAGES_BEFORE_MASKING
            elif draw < unmasking:
                drops[member] = _MESSAGES_BEFORE_UNMASKING
        return drops


def _silent(report: Report) -> dict[Member, int]:
    """After how many messages those who were lost fell silent."""
    return dict.fromkeys(report.unfinished, _MESSAGES_BEFORE_UNMASKING) | dict.fromkeys(
        report.unreported, _NO_MESSAGE
    )


def _check_quorum(assignment: Assignment, present: int) -> None:
    needed = assignment.bounds.min_survivors
    if present < needed:
        raise QuorumNotReached("update", present, needed)
