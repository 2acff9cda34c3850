"""The session driver: moves the server's half of a sum over a transport, with deadlines.

One driver serves every transport: sockets, gRPC, Flower, and exact simulation in this process. It owns the order of
things that matters for the ledger: the journal is written before the phase that can reveal anything is opened.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from quorate.errors import ProtocolViolation
from quorate.rounds import Close, Deadlines, Member
from quorate.server.faults import Point, passing
from quorate.summation import Journal, Lost, ServerSum, Transport

__all__ = ["drive"]

log = logging.getLogger(__name__)

ALL = Close()


def drive(
    half: ServerSum,
    transport: Transport,
    members: Sequence[Member],
    deadlines: Deadlines,
    journal: Journal,
    close: Close = ALL,
    closed: Callable[[str, float, int], None] = lambda phase, seconds, lost: None,
) -> Counter[str]:
    """Runs one sum to its end.

    Args:
        half: the server's half, fresh.
        transport: reaches every member.
        members: the cohort.
        deadlines: `training_s` for the first phase (training happens in it), `phase_s` for each other.
        journal: told before anything can be revealed.
        close: after how many answers the first phase ends; who is late for it is lost, however soon it would come.
        closed: told of every phase that ended, how long it took in seconds, and how many members were lost in it.

    Returns:
        How many members were lost, by the phase in which their answer is missing. A member that breaks the protocol
        or misses a deadline is heard no more.

    Raises:
        QuorumNotReached: too few were left in some phase.
    """
    lost: Counter[str] = Counter()
    gone: set[Member] = set()
    outgoing = half.begin(members)
    timeout_s, revealing, enough = deadlines.training_s, False, close.after
    while not half.done:
        if half.reveals and not revealing:
            journal.revealing()
            revealing = True
        for message in outgoing:
            if message.member not in gone:
                with passing(Point.SEND_SUM, half.phase):
                    transport.send(message.member, message.data)
        phase, awaited, began = half.phase, len(half.awaited), time.monotonic()
        answered = _gather(half, transport, began + timeout_s, gone, enough)
        lost[phase] += awaited - answered
        closed(phase, time.monotonic() - began, awaited - answered)
        outgoing = half.advance()
        timeout_s, enough = deadlines.phase_s, None
    return +lost


def _gather(
    half: ServerSum, transport: Transport, deadline: float, gone: set[Member], enough: int | None
) -> int:
    """Takes this phase's messages until nobody more is needed or the deadline passes; returns how many answered."""
    answered = 0
    for member in gone.intersection(half.awaited):
        half.lose(member)
    while half.awaited:
        if answered == enough:
            _give_up(half, gone)
            break
        event = transport.receive(max(0.0, deadline - time.monotonic()))
        if event is None or event.member in gone:
            if time.monotonic() < deadline:
                continue
            count = len(half.awaited)
            log.info("a phase closed at its deadline without %d members", count, extra={"phase": half.phase})
            _give_up(half, gone)
        elif isinstance(event, Lost):
            if event.member in half.awaited:
                _log_loss(logging.INFO, half, event.member, event.reason)
            gone.add(event.member)
            half.lose(event.member)
        else:
            try:
                half.receive(event.member, event.data)
                answered += 1
            except ProtocolViolation as violation:
                _log_loss(logging.WARNING, half, event.member, str(violation))
                gone.add(event.member)
                half.lose(event.member)
    return answered


def _give_up(half: ServerSum, gone: set[Member]) -> None:
    """Nobody who is still awaited is heard any more."""
    late = list(half.awaited)
    for member in late:
        half.lose(member)
    gone.update(late)


def _log_loss(level: int, half: ServerSum, member: Member, reason: str) -> None:
    extra = {"device": member, "phase": half.phase, "reason": reason}
    log.log(level, "a member is out of the round", extra=extra)
