"""Real agents around a real coordinator: `quorate agent run` as processes, the device service on a free port."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate import assembly
from quorate.clients.agent.state import AgentState, Past
from quorate.endorsement import Endorsement
from quorate.plan import Plan
from quorate.planfile import make_plan
from quorate.result import FinishedRun
from quorate.rounds import Assignment, Close, Closed, Deadlines
from quorate.server.coordinator import RoundReport
from quorate.server.devices import (
    SERVICE,
    Demand,
    DeviceFleet,
    DeviceService,
    Hosted,
    Listener,
    LocalDoor,
    Servers,
    WaitingRoom,
)
from quorate.server.metrics import Metrics
from quorate.summation import Lost, Message, Sink, Summation, Transport

COMMAND = str(Path(sys.executable).with_name("quorate"))
OPERATOR = Ed25519PrivateKey.generate()
SIGNER = OPERATOR.public_key().public_bytes_raw().hex()

APPLICATION = """
import os, sys, time
import numpy as np
import quorate as q
from quorate.clients.adapters.examples import Examples

def examples():
    rng = np.random.default_rng(int.from_bytes(os.environ["DEVICE"].encode(), "big") % 2**32)
    y = rng.integers(0, 3, 30)
    return Examples(np.eye(8)[y] + rng.normal(scale=0.1, size=(30, 8)), y)

task = q.Task(q.models.softmax(8, 3), data=examples)
"""
"""Three classes that a line tells apart; each device draws its own examples of them."""


def misbehaving(body: str) -> str:
    """The same application, whose training does something else."""
    lines = "\n".join("        " + line for line in body.strip().splitlines())
    return (
        APPLICATION
        + f"""
class Client:
    rules = frozenset({{"sgd"}})
    def fit(self, parameters, instruction, state):
        import quorate.rounds
{lines}
    def evaluate(self, parameters, instruction, state):
        raise NotImplementedError

class Model:
    def __init__(self, model): self.__dict__.update(model=model)
    def __getattr__(self, name): return getattr(self.model, name)
    def client(self, data): return Client()

task = q.Task(Model(task.model), data=examples)
"""
    )


def make(rounds: int = 1, cohort: int = 4, min_survivors: int = 3, **sections: Any) -> Plan:
    """A plan in which every agent takes part in every round."""
    content: dict[str, Any] = {
        "task": {"name": "softmax", "inputs": 8, "classes": 3},
        "rounds": {"count": rounds, "cohort": cohort, "sampling": "fixed"},
        "training": {"learning_rate": 0.5, "epochs": 2},
        "privacy": {"mechanism": "distributed-discrete-gaussian", "clip_norm": 1.0, "noise_multiplier": 0.2},
        "secure_aggregation": {"protocol": "secagg+", "min_survivors": min_survivors, "corrupt": 0.0},
        "fleet": {"kind": "devices", "listen": "localhost:0", "population": cohort, "insecure": True},
    }
    return make_plan({**content, **sections})


@dataclasses.dataclass
class Watching:
    """A transport that does something when an agent's n-th message of a round has arrived."""

    inner: Transport
    at: Mapping[tuple[str, int], Callable[[], None]]
    heard: Counter[str] = dataclasses.field(default_factory=Counter)

    def send(self, member: str, data: bytes) -> None:
        self.inner.send(member, data)

    def receive(self, timeout_s: float) -> Message | Lost | None:
        event = self.inner.receive(timeout_s)
        if isinstance(event, Message):
            self.heard[event.member] += 1
            self.at.get((event.member, self.heard[event.member]), lambda: None)()
        return event


class Fleet(DeviceFleet):
    """A fleet whose messages a test watches."""

    federation: Federation

    def collect(self, assignment: Assignment, summation: Summation, sink: Sink, close: Close) -> Closed:
        transport, self._transport = self._transport, Watching(self._transport, self.federation.at)
        try:
            closed = super().collect(assignment, summation, sink, close)
        finally:
            self._transport = transport
        self.federation.refused.update(closed.refused)
        return closed


