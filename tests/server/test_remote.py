"""Rounds across a process border: the real coordinator, and members that are child processes behind sockets."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.process
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.member
from quorate import assembly
from quorate.errors import PlanError
from quorate.plan import FleetSection, Plan
from quorate.planfile import make_plan
from quorate.result import FinishedRun
from quorate.rounds import Assignment, Close, Closed, Deadlines, Member, Outcome
from quorate.server.coordinator import RoundReport
from quorate.server.remote import RemoteFleet
from quorate.simulations import datasets
from quorate.simulations.datasets import FederatedDataset
from quorate.summation import Lost, Message, Sink, Summation, Transport
from tests.member import GARBAGE, MASKED_INPUT
from tests.sockets import SocketTransport
from tests.waiting import eventually

SHARES = MASKED_INPUT - 1
COUNT = 8


@cache
def digits() -> FederatedDataset:
    return datasets.digits().partition("iid", clients=COUNT, seed=0)


MEMBERS = tuple(digits().member(i) for i in range(COUNT))


def make(rounds: int, strategy: str = "fedavg", min_survivors: int = 5, **sections: Any) -> Plan:
    """A plan in which every member takes part in every round."""
    content: dict[str, Any] = {
        "task": {"name": "softmax", "inputs": 64, "classes": 10},
        "rounds": {"count": rounds, "cohort": COUNT, "sampling": "fixed"},
        "training": {"learning_rate": 0.5, "epochs": 2},
        "strategy": {"name": strategy},
        "privacy": {
            "mechanism": "distributed-discrete-gaussian",
            "clip_norm": 1.0,
            "noise_multiplier": 0.2,
        },
        "secure_aggregation": {"protocol": "secagg+", "min_survivors": min_survivors},
    }
    return make_plan({**content, **sections})


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["__main__", "tests.member"])  # so that a member starts at once


class Children:
    """Members as child processes. A context manager: leaving it kills those that are still there."""

    def __init__(self, directory: Path, transport: SocketTransport):
        self.directory, self.transport = directory, transport
        self.processes: dict[Member, multiprocessing.process.BaseProcess] = {}

    def start(self, *members: Member, misbehaviour: str = "") -> None:
        """Starts processes and waits until they are connected."""
        for member in members:
            own = digits().clients[digits().index(member)]
            data, port = self.directory / f"{member}.npz", str(self.transport.port)
            np.savez(data, x=own.x, y=own.y)
            process = PROCESSES.Process(
                target=tests.member.main,
                args=(port, member, str(data), str(self.states_file(member)), misbehaviour),
                daemon=True,
            )
            process.start()
            self.processes[member] = process
        self.transport.wait_for(members)

    def kill(self, *members: Member) -> None:
        """SIGKILL; returns when they are dead."""
        for member in members:
            self.processes[member].kill()
            self.processes[member].join(60)
            assert not self.processes[member].is_alive()

    def signal(self, member: Member, number: signal.Signals) -> None:
        """Any other signal."""
        os.kill(self.processes[member].pid, number)

    def states_file(self, member: Member) -> Path:
        """Where a member keeps its state."""
        return self.directory / f"{member}.sqlite"

    def kept(self, member: Member) -> bool:
        """Whether the member keeps a state."""
        return self._count(member, kept=1) > 0

    def staged(self, member: Member) -> bool:
        """Whether the member still waits to hear how a round ended."""
        return self._count(member, kept=0) > 0

    def _count(self, member: Member, kept: int) -> int:
        with contextlib.closing(sqlite3.connect(self.states_file(member))) as states:
            (count,) = states.execute("SELECT COUNT(*) FROM states WHERE kept = ?", [kept]).fetchone()
            return int(count)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill(*self.processes)


@pytest.fixture
def transport() -> Iterator[SocketTransport]:
    with SocketTransport() as opened:
        yield opened


@pytest.fixture
def children(transport: SocketTransport, tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path, transport) as started:
        yield started


@dataclasses.dataclass
class Watching:
    """A transport that does something at the moment that a member's n-th message of a round arrives."""

    inner: Transport
    at: Mapping[tuple[Member, int], Callable[[], None]]
    heard: Counter[Member] = dataclasses.field(default_factory=Counter)

    def send(self, member: Member, data: bytes) -> None:
        self.inner.send(member, data)

    def receive(self, timeout_s: float) -> Message | Lost | None:
        event = self.inner.receive(timeout_s)
        if isinstance(event, Message):
            self.heard[event.member] += 1
            self.at.get((event.member, self.heard[event.member]), lambda: None)()
        return event


