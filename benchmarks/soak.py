"""A soak: devices come and go for half an hour; memory stays flat, and no round is lost.

    python -m benchmarks.soak [--minutes 30] [--agents 50] [--full 4] [--quick] [--json FILE]

`quorate coordinator run` with mutual TLS and an authority of its own; devices that enrolled with tokens; signed secure
aggregation (semi-malicious) with noise of the members, and a ledger. A few devices are `quorate agent run`; the others
are light, four to a process: the whole protocol and a certificate each, and an update that is there already. (A full
agent is a device's whole machine; fifty of them would measure this one.) A round takes two fifths of the devices and
needs more than half of those.

All the while one process after the other is killed (kill -9), ended (SIGTERM) or frozen (SIGSTOP) for a while, and
comes back; a light device also breaks off one participation in twenty, at some moment of it. Memory is what the
coordinator has resident; its growth is the median of the last third of the time over that of the second third, and the
slope is that of a line through both. At the end every round that a full agent believes to be committed is looked up in
the coordinator's records, and the ledger's chain is verified.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np

from benchmarks._coordinator import QUORATE, Coordinator, coordinator, wait_until
from benchmarks._rows import Row
from quorate.clients.agent.channels import keys_in
from quorate.clients.agent.enrolment import enrol
from quorate.clients.agent.state import AgentState
from quorate.identity import Holder
from quorate.privacy import Ledger
from quorate.rounds import Outcome
from quorate.server.site import Site
from quorate.server.store import opened

MB = 1e6
MOST_GROWTH = 1.05
DELTA = 1e-6
TROUBLE_EVERY_S, AWAY_S = 6.0, (3.0, 30.0)
TROUBLES = ("killed", "ended", "frozen")
LIGHT, LEAVING = 4, 0.05
_TICK_S, _LOOK_S, _SHOW_S = 0.2, 5.0, 60.0


@dataclass(frozen=True)
class Counts:
    """How many devices there are, and how many of them are full agents."""

    devices: int
    full: int


def plan(devices: int) -> str:
    """A plan that goes on for longer than the soak."""
    cohort = max(4, 2 * devices // 5)
    return f"""
