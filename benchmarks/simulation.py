"""The simulation against its floors: the matrix products alone, and bare loops in NumPy, in one run.

    python -m benchmarks.simulation [--quick] [--json FILE]

Workload: 1,000 clients of 100 examples with 784 float32 features, 10 classes (class means and noise from a fixed seed),
a cohort of 100, one local epoch of SGD in shuffled batches of 20, learning rate 0.1; the 2NN of McMahan et al. 2017 and
softmax regression. A round is the coordinator's whole round, with its store and ledger in memory, without evaluation.

Every case and every floor has its turn: a pause, a tenth of a second of rounds that don't count, and one that does;
ratios are medians of the ratios within a turn, so that a noisy machine slows all of them alike. Peers are measured by
`benchmarks.simulation_peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

import quorate as q
from benchmarks import _w1
from benchmarks._rows import Row
from benchmarks._w1 import BATCH, CLASSES, CLIENTS, COHORT, EXAMPLES, FEATURES, HIDDEN, RATE, SEED
from quorate import assembly, pipeline
from quorate.clients.adapters.examples import Examples
from quorate.privacy import DistributedGaussian, NoPrivacy
from quorate.randomness import Randomness
from quorate.rounds import PublicValues, Update
from quorate.simulations.datasets import ClientData, FederatedDataset
from quorate.simulations.source import Simulation

CORES = len(os.sched_getaffinity(0))
ROUNDS = 100_000  # more than anybody asks for


# --- The workload -----------------------------------------------------------------------------------------------------


def workload() -> FederatedDataset:
    x, y = _w1.examples()
    parts = tuple(np.arange(i * EXAMPLES, (i + 1) * EXAMPLES) for i in range(CLIENTS))
    return FederatedDataset("means", ClientData(Examples(x, y), parts), None)


def plan(model: Any, rounds: int, **sections: Any) -> q.Plan:
    return q.Plan(
        task=q.Task(model),
        rounds=q.Rounds(count=rounds, cohort=COHORT, sampling="fixed"),
        training=q.Training(learning_rate=RATE, epochs=1, batch_size=BATCH),
        **sections,
    )


class Case:
    """A run whose rounds are taken one at a time, in a thread of its own."""

    def __init__(self, data: FederatedDataset, made: q.Plan, engine: str = "auto", **options: Any):
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._times: list[float] = []
        self.first_round_s = 0.0
        self.live: Any = None
        case = self

        class Opened(Simulation):
            def open(self, plan: q.Plan, directory: Path | None) -> Any:
                case.live = super().open(plan, directory)
                return case.live

        source = Opened(data, seed=SEED, engine=engine, **options)
        self._thread = threading.Thread(target=self._run, args=(made, source), daemon=True)
        self._thread.start()
        self._done.acquire()

    def _run(self, made: q.Plan, source: Simulation) -> None:
        started = time.perf_counter()

        def watch(report: Any) -> None:
            nonlocal started
            self._times.append(time.perf_counter() - started)
            self._done.release()
            self._go.acquire()
            started = time.perf_counter()

        assembly.run(made, fleet=source, watch=watch)

    def round(self) -> float:
        """Takes a round; returns its seconds. The first one is over when the case is made."""
        self._go.release()
        self._done.acquire()
        return self._times[-1]

    def own_bytes(self) -> int:
        """Proportional set size of the workers."""
        return sum(pss_bytes(pid) for pid in getattr(self.live.engine, "pids", ()))


def pss_bytes(pid: int | str = "self") -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


# --- Floors -----------------------------------------------------------------------------------------------------------


def product_flops(widths: tuple[int, ...]) -> float:
    """Of a round: forward and weights' gradients for every layer, the error's gradient for all but the first."""
    layers = [a * b for a, b in pairwise(widths)]
    return 2.0 * COHORT * EXAMPLES * (3 * sum(layers) - layers[0])


def machine_flops_per_s() -> float:
    """Large single-precision products, on all cores."""
    a = np.ones((1536, 1536), np.float32)
    out = np.empty_like(a)
    start = time.perf_counter()
    np.matmul(a, a, out=out)
    return float(2 * 1536**3 / (time.perf_counter() - start))


def bare_loop(
    data: FederatedDataset, widths: tuple[int, ...], rng: np.random.Generator
) -> Callable[[], float]:
    """One client after the other, as one would write it by hand, on one core."""
    start = [
        (
            np.zeros((a, b), np.float32) + rng.standard_normal((a, b), np.float32) * 0.05,
            np.zeros(b, np.float32),
        )
        for a, b in pairwise(widths)
    ]
    x_all = data.clients.examples.x.reshape(CLIENTS, EXAMPLES, FEATURES)
    y_all = data.clients.examples.y.reshape(CLIENTS, EXAMPLES)

    def run() -> float:
        began = time.perf_counter()
        total = [np.zeros_like(w) for w, _ in start], [np.zeros_like(b) for _, b in start]
        for client in rng.choice(CLIENTS, COHORT, replace=False):
            weights, biases = [w.copy() for w, _ in start], [b.copy() for _, b in start]
            order = rng.permutation(EXAMPLES)
            for i in range(0, EXAMPLES, BATCH):
                chosen = order[i : i + BATCH]
                values = [x_all[client][chosen]]
                for j, (w, b) in enumerate(zip(weights, biases, strict=True)):
                    out = values[-1] @ w + b
                    values.append(np.maximum(out, 0) if j < len(weights) - 1 else out)
                error = values[-1] - values[-1].max(axis=1, keepdims=True)
                np.exp(error, out=error)
                error /= error.sum(axis=1, keepdims=True)
                error[np.arange(BATCH), y_all[client][chosen]] -= 1
                error /= BATCH
                for j in range(len(weights) - 1, -1, -1):
                    gradient = values[j].T @ error
                    bias = error.sum(axis=0)
                    if j:
                        error = (error @ weights[j].T) * (values[j] > 0)
                    weights[j] -= RATE * gradient
                    biases[j] -= RATE * bias
            for j, (w, b) in enumerate(zip(weights, biases, strict=True)):
                total[0][j] += w - start[j][0]
                total[1][j] += b - start[j][1]
        return time.perf_counter() - began

    return run


def bare_batched(data: FederatedDataset, rng: np.random.Generator) -> Callable[[], float]:
    """Softmax regression of the whole cohort as one batched product a step, on all cores."""
    x_all = data.clients.examples.x.reshape(CLIENTS, EXAMPLES, FEATURES)
    y_all = data.clients.examples.y.reshape(CLIENTS, EXAMPLES)
    w0, b0 = np.zeros((FEATURES, CLASSES), np.float32), np.zeros(CLASSES, np.float32)

    def run() -> float:
        began = time.perf_counter()
        cohort = rng.choice(CLIENTS, COHORT, replace=False)
        order = rng.permuted(np.tile(np.arange(EXAMPLES), (COHORT, 1)), axis=1)
        w, b = np.repeat(w0[None], COHORT, 0), np.repeat(b0[None, None], COHORT, 0)
        at = np.arange(COHORT)[:, None]
        for i in range(0, EXAMPLES, BATCH):
            chosen = order[:, i : i + BATCH]
            x, y = x_all[cohort[:, None], chosen], y_all[cohort[:, None], chosen]
            error = x @ w + b
            error -= error.max(axis=2, keepdims=True)
            np.exp(error, out=error)
            error /= error.sum(axis=2, keepdims=True)
            error[at, np.arange(BATCH), y] -= 1
            error *= RATE / BATCH
            w -= x.swapaxes(1, 2) @ error
            b -= error.sum(axis=1, keepdims=True)
        (w - w0).sum(axis=0), (b - b0).sum(axis=0)
        return time.perf_counter() - began

    return run


def encoding_s(made: q.Plan) -> Callable[[], float]:
    """One client's encoding, on one core."""
    resolved = made.resolved(CLIENTS)
    bounds = resolved.bounds(CLIENTS)
    encoding = pipeline.build(resolved.terms(), bounds, PublicValues(resolved.privacy.clip_norm, bytes(32)))
    size = resolved.task.resolve().layout.size
    update = Update({"delta": np.random.default_rng(0).standard_normal(size, np.float32)}, EXAMPLES)
    stream = Randomness.from_seed(SEED)

    def run() -> float:
        began = time.perf_counter()
        for _ in range(3):
            encoding.encode(update, stream)
        return (time.perf_counter() - began) / 3

    return run


