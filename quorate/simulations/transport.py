"""Exact simulation's transport: the members' halves of a sum in this process, and dropouts where they are wanted."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

from quorate.errors import PolicyRefused, ProtocolViolation
from quorate.rounds import Member
from quorate.summation import ClientSum, Lost, Message

__all__ = ["InProcess"]


class InProcess:
    """Carries messages to members' halves and takes their answers at once.

    Args:
        halves: by member.
        drops: after how many messages a member falls silent: 0 before the first; a member that is not named stays.
        absent: members of the cohort without a half: they are lost from the start.
    """

    def __init__(
        self, halves: Mapping[Member, ClientSum], drops: Mapping[Member, int], absent: Sequence[Member] = ()
    ):
        self._halves, self._drops = halves, drops
        self._sent: dict[Member, int] = dict.fromkeys(halves, 0)
        self._events: deque[Message | Lost] = deque(Lost(member, "it did not report") for member in absent)
        for member, half in halves.items():
            self._answer(member, half.begin())

    def send(self, member: Member, data: bytes) -> None:
        """Gives the message to the member and queues its answer."""
        if self._gone(member):
            self._events.append(Lost(member, "dropped out"))
            return
        try:
            self._answer(member, self._halves[member].receive(data))
        except (ProtocolViolation, PolicyRefused) as refusal:
            self._events.append(Lost(member, str(refusal)))

    def receive(self, timeout_s: float) -> Message | Lost | None:
        """The next event; if there is none, there will be none before the deadline."""
        if self._events:
            return self._events.popleft()
        time.sleep(timeout_s)
        return None

    def _answer(self, member: Member, data: bytes | None) -> None:
        if data is None:
            return
        if self._gone(member):
            self._events.append(Lost(member, "dropped out"))
            return
        self._sent[member] += 1
        self._events.append(Message(member, data))

    def _gone(self, member: Member) -> bool:
        return self._sent[member] >= self._drops.get(member, self._sent[member] + 1)
