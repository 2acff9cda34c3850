"""Secure aggregation against its floors: how much more than AES, key agreement and signatures a round costs.

    python -m benchmarks.secagg [--quick] [--only PART] [--json FILE] [--plot FILE]

Everything is measured in one run, interleaved, medians of several repetitions, in processor time of one core (of
two, in elapsed time, where it says so). The floors are the bytes of mask over the speed of AES-256-CTR in buffers of
256 KiB, and the number of key agreements times the time of one X25519; both are measured between the repetitions.
Flower's protocol (its own client and server code, `flwr` 1.41) runs beside ours where it is installed.

All clients and the server share one process here: the garbage collector, whose passes over thousands of clients would
count as the server's, is off while a session runs, and linear algebra has one thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from threadpoolctl import threadpool_limits

from benchmarks._rows import Row
from quorate.privacy.secagg import (
    AnyKey,
    Ed25519Identity,
    Mask,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    SecAggSummation,
    ThreatModel,
    add_masks,
)
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds
from quorate.server.unmasking_pool import UnmaskingPool
from quorate.summation import SumSession
from quorate.sums import RunningSum

DROPPED = 0.05


class NoJournal:
    def revealing(self) -> None:
        pass


def median(run: Callable[[], float], times: int) -> float:
    return statistics.median(run() for _ in range(times))


# --- Floors -----------------------------------------------------------------------------------------------------------


def aes_bytes_per_s() -> float:
    """AES-256-CTR at 256 KiB a call."""
    stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    zeros, out = bytes(1 << 18), memoryview(bytearray(1 << 18))
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        for _ in range(200):
            stream.update_into(zeros, out)
        best = max(best, 200 * len(zeros) / (time.process_time() - start))
    return best


def agreement_s() -> float:
    """One X25519 from the peer's 32 bytes."""
    private = X25519PrivateKey.generate()
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    start = time.process_time()
    for _ in range(400):
        private.exchange(X25519PublicKey.from_public_bytes(public))
    return (time.process_time() - start) / 400


def signature_s() -> tuple[float, float]:
    """One Ed25519 signature, and one verification."""
    private, message = Ed25519PrivateKey.generate(), bytes(32)
    signature, public = private.sign(message), private.public_key()
    start = time.process_time()
    for _ in range(300):
        private.sign(message)
    signing = (time.process_time() - start) / 300
    start = time.process_time()
    for _ in range(300):
        public.verify(signature, message)
    return signing, (time.process_time() - start) / 300


# --- One session ------------------------------------------------------------------------------------------------------


def rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class Timed:
    """One session: what one client took (CPU s), what the server took, and the bytes that a client sent."""

    client_s: float
    server_s: float
    total_s: float
    sent_bytes: int
    neighbours: int
    threshold: int
    unmask_s: float
    masks: list[Mask]
    held_bytes: int


def uncollected(run: Callable[..., Timed]) -> Callable[..., Timed]:
    """Runs without the garbage collector."""

    def running(*arguments: Any, **options: Any) -> Timed:
        gc.collect()
        gc.disable()
        try:
            return run(*arguments, **options)
        finally:
            gc.enable()

    return running


