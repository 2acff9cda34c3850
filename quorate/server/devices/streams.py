"""One device's stream, as the coordinator holds it: what is to be sent, and who hears what comes.

Everything of a stream happens in the event loop's thread, but `send`, `end` and `taken`, which any thread may call.
What a stream may cost is bounded: a device that does not read what it is sent is ended, and a device is not read from
before what it sent last was taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from quorate.rounds import Member, Outcome
from quorate.wire import device_pb2 as pb
from quorate.wire import frames
from quorate.wire.streams import compress, cut

__all__ = ["Calls", "End", "FrameBudget", "Hearer", "Outgoing", "Stream", "come_back", "conclusion"]

MOST_QUEUED = 4
"""Frames that wait to be sent to one device. The protocol has at most one, and the conclusion after it."""

FLUSH_S = 30.0
"""How long a device may take to read the last that it is sent."""

_COMPRESSED_FROM_BYTES = 64 << 10


class Outgoing:
    """A frame as serialised messages: made once, however many devices it is sent to.

    Args:
        frame: the bytes.
    """

    def __init__(self, frame: bytes):
        self.frame = frame
        self._plain: Sequence[bytes] | None = None
        self._compressed: Sequence[bytes] | None = None

    def messages(self, zstd: bool) -> Sequence[bytes]:
        """The messages for a device that can or can't decompress."""
        if zstd and self._compressed is None and len(self.frame) >= _COMPRESSED_FROM_BYTES:
            shorter = compress(self.frame)
            self._compressed = self.messages(False) if shorter is None else _serialised(self.frame, shorter)
        if zstd and self._compressed is not None:
            return self._compressed
        if self._plain is None:
            self._plain = _serialised(self.frame, None)
        return self._plain


def come_back(after_s: float, reason: str) -> bytes:
    """The message that sends a device away for a while."""
    return pb.CoordinatorMessage(come_back=pb.ComeBack(after_s=after_s, reason=reason)).SerializeToString()


def conclusion(run: str, round: int, outcome: Outcome) -> Sequence[bytes]:
    """The messages that tell a device how a round ended for it."""
    return Outgoing(frames.encode(frames.Conclusion(run, round, outcome))).messages(False)


def _serialised(frame: bytes, compressed: bytes | None) -> Sequence[bytes]:
    return [pb.CoordinatorMessage(chunk=chunk).SerializeToString() for chunk in cut(frame, compressed)]


class Hearer(Protocol):
    """Who hears a device that takes part in a round; called in the event loop's thread, and quick."""

    @property
    def most_bytes(self) -> int:
        """The longest frame that a device may send."""
        ...

    def deliver(self, stream: Stream, frame: bytes) -> None:
        """Takes a frame; `stream.taken` is called when it was used."""
        ...

    def lose(self, stream: Stream, reason: str) -> None:
        """Takes note that nothing more will come."""
        ...


@dataclass(frozen=True)
class End:
    """The end of a stream: a gRPC status code's name, and why."""

    code: str
    reason: str


class Calls:
    """What other threads want done in an event loop, in order. The loop is woken once for many of them.

    Args:
        loop: that does it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._waiting: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._woken = False

    def soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Has something done, from any thread; nothing once the loop is closed."""
        self._waiting.append((call, arguments))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, and every stream with it
                self.loop.call_soon_threadsafe(self._do)

    def _do(self) -> None:
        self._woken = False  # before the queue is emptied: who comes later wakes the loop again
        while self._waiting:
            call, arguments = self._waiting.popleft()
            call(*arguments)


class Stream:
    """A participation's stream.

    Args:
        device: who is at the other end.
        tasks: that are installed there.
        zstd: whether the device can decompress.
        calls: into the event loop that it lives in.
        kill: ends the stream at once, whatever it is doing.
    """

    def __init__(
        self,
        device: Member,
        tasks: frozenset[str],
        zstd: bool,
        calls: Calls,
        kill: Callable[[], object],
    ):
        self.device, self.tasks, self.zstd = device, tasks, zstd
        self.hearer: Hearer | None = None
        self._calls, self._kill = calls, kill
        self._outbox: deque[Sequence[bytes] | End] = deque()
        self._filled, self._taken = asyncio.Event(), asyncio.Event()
        self._timers: list[asyncio.TimerHandle] = []
        self.ended: End | None = None

    # --- from any thread

    def send(self, frame: Outgoing) -> None:
        """Queues a frame."""
        self._calls.soon(self._put, frame)

    def end(self, last: Sequence[bytes] = (), code: str = "OK", reason: str = "") -> None:
        """Ends the stream once what is queued, and `last`, was read; soon in any case."""
        self._calls.soon(self._finish, last, End(code, reason))

    def taken(self) -> None:
        """The frame that was delivered last was used: the next may come."""
        self._calls.soon(self._taken.set)

    # --- in the event loop

    async def next(self) -> Sequence[bytes] | End:
        """What is to be sent next, or the end."""
        while not self._outbox:
            self._filled.clear()
            await self._filled.wait()
        return self._outbox.popleft()

    async def deliver(self, hearer: Hearer, frame: bytes) -> None:
        """Gives a frame to whoever hears this stream, and returns when it was used."""
        self._taken.clear()
        hearer.deliver(self, frame)
        await self._taken.wait()

    def call_later(self, delay_s: float, call: Callable[[], object]) -> None:
        """Calls something in a while, if the stream is still there."""
        self._timers.append(self._calls.loop.call_later(delay_s, call))

    def close(self) -> None:
        """The stream is over."""
        self.ended = self.ended or End("CANCELLED", "the stream ended")
        for timer in self._timers:
            timer.cancel()

    def _put(self, frame: Outgoing) -> None:
        if self.ended is not None:
            return
        if len(self._outbox) >= MOST_QUEUED:
            self._outbox.clear()
            self._finish((), End("RESOURCE_EXHAUSTED", "the device does not read what it is sent"))
            return
        self._outbox.append(frame.messages(self.zstd))
        self._filled.set()

    def _finish(self, last: Sequence[bytes], end: End) -> None:
        if self.ended is not None:
            return
        self.ended = end
        if end.code != "OK":
            self._outbox.clear()
        if last:
            self._outbox.append(last)
        self._outbox.append(end)
        self._filled.set()
        self.call_later(FLUSH_S, self._kill)


class FrameBudget:
    """How many bytes of long frames may be on their way in at once, over all streams: first come, first served.

    Devices that have to wait hold their frames themselves: they are not read from, and flow control stops them.

    Args:
        most_bytes: a frame that is longer than this comes alone.
    """

    def __init__(self, most_bytes: int):
        self._most, self._held = most_bytes, 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, count: int) -> int:
        """Waits until there is room; returns what is to be given back."""
        count = min(count, self._most)
        if not self._queue and self._held + count <= self._most:
            self._held += count
            return count
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((turn, count))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(count)
            raise
        return count

    def give(self, count: int) -> None:
        """Gives back, and lets in who fits next."""
        self._held -= count
        while self._queue:
            turn, wanted = self._queue[0]
            if turn.done():  # it gave up
                self._queue.popleft()
            elif self._held + wanted <= self._most:
                self._queue.popleft()
                self._held += wanted
                turn.set_result(None)
            else:
                return
