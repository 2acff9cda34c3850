"""The session driver: moves the server's half of a sum over a transport, with deadlines.

One driver serves every transport: sockets, gRPC, Flower, and exact simulation in this process. It owns the order of
things that matters for the ledger: the journal is written before the phase that can reveal anything is opened.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from quorate.errors import ProtocolViolation, QuorumNotReached
from quorate.rounds import Close, Deadlines, Member
from quorate.server.faults import Point, passing
from quorate.summation import Journal, Loss, Lost, ServerSum, Transport

__all__ = ["drive"]

log = logging.getLogger(__name__)

ALL = Close()
_MOST_NAMED = 20


def drive(
    half: ServerSum,
    transport: Transport,
    members: Sequence[Member],
    deadlines: Deadlines,
    journal: Journal,
    close: Close = ALL,
    closed: Callable[[str, float, Mapping[Loss, int]], None] = lambda phase, seconds, lost: None,
) -> Counter[str]:
    """Runs one sum to its end.

    Args:
        half: the server's half, fresh.
        transport: reaches every member.
        members: the cohort.
        deadlines: `training_s` for the first phase (training happens in it), `phase_s` for each other.
        journal: told before anything can be revealed.
        close: after how many answers the first phase ends; who is late for it is lost, however soon it would come.
        closed: told of every phase that ended, how long it took in seconds, and how many members were lost in it,
            by why.

    Returns:
        How many members were lost, by the phase in which their answer is missing. A member that breaks the protocol
        or misses a deadline is heard no more.

    Raises:
        QuorumNotReached: too few were left in some phase.
    """
    lost: Counter[str] = Counter()
    why: Counter[Loss] = Counter()
    gone: dict[Member, Lost] = {}
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
        phase, began = half.phase, time.monotonic()
        missing = _gather(half, transport, began + timeout_s, gone, enough)
        lost[phase] += missing.total()
        why += missing
        closed(phase, time.monotonic() - began, missing)
        try:
            outgoing = half.advance()
        except QuorumNotReached as shortage:
            words = ", ".join(f"{count} {loss}" for loss, count in why.items())
            raise QuorumNotReached(shortage.phase, shortage.present, shortage.needed, words) from shortage
        timeout_s, enough = deadlines.phase_s, None
    return +lost


def _gather(
    half: ServerSum, transport: Transport, deadline: float, gone: dict[Member, Lost], enough: int | None
) -> Counter[Loss]:
    """Takes this phase's messages until nobody more is needed or its deadline passes; says why others are missing."""
    answered, missing = 0, Counter[Loss]()

    def lose(lost: Lost, *, told: bool = False) -> None:
        first, lost = lost.member not in gone, gone.setdefault(lost.member, lost)
        missed = lost.member in half.awaited
        missing[lost.loss] += missed
        if not told and (missed or (first and lost.loss is Loss.VIOLATION)):
            _log(half, lost)
        half.lose(lost.member)

    for member in gone.keys() & half.awaited:
        lose(gone[member], told=gone[member].loss in (Loss.SPARE, Loss.LATE))
    while half.awaited:
        if answered == enough:
            for member in list(half.awaited):
                lose(Lost(member, "others were quicker", Loss.SPARE), told=True)
            break
        event = transport.receive(max(0.0, deadline - time.monotonic()))
        if event is None or event.member in gone:
            if time.monotonic() < deadline:
                continue
            late = list(half.awaited)
            extra = {"phase": half.phase, "fields": {"devices": late[:_MOST_NAMED]}}
            log.info("a phase closed at its deadline without %d members", len(late), extra=extra)
            for member in late:
                lose(Lost(member, "it missed a deadline", Loss.LATE), told=True)
        elif isinstance(event, Lost):
            lose(event)
        else:
            try:
                half.receive(event.member, event.data)
                answered += 1
            except ProtocolViolation as violation:
                lose(Lost(event.member, str(violation), Loss.VIOLATION))
    return +missing


def _log(half: ServerSum, lost: Lost) -> None:
    level = logging.WARNING if lost.loss is Loss.VIOLATION else logging.INFO
    extra = {"device": lost.member, "phase": half.phase, "reason": lost.reason}
    log.log(level, "a member is out of the round", extra=extra)
