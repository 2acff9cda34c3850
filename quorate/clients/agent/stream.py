"""One participation's stream: frames out, frames in, over gRPC; nothing here knows what they say.

The device dials out. What comes is read by a thread that waits while a message is not yet taken, so that gRPC's
flow control holds the coordinator back; what goes is cut into chunks when the transport asks for the next one. A silent
line is noticed by keep-alive pings.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from quorate.errors import ProtocolViolation, QuorateError
from quorate.wire import device_pb2 as pb
from quorate.wire import streams
from quorate.wire.device_pb2_grpc import DeviceServiceStub

__all__ = ["ComeBack", "Refused", "Stream", "StreamLost"]

KEEPALIVE_S = 60
_MOST_UNREAD = 1
LARGEST_MESSAGE_BYTES = streams.CHUNK_BYTES + (64 << 10)

OPTIONS = (
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 1000),
)
"""Of a channel to a coordinator."""


class StreamLost(QuorateError):
    """The stream ended before the participation did: the coordinator is gone, or gave it up."""


class Refused(QuorateError):
    """The coordinator will not serve this device as it is."""


@dataclass(frozen=True)
class ComeBack:
    """The coordinator has nothing to do now.

    Args:
        after_s: when to check in again.
        reason: for the log.
    """

    after_s: float
    reason: str


class Stream:
    """A participation under way. A context manager: leaving it ends the stream.

    Args:
        channel: to the coordinator.
        check_in: the first message.
        most_bytes: of a frame that is accepted.
    """

    def __init__(self, channel: grpc.Channel, check_in: pb.CheckIn, most_bytes: int):
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[pb.CoordinatorMessage | StreamLost | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(_MOST_UNREAD)
        self._joiner = streams.Joiner(most_bytes, tuple(check_in.encodings))
        self._closed = False
        self._call = DeviceServiceStub(channel).Participate(self._messages(check_in))
        self._reader = threading.Thread(target=self._read, name="stream", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether the coordinator is still there, as far as is known."""
        return bool(self._call.is_active())

    def send(self, frame: bytes) -> None:
        """Queues a frame."""
        self._outgoing.put(frame)

    def receive(self, timeout_s: float) -> bytes | ComeBack | None:
        """The next frame, or when to come back; None when nothing came in time, or on `interrupt`.

        Raises:
            StreamLost: the stream has ended.
            Refused: the coordinator will not serve this device.
            ProtocolViolation: the coordinator broke the protocol.
        """
        while True:
            try:
                message = self._incoming.get(timeout=timeout_s)
            except queue.Empty:
                return None
            if message is None:
                return None
            if isinstance(message, StreamLost):
                self._incoming.put(message)  # it stays lost
                raise message
            self._room.release()
            match message.WhichOneof("content"):
                case "come_back":
                    return _come_back(message.come_back)
                case "refusal":
                    spoken = ", ".join(map(str, message.refusal.versions[:10]))
                    versions = f" (it speaks versions {spoken})" if spoken else ""
                    raise Refused(
                        f"the coordinator refuses this device: {message.refusal.reason[:500]}{versions}"
                    )
                case "chunk":
                    frame = self._joiner.add(message.chunk)
                    if frame is not None:
                        return frame
                case _:
                    raise ProtocolViolation("a message of the coordinator is empty, or of an unknown kind")

    def interrupt(self) -> None:
        """Ends the `receive` that is under way; from another thread."""
        self._incoming.put(None)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._outgoing.put(None)
        self._call.cancel()
        self._room.release()  # the reader may wait for room
        self._reader.join(10.0)

    def _messages(self, check_in: pb.CheckIn) -> Iterator[pb.DeviceMessage]:
        yield pb.DeviceMessage(check_in=check_in)
        while (frame := self._outgoing.get()) is not None:
            for chunk in streams.cut(frame):
                yield pb.DeviceMessage(chunk=chunk)

    def _read(self) -> None:
        end = StreamLost("the coordinator closed the stream")
        try:
            for message in self._call:
                self._incoming.put(message)
                self._room.acquire()
                if self._closed:
                    return
        except grpc.RpcError as error:
            end = _lost(error)
        self._incoming.put(end)


def _come_back(message: pb.ComeBack) -> ComeBack:
    if not 0 <= message.after_s <= 30 * 86_400:
        raise ProtocolViolation(f"a device comes back within 30 days, not after {message.after_s} s")
    return ComeBack(message.after_s, message.reason[:500])


def _lost(error: Any) -> StreamLost:
    """What gRPC says of the end; a call's errors are calls, which its types do not say."""
    return StreamLost(f"the stream was lost: {error.code().name.lower()}: {str(error.details())[:300]}")
