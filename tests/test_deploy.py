"""What `docs/deploy.md` tells a stranger to type, on machines that are empty folders: only names and ports differ."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quorate.simulations import datasets
from tests.cli.commands import COMMAND

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parents[1] / "docs/deploy.md").read_text(encoding="utf-8")
DEVICES = 4


def shown(name: str) -> str:
    """A file, as the page has it."""
    (block,) = re.findall(rf"^    # {re.escape(name)}\n(?:(?:    .*)?\n)+", PAGE, re.MULTILINE)
    return textwrap.dedent(block)


class Machine:
    """A folder, and a home of its own."""

    def __init__(self, folder: Path):
        self.folder, self.said = folder, folder / "said"
        folder.mkdir()
        self.started: list[subprocess.Popen[str]] = []

    def write(self, name: str) -> None:
        (self.folder / name).write_text(shown(name), encoding="utf-8")

    def types(self, command: str, **instead: str) -> str:
        """A command of the page, to its end, with other names in the place of those that are made up there."""
        done = subprocess.run(
            self._words(command, instead), **self._where(), capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    def starts(self, command: str, *options: str, **instead: str) -> subprocess.Popen[str]:
        """One that goes on."""
        with self.said.open("a") as said:
            words = [*self._words(command, instead), *options]
            process = subprocess.Popen(words, **self._where(), stdout=subprocess.PIPE, stderr=said)
        self.started.append(process)
        return process

    def _words(self, command: str, instead: dict[str, str]) -> list[str]:
        line = re.search(rf"^    quorate {re.escape(command)}.*$", PAGE, re.MULTILINE)
        assert line is not None, f"the page does not say: quorate {command}"
        words = line[0].split("--note")[0].split()[1:]
        for place, known in instead.items():
            words = [known if word.startswith(MADE_UP[place]) else word for word in words]
        return [COMMAND, *words]

    def _where(self) -> dict[str, object]:
        home = {"HOME": str(self.folder), "XDG_STATE_HOME": ""}
        return {"cwd": self.folder, "env": {**os.environ, **home}, "text": True}


MADE_UP = {"host": "fl.example.org", "enrolment": "fl.example.org:9444", "token": "quorate1.", "run": "RUN"}


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    """The coordinator's, and those of the devices."""
    made = [Machine(tmp_path / name) for name in ("coordinator", *(f"device-{i}" for i in range(DEVICES)))]
    yield made
    for machine in made:
        for process in machine.started:
            process.kill()
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()


def test_the_page_takes_a_stranger_from_empty_machines_to_a_model_under_mutual_tls(machines):
    coordinator, *devices = machines
    coordinator.types("coordinator init", host="localhost")
    free = (
        "--listen",
        "localhost:0",
        "--enrolment",
        "localhost:0",
        "--admin",
        "localhost:0",
        "--metrics",
        "",
    )
    started = coordinator.starts("coordinator run fl", *free)
    ports = dict(started.stdout.readline().split()[::2] for _ in range(3))
    data = datasets.digits().partition("iid", clients=DEVICES, seed=0)
    for machine, own in zip(devices, data.clients, strict=True):
        for name in ("client.py", "policy.toml"):
            machine.write(name)
        np.savez(machine.folder / "mine.npz", x=own.x, y=own.y)
        token = coordinator.types("coordinator token").split()[0]
        machine.types("agent enrol", enrolment=f"localhost:{ports['enrolment']}", token=token)
        machine.starts("agent run")
    coordinator.write("plan.toml")
    run = coordinator.types("runs start").split()[1]
    said = coordinator.types("runs watch", run=run)
    assert re.search(r"^round 5: committed, accuracy 0\.\d+, loss .*survivors 4 of 4$", said, re.MULTILINE), (
        said
    )
    assert said.endswith("finished\n")
    assert (coordinator.folder / "registry").exists()
    assert "insecure" not in coordinator.said.read_text()
