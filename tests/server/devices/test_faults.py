"""What goes wrong with devices and connections, each with a real process or socket; and that nothing is lost by it.

Processes are killed and stopped at the moment that one of their messages arrives, so that the phase is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import logging
import multiprocessing
import os
import signal
import socket
import struct
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import tests.server.devices.device
from quorate import assembly
from quorate.logs import JsonFormatter
from quorate.plan import FleetSection, Plan
from quorate.planfile import format_plan, make_plan
from quorate.result import FinishedRun
from quorate.rounds import Assignment, Deadlines, Member, Outcome
from quorate.server.coordinator import RoundReport
from quorate.server.devices import Demand, DeviceFleet, Limits
from quorate.server.devices.streams import Stream
from quorate.summation import Loss
from quorate.wire import device_pb2 as pb
from quorate.wire import frames
from tests.server.devices.device import Conversation, Device, chunks
from tests.server.devices.test_rounds import COUNT, NAMES, Served, digits, make, serving
from tests.waiting import eventually

ADVERTISED, SHARED, MASKED = 1, 2, 3
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.server.devices.device"])


class Processes:
    """Devices as processes."""

    def __init__(self, served: Served, directory: Path):
        self.served, self.directory = served, directory
        self.started: dict[Member, Any] = {}

    def start(self, *names: Member, misbehaviour: str = "") -> None:
        for name in names:
            own, data = digits().clients[digits().index(name)], self.directory / f"{name}.npz"
            np.savez(data, x=own.x, y=own.y)
            states = str(self.directory / f"{name}.sqlite")
            arguments = (str(self.served.port), name, str(data), states, misbehaviour)
            process = PROCESSES.Process(target=tests.server.devices.device.main, args=arguments, daemon=True)
            process.start()
            self.started[name] = process

    def kill(self, *names: Member) -> None:
        for name in names:
            self.started[name].kill()
            self.started[name].join(60)

    def signal(self, name: Member, number: signal.Signals) -> None:
        os.kill(self.started[name].pid, number)


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as started:
        yield started


@pytest.fixture
def processes(served: Served, tmp_path: Path) -> Iterator[Processes]:
    started = Processes(served, tmp_path)
    yield started
    started.kill(*started.started)


@dataclasses.dataclass
class Watched:
    """A fleet's source with short deadlines, that does something when a device's n-th message of the run arrives."""

    served: Served
    at: dict[tuple[Member, int], Callable[[], None]] = dataclasses.field(default_factory=dict)
    phase_s: float = 20.0
    training_s: float = 30.0
    size: int = COUNT

    def section(self) -> FleetSection:
        return FleetSection(kind="devices")

    def open(self, plan: Plan, directory: Path | None) -> DeviceFleet:
        heard, at = Counter[Member](), self.at
        demand = Demand(plan.task.resolve().name, self.size)
        deadlines = Deadlines(self.training_s, self.phase_s)
        fleet = DeviceFleet(self.served.service, demand, deadlines=deadlines)
        deliver = fleet._streams.deliver

        def noticing(stream: Stream, frame: bytes) -> None:
            heard[stream.device] += 1
            deliver(stream, frame)
            at.get((stream.device, heard[stream.device]), lambda: None)()

        fleet._streams.deliver = noticing  # type: ignore[method-assign]
        return fleet


def run(
    source: Watched,
    plan: Plan,
    state: Path | None = None,
    watch: Callable[[RoundReport], None] = lambda report: None,
) -> FinishedRun:
    return assembly.run(plan, fleet=source, state=state, watch=watch)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the coordinator writes."""
    caplog.set_level("INFO", "quorate.server")
    return caplog


def named(logged: pytest.LogCaptureFixture, device: Member, about: str) -> bool:
    """Whether the coordinator's log says something about a device."""
    lines = (vars(line) for line in logged.records if line.name.startswith("quorate.server"))
    return any(
        about in line["message"]
        and (line.get("device") == device or device in line.get("fields", {}).get("devices", ()))
        for line in lines
    )


@pytest.mark.slow
@pytest.mark.parametrize(("after", "phase"), [(ADVERTISED, "share"), (SHARED, "mask"), (MASKED, "unmask")])
def test_devices_that_are_killed_are_dropouts_of_the_phase_they_died_in(
    served: Served, processes: Processes, after: int, phase: str, logged: pytest.LogCaptureFixture
) -> None:
    processes.start(*NAMES)
    victims = NAMES[:2]
    kills = {(name, after): (lambda name=name: processes.kill(name)) for name in victims}
    found = run(Watched(served, kills), make(rounds=1))
    (round,) = found.history
    assert round.status == "committed"
    assert round.lost == {phase: 2}
    for name in victims:
        assert named(logged, name, "a member is out of the round")
    assert round.survivors == (COUNT if after == MASKED else COUNT - 2)


