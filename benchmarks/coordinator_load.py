"""A coordinator under load: real agents over real gRPC, trivial training, secure aggregation off and on.

    python -m benchmarks.coordinator_load [--quick] [--agents 100 1000] [--parameters 20000 200000] [--json FILE]
    python -m benchmarks.coordinator_load --flower 10

The coordinator is `quorate coordinator run` in a process of its own; agents, each with a connection of its own and the
whole protocol, are in a few more on the same machine, whose cores they share. All agents take part in every round, so
that a round waits for all of them to be back. The first round is not counted. Check-in is measured by a prober that no
run wants, while rounds run. Memory is the coordinator's resident peak during rounds; its slope is between cohorts, and
what that grows by with d is the difference of two slopes over the difference of the d's. The coordinator's processor
time an update hardly depends on what else the machine does; rates do.

With `--flower` the same cohort and model are run side by side on a Flower SuperLink with that many stock SuperNodes,
under FedAvg.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks._agents import METHOD, OPTIONS
from benchmarks._coordinator import Coordinator, agents, coordinator, failures
from benchmarks._rows import Row
from quorate.wire import admin_pb2, device_pb2
from quorate.wire.admin_pb2_grpc import AdminServiceStub
from quorate.wire.streams import VERSIONS

CLASSES = 100
MOST_MB_A_STREAM, MOST_BYTES_A_VALUE = 0.25, 1.0
LEAST_RATIO = 5.0
MB = 1e6


def plan(folder: Path, cohort: int, parameters: int, rounds: int, secure: bool) -> Path:
    """A plan in which everybody takes part in every round; about so many parameters."""
    summing = (
        f'protocol = "secagg+"\nmin_survivors = {max(3, int(0.8 * cohort))}'
        if secure
        else 'protocol = "none"'
    )
    path = folder / "plan.toml"
    path.write_text(
        f"""
