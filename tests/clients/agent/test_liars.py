"""A coordinator that lies: an agent against a server whose every message a test writes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import queue
import resource
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from quorate.clients.agent.agent import Agent, Settings
from quorate.clients.agent.backoff import Backoff
from quorate.clients.agent.channels import Local
from quorate.clients.agent.conditions import Readings, Sensors
from quorate.clients.agent.description import Description
from quorate.clients.agent.limits import Limits
from quorate.clients.agent.policy import Policy
from quorate.clients.agent.state import AgentState
from quorate.clients.agent.training import Trainer
from quorate.rounds import Assignment, Broadcast, Deadlines, Instruction, Kind, Outcome, PublicValues
from quorate.wire import device_pb2 as pb
from quorate.wire import device_pb2_grpc as rpc
from quorate.wire import frames, streams
from tests.clients.agent.federation import APPLICATION, make, misbehaving, until
from tests.clients.agent.test_conditions import GOOD

DEVICE = "me"
END = object()


class Talk:
    """One stream, as the lying coordinator holds it."""

    def __init__(self, check_in: pb.CheckIn, requests: Iterator[pb.DeviceMessage], context: Any):
        self.check_in, self._context = check_in, context
        self.outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.inbox: queue.SimpleQueue[frames.Frame | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=[requests], daemon=True).start()

    def say(self, message: pb.CoordinatorMessage) -> None:
        self.outbox.put(message)

    def send(self, frame: frames.Frame | bytes) -> None:
        data = frame if isinstance(frame, bytes) else frames.encode(frame)
        for chunk in streams.cut(data):
            self.say(pb.CoordinatorMessage(chunk=chunk))

    def hear(self, timeout_s: float = 30.0) -> frames.Frame | None:
        """The device's next frame; None when it has left."""
        return self.inbox.get(timeout=timeout_s)

    def end(self) -> None:
        self.outbox.put(END)

    def _read(self, requests: Iterator[pb.DeviceMessage]) -> None:
        joiner = streams.Joiner(1 << 24)
        with contextlib.suppress(Exception):
            for message in requests:
                frame = joiner.add(message.chunk)
                if frame is not None:
                    self.inbox.put(frames.decode(frame))
        self.inbox.put(None)
        self.outbox.put(END)


class Liar(rpc.DeviceServiceServicer):
    """Says whatever a test wants."""

    def __init__(self) -> None:
        self._talks: queue.SimpleQueue[Talk] = queue.SimpleQueue()

    def Participate(  # noqa: N802
        self, requests: Iterator[pb.DeviceMessage], context: Any
    ) -> Iterator[pb.CoordinatorMessage]:
        talk = Talk(next(requests).check_in, requests, context)
        self._talks.put(talk)
        while (message := talk.outbox.get()) is not END:
            yield message

    def talk(self, timeout_s: float = 30.0) -> Talk:
        """The next stream that the device opens."""
        return self._talks.get(timeout=timeout_s)


@functools.cache
def description(application: str) -> Description:
    """What the application in this folder says of itself, asked once: it takes a process."""
    with contextlib.closing(Trainer("app:task", Limits())) as trainer:
        return trainer.describe()


