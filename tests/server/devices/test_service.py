"""Check-in: who may wait, who is sent away, and what malformed and repeated streams come to."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Iterator

import grpc
import pytest

from quorate.rounds import Outcome
from quorate.server.devices import (
    SERVICE,
    Demand,
    DeviceService,
    Limits,
    Listener,
    LocalDoor,
    Servers,
    WaitingRoom,
)
from quorate.server.devices.streams import MOST_QUEUED, Outgoing, Stream
from quorate.server.metrics import Metrics
from quorate.wire import device_pb2 as pb
from quorate.wire import frames
from quorate.wire.streams import VERSIONS
from tests.server.devices.device import OPTIONS, Conversation, messages
from tests.server.devices.test_rounds import Served, serving
from tests.waiting import eventually


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(Limits(streams=3)) as started:
        started.service.room.open(Demand("softmax", 100))
        yield started


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()


def metric(served: Served, name: str, **labels: str) -> float | None:
    """As Prometheus would scrape it."""
    return served.service.metrics.registry.get_sample_value(f"quorate_{name}", labels)


def test_a_device_waits_and_is_forgotten_when_it_goes(served: Served) -> None:
    room = served.service.room
    with Conversation(served.port, device="d1"):
        assert eventually(lambda: room.waiting("softmax") == 1)
        assert metric(served, "devices", state="waiting") == 1
        assert metric(served, "devices", state="in a round") == 0
    assert eventually(lambda: room.waiting("softmax") == 0)
    assert metric(served, "devices", state="waiting") == 0
    assert metric(served, "check_in_seconds_count") == 1


def test_an_unknown_version_is_refused_with_those_that_are_spoken(served: Served) -> None:
    with Conversation(served.port, device="d1", versions=[99]) as stream:
        refusal = stream.read()
    assert isinstance(refusal, pb.Refusal)
    assert list(refusal.versions) == list(VERSIONS)
    assert "version 1" in refusal.reason


def test_a_device_that_no_run_wants_is_told_to_come_back(served: Served) -> None:
    with Conversation(served.port, device="d1", tasks=["another"]) as stream:
        answer = stream.read()
        assert isinstance(answer, pb.ComeBack)
        assert answer.after_s >= 10
        with pytest.raises(StopIteration):
            stream.read()


def test_a_device_without_a_name_is_refused(served: Served) -> None:
    for name in ("", "with space", "x" * 65, "../up"):
        with Conversation(served.port, device=name) as stream, pytest.raises(grpc.RpcError) as refused:
            stream.read()
        assert code(refused) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("check_in", "kind", "reason", "named"),
    [
        ({"device": "d1", "versions": [99]}, "version", "speaks version 1", "d1"),
        ({"device": "d1", "tasks": ["x"] * 300}, "check-in", "at most 256 tasks", "d1"),
        ({"device": "no name"}, "identity", "a device names itself", ""),
        ({}, "check-in", "a stream begins with a check-in", ""),
    ],
)
def test_a_refusal_is_counted_and_logged_with_the_device_where_it_is_known(
    served: Served,
    caplog: pytest.LogCaptureFixture,
    check_in: dict[str, object],
    kind: str,
    reason: str,
    named: str,
) -> None:
    caplog.set_level("INFO", "quorate.server.devices.service")
    with Conversation(served.port, **check_in) as stream, contextlib.suppress(grpc.RpcError):
        stream.say(b"no check-in")
        stream.read()

    def said() -> list[logging.LogRecord]:
        return [each for each in caplog.records if "refused" in each.getMessage()]

    assert eventually(said)  # a device may hear it first
    (refused,) = said()
    assert reason in refused.reason
    assert refused.device == named
    assert metric(served, "refusals_total", reason=kind) == 1


def test_of_a_device_that_joins_twice_the_newer_stream_wins(served: Served) -> None:
    room = served.service.room
    with Conversation(served.port, device="d1") as older:
        assert eventually(lambda: room.waiting("softmax") == 1)
        with Conversation(served.port, device="d1"):
            with pytest.raises(grpc.RpcError) as ended:
                older.read()
            assert code(ended) is grpc.StatusCode.ABORTED
            assert room.waiting("softmax") == 1


def test_too_many_streams_are_told_to_come_back(served: Served) -> None:
    room = served.service.room
    streams = [Conversation(served.port, device=f"d{i}") for i in range(3)]
    assert eventually(lambda: room.waiting("softmax") == 3)
    with Conversation(served.port, device="late") as late:
        assert isinstance(late.read(), pb.ComeBack)
        with pytest.raises(grpc.RpcError) as refused:
            late.read()
        assert code(refused) is grpc.StatusCode.RESOURCE_EXHAUSTED
    for stream in streams:
        stream.close()
    assert eventually(lambda: room.waiting("softmax") == 0)
    with Conversation(served.port, device="late"):
        assert eventually(lambda: room.waiting("softmax") == 1)


def test_outcomes_that_a_device_missed_come_first() -> None:
    def recorded(run: str, round: int, device: str) -> Outcome | None:
        return Outcome.ABORTED if round == 1 else None

    service = DeviceService(LocalDoor(), WaitingRoom(), Metrics(), recorded)
    service.concluded("r", 2, {"d1": Outcome.COMMITTED})
    undecided = [pb.Participation(run="r", round=number) for number in (1, 2, 3)]
    with (
        Servers([Listener("127.0.0.1:0", {SERVICE: {"Participate": service.handler}})]) as servers,
        Conversation(servers.ports[0], device="d1", undecided=undecided) as stream,
    ):
        heard = [stream.read(), stream.read()]
        assert isinstance(stream.read(), pb.ComeBack)
    assert [frames.decode(frame) for frame in heard if isinstance(frame, bytes)] == [
        frames.Conclusion("r", 1, Outcome.ABORTED),
        frames.Conclusion("r", 2, Outcome.COMMITTED),
    ]


def test_a_device_that_waits_too_long_is_told_to_come_back() -> None:
    with serving(Limits(waiting_s=0.2)) as served:
        served.service.room.open(Demand("softmax", 2))
        with Conversation(served.port, device="d1") as stream:
            assert isinstance(stream.read(), pb.ComeBack)
            with pytest.raises(StopIteration):
                stream.read()


def test_a_device_that_speaks_before_it_was_drawn_is_ended(served: Served) -> None:
    with Conversation(served.port, device="d1") as stream:
        stream.say(b"early")
        with pytest.raises(grpc.RpcError) as ended:
            stream.read()
    assert code(ended) is grpc.StatusCode.INVALID_ARGUMENT
    assert served.service.room.waiting("softmax") == 0


def test_messages_that_are_too_long_end_their_stream_only(served: Served) -> None:
    with Conversation(served.port, device="d0") as other:
        assert eventually(lambda: served.service.room.waiting("softmax") == 1)
        with Conversation(served.port, device="d1", software="x" * (1 << 21)) as stream:
            with pytest.raises(grpc.RpcError) as ended:
                stream.read()
            assert code(ended) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert served.service.room.waiting("softmax") == 1
        assert other.call.is_active()


class Heard:
    """Hears one device, and keeps why it was lost."""

    most_bytes = 1 << 20

    def __init__(self) -> None:
        self.lost: list[str] = []

    def deliver(self, stream: Stream, frame: bytes) -> None:
        stream.taken()

    def lose(self, stream: Stream, reason: str) -> None:
        self.lost.append(reason)


def test_a_device_that_does_not_read_is_ended_with_what_was_queued_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quorate.server.devices.streams.FLUSH_S", 0.2)
    with serving() as served:
        room, demand, heard = served.service.room, Demand("softmax", 1), Heard()
        room.open(demand)
        with Conversation(served.port, device="d1"):  # it never reads
            room.hold(demand)
            stream = room.take(demand, ["d1"], heard)["d1"]
            model = Outgoing(os.urandom(4 << 20))
            for _ in range(MOST_QUEUED + 2):  # one more than waits, and one that is on its way
                stream.send(model)
            assert eventually(lambda: heard.lost == ["the device does not read what it is sent"])
            assert not stream._outbox
            assert eventually(lambda: served.service._open == 0)


def test_a_model_is_serialised_once_however_many_devices_it_is_sent_to() -> None:
    """Random values, and some that compress; devices that can decompress, and one that can't."""
    for frame, compresses in ((os.urandom(1 << 20), False), (bytes(1 << 20), True)):
        model = Outgoing(frame)
        first, plain = model.messages(True), model.messages(False)
        assert model.messages(True) is first
        assert model.messages(False) is plain
        assert (first is not plain) is compresses
        assert sum(map(len, first)) < (0.01 if compresses else 1.01) * len(frame)


def test_random_bytes_end_their_stream_and_nothing_else(served: Served) -> None:
    rng = random.Random(0)
    real = pb.DeviceMessage(
        check_in=pb.CheckIn(versions=VERSIONS, tasks=["softmax"], device="fuzz", encodings=["zstd"])
    ).SerializeToString()
    answers = set()
    for _ in range(150):
        mutated = bytearray(real)
        for _ in range(rng.randint(1, 6)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        first = [bytes(mutated), real, os.urandom(rng.randint(0, 300))][rng.randrange(3)]
        rest = [os.urandom(rng.randint(0, 2000)) for _ in range(rng.randint(1, 3))]
        try:
            messages(served.port, iter([first, *rest]))
        except grpc.RpcError as error:
            answers.add(error.code())
    # Never INTERNAL or UNKNOWN, which an exception in the service would be.
    assert answers == {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED}
    assert eventually(lambda: served.service.room.waiting("softmax") == 0)
    with Conversation(served.port, device="d1"):
        assert eventually(lambda: served.service.room.waiting("softmax") == 1)


def test_the_service_says_that_it_is_healthy_and_what_it_serves(served: Served) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{served.port}", OPTIONS) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
        assert SERVICE in {service.name for service in listed.list_services_response.service}
