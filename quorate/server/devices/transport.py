"""The blocking side of devices' streams: what `RemoteFleet` sends and receives through.

A run has one transport, which knows the devices that take part in its open round. Whoever is not among them is `Lost`
when something is sent to it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping

from quorate.rounds import Member
from quorate.server.devices.streams import Outgoing, Stream
from quorate.summation import Loss, Lost, Message

__all__ = ["StreamTransport"]

MOST_FRAMES = 16
"""That a device may send in a round; the longest protocol has five."""

_LOSSES = {
    "INVALID_ARGUMENT": Loss.VIOLATION,
    "RESOURCE_EXHAUSTED": Loss.VIOLATION,
    "DEADLINE_EXCEEDED": Loss.LATE,
}
"""By the code that its stream was ended with."""


class StreamTransport:
    """See `quorate.summation.Transport`. One thread sends and receives; the event loop delivers."""

    def __init__(self) -> None:
        self.most_bytes = 1 << 20
        self._streams: dict[Member, Stream] = {}
        self._frames: dict[Member, int] = {}
        self._events: queue.SimpleQueue[tuple[Stream | None, Message | Lost]] = queue.SimpleQueue()
        self._last: Outgoing | None = None
        self._stopped: str | None = None

    # --- the run's thread

    def begin(self, streams: Mapping[Member, Stream], most_bytes: int) -> None:
        """A round begins with these devices.

        Args:
            streams: by device.
            most_bytes: the longest frame that one of them may send.
        """
        self._streams, self.most_bytes = dict(streams), most_bytes
        self._frames = dict.fromkeys(streams, 0)

    def finish(self) -> Mapping[Member, Stream]:
        """The round is over: nothing more is heard from its devices, which are returned."""
        streams, self._streams, self._last = self._streams, {}, None
        while not self._events.empty():
            self._used(self._events.get()[0])
        return streams

    def send(self, member: Member, data: bytes) -> None:
        """Queues a frame; the same bytes object for many devices is serialised and compressed once."""
        stream = self._streams.get(member)
        if stream is None or self._stopped is not None:
            self._events.put((None, Lost(member, self._stopped or "the stream ended")))
            return
        if self._last is None or self._last.frame is not data:
            self._last = Outgoing(data)
        stream.send(self._last)

    def receive(self, timeout_s: float) -> Message | Lost | None:
        """The next event of the open round."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                stream, event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if stream is None:
                return event
            if self._streams.get(event.member) is stream:
                if isinstance(event, Lost):
                    del self._streams[event.member]
                self._used(stream)
                return event

    def stop(self, reason: str) -> None:
        """From any thread: every device is lost from now on, so that the open round is aborted in good order."""
        self._stopped = reason
        for member in list(self._streams):
            self._events.put((None, Lost(member, reason)))

    # --- the event loop's thread

    def deliver(self, stream: Stream, frame: bytes) -> None:
        """A frame came in."""
        count = self._frames.get(stream.device, 0) + 1
        self._frames[stream.device] = count
        if count > MOST_FRAMES:
            stream.end(code="RESOURCE_EXHAUSTED", reason=f"more than {MOST_FRAMES} frames in one round")
        else:
            self._events.put((stream, Message(stream.device, frame)))

    def lose(self, stream: Stream, reason: str) -> None:
        """The stream is over."""
        loss = Loss.GONE if stream.ended is None else _LOSSES.get(stream.ended.code, Loss.GONE)
        self._events.put((stream, Lost(stream.device, reason, loss)))

    def _used(self, stream: Stream | None) -> None:
        if stream is not None:
            stream.taken()
