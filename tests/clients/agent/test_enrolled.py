"""From two empty folders to a committed round, with the commands that a person types: mutual TLS, signed sums."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from quorate.clients.agent.state import AgentState
from quorate.rounds import Outcome
from tests.clients.agent.federation import APPLICATION, COMMAND, names, until

pytestmark = pytest.mark.slow

PLAN = """\
[task]
name = "softmax"
inputs = 8
classes = 3

[rounds]
count = 2
cohort = 4
sampling = "fixed"

[privacy]
mechanism = "distributed-discrete-gaussian"
clip_norm = 1.0
noise_multiplier = 0.5

[secure_aggregation]
protocol = "secagg+"
threat_model = "semi-malicious"
min_survivors = 4
corrupt = 0.0

[fleet]
kind = "devices"
population = 4
"""


class Machines:
    """A coordinator and devices, each in a folder of its own."""

    def __init__(self, directory: Path):
        self.directory, self.site = directory, directory / "fl"
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.ports: dict[str, str] = {}

    def quorate(self, *arguments: str, cwd: Path | None = None, fails: bool = False) -> str:
        """A command, run to its end; what it said."""
        done = subprocess.run(
            [COMMAND, *arguments],
            cwd=cwd or self.directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def coordinate(self) -> None:
        """Starts the coordinator; with the ports that it had before, if it ran."""
        where = {name: f"localhost:{self.ports.get(name, 0)}" for name in ("devices", "enrolment", "admin")}
        arguments = [
            "--listen",
            where["devices"],
            "--enrolment",
            where["enrolment"],
            "--admin",
            where["admin"],
        ]
        arguments += ["--metrics", "", "--grace", "0"]
        process = subprocess.Popen(
            [COMMAND, "coordinator", "run", str(self.site), *arguments],
            stdout=subprocess.PIPE,
            stderr=(self.directory / "coordinator.log").open("a"),
            text=True,
            env=self._environment(),
        )
        self.processes["coordinator"] = process
        assert process.stdout is not None
        for _ in range(3):
            name, _, port = process.stdout.readline().split()
            self.ports[name] = port

    def folder(self, name: str) -> Path:
        made = self.directory / name
        made.mkdir(exist_ok=True)
        (made / "app.py").write_text(APPLICATION)
        return made

    def enrol(self, name: str) -> str:
        """A token, and the device that uses it."""
        token = self.quorate("coordinator", "token", str(self.site)).split()[0]
        enrolment = f"localhost:{self.ports['enrolment']}"
        arguments = ["--coordinator", enrolment, "--token", token, "--state", "state"]
        return self.quorate("agent", "enrol", *arguments, cwd=self.folder(name))

    def start(self, name: str, policy: str = "") -> None:
        """An agent, as a process."""
        folder = self.folder(name)
        (folder / "policy.toml").write_text(policy)
        with (folder / "log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [
                    COMMAND,
                    "agent",
                    "run",
                    "--task",
                    "app:task",
                    "--state",
                    "state",
                    "--policy",
                    "policy.toml",
                ],
                cwd=folder,
                env={**self._environment(), "DEVICE": name},
                stdout=log,
                stderr=log,
                text=True,
            )

    def outcomes(self, name: str) -> Sequence[Outcome | None]:
        """Of the rounds that an agent knows of, the newest first."""
        with contextlib.closing(AgentState(self.folder(name) / "state")) as state:
            return [past.outcome for past in state.past(100)]

    def close(self) -> None:
        """Ends everything."""
        for process in self.processes.values():
            process.kill()
            process.wait(20)
            if process.stdout is not None:
                process.stdout.close()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.getcwd()}


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    made.quorate("coordinator", "init", str(made.site), "--host", "localhost")
    made.coordinate()
    yield made
    made.close()


def test_devices_enrol_and_train_and_one_of_them_leaves(machines):
    agents = names(4, "device")
    said = [machines.enrol(name) for name in agents]
    signer = re.findall(r"signs plans +([0-9a-f]{64})", said[0])[0]
    plan = machines.directory / "plan.toml"
    plan.write_text(PLAN)
    machines.quorate("runs", "start", str(plan), "--at", str(machines.site))
    for name in agents:
        machines.start(name, f'[accept]\nthreat_model = "semi-malicious"\nsigners = ["{signer}"]\n')
    for name in agents:
        until(
            lambda name=name: machines.outcomes(name).count(Outcome.COMMITTED) == 2,
            f"{name} hears of two rounds",
        )
    idle = psutil.Process(machines.processes["device-0"].pid)
    until(lambda: idle.memory_info().rss < 80e6, "it waits, without what a round loaded")
    status = machines.quorate("agent", "status", "--state", "state", cwd=machines.folder("device-0"))
    assert "committed 2" in status
    keys = machines.folder("device-0") / "state" / "keys"
    assert (keys / "identity-key.pem").exists()
    assert "was told" in machines.quorate(
        "agent", "forget", "--state", "state", cwd=machines.folder("device-0")
    )
    assert machines.processes["device-0"].wait(60) == 0
    assert not (machines.folder("device-0") / "state").exists()
    assert "revoked" in machines.quorate("coordinator", "keys", str(machines.site))