@dataclasses.dataclass
class Flooded:
    """A transport on which one member always has something to say."""

    inner: Transport
    member: Member

    def send(self, member: Member, data: bytes) -> None:
        self.inner.send(member, data)

    def receive(self, timeout_s: float) -> Message | Lost | None:
        return self.inner.receive(min(timeout_s, 0.001)) or Message(self.member, b"noise")


class Hurried(RemoteFleet):
    """A fleet that waits a second for each phase."""

    def collect(self, assignment: Assignment, summation: Summation, sink: Sink, close: Close) -> Closed:
        assignment = dataclasses.replace(assignment, deadlines=Deadlines(training_s=30.0, phase_s=1.0))
        return super().collect(assignment, summation, sink, close)


@dataclasses.dataclass(frozen=True)
class Population:
    """Every child."""

    size: int = COUNT
    present: int = COUNT

    def member(self, index: int) -> Member:
        return MEMBERS[index]

    def those_present(self, indices):
        return indices


@dataclasses.dataclass(frozen=True)
class Remote:
    """Where a run's fleet comes from."""

    transport: Transport
    kind: type[RemoteFleet] = RemoteFleet
    size: int = COUNT

    def section(self) -> FleetSection:
        return FleetSection(kind="children")

    def open(self, plan: Plan, directory: Path | None) -> RemoteFleet:
        return self.kind(self.transport, Population(), digits().test)


def run(
    plan: Plan,
    transport: Transport,
    state: Path | None = None,
    watch: Callable[[RoundReport], None] = lambda report: None,
    kind: type[RemoteFleet] = RemoteFleet,
) -> FinishedRun:
    return assembly.run(plan, fleet=Remote(transport, kind), state=state, watch=watch)


def test_members_in_other_processes_learn_a_model_that_only_their_noisy_sums_made(
    children: Children, transport: SocketTransport, tmp_path: Path
) -> None:
    children.start(*MEMBERS)
    found = run(make(rounds=4), transport, tmp_path / "state")
    assert [round.status for round in found.history] == ["committed"] * 4
    assert [round.survivors for round in found.history] == [COUNT] * 4
    assert all(not round.lost for round in found.history)
    assert found.metrics["accuracy"] > 0.6
    assert found.epsilon is not None
    assert found.epsilon.released > 0
    assert not found.record.simulated


def test_a_member_killed_after_its_shares_is_left_out_and_the_round_commits(
    children: Children, transport: SocketTransport
) -> None:
    children.start(*MEMBERS)
    victim = MEMBERS[3]
    found = run(make(rounds=2), Watching(transport, {(victim, SHARES): lambda: children.kill(victim)}))
    assert [round.status for round in found.history] == ["committed", "committed"]
    assert [round.survivors for round in found.history] == [COUNT - 1, COUNT - 1]
    assert found.history[0].lost == {"mask": 1}
    assert found.history[1].lost == {"advertise": 1}  # it is still gone


def test_a_member_killed_after_its_masked_input_is_in_the_sum(
    children: Children, transport: SocketTransport
) -> None:
    children.start(*MEMBERS)
    victim = MEMBERS[3]
    found = run(make(rounds=1), Watching(transport, {(victim, MASKED_INPUT): lambda: children.kill(victim)}))
    assert found.history[0].status == "committed"
    assert found.history[0].survivors == COUNT
    assert found.history[0].lost == {"unmask": 1}


def test_when_too_many_are_killed_the_round_is_aborted_uncharged_and_the_next_one_works(
    children: Children, transport: SocketTransport, tmp_path: Path
) -> None:
    children.start(*MEMBERS)
    victims = MEMBERS[:4]
    kills = {(victim, SHARES): lambda victim=victim: children.kill(victim) for victim in victims}

    def start_again(report: RoundReport) -> None:
        if report.outcome is Outcome.ABORTED:
            transport.wait_without(victims)
            children.start(*victims)

    found = run(make(rounds=1, strategy="scaffold"), Watching(transport, kills), watch=start_again)
    assert [round.status for round in found.history] == ["aborted", "committed"]
    assert found.history[0].reason is not None
    assert "4 members were left after 'mask', 5 are needed" in found.history[0].reason
    assert not found.history[0].revealing
    assert found.history[1].survivors == COUNT
    undisturbed = run(make(rounds=1, strategy="scaffold"), transport)
    assert found.epsilon == undisturbed.epsilon


def test_members_that_send_garbage_lose_only_themselves(
    children: Children, transport: SocketTransport
) -> None:
    for member, misbehaviour in zip(MEMBERS, GARBAGE, strict=False):
        children.start(member, misbehaviour=misbehaviour)
    children.start(*MEMBERS[len(GARBAGE) :])
    found = run(make(rounds=2, min_survivors=4), transport)
    assert [round.status for round in found.history] == ["committed", "committed"]
    assert [round.survivors for round in found.history] == [COUNT - len(GARBAGE)] * 2
    assert [round.lost for round in found.history] == [{"mask": len(GARBAGE)}] * 2


