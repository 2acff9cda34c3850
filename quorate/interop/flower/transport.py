"""Frames in Flower's messages: a `Transport` over a `Grid`, whoever made it.

A message to a node holds frames as bytes, and its reply holds the node's answers; a node says nothing unasked. What is
sent is queued until the next `receive`, so that how a round ended travels with the assignment of the next one.

Flower tells of a dead node late: it lists it for a minute more, and answers in its place with an error, or not at all.
An error is a loss here, and so is a node that is not listed any more. A node that let a message expire is asked whether
it is there (an empty message), and is lost at once until it answers.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from quorate.errors import ProtocolViolation
from quorate.rounds import Member
from quorate.summation import Lost
from quorate.summation import Message as Heard

__all__ = ["MESSAGE_TYPE", "GridTransport", "frames_in", "with_frames"]

log = logging.getLogger(__name__)

MESSAGE_TYPE = "query.quorate"
_RECORD, _FRAMES = "quorate", "frames"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


def with_frames(frames: Sequence[bytes]) -> RecordDict:
    """A message's content."""
    return RecordDict({_RECORD: ConfigRecord({_FRAMES: list(frames)})})


def frames_in(content: RecordDict) -> list[bytes]:
    """The frames of a message's content.

    Raises:
        ProtocolViolation: it holds something else.
    """
    record = content.config_records.get(_RECORD)
    frames = None if record is None else record.get(_FRAMES)
    if not isinstance(frames, list) or not all(isinstance(frame, bytes) for frame in frames):
        raise ProtocolViolation("a Flower message without frames of ours")
    return [frame for frame in frames if isinstance(frame, bytes)]


@dataclass(frozen=True)
class _Asked:
    """A message on its way: to whom, until when its reply counts, and whether it only asks for a sign of life."""

    member: Member
    until: float
    probe: bool


class GridTransport:
    """Reaches the nodes of a grid. A member's name is its node's id.

    Args:
        grid: of a run whose clients are ours (`quorate.interop.flower.nodes`).
        roll_call_s: how often Flower is asked whom it lists.
        probe_s: how long a silent node may take to show that it is there.
    """

    def __init__(self, grid: Grid, roll_call_s: float = 3.0, probe_s: float = 30.0):
        self._grid, self.roll_call_s, self._probe_s = grid, roll_call_s, probe_s
        self._queued: dict[Member, list[bytes]] = {}
        self._asked: dict[str, _Asked] = {}
        self._latest: dict[Member, str] = {}
        self._silent: set[Member] = set()
        self._events: deque[Heard | Lost] = deque()
        self._listed: frozenset[Member] = frozenset()
        self._called = float("-inf")

    def listed(self, age_s: float = 0.0) -> frozenset[Member]:
        """The nodes that Flower lists, the dead of the last minute among them.

        Args:
            age_s: how old the list may be.
        """
        if time.monotonic() > self._called + age_s:
            self._listed = frozenset(str(node) for node in self._grid.get_node_ids())
            self._called = time.monotonic()
        return self._listed

    def send(self, member: Member, data: bytes) -> None:
        """Queues a frame."""
        self._queued.setdefault(member, []).append(data)

    def receive(self, timeout_s: float) -> Heard | Lost | None:
        """The next event. What was queued is sent first, and counts for `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        self._flush(timeout_s)
        pause_s = _FIRST_PAUSE_S
        while not self._events:
            self._poll()
            left_s = deadline - time.monotonic()
            if self._events:
                break
            if left_s <= 0:
                return None
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        return self._events.popleft()

    def close(self, timeout_s: float) -> None:
        """Sends what is queued, and waits until it has arrived."""
        deadline = time.monotonic() + timeout_s
        self._flush(timeout_s)
        while any(not asked.probe for asked in self._asked.values()) and time.monotonic() < deadline:
            self._poll()
            time.sleep(_FIRST_PAUSE_S)

    def _flush(self, timeout_s: float) -> None:
        """Sends the queued frames, one message a node; whoever is silent or not listed is lost at once."""
        if not self._queued:
            return
        queued, self._queued = self._queued, {}
        self._events = deque(  # a loss before the last message to a member is none if it is back by now
            event for event in self._events if not (isinstance(event, Lost) and event.member in queued)
        )
        listed = self.listed()
        there = {m: f for m, f in queued.items() if m in listed and m not in self._silent}
        for member in queued.keys() - there.keys():
            reason = "it let its last message expire" if member in listed else "it is not listed"
            self._events.append(Lost(member, reason))
        for member in self._push(there, timeout_s, probe=False):
            self._events.append(Lost(member, "the SuperLink did not take its message"))

    def _push(self, letters: Mapping[Member, Sequence[bytes]], ttl_s: float, probe: bool) -> list[Member]:
        """Sends, and returns to whom it could not. Equal contents are one object, and travel once."""
        contents: dict[tuple[bytes, ...], RecordDict] = {}
        messages = [
            Message(
                contents.setdefault(tuple(frames), with_frames(frames)),
                dst_node_id=int(member),
                message_type=MESSAGE_TYPE,
                ttl=max(ttl_s, 1.0),
            )
            for member, frames in letters.items()
        ]
        ids: list[str | None] = list(self._grid.push_messages(messages)) if messages else []
        refused = []
        for member, id in zip_longest(letters, ids):  # none at all if they are too large
            if id is None:
                refused.append(member)
            else:
                self._asked[id] = _Asked(member, time.monotonic() + ttl_s, probe)
                self._latest[member] = id
        return refused

    def _poll(self) -> None:
        """Takes the replies that are there."""
        replies = self._grid.pull_messages(list(self._asked)) if self._asked else []
        for reply in replies:
            asked = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None:
                self._hear(asked, reply)
        self._call_roll()

    def _hear(self, asked: _Asked, reply: Message) -> None:
        if reply.has_error():
            if not asked.probe and self._latest.get(asked.member) == reply.metadata.reply_to_message_id:
                reason = reply.error.reason or f"Flower's error {reply.error.code}"
                self._events.append(Lost(asked.member, reason))
            return
        self._silent.discard(asked.member)
        try:
            self._events.extend(Heard(asked.member, frame) for frame in frames_in(reply.content))
        except ProtocolViolation as violation:
            self._events.append(Lost(asked.member, str(violation)))

    def _call_roll(self) -> None:
        """Gives up, now and then, whom Flower gave up, and asks those who let a message expire."""
        now = time.monotonic()
        if now < self._called + self.roll_call_s or not (self._asked or self._silent):
            return
        listed = self.listed()
        for id, asked in list(self._asked.items()):
            if asked.member in listed and now <= asked.until:
                continue
            del self._asked[id]
            if asked.member not in listed and not asked.probe:
                self._events.append(Lost(asked.member, "it is not listed any more"))
            elif not asked.probe:
                self._silent.add(asked.member)
                log.info("node %s let a message expire", asked.member)
        probed = {asked.member for asked in self._asked.values() if asked.probe}
        self._push(
            {member: [] for member in sorted(self._silent & listed - probed)}, self._probe_s, probe=True
        )
