"""The session driver: moves the server's half of a sum over a transport, with deadlines.

One driver serves every transport: sockets, gRPC, Flower, and exact simulation in this process. It owns the order of
things that matters for the ledger: the journal is written before the phase that can reveal anything is opened.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence

from quorate.errors import ProtocolViolation
from quorate.rounds import Deadlines, Member
from quorate.summation import Journal, Lost, ServerSum, Transport

__all__ = ["drive"]

log = logging.getLogger(__name__)


def drive(
    half: ServerSum,
    transport: Transport,
    members: Sequence[Member],
    deadlines: Deadlines,
    journal: Journal,
) -> Counter[str]:
    """Runs one sum to its end.

    Args:
        half: the server's half, fresh.
        transport: reaches every member.
        members: the cohort.
        deadlines: `training_s` for the first phase (training happens in it), `phase_s` for each other.
        journal: told before anything can be revealed.

    Returns:
        How many members were lost, by the phase in which their answer is missing. A member that breaks the protocol
        or misses a deadline is heard no more.

    Raises:
        QuorumNotReached: too few were left in some phase.
    """
    lost: Counter[str] = Counter()
    gone: set[Member] = set()
    outgoing = half.begin(members)
    timeout_s, revealing = deadlines.training_s, False
    while not half.done:
        if half.reveals and not revealing:
            journal.revealing()
            revealing = True
        for message in outgoing:
            if message.member not in gone:
                transport.send(message.member, message.data)
        phase, awaited = half.phase, len(half.awaited)
        answered = _gather(half, transport, time.monotonic() + timeout_s, gone)
        lost[phase] += awaited - answered
        outgoing = half.advance()
        timeout_s = deadlines.phase_s
    return +lost


def _gather(half: ServerSum, transport: Transport, deadline: float, gone: set[Member]) -> int:
    """Takes this phase's messages until nobody is awaited or the deadline passes; returns how many answered."""
    answered = 0
    for member in gone.intersection(half.awaited):
        half.lose(member)
    while half.awaited:
        event = transport.receive(max(0.0, deadline - time.monotonic()))
        if event is None or event.member in gone:
            if time.monotonic() < deadline:
                continue
            late = list(half.awaited)
            log.info("phase %s closed at its deadline without %d members", half.phase, len(late))
            for member in late:
                half.lose(member)
            gone.update(late)
        elif isinstance(event, Lost):
            gone.add(event.member)
            half.lose(event.member)
        else:
            try:
                half.receive(event.member, event.data)
                answered += 1
            except ProtocolViolation as violation:
                log.warning("%s is out of the round in phase %s: %s", event.member, half.phase, violation)
                gone.add(event.member)
                half.lose(event.member)
    return answered
