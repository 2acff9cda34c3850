"""A coordinator in a process of its own, light agents in others, and what the coordinator costs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

QUORATE = [sys.executable, "-c", "from quorate.cli import main; main()"]


class Coordinator:
    """What is known of a coordinator that runs: its ports, and its process."""

    def __init__(self, process: subprocess.Popen[str], ports: dict[str, int]):
        self.ports, self.process = ports, psutil.Process(process.pid)
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    @property
    def resident_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    @property
    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def fresh_peak(self) -> None:
        """The peak is that of what follows."""
        self.peak_bytes = 0

    def counted(self) -> dict[str, float]:
        """What Prometheus would scrape: by name with labels."""
        with urllib.request.urlopen(f"http://localhost:{self.ports['metrics']}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }

    def _watch(self) -> None:
        with contextlib.suppress(psutil.Error):
            while not self._ended.wait(0.02):
                self.peak_bytes = max(self.peak_bytes, self.resident_bytes)

    def close(self) -> None:
        self._ended.set()
        self._watching.join()


@contextmanager
def coordinator(folder: Path, *plans: Path, insecure: bool = True) -> Iterator[Coordinator]:
    """`quorate coordinator run`, on free ports; with certificates if it is not insecure."""
    free = ["--listen", "localhost:0", "--admin", "localhost:0", "--metrics", "localhost:0"]
    free += ["--insecure"] if insecure else ["--enrolment", "localhost:0"]
    wanted = [argument for plan in plans for argument in ("--plan", str(plan))]
    command = [*QUORATE, "coordinator", "run", str(folder), *free, "--grace", "0", *wanted]
    written = folder.parent / f"{folder.name}.log"
    with written.open("w") as log:
        process = subprocess.Popen(
            [*command, "--log-level", "warning"], stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        ports: dict[str, int] = {}
        for line in process.stdout:
            name, kind, *rest = line.split()
            if kind == "port":
                ports[name] = int(rest[0])
            if (not plans and name == "metrics") or name == "run":
                break
        else:
            process.wait()
            raise RuntimeError(f"the coordinator does not start:\n{written.read_text()}")
        started = Coordinator(process, ports)
        try:
            yield started
        finally:
            started.close()
            if process.poll() is not None:
                print(f"the coordinator ended by itself ({process.returncode}):\n{written.read_text()}")
            process.terminate()
            process.wait(30)


@contextmanager
def agents(port: int, count: int, processes: int, *options: str) -> Iterator[list[dict[str, Any]]]:
    """So many light agents; what they saw is in the list afterwards."""
    shares = [count // processes + (i < count % processes) for i in range(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks._agents", str(port), str(share), f"p{i}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i, share in enumerate(shares)
    ]
    found: list[dict[str, Any]] = []
    try:
        yield found
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        for process in started:
            assert process.stdout is not None
            with contextlib.suppress(ValueError):
                found.append(json.loads(process.stdout.read()))
            process.wait(30)


def failures(seen: list[dict[str, Any]]) -> int:
    """How many of their streams failed; what they were told is printed."""
    told = sum((Counter(each["failures"]) for each in seen), Counter[str]())
    for words, count in told.most_common(5):
        print(f"  {count} streams failed: {words}", flush=True)
    return told.total()


def wait_until(condition: Any, timeout_s: float) -> None:
    """Polls, ten times a second.

    Raises:
        TimeoutError: it did not come true.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it takes too long")
        time.sleep(0.1)