# --- Rows -------------------------------------------------------------------------------------------------------------


PAUSE_S = 0.1
"""After that long the threads of a numerical library that a run has used no longer wait for more on a busy core.

And after so long at work a core that has paused is as fast as it gets.
"""


def turns(count: int, runs: dict[str, Callable[[], float]], warm_up_s: float = 0.0) -> dict[str, list[float]]:
    """Everything once in every turn, each time after a pause and rounds that don't count: for so long, one at least."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            while warm_up_s and time.perf_counter() - began < warm_up_s:
                run()
            times[name].append(run())
    return times


def ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def one_core(run: Callable[[], float]) -> Callable[[], float]:
    def limited() -> float:
        with threadpoolctl.threadpool_limits(1):
            return run()

    return limited


def bounded(case: str, metric: str, value: float, limit: float, reference: str, against: float) -> Row:
    return Row(case, metric, "ratio", value, f"≤ {limit}", value <= limit, reference, against)


def rounds_of(name: str, data: FederatedDataset, model: Any, count: int) -> list[Row]:
    """Rows of one model."""
    widths = model.network.widths
    rng = np.random.default_rng(SEED)
    clipped = NoPrivacy(clip_norm=1.0)
    noisy_plan = plan(
        model,
        ROUNDS,
        privacy=DistributedGaussian(clip_norm=1.0, noise_multiplier=1.0),
        secure_aggregation=q.IdealSum(),
    )
    cases = {
        "auto": Case(data, plan(model, ROUNDS)),
        "sequential": Case(data, plan(model, ROUNDS), "sequential"),
        "vectorised": Case(data, plan(model, ROUNDS), "vectorised"),
        "processes": Case(data, plan(model, ROUNDS), "processes"),
        "clipped": Case(data, plan(model, ROUNDS, privacy=clipped)),
        "noisy": Case(data, noisy_plan),
    }
    flops = product_flops(widths)
    runs: dict[str, Callable[[], float]] = {name: case.round for name, case in cases.items()}
    runs["bound"] = lambda: flops / machine_flops_per_s()
    runs["bare loop"] = one_core(bare_loop(data, widths, rng))
    runs["encoding"] = one_core(encoding_s(noisy_plan))
    if len(widths) == 2:
        runs["bare batched"] = bare_batched(data, rng)
    times = turns(count, runs, warm_up_s=PAUSE_S)
    middle = {key: statistics.median(values) for key, values in times.items()}
    rows = [Row(name, f"a round, {key}", "s", value) for key, value in middle.items() if key != "encoding"]
    picked = "processes" if hasattr(cases["auto"].live.engine, "pids") else "vectorised"
    auto = times["auto"]
    if len(widths) == 2:
        rows.append(
            bounded(name, f"a round (auto: {picked}) over the bare batched loop", ratio(auto, times["bare batched"]),
                    1.0, "bare batched NumPy, s", middle["bare batched"])
        )  # fmt: skip
    else:
        rows.append(
            bounded(name, f"a round (auto: {picked}) over the matrix products", ratio(auto, times["bound"]),
                    2.3, "products alone, s", middle["bound"])
        )  # fmt: skip
    rows.append(Row(name, "a round (auto) over the bare loop on one core", "ratio", ratio(auto, times["bare loop"]),
                    reference="bare NumPy, s", reference_value=middle["bare loop"]))  # fmt: skip
    rows.append(bounded(name, "with clipping over without", ratio(times["clipped"], auto), 1.15,
                        "without, s", middle["auto"]))  # fmt: skip
    allowed = [COHORT * e / CORES for e in times["encoding"]]
    added = [noisy - plain for noisy, plain in zip(times["noisy"], auto, strict=True)]
    rows.append(bounded(name, "what distributed noise adds, over its encodings ÷ cores", ratio(added, allowed), 1.2,
                        "encodings ÷ cores, s", statistics.median(allowed)))  # fmt: skip
    rows.append(Row(name, "memory of the workers (PSS)", "MiB", cases["processes"].own_bytes() / 2**20))
    return rows


_ALONE = """
import time
from benchmarks.simulation import *
data = workload()
model = q.models.mlp(FEATURES, (HIDDEN, HIDDEN), CLASSES)
began = time.perf_counter()
case = Case(data, plan(model, 4)); first = time.perf_counter() - began
steady = min(case.round() for _ in range(2))
memory = pss_bytes() + case.own_bytes() - data.clients.examples.x.nbytes - data.clients.examples.y.nbytes
print(first - steady, memory / 2**20)
"""


def alone() -> list[Row]:
    """In a process of its own: what starting costs, and what is held beside the data."""
    said = subprocess.run(
        [sys.executable, "-c", _ALONE], capture_output=True, text=True, check=True, timeout=120
    )
    start_s, memory_mib = map(float, said.stdout.split())
    return [
        Row("2NN", "start-up: first round less a later one", "s", start_s),
        Row("2NN", "memory beside the data, all processes (PSS)", "MiB", memory_mib),
    ]


def machine() -> dict[str, object]:
    return {
        "system": platform.platform(),
        "cores": CORES,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gflops": round(machine_flops_per_s() / 1e9),
    }


def show(row: Row) -> None:
    verdict = "" if row.holds is None else ("holds" if row.holds else "DOES NOT HOLD")
    against = "" if row.reference_value is None else f"({row.reference}: {row.reference_value:.4g})"
    print(
        f"{row.case:8} {row.metric:62} {row.value:10.4g} {row.unit:6} {row.goal:7} {verdict:14} {against}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under 60 s")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    options = parser.parse_args()
    count = 5 if options.quick else 15
    data = workload()
    rows: list[Row] = []
    models = {
        "2NN": q.models.mlp(FEATURES, (HIDDEN, HIDDEN), CLASSES),
        "softmax": q.models.softmax(FEATURES, CLASSES),
    }
    for name, model in models.items():
        found = rounds_of(name, data, model, count)
        rows += found
        for row in found:
            show(row)
    found = alone()
    rows += found
    for row in found:
        show(row)
    if options.json:
        content = {"benchmark": "simulation", "machine": machine(), "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
