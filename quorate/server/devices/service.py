"""The device service: one bidirectional stream a participation (`quorate/wire/device.proto`).

    check-in → Refusal                                   the versions do not fit, or the device may not take part
             → the outcomes that the device asked for, then
             → ComeBack                                  nobody wants it now
             → waiting → assignment, the sum's messages, conclusion, ComeBack

A device has one participation at a time. If it joins twice the newer stream wins: a device whose connection broke
without a word, or that was restarted, must not wait until the coordinator notices; in a round it is a dropout, as it
would be anyway.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from quorate.errors import ProtocolViolation, QuorateError
from quorate.rounds import Member, Outcome
from quorate.server.devices import pacing
from quorate.server.devices.streams import Calls, End, FrameBudget, Stream, come_back, conclusion
from quorate.server.devices.waiting import Demand, WaitingRoom
from quorate.server.metrics import Metrics
from quorate.wire import device_pb2 as pb
from quorate.wire.streams import CHUNK_BYTES, VERSIONS, ZSTD, Joiner, read_message, version

__all__ = ["DeviceRefused", "DeviceService", "Door", "Limits"]

log = logging.getLogger(__name__)

SERVICE = "quorate.v1.DeviceService"
_CHECK_IN_S = 15.0
_FIRST_ROUND_S = 60.0
_MOST_UNDECIDED = 32
_MOST_TASKS = 256
_REMEMBERED_ROUNDS = 64
_OVERLOAD_S = (30.0, 120.0)


class DeviceRefused(QuorateError):
    """A device may not take part."""


class Door(Protocol):
    """Says who is at the other end of a stream."""

    def device(self, context: Any, claimed: str) -> Member:
        """The device's name.

        Args:
            context: the stream's gRPC context.
            claimed: what the device calls itself.

        Raises:
            DeviceRefused: it is no device, or was revoked.
        """
        ...

    def named(self, context: Any, claimed: str) -> Member:
        """Whom a stream that is refused is from, for the log; empty where nothing says so. Raises nothing."""
        ...


@dataclass(frozen=True)
class Limits:
    """What devices may cost the coordinator.

    Args:
        streams: at once; a device above that is told to come back.
        waiting_s: how long a device waits on a stream before it is told to come back.
        frame_bytes: of long frames on their way in at once, over all streams.
        stalled_s: how long a frame may take to arrive, besides `slowest`.
        slowest_bytes_per_s: of an upload.
    """

    streams: int = 10_000
    waiting_s: float = 900.0
    frame_bytes: int = 64 << 20
    stalled_s: float = 30.0
    slowest_bytes_per_s: float = 16 << 10


Recorded = Callable[[str, int, Member], Outcome | None]


class DeviceService:
    """Serves devices. Everything but `concluded`, and what says how long devices wait, happens in its event loop.

    Args:
        door: says who a device is.
        room: where devices wait.
        metrics: counts.
        recorded: how a round ended for a device, from the store; None while it is open.
        limits: see `Limits`.
    """

    def __init__(
        self,
        door: Door,
        room: WaitingRoom,
        metrics: Metrics,
        recorded: Recorded | None = None,
        limits: Limits | None = None,
    ):
        self.room, self.metrics, self.limits = room, metrics, limits or Limits()
        self._door, self._recorded = door, recorded
        self._known = pacing.DistinctDevices()
        self._streams: dict[Member, Stream] = {}
        self._open, self._read_bytes = 0, 0
        self._calls: Calls | None = None
        self._budget = FrameBudget(self.limits.frame_bytes)
        self._ended: OrderedDict[tuple[str, int], Mapping[Member, Outcome]] = OrderedDict()
        metrics.devices.labels("waiting").set_function(lambda: room.total)
        metrics.devices.labels("in a round").set_function(lambda: max(0, len(self._streams) - room.total))

    # --- from runs' threads

    def concluded(self, run: str, round: int, outcomes: Mapping[Member, Outcome]) -> None:
        """Remembers how a round ended, for devices that lost their streams before they heard."""
        self._ended[run, round] = dict(outcomes)
        while len(self._ended) > _REMEMBERED_ROUNDS:
            self._ended.popitem(last=False)

    def after_s(self, demand: Demand) -> float:
        """When a device should come back that a run could use."""
        return self.waits_s(demand, 1)[0]

    def waits_s(self, demand: Demand, count: int) -> list[float]:
        """The same for many devices: each its own time."""
        round_s, known = _FIRST_ROUND_S if demand.round_s is None else demand.round_s, self._known.count()
        return [pacing.after_s(known, demand.fewest, round_s) for _ in range(count)]

    def away_s(self, tasks: frozenset[str]) -> float:
        """When a device with these tasks should come back that does not wait now."""
        demands = self.room.demands(tasks)
        if demands:
            return min(map(self.after_s, demands))
        return pacing.idle_s(self._known.count(), self.room.expected(tasks))

    # --- in the event loop

    @property
    def handler(self) -> Any:
        """The stream's gRPC handler: messages are bytes on both sides, so that nothing is parsed or made twice."""
        return grpc.stream_stream_rpc_method_handler(self.participate)

    def revoke(self, device: Member) -> None:
        """Ends the device's stream, if it has one."""
        if (stream := self._streams.get(device)) is not None:
            self.metrics.refusals.labels("revoked").inc()
            self.room.leave(stream)  # no draw finds it any more
            stream.end(code="PERMISSION_DENIED", reason="the device was revoked")

    async def participate(self, _requests: Any, context: Any) -> None:
        """One participation."""
        if self._open >= self.limits.streams:
            self.metrics.refusals.labels("too many streams").inc()
            low, high = _OVERLOAD_S
            await context.write(come_back(random.uniform(low, high), "too many devices at once"))
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
        self._open += 1
        stream: Stream | None = None
        try:
            stream = await self._checked_in(context)
            if stream is not None:
                await self._serve(context, stream)
        except _Ended as ended:
            device = self._door.named(context, ended.claimed)
            log.info("a stream was refused", extra={"reason": str(ended), "device": device})
            self.metrics.refusals.labels(ended.kind).inc()
            await context.abort(ended.code, str(ended))
        finally:
            self._open -= 1
            if stream is not None:
                self._left(stream)

    # --- check-in

    async def _checked_in(self, context: Any) -> Stream | None:
        """The device's stream, waiting; None if the device was sent away."""
        with self.metrics.check_in_seconds.time():
            check_in = await self._first(context)
            try:
                device = self._door.device(context, check_in.device)
            except DeviceRefused as refused:
                denied = grpc.StatusCode.PERMISSION_DENIED
                raise _Ended("identity", str(refused), denied, check_in.device) from refused
            if version(check_in.versions) is None:
                accepted = ", ".join(map(str, VERSIONS))
                reason = f"this coordinator speaks version {accepted} of the device protocol"
                await context.write(
                    pb.CoordinatorMessage(
                        refusal=pb.Refusal(reason=reason, versions=VERSIONS)
                    ).SerializeToString()
                )
                self.metrics.refusals.labels("version").inc()
                log.info("a device was refused", extra={"device": device, "reason": reason})
                return None
            self._known.add(device)
            if (older := self._streams.get(device)) is not None:
                log.info("a device has joined again", extra={"device": device})
                self.room.leave(older)
                older.end(code="ABORTED", reason="the device has joined again")
            await self._tell_outcomes(context, device, check_in)
            stream = self._stream(device, check_in)
            if not self.room.join(stream):
                after_s = self.away_s(stream.tasks)
                await context.write(come_back(after_s, "no round wants this device at the moment"))
                self.metrics.sent_away.inc()
                return None
            self._streams[device] = stream
        stream.call_later(self.limits.waiting_s, lambda: self._tire(stream))
        return stream

    async def _first(self, context: Any) -> pb.CheckIn:
        try:
            async with asyncio.timeout(_CHECK_IN_S):
                content = await self._read(context)
        except TimeoutError:
            raise _Ended("check-in", "no check-in came", grpc.StatusCode.DEADLINE_EXCEEDED) from None
        except ProtocolViolation as violation:
            raise _Ended("protocol", str(violation)) from violation
        if not isinstance(content, pb.CheckIn):
            raise _Ended("check-in", "a stream begins with a check-in")
        if len(content.tasks) > _MOST_TASKS or len(content.undecided) > _MOST_UNDECIDED:
            most = f"at most {_MOST_TASKS} tasks and {_MOST_UNDECIDED} undecided rounds"
            raise _Ended("check-in", most, claimed=content.device)
        return content

    def _stream(self, device: Member, check_in: pb.CheckIn) -> Stream:
        task = asyncio.current_task()
        assert task is not None
        if self._calls is None:
            self._calls = Calls(asyncio.get_running_loop())
        return Stream(device, frozenset(check_in.tasks), ZSTD in check_in.encodings, self._calls, task.cancel)

    async def _tell_outcomes(self, context: Any, device: Member, check_in: pb.CheckIn) -> None:
        for asked in check_in.undecided:
            outcome = self._ended.get((asked.run, asked.round), {}).get(device)
            if outcome is None and self._recorded is not None:
                recorded = self._recorded
                outcome = await asyncio.get_running_loop().run_in_executor(
                    None, recorded, asked.run, asked.round, device
                )
            if outcome is not None:
                for message in conclusion(asked.run, asked.round, outcome):
                    await context.write(message)

    def _tire(self, stream: Stream) -> None:
        """A device that was not drawn for long comes back another time: connections that look alive may not be."""
        if stream.ended is None and self.room.leave(stream):
            stream.end([come_back(self.away_s(stream.tasks), "no round began")])

    # --- participation

    async def _serve(self, context: Any, stream: Stream) -> None:
        reading = asyncio.create_task(self._hear(context, stream))
        try:
            while True:
                item = await stream.next()
                if isinstance(item, End):
                    break
                for message in item:
                    await context.write(message)
                self.metrics.sent_bytes.inc(sum(map(len, item)))
        finally:
            reading.cancel()
        if item.code != "OK":
            await context.abort(grpc.StatusCode[item.code], item.reason)

    async def _hear(self, context: Any, stream: Stream) -> None:
        """Reads until the device has nothing more to say."""
        joiner, held = Joiner(0), 0
        code, reason = "OK", "the device ended its stream"
        try:
            while (content := await self._read(context)) is not None:
                hearer = stream.hearer
                if hearer is None or not isinstance(content, pb.Chunk):
                    raise ProtocolViolation("this message is not expected at this point of a participation")
                joiner.most_bytes = hearer.most_bytes
                frame = joiner.add(content)
                if frame is None and content.frame_bytes > CHUNK_BYTES:
                    held = await self._budget.take(content.frame_bytes)
                    seconds = self.limits.stalled_s + content.frame_bytes / self.limits.slowest_bytes_per_s
                    async with asyncio.timeout(seconds):
                        frame = await self._rest(context, joiner)
                elif frame is None:
                    continue
                self._count()
                await stream.deliver(hearer, frame)
                self._budget.give(held)
                held, frame, content = 0, None, None  # not kept until the next one comes
        except (ProtocolViolation, _Ended) as violation:
            code, reason = "INVALID_ARGUMENT", str(violation)
            self.metrics.refusals.labels("protocol").inc()
            log.warning("a device broke the protocol", extra={"device": stream.device, "reason": reason})
        except TimeoutError:
            code, reason = "DEADLINE_EXCEEDED", "a frame did not arrive in time"
        except asyncio.CancelledError:
            pass  # the stream has ended, and this with it
        finally:
            self._budget.give(held)
        self.room.leave(stream)  # it can't be drawn any more
        stream.end(code=code, reason=reason)

    def _count(self) -> None:
        """Once a frame: a counter has a lock."""
        self.metrics.received_bytes.inc(self._read_bytes)
        self._read_bytes = 0

    async def _rest(self, context: Any, joiner: Joiner) -> bytes:
        """The rest of a long frame."""
        while (content := await self._read(context)) is not None:
            if not isinstance(content, pb.Chunk):
                raise ProtocolViolation("something else came within a frame")
            if (frame := joiner.add(content)) is not None:
                return frame
        raise ProtocolViolation("the device ended its stream within a frame")

    async def _read(self, context: Any) -> pb.CheckIn | pb.Chunk | None:
        """The next message's content; None at the end of the stream."""
        raw = await context.read()
        if raw is grpc.aio.EOF:
            return None
        self._read_bytes += len(raw)
        return read_message(raw)

    def _left(self, stream: Stream) -> None:
        """The stream is over, for whatever reason."""
        self._count()
        stream.close()
        if self._streams.get(stream.device) is stream:
            del self._streams[stream.device]
        if not self.room.leave(stream) and stream.hearer is not None:
            reason = stream.ended.reason if stream.ended is not None else ""
            stream.hearer.lose(stream, reason or "the stream ended")


class _Ended(Exception):
    """A stream that ends before the device waits.

    Args:
        kind: for the metrics.
        reason: in words.
        code: that the device gets.
        claimed: what the device calls itself, as far as it has said so.
    """

    def __init__(
        self,
        kind: str,
        reason: str,
        code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
        claimed: str = "",
    ):
        super().__init__(reason)
        self.kind, self.code, self.claimed = kind, code, claimed
