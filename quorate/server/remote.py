"""A fleet of members at the other end of a transport: sockets, gRPC streams, Flower messages.

It frames what the coordinator and the summation have to say, and drives the sum with `quorate.server.sessions`. What
carries the frames, and keeps connections between rounds, is the transport's business.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from quorate.endorsement import Endorsement
from quorate.errors import ProtocolViolation
from quorate.fleets import Ability, Enrolment, Identities, Population
from quorate.rounds import Assignment, Close, Closed, Deadlines, Member, Outcome
from quorate.server.faults import Point, passing
from quorate.server.sessions import drive
from quorate.summation import Loss, Lost, Message, Sink, Summation, Transport
from quorate.wire import frames

__all__ = ["RemoteFleet", "Watch"]


class Watch:
    """Is told what happens in a round while it happens, and does nothing with it; see `quorate.server.metrics`."""

    def closed(self, run: str, phase: str, seconds: float, lost: Mapping[Loss, int]) -> None:
        """A phase of the sum ended."""

    def declined(self, run: str, code: str) -> None:
        """A member declined."""


class RemoteFleet:
    """Members reached by frames.

    Args:
        transport: reaches every member of the population.
        population: who can be selected.
        held_out: the server's own data for evaluation, if it has any.
        enrolment: who is a member, where members have identities.
        endorse: signs the terms, for members that ask for a signer; None: nobody stands behind them.
        watch: see `Watch`.
        deadlines: of every round; None: those of its assignment.
    """

    simulated = False

    def __init__(
        self,
        transport: Transport,
        population: Population,
        held_out: Any = None,
        enrolment: Enrolment | None = None,
        endorse: Callable[[bytes], Endorsement] | None = None,
        watch: Watch | None = None,
        deadlines: Deadlines | None = None,
    ):
        self._endorse, self._watch, self._deadlines = endorse, watch or Watch(), deadlines
        self._transport, self._population, self._held_out = transport, population, held_out
        self.identities = None if enrolment is None else Identities(enrolment)
        own = {Ability.IDENTITIES} if enrolment is not None else set()
        self.abilities = frozenset({Ability.SECURE, Ability.SINGLE_UPDATES, Ability.CLIENT_STATE, *own})

    def population(self) -> Population:
        """Who can be selected."""
        return self._population

    def collect(self, assignment: Assignment, summation: Summation, sink: Sink, close: Close) -> Closed:
        """Sends the assignment to the cohort and drives the sum."""
        key = assignment.run, assignment.round
        if self._deadlines is not None:
            assignment = dataclasses.replace(assignment, deadlines=self._deadlines)
        if self._endorse is not None:
            assignment = dataclasses.replace(assignment, endorsement=self._endorse(assignment.terms))
        frame = frames.encode(assignment)
        for member in assignment.members:
            with passing(Point.SEND_ASSIGNMENT):
                self._transport.send(member, frame)
        channel = _Framed(self._transport, *key, frozenset(assignment.members), self._watch)
        lost = drive(
            summation.server(sink),
            channel,
            assignment.members,
            assignment.deadlines,
            summation.journal,
            close,
            partial(self._watch.closed, assignment.run),
        )
        return Closed(survivors=sink.survivors, lost=lost, refused=channel.refused)

    def conclude(self, run: str, round: int, outcomes: Mapping[Member, Outcome]) -> None:
        """Sends each member its outcome."""
        for member, outcome in outcomes.items():
            with passing(Point.SEND_OUTCOME):
                self._transport.send(member, frames.encode(frames.Conclusion(run, round, outcome)))

    def held_out(self) -> Any:
        """The server's own data."""
        return self._held_out

    def close(self, failure: BaseException | None = None) -> None:
        """Nothing: the transport belongs to whoever made it."""


class _Framed:
    """The summation's transport inside another: only the cohort is heard, and only with what is of this round."""

    def __init__(
        self,
        transport: Transport,
        run: str,
        round: int,
        members: frozenset[Member],
        watch: Watch,
    ):
        self._transport, self._run, self._round, self._members = transport, run, round, members
        self._watch = watch
        self.refused: Counter[str] = Counter()

    def send(self, member: Member, data: bytes) -> None:
        self._transport.send(member, frames.encode(frames.SumMessage(self._run, self._round, data)))

    def receive(self, timeout_s: float) -> Message | Lost | None:
        event = self._transport.receive(timeout_s)
        if event is None or event.member not in self._members:
            return None
        if isinstance(event, Lost):
            return event
        try:
            frame = frames.decode(event.data)
        except ProtocolViolation as violation:
            return Lost(event.member, str(violation), Loss.VIOLATION)
        if (frame.run, frame.round) != (self._run, self._round):
            return None  # late: it belongs to a round that is over
        match frame:
            case frames.SumMessage(data=data):
                return Message(event.member, data)
            case frames.Decline(code=code, reason=reason):
                self.refused[code] += 1
                self._watch.declined(self._run, code)
                return Lost(event.member, reason, Loss.DECLINED)
        return Lost(event.member, f"a {type(frame).__name__} is not for a coordinator", Loss.VIOLATION)