@dataclasses.dataclass
class Scene:
    """A lying coordinator, and a device."""

    liar: Liar
    port: int
    folder: Path
    agents: list[tuple[Agent, AgentState, threading.Thread]] = dataclasses.field(default_factory=list)

    def start(self, policy: Policy | None = None, sensors: Sensors | None = None) -> AgentState:
        """Starts the agent in a thread; its memory is that of the agent before."""
        state = AgentState(self.folder / "state")
        described = {"app:task": description((self.folder / "app.py").read_text())}
        settings = Settings(
            waiting_s=20.0,
            look_s=0.1,
            farewell_s=1.0,
            refused_s=0.5,
            linger_s=600.0,  # it does not begin anew, in a fresh process
            backoff=Backoff(base_s=0.05, cap_s=0.2),
        )
        connection = Local(f"127.0.0.1:{self.port}", DEVICE)
        agent = Agent(described, connection, policy or Policy(), state, settings, sensors)
        thread = threading.Thread(target=agent.run, daemon=True)
        thread.start()
        self.agents.append((agent, state, thread))
        return state

    def stop(self) -> None:
        """Ends the agent that runs."""
        agent, state, thread = self.agents.pop()
        agent.stop()
        thread.join(30)
        assert not thread.is_alive()
        state.close()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("DEVICE", DEVICE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(APPLICATION)
    server = grpc.server(futures.ThreadPoolExecutor(8))
    liar = Liar()
    rpc.add_DeviceServiceServicer_to_server(liar, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    made = Scene(liar, port, tmp_path)
    yield made
    while made.agents:
        made.stop()
    server.stop(0).wait(60)


def assignment(number: int = 1, **changes: Any) -> Assignment:
    """What an honest coordinator would send."""
    plan = make().resolved(4)
    strategy = plan.strategy.resolve()
    layout = strategy.shared(plan.task.resolve().layout)
    settings = {**plan.training.settings(), **strategy.local.settings}
    honest = Assignment(
        run="run",
        round=number,
        kind=Kind.FIT,
        base_version=0,
        terms=plan.terms().encoded(),
        terms_hash=b"",
        broadcast=Broadcast(
            layout.zeros(), Instruction("sgd", settings), PublicValues(plan.privacy.clip_norm, bytes(32))
        ),
        bounds=plan.bounds(4),
        members=(),
        deadlines=Deadlines(20.0, 5.0),
    )
    return dataclasses.replace(honest, **changes)


def keys(frame: frames.Frame | None) -> frames.SumMessage:
    assert isinstance(frame, frames.SumMessage)
    return frame


def code(frame: frames.Frame | None) -> str:
    assert isinstance(frame, frames.Decline)
    return frame.code


def test_an_honest_assignment_is_answered_with_keys(scene):
    scene.start()
    talk = scene.liar.talk()
    assert list(talk.check_in.tasks) == ["softmax"]
    assert talk.check_in.device == DEVICE
    talk.send(assignment())
    assert keys(talk.hear()).round == 1


def test_a_round_that_is_assigned_again_is_declined_on_a_new_stream_and_after_a_restart(scene):
    state = scene.start()
    talk = scene.liar.talk()
    talk.send(assignment())
    keys(talk.hear())
    talk.end()
    again = scene.liar.talk()
    again.send(assignment())
    assert code(again.hear()) == "repeated"
    scene.stop()
    scene.start()
    restarted = scene.liar.talk()
    restarted.send(assignment())
    assert code(restarted.hear()) == "repeated"
    until(lambda: AgentState(state.directory).refusals() == {"repeated": 2}, "both are written down")


def test_a_round_that_is_assigned_twice_on_one_stream_ends_it(scene):
    scene.start()
    talk = scene.liar.talk()
    talk.send(assignment())
    keys(talk.hear())
    talk.send(assignment())
    assert talk.hear() is None


def test_replayed_messages_of_the_sum_end_the_stream(scene):
    scene.start()
    talk = scene.liar.talk()
    talk.send(assignment())
    own = keys(talk.hear())
    talk.send(frames.SumMessage("run", 1, own.data))
    assert talk.hear() is None


@pytest.mark.parametrize(
    "messages",
    [
        lambda: [pb.CoordinatorMessage()],
        lambda: [pb.CoordinatorMessage(come_back=pb.ComeBack(after_s=math.nan))],
        lambda: [pb.CoordinatorMessage(come_back=pb.ComeBack(after_s=-1.0))],
        lambda: [pb.CoordinatorMessage(come_back=pb.ComeBack(after_s=1e12))],
        lambda: [pb.CoordinatorMessage(chunk=pb.Chunk(frame_bytes=1 << 40, data=b"a"))],
        lambda: [pb.CoordinatorMessage(chunk=pb.Chunk(frame_bytes=5, data=b"abcdefgh"))],
        lambda: [pb.CoordinatorMessage(chunk=pb.Chunk(frame_bytes=4, data=os.urandom(4), last=True))],
        lambda: [
            pb.CoordinatorMessage(chunk=pb.Chunk(frame_bytes=4, encoding="br", data=b"abcd", last=True))
        ],
        lambda: [
            pb.CoordinatorMessage(chunk=chunk)
            for chunk in streams.cut(frames.encode(frames.SumMessage("run", 1, b"early")))
        ],
        lambda: [
            pb.CoordinatorMessage(chunk=chunk)
            for chunk in streams.cut(frames.encode(frames.Decline("r", 1, "no", "")))
        ],
    ],
)
def test_what_is_no_message_ends_the_stream_and_the_agent_comes_back(scene, messages):
    scene.start()
    talk = scene.liar.talk()
    for message in messages():
        talk.say(message)
    assert talk.hear() is None
    assert scene.liar.talk().check_in.tasks == ["softmax"]


def test_a_frame_that_never_ends_costs_no_more_memory_than_is_accepted(scene):
    scene.start(Policy(limits={"largest_frame_mb": 4}))
    talk = scene.liar.talk()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    talk.say(pb.CoordinatorMessage(chunk=pb.Chunk(frame_bytes=4_000_000, data=bytes(100_000))))
    for _ in range(200):
        talk.say(pb.CoordinatorMessage(chunk=pb.Chunk(data=bytes(100_000))))
    assert talk.hear() is None
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000
    )  # kilobytes; both sides are in here


def test_a_message_above_grpcs_bound_ends_the_stream(scene):
    scene.start()
    talk = scene.liar.talk()
    talk.say(pb.CoordinatorMessage(chunk=pb.Chunk(frame_bytes=1 << 22, data=bytes(1 << 22), last=True)))
    assert talk.hear() is None
    scene.liar.talk()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: {"bounds": dataclasses.replace(a.bounds, min_survivors=2, honest=2)}, "bounds"),
        (lambda a: {"terms": b"{}"}, "terms"),
        (lambda a: {"terms": a.terms.replace(b'"softmax"', b'"os:system"')}, "terms"),
        (
            lambda a: {"terms": a.terms.replace(b'"softmax"', b'"linear"').replace(b'"classes":3,', b"")},
            "terms",
        ),
    ],
)
def test_an_assignment_that_is_not_what_its_terms_say_is_declined(scene, change, expected):
    scene.start()
    talk = scene.liar.talk()
    talk.send(assignment(**change(assignment())))
    assert code(talk.hear()) == expected