[task]
name = "softmax"
inputs = 64
classes = 10
[rounds]
count = 100000
cohort = {cohort}
sampling = "fixed"
[privacy]
mechanism = "distributed-discrete-gaussian"
clip_norm = 1.0
noise_multiplier = 1.0
delta = {DELTA}
[secure_aggregation]
protocol = "secagg+"
threat_model = "semi-malicious"
min_survivors = {max(3, cohort // 2 + 1)}
corrupt = 0.0
[fleet]
kind = "devices"
population = {cohort + 2}
training_s = 30.0
phase_s = 30.0
"""


class Party:
    """A process with devices: a full agent, or a few light ones.

    Args:
        log: where it writes.
        command: its command line.
        environment: beside that of this process.
    """

    def __init__(self, log: Path, command: Sequence[str], environment: Mapping[str, str]):
        self._log, self._command = log, command
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment}
        self.trouble, self.starts, self._back_at = "", 0, 0.0
        self._start()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environment
            )
        self.starts += 1

    def suffer(self, trouble: str) -> None:
        """Something happens to it, for a while."""
        sent = {"killed": signal.SIGKILL, "ended": signal.SIGTERM, "frozen": signal.SIGSTOP}[trouble]
        self._process.send_signal(sent)
        self.trouble, self._back_at = trouble, time.monotonic() + random.uniform(*AWAY_S)

    def recover(self) -> None:
        """It is over, if it has lasted for long enough."""
        if time.monotonic() < self._back_at:
            return
        self._process.send_signal(signal.SIGCONT)
        if self.trouble != "frozen":
            self._process.kill()
            self._process.communicate(timeout=30)
            self._start()
        self.trouble = ""

    def end(self) -> None:
        """For good."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextmanager
def fleet(folder: Path, counts: Counts, site: Site, ports: Mapping[str, int]) -> Iterator[list[Party]]:
    """Devices that have enrolled, and run; the full agents first."""
    made = [folder / f"device-{number}" for number in range(counts.devices)]
    assert site.authority is not None
    tokens = [site.authority.token(timedelta(hours=1)).text for _ in made]
    with ThreadPoolExecutor(4) as threads:
        enrolment = f"localhost:{ports['enrolment']}"
        list(threads.map(lambda directory, token: enrol(directory, enrolment, token), made, tokens))
    parties: list[Party] = []
    try:
        for number, directory in enumerate(made[: counts.full]):
            parties.append(
                Party(
                    folder / f"agent-{number}.log",
                    [
                        *QUORATE,
                        "agent",
                        "run",
                        "--task",
                        "benchmarks._soaked:task",
                        "--state",
                        str(directory),
                    ],
                    {"SOAK_DEVICE": str(number), "SOAK_DEVICES": str(counts.devices)},
                )
            )
        light = [sys.executable, "-m", "benchmarks._agents", str(ports["devices"]), "--leaving", str(LEAVING)]
        for first in range(counts.full, counts.devices, LIGHT):
            directories = map(str, made[first : min(first + LIGHT, counts.devices)])
            parties.append(Party(folder / f"light-{first}.log", [*light, "--enrolled", *directories], {}))
        yield parties
    finally:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(Party.end, parties))


class Memory:
    """What the coordinator has resident, every few seconds."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._mb: list[float] = []

    def look(self, started: Coordinator, now_s: float) -> None:
        """Notes it, if it is time."""
        if not self._seconds or now_s - self._seconds[-1] >= _LOOK_S:
            self._seconds.append(now_s)
            self._mb.append(started.resident_bytes / MB)

    def rows(self, case: str) -> list[Row]:
        """The first third is left out: modules are loaded, and caches filled."""
        third = len(self._mb) // 3
        middle, last = (float(np.median(part)) for part in (self._mb[third:-third], self._mb[-third:]))
        slope = float(np.polyfit(self._seconds[third:], self._mb[third:], 1)[0])
        growth = last / middle
        return [
            Row(case, "coordinator's memory, second third", "MB", middle),
            Row(case, "coordinator's memory, last third", "MB", last),
            Row(case, "its growth", "", growth, f"<= {MOST_GROWTH}", growth <= MOST_GROWTH),
            Row(case, "its slope", "MB/h", 3600 * slope),
        ]


def soaked(counts: Counts, minutes: float) -> list[Row]:
    """The whole soak."""
    case = f"{counts.devices} agents, {minutes:g} minutes"
    troubles, memory = Counter[str](), Memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder, site_folder = Path(temporary), Path(temporary) / "fl"
        (folder / "plan.toml").write_text(plan(counts.devices))
        with (
            contextlib.closing(Site.create(site_folder, ["localhost"], name="soak")) as site,
            coordinator(site_folder, folder / "plan.toml", insecure=False) as started,
            fleet(folder, counts, site, started.ports) as parties,
        ):
            wait_until(lambda: committed(site_folder) > 0, 600.0)
            began = shown = time.monotonic()
            while (now := time.monotonic()) - began < 60 * minutes:
                disturb(parties, troubles)
                memory.look(started, now - began)
                if now - shown > _SHOW_S:
                    shown = now
                    print(
                        f"  {now - began:5.0f} s: {committed(site_folder)} rounds committed, "
                        f"{started.resident_bytes / MB:.1f} MB, {dict(troubles)}",
                        flush=True,
                    )
                time.sleep(_TICK_S)
            alive = started.process.is_running()
            last = newest(site_folder)
        log = (folder / "fl.log").read_text()
        failed = sum('"error"' in line or line.startswith("traceback") for line in log.lower().splitlines())
        return [
            *records(case, site_folder, [folder / f"device-{i}" for i in range(counts.full)], last),
            *(Row(case, f"processes {trouble}", "", float(troubles[trouble])) for trouble in TROUBLES),
            Row(case, "processes started again", "", float(sum(party.starts - 1 for party in parties))),
            *memory.rows(case),
            _none(case, "errors in the coordinator's log", failed),
            _none(case, "the coordinator's restarts", int(not alive)),
        ]


def disturb(parties: list[Party], troubles: Counter[str]) -> None:
    """Whoever was away for long enough comes back; from time to time something happens to somebody else."""
    away = [party for party in parties if party.trouble]
    for party in away:
        party.recover()
    if random.random() < _TICK_S / TROUBLE_EVERY_S and len(away) <= len(parties) // 4:
        trouble, party = random.choice(TROUBLES), random.choice([p for p in parties if not p.trouble])
        party.suffer(trouble)
        troubles[trouble] += 1


def committed(folder: Path) -> int:
    """How many rounds are, so far."""
    with opened(folder / "state") as store:
        return store.runs()[0].committed


def newest(folder: Path) -> int:
    """The number of the newest round."""
    with opened(folder / "state") as store:
        return store.rounds(store.runs()[0].id)[-1].number


def records(case: str, folder: Path, agents: list[Path], last: int) -> list[Row]:
    """What the coordinator wrote down up to a round, beside what full agents did."""
    with opened(folder / "state") as store:
        (run,) = store.runs()
        rounds = [past for past in store.rounds(run.id) if past.number < last]
        Ledger(store.ledger(run.id), delta=DELTA).verify()
        missing = unknown = 0
        for directory in agents:
            device = Holder(keys_in(directory)).name
            with contextlib.closing(AgentState(directory)) as state:
                for past in state.past(last):
                    unknown += past.outcome is None
                    if past.outcome is Outcome.COMMITTED:
                        missing += store.outcome(run.id, past.round, device) is not Outcome.COMMITTED
    for reason, count in Counter(past.reason for past in rounds if past.reason).items():
        print(f"  {count} aborted: {reason}")
    done = [past for past in rounds if past.status == Outcome.COMMITTED]
    survivors = [float(past.survivors or 0) for past in done]
    return [
        Row(case, "rounds committed", "", float(len(done))),
        _none(case, "rounds aborted", len(rounds) - len(done)),
        Row(case, "survivors of a round, mean", "", statistics.fmean(survivors)),
        Row(case, "survivors of a round, fewest", "", min(survivors)),
        Row(case, "members lost, all rounds", "", float(sum(sum(past.lost.values()) for past in done))),
        _none(case, "rounds that an agent has and the coordinator has not", missing),
        Row(case, "outcomes that agents have yet to hear", "", float(unknown)),
    ]


def _none(case: str, metric: str, count: int) -> Row:
    return Row(case, metric, "", float(count), "0", count == 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--full", type=int, default=4, help="how many of them are `quorate agent run`")
    parser.add_argument("--quick", action="store_true", help="12 agents for half a minute: about a minute")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    options = parser.parse_args()
    counts = Counts(12, 2) if options.quick else Counts(options.agents, options.full)
    rows = soaked(counts, 0.5 if options.quick else options.minutes)
    for row in rows:
        verdict = "" if row.holds is None else ("holds" if row.holds else "DOES NOT HOLD")
        print(f"{row.metric:52} {row.value:10.4g} {row.unit:5} {row.goal:8} {verdict}")
    if options.json:
        machine = {
            "system": platform.platform(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
        }
        content = {"benchmark": "soak", "machine": machine, "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