@dataclasses.dataclass(frozen=True)
class Source(Hosted):
    """Where that fleet comes from."""

    federation: Federation | None = None

    def open(self, plan: Plan, directory: Path | None) -> DeviceFleet:
        assert self.federation is not None
        demand = Demand(plan.task.resolve().name, self.size)
        fleet = Fleet(
            self.service,
            demand,
            endorse=lambda terms: Endorsement.of(terms, OPERATOR),
            deadlines=self.federation.deadlines,
        )
        fleet.federation = self.federation
        self.federation.opened.set()
        return fleet


class Federation:
    """A coordinator that listens, and agents in processes of their own. A context manager: leaving it ends them."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.service = DeviceService(LocalDoor(), WaitingRoom(), Metrics())
        listener = Listener("127.0.0.1:0", {SERVICE: {"Participate": self.service.handler}})
        self._servers = Servers([listener])
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.reports: list[RoundReport] = []
        self.opened = threading.Event()
        self.deadlines = Deadlines(training_s=60.0, phase_s=4.0)
        self.at: dict[tuple[str, int], Callable[[], None]] = {}
        self.refused: Counter[str] = Counter()

    def __enter__(self) -> Federation:
        self._servers.start()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.agents.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(20)
        self._servers.stop(0.0)

    @property
    def port(self) -> int:
        return self._servers.ports[0]

    def folder(self, name: str) -> Path:
        """Where an agent's application is, and its state."""
        return self.directory / name

    def start(
        self,
        *names: str,
        application: str = APPLICATION,
        policy: str = "",
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts agents; those that were there before go on with their state."""
        for name in names:
            folder = self.folder(name)
            folder.mkdir(exist_ok=True)
            (folder / "app.py").write_text(application)
            (folder / "policy.toml").write_text(policy)
            arguments = ["--task", "app:task", "--policy", "policy.toml", "--state", "state", "--insecure"]
            arguments += ["--coordinator", f"127.0.0.1:{port or self.port}", "--device", name, "--json-logs"]
            with (folder / "log.jsonl").open("ab") as log:
                self.agents[name] = subprocess.Popen(
                    [COMMAND, "agent", "run", *arguments],
                    cwd=folder,
                    env={**os.environ, "DEVICE": name, "PYTHONPATH": os.getcwd(), **(environment or {})},
                    stdout=log,
                    stderr=log,
                )

    def kill(self, name: str) -> None:
        """SIGKILL; returns when it is dead."""
        self.agents[name].kill()
        self.agents[name].wait(20)

    def stop(self, name: str) -> int:
        """SIGTERM; returns its exit code."""
        self.agents[name].terminate()
        return self.agents[name].wait(30)

    def log(self, name: str) -> str:
        """What an agent wrote."""
        return (self.folder(name) / "log.jsonl").read_text()

    def past(self, name: str) -> list[Past]:
        """The rounds that an agent knows of."""
        with self.state(name) as state:
            return state.past(100)

    @contextlib.contextmanager
    def state(self, name: str) -> Iterator[AgentState]:
        """An agent's memory."""
        opened = AgentState(self.folder(name) / "state")
        try:
            yield opened
        finally:
            opened.close()

    def run(
        self,
        plan: Plan,
        population: int | None = None,
        watch: Callable[[RoundReport], None] = lambda report: None,
    ) -> FinishedRun:
        """Runs a plan over the agents that wait."""

        def both(report: RoundReport) -> None:
            self.reports.append(report)
            watch(report)

        source = Source(self.service, plan.fleet, population or plan.rounds.cohort, federation=self)
        return assembly.run(plan, fleet=source, watch=both)

    def in_background(self, plan: Plan, population: int | None = None) -> Running:
        """The same in a thread."""
        return Running(self, plan, population)


class Running:
    """A run in a thread; `result` gives what it came to."""

    def __init__(self, federation: Federation, plan: Plan, population: int | None):
        self._found: list[FinishedRun | BaseException] = []

        def work() -> None:
            try:
                self._found.append(federation.run(plan, population))
            except BaseException as error:
                self._found.append(error)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        federation.opened.wait(60)

    def result(self, timeout_s: float = 120.0) -> FinishedRun:
        self._thread.join(timeout_s)
        assert self._found, "the run does not end"
        if isinstance(self._found[0], BaseException):
            raise self._found[0]
        return self._found[0]


def until(holds: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(sqlite3.OperationalError, FileNotFoundError):
            if holds():
                return
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


def names(count: int, first: str = "agent") -> Sequence[str]:
    return [f"{first}-{i}" for i in range(count)]