[task]
name = "softmax"
inputs = {parameters // CLASSES - 1}
classes = {CLASSES}
[rounds]
count = {rounds}
cohort = {cohort}
sampling = "fixed"
[privacy]
mechanism = "none"
clip_norm = 1.0
[secure_aggregation]
{summing}
[fleet]
kind = "devices"
population = {cohort}
training_s = 1800.0
phase_s = 1800.0
"""
    )
    return path


class Prober:
    """Checks in for a task that no run wants, ten times a second, and keeps how long the answer took."""

    def __init__(self, port: int):
        self.latencies_s: list[float] = []
        self._port = port

    async def run(self, ended: asyncio.Event) -> None:
        """Until it is ended."""
        check_in = device_pb2.CheckIn(versions=VERSIONS, tasks=["nobody-s"], device="prober")
        message = device_pb2.DeviceMessage(check_in=check_in).SerializeToString()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", OPTIONS) as channel:
            method = channel.stream_stream(METHOD)
            while not ended.is_set():
                begun, call = time.perf_counter(), method()
                await call.write(message)
                await call.read()
                self.latencies_s.append(time.perf_counter() - begun)
                await asyncio.sleep(0.1)


def watched(started: Coordinator, rounds: int, timeout_s: float) -> dict[str, Any]:
    """What the rounds after the first took and cost."""

    async def watch() -> dict[str, Any]:
        ended, prober = asyncio.Event(), Prober(started.ports["devices"])
        probing = asyncio.create_task(prober.run(ended))
        marks: list[tuple[float, float, dict[str, float], int]] = []
        async with grpc.aio.insecure_channel(f"127.0.0.1:{started.ports['admin']}") as channel:
            async with asyncio.timeout(timeout_s):
                async for event in AdminServiceStub(channel).WatchRun(admin_pb2.RunRequest(run="")):
                    if event.outcome == "aborted":
                        print(f"  round {event.round} was aborted: {event.reason}")
                    if event.outcome != "committed":
                        continue
                    marks.append((time.perf_counter(), started.cpu_s, started.counted(), event.survivors))
                    if len(marks) == 1:
                        started.fresh_peak()
                    if len(marks) == rounds:
                        break
        ended.set()
        await probing
        (began, cpu, before, _), (finished, cpu_after, after, _) = marks[0], marks[-1]
        seconds = finished - began
        sent = after["quorate_sent_bytes_total"] - before["quorate_sent_bytes_total"]
        received = after["quorate_received_bytes_total"] - before["quorate_received_bytes_total"]
        return {
            "rounds_per_s": (rounds - 1) / seconds,
            "updates_per_s": sum(mark[3] for mark in marks[1:]) / seconds,
            "cpu_ms": 1e3 * (cpu_after - cpu) / sum(mark[3] for mark in marks[1:]),
            "mb_per_s": (sent + received) / MB / seconds,
            "cores": (cpu_after - cpu) / seconds,
            "peak_mb": started.peak_bytes / MB,
            "check_in_p50_ms": 1e3 * float(np.quantile(prober.latencies_s, 0.5)),
            "check_in_p99_ms": 1e3 * float(np.quantile(prober.latencies_s, 0.99)),
        }

    return asyncio.run(watch())


def measured(cohort: int, parameters: int, rounds: int, secure: bool, timeout_s: float) -> dict[str, Any]:
    """One coordinator, one run, one cohort."""
    with tempfile.TemporaryDirectory() as folder:
        made = plan(Path(folder), cohort, parameters, rounds, secure)
        with (
            coordinator(Path(folder) / "fl", made) as started,
            agents(started.ports["devices"], cohort, processes=3) as seen,
        ):
            found = watched(started, rounds, timeout_s)
        failures(seen)
        return found


def rows_of(case: str, found: dict[str, Any]) -> list[Row]:
    return [
        Row(case, "rounds", "1/s", found["rounds_per_s"]),
        Row(case, "updates", "1/s", found["updates_per_s"]),
        Row(case, "bytes in and out", "MB/s", found["mb_per_s"]),
        Row(case, "check-in while rounds run, p50", "ms", found["check_in_p50_ms"]),
        Row(case, "check-in while rounds run, p99", "ms", found["check_in_p99_ms"]),
        Row(case, "coordinator's processor time", "cores", found["cores"]),
        Row(case, "coordinator's processor time an update", "ms", found["cpu_ms"]),
        Row(case, "coordinator's peak memory", "MB", found["peak_mb"]),
    ]


def slope(case: str, cohorts: tuple[int, int], peaks: tuple[float, float]) -> Row:
    """The goal is for cohorts whose updates, all together, are more than the frames that may be on their way in."""
    value = (peaks[1] - peaks[0]) / (cohorts[1] - cohorts[0])
    name = f"memory a stream, {cohorts[0]} to {cohorts[1]} agents"
    if cohorts[0] < 100:
        return Row(case, name, "MB", value)
    return Row(case, name, "MB", value, f"<= {MOST_MB_A_STREAM}", value <= MOST_MB_A_STREAM)


def beside_flower(nodes: int, parameters: int) -> list[Row]:
    """As many agents as SuperNodes, the same model; the first round of each is not counted."""
    from benchmarks._load_flower import updates_per_s

    case = f"plain sums, {nodes} members, d {parameters // 1000}k"
    own = measured(nodes, parameters, 20, secure=False, timeout_s=300.0)["updates_per_s"]
    theirs = updates_per_s(nodes, parameters, 3)
    ratio = own / theirs
    return [
        Row(case, "updates", "1/s", own, reference="flwr 1.41", reference_value=theirs),
        Row(case, "updates on Flower", "1/s", theirs),
        Row(case, "ratio", "x", ratio, f">= {LEAST_RATIO}", ratio >= LEAST_RATIO),
    ]


def show(row: Row) -> None:
    verdict = "" if row.holds is None else ("holds" if row.holds else "DOES NOT HOLD")
    print(f"{row.case:34} {row.metric:40} {row.value:10.4g} {row.unit:6} {row.goal:8} {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20 and 60 agents: under 60 s")
    parser.add_argument("--agents", type=int, nargs="+", help="the cohorts, in the place of 100 and 1,000")
    parser.add_argument("--parameters", type=int, nargs="+", help="in the place of 20,000 and 200,000")
    parser.add_argument("--rounds", type=int, help="of which the first is not counted; in the place of 4")
    parser.add_argument("--sums", choices=["plain", "secure", "both"], default="both")
    parser.add_argument("--flower", type=int, metavar="NODES", help="beside Flower, and nothing else")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    options = parser.parse_args()
    cohorts, rounds, timeout_s = ([20, 60], 3, 60.0) if options.quick else ([100, 1000], 4, 450.0)
    cohorts = options.agents or cohorts
    rounds = options.rounds or rounds
    lengths = options.parameters or ([200_000] if options.quick else [20_000, 200_000])
    kinds = {"plain": (False,), "secure": (True,), "both": (False, True)}[options.sums]
    rows: list[Row] = []

    def add(*found: Row) -> None:
        for row in found:
            rows.append(row)
            show(row)

    if options.flower:
        add(*beside_flower(options.flower, lengths[-1]))
        kinds = ()
    for secure in kinds:
        name = "secure aggregation" if secure else "plain sums"
        slopes = []
        for parameters in lengths:
            peaks = []
            for cohort in cohorts:
                case = f"{name}, {cohort} agents, d {parameters // 1000}k"
                found = measured(cohort, parameters, rounds, secure, timeout_s)
                peaks.append(found["peak_mb"])
                add(*rows_of(case, found))
            if len(cohorts) > 1:
                found_slope = slope(
                    f"{name}, d {parameters // 1000}k", (cohorts[0], cohorts[-1]), (peaks[0], peaks[-1])
                )
                slopes.append(found_slope.value)
                add(found_slope)
        if len(slopes) > 1:
            grows = 1e6 * (slopes[-1] - slopes[0]) / (lengths[-1] - lengths[0])
            # A copy of a value for each stream would be 4 bytes, and as many again for its update.
            held = grows <= MOST_BYTES_A_VALUE if cohorts[0] >= 100 else None
            add(Row(name, "memory a stream and value", "B", grows, f"<= {MOST_BYTES_A_VALUE}", held))
    if options.json:
        machine = {
            "system": platform.platform(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "grpcio": grpc.__version__,
        }
        content = {
            "benchmark": "coordinator_load",
            "machine": machine,
            "rows": [asdict(row) for row in rows],
        }
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
