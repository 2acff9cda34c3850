"""An idle fleet: thousands of agents check in, are told that nobody wants them, and come back.

    python -m benchmarks.idle_fleet [--quick] [--json FILE]

The coordinator is `quorate coordinator run` in a process of its own, without a run. Agents are light and share a few
processes; each has a connection of its own, which it keeps between check-ins. They come back within 10 s whatever they
are told, so that the rate is one that can be measured; a device of a very large fleet comes back in an hour. What a
check-in costs the coordinator is its processor time over the check-ins it answered.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import grpc
import numpy as np

from benchmarks._coordinator import agents, coordinator, failures, wait_until
from benchmarks._rows import Row
from quorate.server.devices.pacing import LATEST_IDLE_S

MB = 1e6


def measured(count: int, processes: int, seconds: float, within_s: float) -> list[Row]:
    """What so many idle agents cost."""
    case = f"{count:,} idle agents"
    with (
        tempfile.TemporaryDirectory() as folder,
        coordinator(Path(folder) / "fl") as started,
    ):
        empty_bytes = started.resident_bytes
        port = started.ports["devices"]
        with agents(port, count, processes, "--idle", "--within", str(within_s)) as seen:
            wait_until(lambda: started.counted()["quorate_sent_away_total"] >= count, 300.0)
            before, cpu_s, begun = started.counted(), started.cpu_s, time.perf_counter()
            time.sleep(seconds)
            after, cpu_after_s, took_s = started.counted(), started.cpu_s, time.perf_counter() - begun
            held_bytes = started.resident_bytes - empty_bytes
    check_ins = after["quorate_sent_away_total"] - before["quorate_sent_away_total"]
    cost_s = (cpu_after_s - cpu_s) / check_ins
    latencies_s = np.concatenate([each["latencies_s"] for each in seen])
    return [
        Row(case, "check-ins", "1/s", check_ins / took_s),
        Row(case, "failed streams", "", float(failures(seen))),
        Row(case, "check-in, p50", "ms", 1e3 * float(np.quantile(latencies_s, 0.5))),
        Row(case, "check-in, p99", "ms", 1e3 * float(np.quantile(latencies_s, 0.99))),
        Row(case, "coordinator's processor time a check-in", "ms", 1e3 * cost_s),
        Row(case, "coordinator's memory an idle connection", "kB", held_bytes / count / 1e3),
        Row(
            case,
            f"devices a core serves, each every {LATEST_IDLE_S:.0f} s",
            "million",
            LATEST_IDLE_S / cost_s / 1e6,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="300 agents: under 60 s")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    options = parser.parse_args()
    rows = measured(300, 2, 10.0, 3.0) if options.quick else measured(5000, 4, 60.0, 10.0)
    for row in rows:
        print(f"{row.case:20} {row.metric:52} {row.value:10.4g} {row.unit}")
    if options.json:
        machine = {
            "system": platform.platform(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "grpcio": grpc.__version__,
        }
        content = {"benchmark": "idle_fleet", "machine": machine, "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