@pytest.mark.slow
def test_with_one_device_more_than_is_tolerated_the_round_is_aborted_and_the_next_one_commits(
    served: Served, processes: Processes, tmp_path: Path
) -> None:
    processes.start(*NAMES)
    victims = NAMES[:4]
    kills = {(name, SHARED): (lambda name=name: processes.kill(name)) for name in victims}

    def restart(report: RoundReport) -> None:
        if report.outcome is Outcome.ABORTED:
            processes.start(*victims)

    found = run(Watched(served, kills), make(rounds=1), tmp_path / "state", restart)
    assert [round.status for round in found.history] == ["aborted", "committed"]
    assert found.epsilon is not None
    aborted = found.history[0]
    assert not aborted.revealing  # nothing was asked for, so the charge came back


@pytest.mark.slow
def test_a_frozen_device_is_left_out_and_takes_part_again_when_it_thaws(
    served: Served, processes: Processes, logged: pytest.LogCaptureFixture
) -> None:
    processes.start(*NAMES)
    slow = NAMES[3]
    stops = {(slow, SHARED): lambda: processes.signal(slow, signal.SIGSTOP)}

    def thaw(report: RoundReport) -> None:
        processes.signal(slow, signal.SIGCONT)

    found = run(Watched(served, stops, phase_s=2.0), make(rounds=2), watch=thaw)
    assert [round.status for round in found.history] == ["committed"] * 2
    assert [round.survivors for round in found.history] == [COUNT - 1, COUNT]
    assert named(logged, slow, "closed at its deadline without 1 members")


@pytest.mark.slow
@pytest.mark.parametrize("misbehaviour", ["garbage", "truncated", "silent"])
def test_a_device_that_lies_is_left_out(
    served: Served, processes: Processes, misbehaviour: str, logged: pytest.LogCaptureFixture
) -> None:
    processes.start(*NAMES[1:])
    processes.start(NAMES[0], misbehaviour=misbehaviour)
    found = run(Watched(served, phase_s=2.0), make(rounds=1))
    (round,) = found.history
    assert (round.status, round.survivors, round.lost) == ("committed", COUNT - 1, {"mask": 1})
    said = "closed at its deadline" if misbehaviour == "silent" else "a member is out of the round"
    assert named(logged, NAMES[0], said)


class Byhand:
    """One device of a round that is spoken by hand, while the others are honest."""

    def __init__(self, served: Served):
        self.port = served.port
        self.stream = Conversation(self.port, device=NAMES[0])

    def assigned(self) -> Assignment:
        while not isinstance(frame := self.stream.read(), bytes):
            self.stream.close()  # the run has not begun yet
            time.sleep(0.1)
            self.stream = Conversation(self.port, device=NAMES[0])
        found = frames.decode(frame)
        assert isinstance(found, Assignment)
        return found


def counted(served: Served, name: str, **labels: str) -> float:
    """A metric, as Prometheus would scrape it."""
    return served.service.metrics.registry.get_sample_value(f"quorate_{name}", labels) or 0.0


