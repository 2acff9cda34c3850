"""Differential privacy against its floors: what encoding, noise, accounting and the ledger cost.

    python -m benchmarks.privacy [--quick] [--only PART] [--json FILE] [--plot FILE]

Encoding and noise are measured in processor time of one core, against one pass of AES-256-CTR over 4 MB, interleaved,
medians of several repetitions. Calibration is compared with bisection over loss distributions by dp-accounting, at its
own full precision, on the sampled Gaussian.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from fractions import Fraction
from importlib.metadata import version

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from threadpoolctl import threadpool_limits

from benchmarks import _utility
from benchmarks._rows import Row
from quorate.codecs import hadamard
from quorate.privacy import (
    DistributedGaussian,
    DistributedSkellam,
    Ledger,
    TruncatedPoissonSampledEvent,
    calibrate,
)
from quorate.privacy.accounting import released_epsilon
from quorate.privacy.noise import discrete_gaussian
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, SumShape, Vector, VectorSpec
from quorate.server.store import Store

LENGTH = 1 << 20
BOUNDS = CohortBounds(largest=140, min_survivors=70, honest=67, denominator=100.0)


def processor_s(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def elapsed_s(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def encoding_rows(repetitions: int) -> list[Row]:
    """Each against the AES pass that was measured right before it."""
    stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    zeros, out = bytes(4 * LENGTH), bytearray(4 * LENGTH)
    randomness, vector = Randomness.system(), Vector("delta", LENGTH)
    mechanism, spec = DistributedGaussian(clip_norm=0.5, noise_multiplier=1.5), VectorSpec((vector,))
    shape = SumShape(spec, BOUNDS, 32)
    encoding = mechanism.encoding(vector, shape)
    codec, narrow, other = (
        made.codec(vector, SumShape(spec, BOUNDS, bits), PublicValues(0.5, bytes(32)))
        for made, bits in (
            (mechanism, 32),
            (mechanism, 16),
            (DistributedSkellam(clip_norm=0.5, noise_multiplier=1.5), 32),
        )
    )
    values = np.random.default_rng(0).normal(size=(1, LENGTH)).astype(np.float32)
    total = np.zeros(LENGTH, np.uint32)
    cases: dict[str, tuple[Callable[[], object], float | None]] = {
        "Hadamard transform": (lambda: hadamard(values), 10),
        "exact noise, 1M coordinates": (
            lambda: discrete_gaussian(encoding.local_variance, LENGTH, randomness),
            16,
        ),
        "exact noise, deviation 3": (lambda: discrete_gaussian(Fraction(9), LENGTH, randomness), 16),
        "whole encoding of one update": (lambda: codec.encode(values, randomness), 30),
        "the same, in a ring of 16 bits": (lambda: narrow.encode(values, randomness), 30),
        "the same, Skellam noise": (lambda: other.encode(values, randomness), None),
        "top-up of 40 missing shares": (
            lambda: mechanism.top_up(total, vector, shape, 100, randomness),
            None,
        ),
        "decoding of the sum": (lambda: codec.decode(total, LENGTH), None),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    ratios: dict[str, list[float]] = {name: [] for name in cases}
    floors = []
    for _ in range(repetitions):
        for name, (run, _goal) in cases.items():
            floor = statistics.median(processor_s(lambda: stream.update_into(zeros, out)) for _ in range(3))
            floors.append(floor)
            times[name].append(processor_s(run))
            ratios[name].append(times[name][-1] / floor)
    rows = [Row("AES-256-CTR over 4 MB", "processor time", "ms", 1e3 * statistics.median(floors))]
    for name, (_run, goal) in cases.items():
        ratio = statistics.median(ratios[name])
        holds = None if goal is None else ratio <= goal
        rows.append(Row(name, "processor time", "ms", 1e3 * statistics.median(times[name])))
        rows.append(
            Row(name, "over the AES pass", "×", ratio, "" if goal is None else f"≤ {goal:g} ×", holds)
        )
    return rows


def sampled(
    multiplier: float, probability: float = 0.01, population: int = 10_000
) -> TruncatedPoissonSampledEvent:
    spec = VectorSpec((Vector("delta", 1000),))
    bounds = CohortBounds(largest=population, min_survivors=1, honest=1, denominator=1.0)
    event = DistributedGaussian(clip_norm=1.0, noise_multiplier=multiplier).event(SumShape(spec, bounds, 32))
    return TruncatedPoissonSampledEvent(population, probability, population, event, dropout=0.0)


def accounting_rows(repetitions: int) -> list[Row]:
    """ε of the 1,000th round, and the ones after it: what a coordinator does after each round."""
    event = TruncatedPoissonSampledEvent(
        10_000,
        0.01,
        160,
        DistributedGaussian(clip_norm=1.0, noise_multiplier=1.0).event(
            SumShape(VectorSpec((Vector("delta", 1000),)), BOUNDS, 32)
        ),
    )
    released_epsilon({event: 999}, 1e-5)
    each = [
        elapsed_s(lambda n=n: released_epsilon({event: n}, 1e-5)) for n in range(1000, 1000 + 3 * repetitions)
    ]
    value = 1e3 * statistics.median(each)
    return [Row("ε after each of 1,000 rounds", "elapsed time", "ms", value, "≤ 50 ms", value <= 50)]


class _Kept:
    """Rows in memory: a ledger without its fsync."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []

    def append(self, entry: bytes) -> None:
        self.rows.append(entry)

    def entries(self) -> list[bytes]:
        return list(self.rows)


