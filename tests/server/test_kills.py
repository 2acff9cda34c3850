"""kill -9 of a real coordinator at every write and every send, before and after; members over sockets live on.

The first round always fails: most members send garbage for their masked vectors, so that nothing was released and its
charge comes back. The next two are committed; the model is evaluated on the members' data, and then published.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tests.coordinating
from quorate.clients.participation import Participation
from quorate.clients.states import ClientStates
from quorate.coordination import Addresses, CoordinatorProcess
from quorate.errors import ProtocolViolation
from quorate.identity import Holder, Role
from quorate.identity.membership import utc_now
from quorate.plan import Plan
from quorate.planfile import format_plan, make_plan
from quorate.privacy import Ledger
from quorate.randomness import Randomness
from quorate.rounds import Assignment, Kind
from quorate.server.authority import Authority
from quorate.server.faults import Point
from quorate.server.registry import Registry
from quorate.server.store import opened
from quorate.wire import frames
from tests.coordinating import Job
from tests.federations import GAUSSIAN, SECAGG, content, wine
from tests.identity.authorities import HOUR
from tests.sockets import read, write

CLIENTS = 8
ROUNDS = 2
FAITHFUL = 2  # of the members, in the round that fails
MASKED_INPUT, REVEAL = 3, 4  # what a member says third and fourth in a round

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(  # so that a coordinator starts, and publishes, at once
    ["__main__", "tests.coordinating", "dp_accounting", "onnx"]
)


def plan_content(directory: Path) -> dict[str, Any]:
    return content(
        rounds={"count": ROUNDS, "cohort": CLIENTS, "sampling": "fixed"},
        privacy=GAUSSIAN,
        secure_aggregation={**SECAGG, "min_survivors": 5},
        evaluation={"every": ROUNDS, "metrics": {"accuracy": [0, 1]}, "noise_multiplier": 1.0},
        publish={"registry": str(directory / "registry"), "model": "wine"},
        population={"name": "drinkers", "epsilon": 1000.0, "delta": 1e-6},
    )


@dataclass
class Members:
    """Who takes part, in threads of the test: they outlive every coordinator, and remember what came and what left.

    Args:
        port_file: where a coordinator says at which port it is.
    """

    port_file: Path
    assigned: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    revealed: set[int] = field(default_factory=set)
    _threads: list[threading.Thread] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(wine(CLIENTS).member(index) for index in range(CLIENTS))

    def __enter__(self) -> Members:
        for place, name in enumerate(self.names):
            self._threads.append(threading.Thread(target=self._live, args=(place, name), daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _live(self, place: int, name: str) -> None:
        task = make_plan(plan_content(self.port_file.parent)).task.resolve()
        client, states = task.model.client(wine(CLIENTS).clients[place]), ClientStates()
        while not self._ended.wait(0.01):
            with contextlib.suppress(OSError, ValueError):
                port = int(self.port_file.read_text())
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    connection.settimeout(0.2)
                    write(connection, name.encode())
                    self._take_part(
                        connection, place, lambda: Participation(name, client, states, Randomness.system())
                    )

    def _take_part(self, connection: socket.socket, place: int, fresh: Callable[[], Participation]) -> None:
        name, participation = self.names[place], fresh()
        said = 0
        while not self._ended.is_set():
            try:
                connection.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            connection.settimeout(None)
            if (received := read(connection)) is None:
                return
            connection.settimeout(0.2)
            frame = frames.decode(received)
            if isinstance(frame, Assignment):
                self.assigned[frame.round].add(name)
                said = 0
                participation = fresh()
            with contextlib.suppress(ProtocolViolation):
                for answer in participation.receive(received):
                    said += 1
                    if frame.round == 1 and said == MASKED_INPUT and place >= FAITHFUL:
                        answer = frames.encode(frames.SumMessage(frame.run, frame.round, os.urandom(64)))
                    if said == REVEAL:
                        self.revealed.add(frame.round)
                    write(connection, answer)


@dataclass
class Story:
    """A run, over all its coordinators.

    Args:
        directory: of the state, the port, the trace and the registry.
        database: a URL, or None.
    """

    directory: Path
    members: Members
    database: str | None = None

    def coordinator(self, kill_at: str | None = None) -> None:
        """One coordinator: to the end, or until it is killed."""
        job = Job(plan_content(self.directory), self.directory, self.members.names, self.database, kill_at)
        process = PROCESSES.Process(target=tests.coordinating.main, args=(job,))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
            pytest.fail(f"a coordinator hangs; it was last at {self.trace()[-1]}")
        assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL), kill_at

    def trace(self) -> list[str]:
        return (self.directory / "trace").read_text().splitlines()

    def look(self) -> tuple[dict[int, Any], float, str]:
        """The committed rounds, the ε spent and the status; nothing that left a coordinator is unpaid."""
        with opened(self.directory / "state", self.database) as store:
            runs = store.runs()
            if not runs:
                return {}, 0.0, ""
            (run,) = runs
            rows = store.ledger(run.id)
            ledger = Ledger(rows, delta=resolved(self.directory).privacy.delta)
            ledger.verify()
            rounds = {past.number: past for past in store.rounds(run.id)}
            reserved = {number: ledger.is_charged(number) for number in rounds}
            for number, members in self.members.assigned.items():
                assert members <= set(charged_members(rows, number)), number
            for number in self.members.revealed:
                assert rounds[number].revealing, number
            for number, past in rounds.items():
                if past.revealing or past.status == "committed":
                    assert reserved[number], number
            committed = {number: past for number, past in rounds.items() if past.status == "committed"}
            found = store.checkpoint(run.id)
            training = [past for past in committed.values() if past.kind is Kind.FIT]
            assert (0 if found is None else found[0]) == len(training) == run.committed
            together = Ledger(rows, delta=1e-6).spent().released
            assert store.account("drinkers").spent().released == together
            return committed, ledger.spent().released, run.status

    def assert_finished(self, epsilon: float) -> None:
        committed, spent, status = self.look()
        assert [past.kind for past in committed.values()] == [Kind.FIT] * ROUNDS + [Kind.EVALUATE]
        assert status == "finished"
        assert spent >= epsilon - 1e-12
        with opened(self.directory / "state", self.database) as store:
            (run,) = store.runs()
            rounds = store.rounds(run.id)
            assert [past.number for past in rounds] == list(range(1, len(rounds) + 1))
            assert {past.status for past in rounds} <= {"committed", "aborted"}
            trained = max(number for number, past in committed.items() if past.kind is Kind.FIT)
            assert [(v["round"], v["version"]) for v in store.versions(run.id)] == [(trained, 1)]
        registry = Registry(self.directory / "registry")
        assert "federated/accuracy" in registry.manifest("wine", 1).evaluation
        assert registry.versions("wine") == (1,)
        assert not [finding for finding in registry.verify() if finding.serious]


def resolved(directory: Path) -> Plan:
    return make_plan(plan_content(directory)).resolved(CLIENTS)


def charged_members(rows: Any, number: int) -> list[str]:
    return [
        member
        for row in map(json.loads, rows.entries())
        if row["kind"] == "reserve" and row["round"] == number
        for member in row["members"]
    ]


@cache
def empty_registry() -> Path:
    """It takes seconds to make, and nothing here is about that."""
    made = Path(tempfile.mkdtemp()) / "registry"
    Registry.create(made)
    atexit.register(shutil.rmtree, made.parent)
    return made


@contextlib.contextmanager
def story(directory: Path, database: str | None = None) -> Iterator[Story]:
    directory.mkdir()
    shutil.copytree(empty_registry(), directory / "registry")
    with Members(directory / "port") as members:
        yield Story(directory, members, database)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], float]:
    """Every moment of a run that nobody disturbs, and what it spends."""
    with story(tmp_path_factory.mktemp("undisturbed") / "run") as told:
        told.coordinator()
        committed, spent, _ = told.look()
        assert list(committed) == [2, 3, 4]
        told.assert_finished(spent)
        return list(dict.fromkeys(told.trace())), spent


def killed_at(moment: str, epsilon: float, directory: Path, database: str | None = None) -> None:
    with story(directory, database) as told:
        told.coordinator(kill_at=moment)
        committed, spent = {}, 0.0
        if not moment.startswith("0 "):  # before that there may be no state to look into
            committed, spent, _ = told.look()
        told.coordinator()
        after, _, _ = told.look()
        assert {number: after[number] for number in committed} == committed
        assert after.keys() >= committed.keys()
        told.assert_finished(max(spent, epsilon))


def test_every_point_of_one_run_is_passed(undisturbed) -> None:
    """But for those of a coordinator with several runs and of an authority, which have tests of their own below."""
    moments, _ = undisturbed
    passed = {moment.split()[2] for moment in moments}
    assert passed == {point.name for point in Point} - {"HOST_RUN", "WANT_RUN", *OF_AN_AUTHORITY}
    phases = {moment.split()[3] for moment in moments if moment.split()[2] == "SEND_SUM"}
    assert phases == {"share", "mask", "unmask"}  # the assignment itself asks for the first
    befores = {moment.split(" ", 2)[2] for moment in moments if " before " in moment}
    assert befores == {moment.split(" ", 2)[2] for moment in moments if " after " in moment}


OF_AN_AUTHORITY = ("MAKE_TOKEN", "ENROL", "RENEW", "REVOKE")
"""In the order in which `tests.coordinating.administer` passes them."""

MOST_DELICATE = (
    "1 before ABORT  1",  # neither refunded nor aborted
    "1 after ABORT  1",  # both, and nobody was told
    "2 after LEDGER  1",  # charged, and nothing was sent
    "2 after SEND_ASSIGNMENT  1",
    "2 before REVEAL  1",
    "2 after REVEAL  1",
    "2 after SEND_SUM unmask 1",
    "2 after COMMIT  1",
    "4 after LEDGER  1",  # an evaluation, charged
    "4 after COMMIT  1",
    "4 after PUBLISH  1",
)


@pytest.mark.parametrize("moment", MOST_DELICATE)
def test_a_coordinator_killed_at_a_delicate_moment_goes_on(moment: str, undisturbed, tmp_path: Path) -> None:
    moments, epsilon = undisturbed
    assert moment in moments
    killed_at(moment, epsilon, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_coordinator_killed_at_any_moment_goes_on(undisturbed, tmp_path: Path) -> None:
    moments, epsilon = undisturbed
    for number, moment in enumerate(moments):
        try:
            killed_at(moment, epsilon, tmp_path / str(number))
        except BaseException as error:
            error.add_note(f"killed at {moment!r}")
            raise


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOST_DELICATE)
def test_a_coordinator_killed_with_its_state_in_postgresql_goes_on(
    moment: str, undisturbed, tmp_path: Path, postgresql
) -> None:
    _, epsilon = undisturbed
    killed_at(moment, epsilon, tmp_path / "run", postgresql.fresh())


@pytest.mark.parametrize(
    ("kill_at", "wanted"),
    [
        ("before HOST_RUN", []),
        ("after HOST_RUN", ["running"]),
        ("before WANT_RUN", ["running"]),
        ("after WANT_RUN", ["paused"]),
    ],
)
def test_a_coordinator_of_several_runs_knows_after_a_kill_what_was_wanted(
    kill_at: str, wanted: list[str], tmp_path: Path
) -> None:
    text = format_plan(
        make_plan(
            content(
                rounds={"count": ROUNDS, "cohort": CLIENTS, "sampling": "fixed"},
                privacy=GAUSSIAN,
                secure_aggregation={**SECAGG, "min_survivors": 5},
                fleet={"kind": "devices", "population": CLIENTS},
            )
        )
    )
    process = PROCESSES.Process(target=tests.coordinating.host, args=(tmp_path, text, kill_at))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    with opened(tmp_path / "state") as store:
        assert [found for _, found in store.hosted().values()] == wanted
    addresses = Addresses("localhost:0", "localhost:0", "localhost:0", None)
    with CoordinatorProcess(tmp_path, addresses, insecure=True, grace_s=0.0) as running:
        for state, was in zip(running.host.states(), wanted, strict=True):
            assert state.status in (("waiting", "running") if was == "running" else (was,))
        if not wanted:
            assert running.host.start(text).committed == 0


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("point", ["MIGRATE", *OF_AN_AUTHORITY])
def test_an_authority_killed_around_a_write_has_done_all_of_it_or_nothing(
    point: str, moment: str, tmp_path: Path
) -> None:
    folder = tmp_path / "authority"
    made = Authority.create(folder, "test")
    leaver = Holder.create(tmp_path / "leaver", made.root)
    leaver.install(made.enrol(made.token(HOUR).text, leaver.request()).der, utc_now())
    token, device = made.token(HOUR).text, Holder.create(tmp_path / "device", made.root)
    request = device.request()
    before = made.head()
    made.close()
    if point == "MIGRATE":
        with contextlib.closing(sqlite3.connect(folder / "authority.sqlite")) as records:
            records.execute("DROP TABLE alembic_version")
    arguments = (folder, token, request, leaver.name, f"{moment} {point}")
    process = PROCESSES.Process(target=tests.coordinating.administer, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL

    def done(what: str) -> bool:
        order = ("MIGRATE", *OF_AN_AUTHORITY)
        return order.index(what) < order.index(point) or (what == point and moment == "after")

    after = Authority(folder)  # it reads the log from the beginning, and verifies it
    assert after.open_tokens() == 1 - done("ENROL") + done("MAKE_TOKEN")
    assert {party.name for party in after.parties()} == {leaver.name} | (
        {device.name} if done("ENROL") else set()
    )
    assert after.roll.is_revoked(leaver.name) is done("REVOKE")
    assert after.head().size == before.size + done("ENROL") + done("REVOKE")
    # Who heard nothing asks again.
    device.install(after.enrol(token, request).der, utc_now())
    after.revoke(leaver.name, "lost")
    assert after.roll.check(device.certificate, Role.DEVICE).name == device.name
    assert after.head().size == before.size + 2
    after.close()