@pytest.mark.parametrize(
    ("misdeed", "loss"),
    [
        ("floods", Loss.VIOLATION),
        ("oversized", Loss.VIOLATION),
        ("announces too much", Loss.VIOLATION),
        ("never ends", Loss.LATE),
        ("too long a chunk", Loss.GONE),  # gRPC itself ends the stream
        ("checks in twice", Loss.VIOLATION),
        ("empty", Loss.VIOLATION),
    ],
)
def test_a_device_that_breaks_the_wire_s_rules_is_lost_alone(
    misdeed: str, loss: Loss, logged: pytest.LogCaptureFixture
) -> None:
    limits = Limits(stalled_s=0.5, slowest_bytes_per_s=1e9)
    with serving(limits) as served:
        served.start(*NAMES[1:])
        bad = Byhand(served)

        def misbehave() -> None:
            bad.assigned()
            put = bad.stream.put
            match misdeed:
                case "floods":
                    for _ in range(200):
                        bad.stream.say(os.urandom(3000))
                case "oversized":
                    put(*chunks(bytes(8 << 20)))
                case "announces too much":
                    put(pb.DeviceMessage(chunk=pb.Chunk(frame_bytes=1 << 40, data=b"x")))
                case "never ends":
                    put(pb.DeviceMessage(chunk=pb.Chunk(frame_bytes=1 << 20, data=b"x")))
                case "too long a chunk":
                    put(pb.DeviceMessage(chunk=pb.Chunk(frame_bytes=1 << 20, data=bytes(1 << 20))))
                case "checks in twice":
                    put(pb.DeviceMessage(check_in=pb.CheckIn(versions=[1], device=NAMES[0])))
                case "empty":
                    put(pb.DeviceMessage())

        threading.Thread(target=misbehave, daemon=True).start()
        found = run(Watched(served), make(rounds=1))
        bad.stream.close()
        (round,) = found.history
        assert (round.status, round.survivors) == ("committed", COUNT - 1)
        assert round.lost == {"advertise": 1}
        drop = {"run": found.record.id, "phase": "advertise", "reason": loss.value}
        assert counted(served, "drops_total", **drop) == 1
        assert named(logged, NAMES[0], "a member is out of the round")


def test_the_metrics_say_what_became_of_a_round_s_members(served: Served) -> None:
    def declines(count: int, frame: bytes) -> bytes:
        message = frames.decode(frame)
        return frames.encode(frames.Decline(message.run, message.round, "conditions", "not now"))

    def leaves(count: int, frame: bytes) -> bytes:
        if count == MASKED:
            raise StopIteration  # its stream ends without a word
        return frame

    served.start(*NAMES[2:])
    served.start(NAMES[0], said=declines)
    served.start(NAMES[1], said=leaves)
    found = run(Watched(served), make(rounds=1))
    of = {"run": found.record.id}
    assert counted(served, "drops_total", **of, phase="advertise", reason="declined") == 1
    assert counted(served, "drops_total", **of, phase="mask", reason="gone") == 1
    assert counted(served, "declines_total", **of, reason="conditions") == 1
    for phase in ("advertise", "share", "mask", "unmask"):
        assert counted(served, "phase_seconds_count", **of, phase=phase) == 1
    assert counted(served, "phase_seconds_sum", **of, phase="advertise") > 0
    model_bytes = found.model.vector.nbytes
    assert counted(served, "sent_bytes_total") > COUNT * model_bytes
    assert counted(served, "received_bytes_total") > (COUNT - 2) * model_bytes


def test_a_replayed_and_a_reordered_message_are_refused_and_the_round_goes_on(served: Served) -> None:
    said: list[bytes] = []

    def replays(count: int, frame: bytes) -> bytes:
        said.append(frame)
        return (
            said[0] if count == MASKED else frame
        )  # the advertisement once more, in the masked input's place

    served.start(*NAMES[1:])
    served.start(NAMES[0], said=replays)
    found = run(Watched(served), make(rounds=1))
    (round,) = found.history
    assert (round.survivors, round.lost) == (COUNT - 1, {"mask": 1})


def test_a_message_of_another_round_is_not_taken_for_this_one_s(served: Served) -> None:
    first: list[bytes] = []

    def replays(count: int, frame: bytes) -> bytes:
        if count == ADVERTISED:
            first.append(frame)
            return first[0]  # in the second round, that of the first
        return frame

    served.start(*NAMES[1:])
    served.start(NAMES[0], said=replays)
    found = run(Watched(served, training_s=3.0), make(rounds=2))
    assert [round.survivors for round in found.history] == [COUNT, COUNT - 1]


def test_over_selection_closes_a_round_without_a_device_that_never_answers(served: Served) -> None:
    """Eight are drawn for a cohort of six, and training may take ten minutes."""
    content = tomllib.loads(format_plan(make(rounds=1)))
    content["rounds"] |= {"cohort": 6, "over_selection": 1.3}
    served.start(*NAMES[1:])
    served.start(NAMES[0], said=lambda count, frame: None)
    found = run(Watched(served, training_s=600.0), make_plan(content))
    (round,) = found.history
    assert (round.cohort, round.survivors, round.lost) == (COUNT, 6, {"advertise": 2})
    spare = {"run": found.record.id, "phase": "advertise", "reason": "not needed"}
    assert counted(served, "drops_total", **spare) == 2