def ledger_rows(repetitions: int) -> list[Row]:
    """A charge with its budget checked, beyond what the durable append costs, and with it."""
    event = TruncatedPoissonSampledEvent(
        300,
        1 / 3,
        140,
        DistributedGaussian(clip_norm=1.0, noise_multiplier=1.5).event(
            SumShape(VectorSpec((Vector("delta", 650),)), BOUNDS, 32)
        ),
    )
    members = [f"client-{i}" for i in range(100)]
    with tempfile.TemporaryDirectory() as directory:
        store = Store(directory)
        run = store.open_run(b"{}", "0" * 64, simulated=True)
        durable = Ledger(store.ledger(run.id), delta=300**-1.1, budget=1e3)
        memory = Ledger(_Kept(), delta=300**-1.1, budget=1e3)
        beyond, whole = [], []
        for number in range(1, 6 * repetitions):
            beyond.append(elapsed_s(lambda n=number: memory.reserve(n, event, members)))
            whole.append(elapsed_s(lambda n=number: durable.reserve(n, event, members)))
        store.close()
    value = 1e3 * statistics.median(beyond)
    return [
        Row("a charge of 100 members, beyond its fsync", "elapsed time", "ms", value, "≤ 1 ms", value <= 1),
        Row("a charge of 100 members, durable", "elapsed time", "ms", 1e3 * statistics.median(whole)),
    ]


def calibration_rows(quick: bool) -> list[Row]:
    """The noise multiplier for ε 8 at q 0.01, 1,000 rounds, δ 1e-5: ours, and bisection over dp-accounting's."""
    import dp_accounting
    from dp_accounting import pld

    spec = VectorSpec((Vector("delta", 1000),))
    bounds = CohortBounds(largest=10_000, min_survivors=1, honest=1, denominator=1.0)
    target = DistributedGaussian(clip_norm=1.0, epsilon=8.0)
    start = time.process_time()
    found = calibrate(
        target,
        SumShape(spec, bounds, 32),
        rounds=1000,
        delta=1e-5,
        population=10_000,
        probability=0.01,
        dropout=0.0,
    ).noise_multiplier
    ours = time.process_time() - start
    assert found is not None
    rows = [Row("calibration of ε 8", "processor time", "s", ours)]
    if quick:
        return rows

    def theirs(multiplier: float) -> float:
        event = dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(multiplier))
        return float(pld.PLDAccountant().compose(event, 1000).get_epsilon(1e-5))

    start = time.process_time()
    low, high = 0.5, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if theirs(middle) <= 8 else (middle, high)
    peer = time.process_time() - start
    name = f"bisection, dp-accounting {version('dp-accounting')}"
    rows.append(
        Row(
            "calibration of ε 8",
            "faster than bisection",
            "×",
            peer / ours,
            "≥ 4 ×",
            peer / ours >= 4,
            name,
            peer,
        )
    )
    rows.append(
        Row(
            "calibration of ε 8",
            "noise multiplier",
            "",
            found,
            "± 1e-3",
            abs(found - high) <= 1e-3,
            name,
            high,
        )
    )
    return rows


def machine() -> dict[str, object]:
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        **{name: version(name) for name in ("numpy", "cryptography", "scipy", "dp-accounting")},
    }


def show(row: Row) -> None:
    verdict = "" if row.holds is None else ("  holds" if row.holds else "  DOES NOT HOLD")
    reference = f"  ({row.reference}: {row.reference_value:.4g})" if row.reference_value is not None else ""
    print(
        f"{row.case:44s} {row.metric:22s} {row.value:10.4g} {row.unit:3s} {row.goal:10s}{verdict}{reference}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no bisection of the peer's")
    parser.add_argument("--only", choices=("encoding", "accounting", "ledger", "calibration", "utility"))
    parser.add_argument("--json", metavar="FILE", help="write the rows here as well")
    parser.add_argument("--plot", metavar="FILE", help="draw accuracy against ε into this file")
    arguments = parser.parse_args()
    repetitions = 5 if arguments.quick else 15
    parts: dict[str, Callable[[], Iterable[Row]]] = {
        "encoding": lambda: encoding_rows(repetitions),
        "accounting": lambda: accounting_rows(repetitions),
        "ledger": lambda: ledger_rows(repetitions),
        "calibration": lambda: calibration_rows(arguments.quick),
        "utility": lambda: _utility.rows(arguments.quick, arguments.plot),
    }
    rows: list[Row] = []
    with threadpool_limits(1):  # the floor is one core's
        for name, part in parts.items():
            if arguments.only in (None, name):
                for row in part():
                    show(row)
                    rows.append(row)
    if arguments.json:
        content = {"benchmark": "privacy", "machine": machine(), "rows": [asdict(row) for row in rows]}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