@uncollected
def run_session(
    members: int, length: int, parameters: SecAggParameters, drop: float = DROPPED, real: int | None = None
) -> Timed:
    """A whole session in process; each client in turn, the server between them.

    Args:
        members: n.
        length: d.
        parameters: with the threat model.
        drop: the share of members that send shares and nothing more.
        real: how many clients mask their own vector; the rest send what fits (their time is not measured).
    """
    binding = os.urandom(32)
    fewest = members - int(parameters.dropout * members)
    bounds = CohortBounds(members, fewest, fewest, float(members))
    session = SumSession(binding, length, np.dtype(np.uint32), bounds)
    found: list[list[Mask]] = []

    def unmask(vector: np.ndarray, masks: list[Mask]) -> None:
        found.append(list(masks))
        add_masks(vector, masks)

    summation = SecAggSummation(
        session, NoJournal(), parameters, unmask, enrolment=AnyKey(), identities=Ed25519Identity.draw
    )
    sink = RunningSum(length, session.dtype)
    server: SecAggServer = summation.server(sink)
    names = [f"m{i}" for i in range(members)]
    vector = np.arange(length, dtype=np.uint32)
    root = Randomness.system()
    clients: dict[str, SecAggClient] = {name: summation.client(vector, root.spawn(name)) for name in names}
    lost = set(names[: int(drop * members)])
    spent = dict.fromkeys(names, 0.0)
    sent = dict.fromkeys(names, 0)
    server_s, unmask_s, held_bytes = 0.0, 0.0, 0
    begun = time.process_time()

    def take(name: str, data: bytes) -> None:
        nonlocal server_s
        sent[name] += len(data)
        start = time.process_time()
        server.receive(name, data)
        server_s += time.process_time() - start

    server.begin(names)
    for name in names:
        start = time.process_time()
        data = clients[name].begin()
        spent[name] += time.process_time() - start
        take(name, data)
    while not server.done:
        phase = server.phase
        start = time.process_time()
        outgoing = server.advance()
        closing = time.process_time() - start
        server_s += closing
        held_bytes = max(held_bytes, arrays_of(server))
        unmask_s = closing if phase == "unmask" else 0.0
        for message in outgoing:
            if server.phase == "mask" and message.member in lost:
                server.lose(message.member)
                continue
            start = time.process_time()
            answer = clients[message.member].receive(message.data)
            spent[message.member] += time.process_time() - start
            if answer is not None:
                take(message.member, answer)
    total_s = time.process_time() - begun
    survivors = sink.result().survivors
    assert (sink.result().sums[0] == vector * np.uint32(len(survivors))).all()
    hood = server._ring.hood
    alive = list(survivors)
    return Timed(
        client_s=statistics.median(spent[name] for name in alive),
        server_s=server_s,
        total_s=total_s,
        sent_bytes=statistics.median_high(sent[name] for name in alive),
        neighbours=hood.neighbours,
        threshold=hood.threshold,
        unmask_s=unmask_s,
        masks=found[0],
        held_bytes=held_bytes,
    )


def arrays_of(server: SecAggServer) -> int:
    """The bytes of the arrays that a server holds: vector, neighbours, sealed and opened shares."""
    held = [*vars(server).values(), *vars(getattr(server, "_opened", None) or object).values()]
    return sum(value.nbytes for value in held if isinstance(value, np.ndarray))


def complete(threat_model: ThreatModel = ThreatModel.SEMI_HONEST) -> SecAggParameters:
    return SecAggParameters(threat_model, corrupt=0.3, dropout=0.1, complete=True)


def about_100_neighbours() -> SecAggParameters:
    """K 98 to 104 at n = 1,000, against a server that follows the protocol."""
    return SecAggParameters(corrupt=0.4, dropout=0.05)


# --- Rows -------------------------------------------------------------------------------------------------------------


class Table:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.growth: list[tuple[int, Timed, float]] = []

    def add(
        self,
        case: str,
        metric: str,
        unit: str,
        value: float,
        goal: str = "",
        holds: bool | None = None,
        **more,
    ):
        row = Row(case, metric, unit, value, goal, holds, **more)
        self.rows.append(row)
        verdict = "" if row.holds is None else "holds" if row.holds else "DOES NOT HOLD"
        print(
            f"{row.case:58s} {row.metric:34s} {row.value:12.3f} {row.unit:6s} {row.goal:10s} {verdict}",
            flush=True,
        )

    def ratio(self, case: str, metric: str, value: float, most: float) -> None:
        self.add(case, metric, "×", value, f"≤ {most}", value <= most)


