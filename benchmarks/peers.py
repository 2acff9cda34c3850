"""The same job on Quorate's fleets and on its peers' runtimes: seconds a round, memory, accuracy, lines of user code.

    python -m benchmarks.peers [--quick] [--case NAME] [--json FILE]

Softmax regression on the digits of scikit-learn over four clients, FedAvg weighted by examples, one local epoch in
batches of 20 (`peers.toml`). Each case is a process of its own, with all that it starts; its memory is the most that
they hold together, shared pages counted once a process, sampled every 0.2 seconds. A round's time is the median without
the first one, which starts things. Cases whose packages are not installed are left out, and said so.

Lines are those that a user writes: of Flower's app its Python and `pyproject.toml`; of ours the plan; of TFF's
its script. Evaluation on the
test set is in every round.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from benchmarks._rows import Row

CASES = {
    "Quorate, simulation": ("benchmarks._peers", "simulation", 20),
    "Quorate over a SuperLink, nodes of ours": ("benchmarks._peers_flower", "over_nodes_of_ours", 4),
    "Quorate over a SuperLink, stock SuperNodes": ("benchmarks._peers_flower", "over_supernodes", 3),
    "Flower, SuperLink, stock SuperNodes": ("benchmarks._peers_flower", "flower_superlink", 3),
    "Flower, simulation on Ray": ("benchmarks._peers_flower", "flower_simulation", 4),
    "TFF, its own runtime": ("benchmarks._peers_tff", "tff_runtime", 10),
    "Quorate, steps by TFF": ("benchmarks._peers_tff", "tff_engine", 10),
}
"""Where each case is, and how many rounds it takes; `--quick` takes two."""


def measured(name: str, quick: bool) -> list[Row]:
    """Runs a case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peers", "--inside", name, *(["--quick"] if quick else [])]
    most = 0
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        process = subprocess.Popen(command, stdout=said, stderr=complained, start_new_session=True)
        try:
            while process.poll() is None:
                most = max(most, _held(process.pid))
                time.sleep(0.2)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        complained.seek(0)
        results, errors = said.read(), complained.read()
    if process.returncode:
        print(f"left out: {name}: {(errors.strip().splitlines() or ['no reason'])[-1]}", file=sys.stderr)
        return []
    outcome = json.loads(results.strip().splitlines()[-1])
    return [
        Row(name, "a round", "s", round(statistics.median(outcome["seconds"]), 3)),
        Row(name, "memory", "MB", round(most / 1e6)),
        Row(name, "accuracy", "", round(outcome["accuracy"], 3)),
        Row(name, "lines of user code", "", outcome["lines"]),
    ]


def _held(pid: int) -> int:
    """What a process and its descendants hold, in bytes."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in [parent := psutil.Process(pid), *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def inside(name: str, quick: bool) -> None:
    """The case itself; what it came to is the last line."""
    module, function, rounds = CASES[name]
    outcome = getattr(importlib.import_module(module), function)(2 if quick else rounds)
    print(json.dumps(asdict(outcome)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two rounds each")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be given again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.inside, options.quick)
        return
    rows = [row for name in options.case or CASES for row in measured(name, options.quick)]
    print(f"{'case':44} {'s a round':>10} {'memory, MB':>11} {'accuracy':>9} {'lines':>6}")
    for start in range(0, len(rows), 4):
        second, memory, accuracy, written = (row.value for row in rows[start : start + 4])
        print(f"{rows[start].case:44} {second:10.3f} {memory:11.0f} {accuracy:9.3f} {written:6.0f}")
    if options.json:
        machine = {
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
        }
        report = {"benchmark": "peers", "machine": machine, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