def test_a_half_open_tcp_connection_and_noise_on_the_port_disturb_nobody(served: Served) -> None:
    sockets = [socket.create_connection(("localhost", served.port)) for _ in range(20)]
    for i, noisy in enumerate(sockets[:10]):
        noisy.sendall(
            os.urandom(2000) if i % 2 else b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 1 << 31)
        )
    served.start(*NAMES)
    found = run(Watched(served), make(rounds=1))
    assert found.history[0].survivors == COUNT
    for noisy in sockets:
        noisy.close()


class Proxy:
    """A network between one device and the coordinator, that can be cut: what is sent goes nowhere, nothing is closed.

    A context manager. `heal` breaks the connections that were cut; new ones pass.
    """

    def __init__(self, target: int):
        self._target, self._whole = target, threading.Event()
        self._whole.set()
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def heal(self) -> None:
        for connected in self._sockets:
            connected.close()
        self._sockets.clear()
        self._whole.set()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.close()
        self.heal()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._whole.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_device_whose_network_is_cut_is_left_out_and_is_back_when_it_heals(
    served: Served, logged: pytest.LogCaptureFixture
) -> None:
    served.start(*NAMES[1:])
    with Proxy(served.port) as proxy:
        device = Device(proxy.port, NAMES[0], digits().clients[0])
        threading.Thread(target=device.run, daemon=True).start()
        source = Watched(served, {(NAMES[0], SHARED): proxy.cut}, phase_s=2.0)
        found = run(source, make(rounds=2), watch=lambda report: proxy.heal())
        device.stopped = True
    assert [round.status for round in found.history] == ["committed"] * 2
    assert [round.survivors for round in found.history] == [COUNT - 1, COUNT]
    assert found.history[0].lost == {"mask": 1}
    assert named(logged, NAMES[0], "closed at its deadline without 1 members")


def test_a_device_that_joins_again_in_a_round_is_a_dropout_of_it_and_in_the_next_one(
    served: Served, logged: pytest.LogCaptureFixture
) -> None:
    joined: list[Conversation] = []

    def again(count: int, frame: bytes) -> bytes | None:
        if count == SHARED and not joined:
            joined.append(Conversation(served.port, device=NAMES[0]))
            assert eventually(lambda: served.service.room.waiting("softmax") >= 1)
            joined[0].close()
        return frame

    served.start(*NAMES[1:])
    served.start(NAMES[0], said=again)
    found = run(Watched(served), make(rounds=2))
    assert [round.survivors for round in found.history] == [COUNT - 1, COUNT]
    assert named(logged, NAMES[0], "a device has joined again")


def test_logs_hold_names_and_numbers_and_never_a_key_a_share_or_an_update(served: Served) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger("quorate")
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    said: list[bytes] = []

    def keeps(count: int, frame: bytes) -> bytes:
        said.append(frame)
        return os.urandom(1000) if count == MASKED and len(said) == MASKED else frame

    try:
        served.start(*NAMES[1:])
        served.start(NAMES[0], said=keeps)
        found = run(Watched(served), make(rounds=2))
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    text = stream.getvalue()
    assert NAMES[0] in text  # who broke the protocol is named
    assert found.record.id in text
    secrets = [frames.decode(frame) for frame in said if len(frame) != 1000]
    for message in secrets:
        assert isinstance(message, frames.SumMessage)
        for start in range(0, min(len(message.data), 4096) - 16, 16):
            piece = message.data[start : start + 16]
            if len(set(piece)) > 8:  # a key or a share, not padding
                assert piece.hex() not in text
                assert repr(piece)[2:-1] not in text
    values = [f"{value:.6g}" for value in found.model.vector[np.abs(found.model.vector) > 1e-3][:200]]
    assert not any(f" {value}," in text for value in values)


@pytest.mark.slow
def test_memory_is_back_after_rounds_with_floods_and_kills(served: Served) -> None:
    process = psutil.Process()
    served.start(*NAMES[1:])

    def flood(bad: Byhand) -> None:
        bad.assigned()
        for _ in range(20):
            bad.stream.say(bytes(200_000))

    def rounds(count: int) -> int:
        for _ in range(count):
            bad = Byhand(served)
            threading.Thread(target=flood, args=[bad], daemon=True).start()
            found = run(Watched(served), make(rounds=1))
            bad.stream.close()
            assert found.history[-1].status == "committed"
        gc.collect()
        return int(process.memory_info().rss)

    warm = rounds(5)
    assert rounds(15) < warm + (20 << 20)
    assert eventually(lambda: len(served.service._streams) <= COUNT - 1)
    assert served.service._budget._held == 0