def sessions(table: Table, quick: bool) -> None:
    """Clients and servers against their floors."""
    cases = [
        ("n 100, d 10^6, complete", 100, 10**6, complete(), "aes", 1.4, 1.4),
        ("n 100, d 10^5, complete", 100, 10**5, complete(), "both", 1.4, None),
        ("n 1,000, d 10^5, k about 100", 1000, 10**5, about_100_neighbours(), "both", 1.4, 1.5),
    ]
    for name, members, length, parameters, floor, client_goal, server_goal in cases:
        if quick and members * length > 10**7:
            members, length = (members, length // 10) if members <= 100 else (members // 5, length)
            name = f"n {members}, d {length}, instead of: {name}"
            client_goal = server_goal = None
        timed, speeds = [], []
        for _ in range(1 if quick else 3):
            speeds.append((aes_bytes_per_s(), agreement_s()))
            timed.append(run_session(members, length, parameters))
        speeds.append((aes_bytes_per_s(), agreement_s()))
        aes = statistics.median(speed for speed, _ in speeds)
        agree = statistics.median(seconds for _, seconds in speeds)
        one = timed[0]
        vector_bytes = 4 * length
        client_s = statistics.median(run.client_s for run in timed)
        server_s = statistics.median(run.server_s for run in timed)
        k = one.neighbours
        client_aes = (k + 1) * vector_bytes / aes
        client_floor = client_aes + (2 * k * agree if floor == "both" else 0)
        dead = int(DROPPED * members)
        pairs = len(one.masks) - (members - dead)
        server_floor = len(one.masks) * vector_bytes / aes + (pairs * agree if floor == "both" else 0)
        table.add(name, "neighbours k", "", k)
        table.add(name, "client", "ms", 1e3 * client_s)
        table.add(name, "server", "ms", 1e3 * server_s)
        table.add(name, "upload beyond the vector", "%", 100 * (one.sent_bytes - vector_bytes) / vector_bytes)
        against = "AES floor" if floor == "aes" else "AES + key agreement floor"
        for who, spent, least, goal in (
            ("client", client_s, client_floor, client_goal),
            ("server", server_s, server_floor, server_goal),
        ):
            if goal is None:
                table.add(name, f"{who} / {against}", "×", spent / least)
            else:
                table.ratio(name, f"{who} / {against}", spent / least, goal)
        if floor == "aes":
            table.add(name, "client / (AES + key agreement)", "×", client_s / (client_aes + 2 * k * agree))


def signing(table: Table, quick: bool) -> None:
    """What signatures add, and the upload of a signed client."""
    for length, most in ((10**5, 3.5),) if quick else ((10**5, 3.5), (10**6, 0.5)):
        members = 40 if quick else 100
        extra, raw = [], []
        for _ in range(1 if quick else 3):
            plain = run_session(members, length, complete())
            sign, verify = signature_s()
            signed = run_session(members, length, complete(ThreatModel.MALICIOUS))
            extra.append(signed.client_s - plain.client_s)
            raw.append(2 * sign + (signed.neighbours + signed.threshold) * verify)
        case = f"n {members}, d {length}, complete, signed"
        if length == 10**5:
            value = statistics.median(extra) / statistics.median(raw)
            table.ratio(case, "signing / raw signatures", value, 1.2)
        # A certificate of 32 bytes was sent; one of 600 bytes is reckoned with.
        share = 100 * (signed.sent_bytes + 600 - 4 * length) / (4 * length)
        table.add(case, "upload beyond the vector, 632 B certificate", "%", share, f"≤ {most}", share <= most)


# --- Two processes ----------------------------------------------------------------------------------------------------


def two_processes(table: Table, quick: bool) -> None:
    """The server's pool of two processes, against one process."""
    length, count = 10**6, 100 if quick else 560
    masks = [Mask(os.urandom(32), bool(i % 2)) for i in range(count)]
    one, two = [], []
    with UnmaskingPool(workers=2, worth_bytes=0) as pool:
        pool(np.zeros(1, np.uint32), masks[:1])  # the workers are there from the second round on
        for _ in range(3 if quick else 5):
            vector, shared = np.zeros(length, np.uint32), np.zeros(length, np.uint32)
            start = time.perf_counter()
            add_masks(vector, masks)
            one.append(time.perf_counter() - start)
            start = time.perf_counter()
            pool(shared, masks)
            two.append(time.perf_counter() - start)
            assert (shared == vector).all()
    value = statistics.median(one) / statistics.median(two)
    table.add(
        f"unmask, d 10^6, {count} masks", "two processes against one", "×", value, "≥ 1.7", value >= 1.7
    )


# --- Large cohorts ----------------------------------------------------------------------------------------------------


def growth(table: Table, quick: bool) -> None:
    """Cost against n, up to 10,000 members, with 10 % dropouts."""
    for members in (100, 300) if quick else (100, 300, 1000, 3000, 10_000):
        parameters = SecAggParameters(corrupt=0.05, dropout=0.15)
        timed = run_session(members, 10**4, parameters, drop=0.1)
        aes, agree = aes_bytes_per_s(), agreement_s()
        k, vector_bytes = timed.neighbours, 4 * 10**4
        floor = (k + 1) * vector_bytes / aes + 2 * k * agree
        table.growth.append((members, timed, floor))
        case = f"n {members:,}, d 10^4, 10 % dropouts"
        table.add(case, "neighbours k", "", k)
        table.add(case, "client", "ms", 1e3 * timed.client_s)
        table.add(case, "server", "s", timed.server_s)
        table.add(case, "the server's arrays", "MiB", timed.held_bytes / 2**20)
        table.add(case, "peak memory, all clients too", "MiB", rss_mib())
        if members == 10_000:
            table.ratio(case, "client / AES + key agreement floor", timed.client_s / floor, 1.6)
        else:
            table.add(case, "client / AES + key agreement floor", "×", timed.client_s / floor)


def against_flower(table: Table, quick: bool) -> None:
    """Whole rounds in process, and one client, against Flower's own code."""
    try:
        from benchmarks import _flower_secagg as flower
    except ImportError:
        print("flwr 1.41 is not installed: nothing is compared with it")
        return
    name = f"flower {version('flwr')}"
    members, length = (30, 10**4) if quick else (100, 10**5)
    theirs = flower.run(members, length, 21, 14)
    for label, parameters, least in (
        ("k about 32", SecAggParameters(corrupt=0.3, dropout=0.05), 20),
        ("complete graph", complete(), 10),
    ):
        ours = [run_session(members, length, parameters, drop=0.0) for _ in range(3)]
        value = theirs.total_s / statistics.median(run.total_s for run in ours)
        case = f"n {members}, d {length}, {label} (k {ours[0].neighbours}), whole round"
        table.add(
            case, "faster than Flower, 21 shares", "×", value, f"≥ {least}", None if quick else value >= least,
            reference=name, reference_value=theirs.total_s,
        )  # fmt: skip
    if quick:
        return
    theirs = flower.run(100, 10**6, 100, 67, one_client=True)
    ours_s = run_session(100, 10**6, complete(), drop=0.0).client_s
    value = theirs.client_s / ours_s
    table.add(
        "n 100, d 10^6, complete, client", "faster than Flower's client", "×", value, "≥ 25", value >= 25,
        reference=name, reference_value=theirs.client_s,
    )  # fmt: skip


def plot(points: list[tuple[int, Timed, float]], file: str) -> None:
    """Cost against n: what `growth` measured, and the client's floor."""
    from matplotlib import pyplot

    sizes = [members for members, _, _ in points]
    figure, (client, server) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    client.semilogx(sizes, [1e3 * timed.client_s for _, timed, _ in points], "o-", label="a client, ms")
    client.semilogx(
        sizes, [1e3 * floor_s for _, _, floor_s in points], "--", label="AES and key agreement, ms"
    )
    client.set_ylim(bottom=0)
    server.loglog(sizes, [timed.server_s for _, timed, _ in points], "o-", label="the server, s")
    server.loglog(sizes, [timed.held_bytes / 2**20 for _, timed, _ in points], "s-", label="its arrays, MiB")
    for axes in (client, server):
        axes.set_xlabel("clients n (d 10,000, 10 % dropouts)")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.legend()
    figure.savefig(file, dpi=110)


def machine() -> dict[str, object]:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next(
                (line.split(":")[1].strip() for line in lines if line.startswith("model name")), model
            )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cryptography": version("cryptography"),
        "aes_gb_per_s": round(aes_bytes_per_s() / 1e9, 2),
        "x25519_us": round(1e6 * agreement_s(), 1),
    }


PARTS = (sessions, signing, two_processes, against_flower, growth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="smaller cases, under a minute")
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS], help="one part of it")
    parser.add_argument("--json", metavar="FILE", help="where to write the rows")
    parser.add_argument("--plot", metavar="FILE", help="where to draw cost against n")
    arguments = parser.parse_args()
    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    table = Table()
    with threadpool_limits(1):
        for part in PARTS:
            if arguments.only in (None, part.__name__):
                part(table, arguments.quick)
    if arguments.plot:
        plot(table.growth, arguments.plot)
    if arguments.json:
        document = {"benchmark": "secagg", "machine": where, "rows": [asdict(row) for row in table.rows]}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
    failed = [row for row in table.rows if row.holds is False]
    print(f"{sum(row.holds is True for row in table.rows)} goals hold, {len(failed)} do not")


if __name__ == "__main__":
    main()
