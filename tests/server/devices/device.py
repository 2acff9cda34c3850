"""A device for tests: a gRPC stream, and a participation for every assignment. Threads or processes run it.

It does nothing that a device should not: what misbehaves says so in `Misbehaviour`.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from quorate.clients.adapters.examples import Examples
from quorate.clients.adapters.numpy_models import softmax
from quorate.clients.participation import Participation
from quorate.clients.slices import client_of
from quorate.clients.states import ClientStates
from quorate.errors import ProtocolViolation
from quorate.fleets import Identities
from quorate.identity import Holder, Members
from quorate.randomness import Randomness
from quorate.task import Task
from quorate.wire import device_pb2 as pb
from quorate.wire import frames
from quorate.wire.device_pb2_grpc import DeviceServiceStub
from quorate.wire.streams import VERSIONS, ZSTD, Joiner, cut

LARGEST_FRAME = 1 << 26
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


def connected(port: int, holder: Holder | None = None) -> grpc.Channel:
    """A channel to a coordinator on this machine; with mutual TLS if there are keys."""
    if holder is None:
        return grpc.insecure_channel(f"localhost:{port}", OPTIONS)
    credentials = grpc.ssl_channel_credentials(holder.root.pem, *holder.tls_pair)
    return grpc.secure_channel(f"localhost:{port}", credentials, OPTIONS)


class Conversation:
    """One stream, by hand: what is put is sent, what comes is read one by one."""

    def __init__(self, port: int, holder: Holder | None = None, **check_in: object):
        self.channel = connected(port, holder)
        self._outbox: queue.SimpleQueue[pb.DeviceMessage | None] = queue.SimpleQueue()
        self.call = DeviceServiceStub(self.channel).Participate(iter(self._outbox.get, None))
        self._joiner = Joiner(LARGEST_FRAME, [ZSTD])
        if check_in:
            content = {"versions": VERSIONS, "tasks": ["softmax"], "encodings": [ZSTD], **check_in}
            self.put(pb.DeviceMessage(check_in=pb.CheckIn(**content)))

    def put(self, *messages: pb.DeviceMessage) -> None:
        """Sends messages."""
        for message in messages:
            self._outbox.put(message)

    def say(self, frame: bytes) -> None:
        """Sends a frame."""
        self.put(*(pb.DeviceMessage(chunk=chunk) for chunk in cut(frame)))

    def read(self) -> pb.ComeBack | pb.Refusal | bytes:
        """The next message, or the next whole frame.

        Raises:
            grpc.RpcError: the stream was ended with an error.
            StopIteration: it was ended.
        """
        while True:
            message = next(self.call)
            match message.WhichOneof("content"):
                case "come_back":
                    return message.come_back
                case "refusal":
                    return message.refusal
            frame = self._joiner.add(message.chunk)
            if frame is not None:
                return frame

    def close(self) -> None:
        """Ends the stream at once."""
        self._outbox.put(None)
        self.call.cancel()
        self.channel.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass
class Device:
    """Takes part in rounds until it is stopped.

    Args:
        port: of the coordinator.
        name: its own.
        examples: its data.
        states: a file, or None.
        said: told of each frame before it is sent (the how-manieth of the participation): what it returns is sent.
        holder: its keys, where there is TLS.
    """

    port: int
    name: str
    examples: Examples
    states: str | None = None
    said: Callable[[int, bytes], bytes | None] = lambda count, frame: frame
    holder: Holder | None = None
    stopped: bool = False
    rounds: int = 0
    undecided: list[tuple[str, int]] = field(default_factory=list)

    def run(self) -> None:
        """Participation after participation."""
        client, kept = client_of(Task(softmax(64, 10)), self.examples), ClientStates(self.states)
        while not self.stopped:
            try:
                pause_s = self._participate(client, kept)
            except (grpc.RpcError, ProtocolViolation, StopIteration):
                pause_s = 0.1
            time.sleep(min(pause_s, 0.2))

    def _participate(self, client: object, kept: ClientStates) -> float:
        undecided = [pb.Participation(run=run, round=round) for run, round in self.undecided]
        identities = None
        if self.holder is not None:
            holder = self.holder
            identities = Identities(Members(holder.root), own=lambda randomness: holder)
        with Conversation(self.port, self.holder, device=self.name, undecided=undecided) as stream:
            participation = Participation(self.name, client, kept, Randomness.system(), identities=identities)
            count = 0
            while True:
                received = stream.read()
                if isinstance(received, pb.Refusal):
                    self.stopped = True
                    return 0.0
                if isinstance(received, pb.ComeBack):
                    return received.after_s
                frame = frames.decode(received)
                if isinstance(frame, frames.Conclusion) and (frame.run, frame.round) in self.undecided:
                    kept.conclude(frame.run, frame.round, frame.outcome)
                    self.undecided.remove((frame.run, frame.round))
                    if not count:
                        continue
                if not count and (frame.run, frame.round) not in self.undecided:
                    self.undecided.append((frame.run, frame.round))
                for answer in participation.receive(received):
                    count += 1
                    changed = self.said(count, answer)
                    if changed is not None:
                        stream.say(changed)
                self.rounds += participation.concluded


def main(port: str, name: str, data: str, states: str, misbehaviour: str = "", keys: str = "") -> None:
    """A device as a process; with a folder of keys, its name is that of its certificate."""
    arrays, holder = np.load(data), Holder(Path(keys)) if keys else None
    examples, said = Examples(arrays["x"], arrays["y"]), MISBEHAVIOURS.get(misbehaviour, honest)
    Device(int(port), holder.name if holder else name, examples, states, said, holder).run()


def honest(count: int, frame: bytes) -> bytes | None:
    """Sends what it should."""
    return frame


def _garbage(count: int, frame: bytes) -> bytes | None:
    return os.urandom(1000) if count == 3 else frame


def _truncated(count: int, frame: bytes) -> bytes | None:
    return frame[: len(frame) // 2] if count == 3 else frame


def _silent(count: int, frame: bytes) -> bytes | None:
    return None if count == 3 else frame


MISBEHAVIOURS: dict[str, Callable[[int, bytes], bytes | None]] = {
    "garbage": _garbage,
    "truncated": _truncated,
    "silent": _silent,
}
"""What goes wrong with the third frame of a participation: the masked input."""


def chunks(frame: bytes) -> Sequence[pb.DeviceMessage]:
    """A frame as messages."""
    return [pb.DeviceMessage(chunk=chunk) for chunk in cut(frame)]


def messages(port: int, raw: Iterator[bytes]) -> list[bytes]:
    """What the service answers to messages that are any bytes."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
        call = channel.stream_stream("/quorate.v1.DeviceService/Participate")(raw, timeout=30)
        return list(call)
