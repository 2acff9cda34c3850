"""A fleet of real devices: `RemoteFleet` over streams, with a population of those that wait.

population: enough devices wait      → all of them are held
collect: the cohort is drawn         → its streams are this run's, the others wait again
conclude: each hears its outcome     → and when to come back
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from quorate.endorsement import Endorsement
from quorate.fleets import Enrolment
from quorate.logs import bound
from quorate.rounds import Assignment, Close, Closed, Deadlines, Member, Outcome
from quorate.server.devices.service import DeviceService
from quorate.server.devices.streams import come_back, conclusion
from quorate.server.devices.transport import StreamTransport
from quorate.server.devices.waiting import Demand, WaitingPopulation
from quorate.server.faults import Point, passing
from quorate.server.remote import RemoteFleet
from quorate.summation import Sink, Summation

__all__ = ["DeviceFleet"]


class DeviceFleet(RemoteFleet):
    """The devices of one run.

    Args:
        service: where they check in.
        demand: what the run wants of them.
        held_out: the server's own data for evaluation, if it has any.
        enrolment: who is a member, where devices have certificates.
        endorse: signs the terms.
        on_close: ends what serves this run alone.
        deadlines: of every round.
    """

    def __init__(
        self,
        service: DeviceService,
        demand: Demand,
        held_out: Any = None,
        enrolment: Enrolment | None = None,
        endorse: Callable[[bytes], Endorsement] | None = None,
        on_close: Callable[[], object] = lambda: None,
        deadlines: Deadlines | None = None,
    ):
        self._service, self.demand, self._streams = service, demand, StreamTransport()
        self._opened, self._on_close = time.monotonic(), on_close
        nobody_yet = WaitingPopulation(())
        super().__init__(self._streams, nobody_yet, held_out, enrolment, endorse, service.metrics, deadlines)
        service.room.open(demand)

    def population(self) -> WaitingPopulation:
        """The devices that wait, once there are enough.

        Raises:
            Stopped: the run was stopped.
        """
        held = self._service.room.hold(self.demand)
        self._opened = time.monotonic()
        return held

    def collect(self, assignment: Assignment, summation: Summation, sink: Sink, close: Close) -> Closed:
        """Takes the cohort's streams, and drives the sum."""
        broadcast = assignment.broadcast
        values = broadcast.parameters.vector.size + sum(v.size for v in broadcast.instruction.extras.values())
        # An update has as many vectors as the broadcast, each at most padded to a power of two; then there is room
        # for shares and signatures.
        most_bytes = 2 * 4 * values + (1 << 20)
        streams = self._service.room.take(self.demand, assignment.members, self._streams)
        self._streams.begin(streams, most_bytes)
        with bound(run=assignment.run, round=assignment.round):
            return super().collect(assignment, summation, sink, close)

    def conclude(self, run: str, round: int, outcomes: Mapping[Member, Outcome]) -> None:
        """Sends each member its outcome; members that are away ask for it when they check in again."""
        self._service.concluded(run, round, outcomes)
        taking_part = self._streams.finish()
        if not taking_part:
            return
        self.demand.measured(time.monotonic() - self._opened)
        waits_s = self._service.waits_s(self.demand, len(taking_part))
        for (member, stream), wait_s in zip(taking_part.items(), waits_s, strict=True):
            last: list[bytes] = []
            if member in outcomes:
                last += conclusion(run, round, outcomes[member])
            last.append(come_back(wait_s, "the round is over"))
            with passing(Point.SEND_OUTCOME):
                stream.end(last)

    def stop(self, reason: str) -> None:
        """From any thread: the open round, if there is one, is aborted; no other is opened."""
        self._service.room.change(self.demand, stopped=True)
        self._streams.stop(reason)

    def close(self, failure: BaseException | None = None) -> None:
        """The run wants no more devices."""
        unwanted = self._service.room.close(self.demand)
        for stream in [*unwanted, *self._streams.finish().values()]:
            stream.end([come_back(self._service.away_s(stream.tasks), "the run has ended")])
        self._on_close()