def test_members_keep_their_state_when_their_update_is_in_a_committed_sum_and_only_then(
    children: Children, transport: SocketTransport
) -> None:
    children.start(*MEMBERS)
    victim = MEMBERS[5]
    run(
        make(rounds=1, strategy="scaffold"),
        Watching(transport, {(victim, SHARES): lambda: children.kill(victim)}),
    )
    assert eventually(lambda: all(children.kept(member) for member in MEMBERS if member != victim))
    assert not children.kept(victim)


def test_a_member_whose_update_came_too_late_drops_its_state(
    children: Children, transport: SocketTransport
) -> None:
    children.start(*MEMBERS)
    slow = MEMBERS[2]
    stopped = Watching(transport, {(slow, SHARES): lambda: children.signal(slow, signal.SIGSTOP)})
    run(make(rounds=1, strategy="scaffold"), stopped, kind=Hurried)
    assert children.staged(slow)
    children.signal(slow, signal.SIGCONT)
    assert eventually(lambda: not children.staged(slow))
    assert not children.kept(slow)


def test_members_drop_their_state_when_the_round_is_aborted(
    children: Children, transport: SocketTransport
) -> None:
    children.start(*MEMBERS)
    victims, others = MEMBERS[:4], MEMBERS[4:]
    kills = {(victim, SHARES): lambda victim=victim: children.kill(victim) for victim in victims}
    seen: list[bool] = []

    def look(report: RoundReport) -> None:
        if report.outcome is Outcome.ABORTED:
            assert eventually(lambda: not any(children.staged(member) for member in others))
            seen.extend(children.kept(member) for member in others)
            transport.wait_without(victims)
            children.start(*victims)

    run(make(rounds=1, strategy="scaffold"), Watching(transport, kills), watch=look)
    assert seen == [False] * 4
    assert eventually(lambda: all(children.kept(member) for member in MEMBERS))


def test_a_member_that_is_too_slow_is_left_out_and_takes_part_in_the_next_round(
    children: Children, transport: SocketTransport
) -> None:
    children.start(*MEMBERS)
    slow = MEMBERS[2]

    def wake(report: RoundReport) -> None:
        children.signal(slow, signal.SIGCONT)

    stopped = Watching(transport, {(slow, SHARES): lambda: children.signal(slow, signal.SIGSTOP)})
    found = run(make(rounds=2), stopped, watch=wake, kind=Hurried)
    assert [round.status for round in found.history] == ["committed", "committed"]
    assert [round.survivors for round in found.history] == [COUNT - 1, COUNT]
    assert found.history[0].lost == {"mask": 1}


def test_a_member_that_floods_the_coordinator_does_not_hold_up_its_deadlines(
    children: Children, transport: SocketTransport
) -> None:
    children.start(*MEMBERS)
    slow = MEMBERS[2]
    stopped = Watching(transport, {(slow, SHARES): lambda: children.signal(slow, signal.SIGSTOP)})
    found = run(make(rounds=1), Flooded(stopped, MEMBERS[0]), kind=Hurried)
    assert found.history[0].survivors == COUNT - 2
    assert found.history[0].lost == {"advertise": 1, "mask": 1}


def test_a_member_that_connects_again_between_rounds_is_not_lost(
    children: Children, transport: SocketTransport
) -> None:
    children.start(*MEMBERS)

    def restart(report: RoundReport) -> None:
        if report.number == 1:
            children.kill(MEMBERS[0])
            transport.wait_without(MEMBERS[:1])
            children.start(MEMBERS[0])

    found = run(make(rounds=2), transport, watch=restart)
    assert [round.survivors for round in found.history] == [COUNT, COUNT]
    assert all(not round.lost for round in found.history)


def test_a_plain_sum_and_single_updates_cross_the_border_as_well(
    children: Children, transport: SocketTransport
) -> None:
    children.start(*MEMBERS)
    plain: dict[str, Any] = {"privacy": {"mechanism": "none"}, "secure_aggregation": {"protocol": "none"}}
    for strategy in ("fedprox", "median"):
        found = run(make(rounds=2, strategy=strategy, **plain), transport)
        assert [round.survivors for round in found.history] == [COUNT, COUNT]
        assert found.metrics["accuracy"] > 0.6
        assert "loss" in found.metrics


def test_what_is_for_simulations_only_is_refused(transport: SocketTransport) -> None:
    ideal = {"protocol": "ideal"}
    with pytest.raises(PlanError, match="for simulations"):
        run(make(rounds=1, secure_aggregation=ideal), transport)