def test_an_outcome_of_a_round_that_the_device_was_not_in_is_no_matter(scene):
    state = scene.start()
    talk = scene.liar.talk()
    talk.send(frames.Conclusion("another", 7, Outcome.COMMITTED))
    talk.send(assignment())
    keys(talk.hear())
    assert [past.run for past in AgentState(state.directory).past(10)] == ["run"]


def test_a_device_asks_for_the_outcome_of_a_round_that_its_vector_left_in(scene):
    plain = make(
        privacy={"mechanism": "none"}, secure_aggregation={"protocol": "none", "min_survivors": 3}
    ).resolved(4)
    public = PublicValues(None, bytes(32))
    state = scene.start(Policy(accept={"secure_aggregation": False}))
    talk = scene.liar.talk()
    sent = assignment()
    broadcast = dataclasses.replace(sent.broadcast, public=public)
    talk.send(
        dataclasses.replace(sent, terms=plain.terms().encoded(), bounds=plain.bounds(4), broadcast=broadcast)
    )
    keys(talk.hear())
    talk.end()
    again = scene.liar.talk()
    assert [(asked.run, asked.round) for asked in again.check_in.undecided] == [("run", 1)]
    again.send(frames.Conclusion("run", 1, Outcome.COMMITTED))
    again.end()
    assert not scene.liar.talk().check_in.undecided
    assert AgentState(state.directory).past(1)[0].outcome is Outcome.COMMITTED


def test_a_refused_version_is_said_and_tried_again_later(scene):
    state = scene.start()
    scene.liar.talk().say(pb.CoordinatorMessage(refusal=pb.Refusal(reason="too old", versions=[7])))
    scene.liar.talk()
    assert "too old (it speaks versions 7)" in str(AgentState(state.directory).fact("doing"))


def test_the_time_to_come_back_is_kept(scene):
    state = scene.start()
    scene.liar.talk().say(pb.CoordinatorMessage(come_back=pb.ComeBack(after_s=1000.0, reason="later")))
    until(lambda: AgentState(state.directory).away_s() > 900, "it is written down")
    with pytest.raises(queue.Empty):
        scene.liar.talk(timeout_s=1.0)
    scene.agents[-1][0].wake()
    scene.liar.talk()


def test_pausing_leaves_the_stream_and_resuming_comes_back(scene):
    state = scene.start()
    talk = scene.liar.talk()
    AgentState(state.directory).note(paused="yes")
    scene.agents[-1][0].wake()
    assert talk.hear() is None
    AgentState(state.directory).note(paused=None)
    scene.agents[-1][0].wake()
    scene.liar.talk()


@dataclasses.dataclass
class Sensed:
    """What a device's sensors say, which a test changes."""

    readings: Readings = GOOD

    def read(self) -> Readings:
        return self.readings


def test_training_is_stopped_when_conditions_no_longer_hold_and_the_agent_stays_away_until_they_do(scene):
    (scene.folder / "app.py").write_text(misbehaving("open('trains', 'w').close()\ntime.sleep(600)"))
    sensors = Sensed()
    state = scene.start(Policy(conditions={"on_mains": True}), sensors)
    talk = scene.liar.talk()
    talk.send(assignment())
    until((scene.folder / "trains").exists, "it trains")
    sensors.readings = dataclasses.replace(GOOD, on_mains=False)
    assert code(talk.hear()) == "conditions"
    talk.end()
    until(lambda: "battery" in str(AgentState(state.directory).fact("doing")), "it says why it stays away")
    scene.agents[-1][0].wake()
    with pytest.raises(queue.Empty):
        scene.liar.talk(timeout_s=0.2)
    sensors.readings = GOOD
    scene.agents[-1][0].wake()
    scene.liar.talk()
