"""A million members who come and go: cohorts of a thousand who are waited for, and buffers of a hundred.

    python -m benchmarks.population [--quick] [--json FILE]

Members have 20 examples of 64 features each, made when they are drawn, and traces: hours of the day, speeds and
bandwidths of their own. A plan trains softmax regression for 50 rounds of 1,000 members; another, for as many updates,
500 buffers of 100 of the 1,000 who work at any time. Each is a process of its own, from its start to its end, imports
included. Processor time is beside the seconds, since another program on the machine lengthens those only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

import quorate as q
from benchmarks._rows import Row
from quorate.simulations import datasets
from quorate.simulations.traces import Diurnal

MEMBERS, PRESENT = 1_000_000, 200_000
CASES = {
    "50 rounds of 1,000 of a million": q.Rounds(count=50, cohort=1000),
    "500 buffers of 100 of a million": q.Rounds(
        count=500, cohort=100, sampling="buffered", buffering=q.Buffering(concurrency=1000)
    ),
}
MOST_SECONDS, MOST_GB = 60.0, 1.0


def run(case: str, rounds: int) -> dict[str, float]:
    """A run of so many rounds, in this process: what it came to, and its peak memory."""
    fleet = q.Simulation(
        datasets.population(clients=MEMBERS, examples=20, features=64),
        traces=Diurnal(),
        present=PRESENT,
        seed=0,
    )
    plan = q.Plan(
        task=q.Task(q.models.softmax(64, 10)), rounds=CASES[case].model_copy(update={"count": rounds})
    )
    done = q.run(plan, fleet=fleet, watch=lambda report: None)
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_bytes": peak_bytes, "committed": len(done.committed), **done.metrics}


def measured(case: str, rounds: int, goal: bool) -> list[Row]:
    """What a case costs."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.population", "--case", case, "--rounds", str(rounds)],
        check=True,
        stdout=subprocess.PIPE,
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(child.stdout)
    assert found["committed"] == rounds
    scaled = seconds * CASES[case].count / rounds
    held_gb = found["peak_bytes"] / 1e9
    return [
        Row(
            case,
            "from start to end",
            "s",
            scaled,
            f"≤ {MOST_SECONDS:g} s" if goal else "",
            scaled <= MOST_SECONDS if goal else None,
        ),
        Row(
            case,
            "peak memory",
            "GB",
            held_gb,
            f"≤ {MOST_GB:g} GB" if goal else "",
            held_gb <= MOST_GB if goal else None,
        ),
        Row(
            case,
            "processor time",
            "s",
            (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            * CASES[case].count
            / rounds,
        ),
        Row(case, "accuracy", "", found["accuracy"]),
        Row(case, "simulated hours", "h", found["simulated_hours"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the rounds, and their time times ten"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(options.case, options.rounds)))
        return
    part = 10 if options.quick else 1
    rows = [
        row
        for number, (case, rounds) in enumerate(CASES.items())
        for row in measured(case, rounds.count // part, goal=number == 0)
    ]
    for row in rows:
        verdict = (
            "" if row.holds is None else f"  goal {row.goal}: {'holds' if row.holds else 'DOES NOT HOLD'}"
        )
        print(f"{row.case:34} {row.metric:20} {row.value:10.3g} {row.unit:3}{verdict}")
    if options.json:
        machine = {
            "system": platform.platform(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        content = {"benchmark": "population", "machine": machine, "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
