"""The simulation beside its peers, on the workload W1, in one run: seconds a round, start-up, memory, accuracy.

    python -m benchmarks.simulation_peers [--install] [--quick] [--model 2NN|softmax] [--only NAME] [--json FILE]

W1 (`_w1.py`): 1,000 clients of 100 examples with 784 features, a cohort of 100, one local epoch in batches of 20. Every
peer has its own way of doing it, in a process of its own that is told when to take a round; all take one round in turn,
so that a noisy machine slows them alike, and none of them works while another one does. Accuracy is that of equally
many rounds on the same test examples.

FedJAX and pfl-research have environments of their own beside this checkout, `.venv-fedjax` and `.venv-pfl`, of the
packages in `benchmarks/environments/`; `--install` makes them. TensorFlow Federated is in the one that `make interop`
makes, Flower in the main one. What is not installed is left out, and said so. FedJAX and pfl-research run in one
process here (pfl-research can have several, with Horovod or `torch.distributed`), each with as many threads as it
likes.

Start-up is the time to the end of the first round, from the start of the process, less that of a later one; making the
data (about a second) is in it, for everybody. Memory is the most that a peer's processes held together (PSS, sampled),
less the examples of the clients, which everybody holds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks._rows import Row
from benchmarks._w1 import CLIENTS, EXAMPLES, FEATURES, WIDTHS
from benchmarks.simulation import machine, pss_bytes, ratio, show

ROOT = Path(__file__).parents[1]
DATA_BYTES = CLIENTS * EXAMPLES * (4 * FEATURES + 8)
PEERS = {
    "quorate": (sys.executable, "benchmarks._w1_quorate"),
    "fedjax": (str(ROOT / ".venv-fedjax/bin/python"), "benchmarks._w1_fedjax"),
    "pfl": (str(ROOT / ".venv-pfl/bin/python"), "benchmarks._w1_pfl"),
    "tff": (str(ROOT / ".venv-interop/bin/python"), "benchmarks._w1_tff"),
    "flower": (sys.executable, "benchmarks._w1_flower"),
}
FASTER = {"fedjax": 2.0, "pfl": 2.0, "tff": 12.0, "flower": 20.0}
"""How many times faster a round of the 2NN is to be."""


@dataclass
class Peer:
    """A peer's process.

    Args:
        name: of the peer.
        model: of the workload.

    Attributes:
        seconds: of its rounds, the first one apart.
    """

    name: str
    model: str
    seconds: list[float] = field(default_factory=list)
    most_bytes: int = 0
    first_s: float = 0.0

    def start(self) -> None:
        """Until the first round is over."""
        python, module = PEERS[self.name]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [python, "-m", module, self.model],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        self._complaints: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()
        self._ask("round")
        self.first_s = time.perf_counter() - began

    def round(self) -> None:
        """One more."""
        self.seconds.append(self._ask("round")["seconds"])

    def end(self) -> float:
        """The accuracy of what it has learned."""
        accuracy: float = self._ask("end")["accuracy"]
        self.process.wait(60)
        return accuracy

    def kill(self) -> None:
        """Whatever it is doing, and whatever it started."""
        with contextlib.suppress(psutil.Error):
            for one in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                with contextlib.suppress(psutil.Error, OSError):
                    one.kill()
        self.process.wait()

    def _ask(self, order: str) -> Any:
        done = threading.Event()
        watching = threading.Thread(target=self._sample, args=(done,))
        watching.start()
        try:
            print(order, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()  # type: ignore[union-attr]
        except BrokenPipeError:
            answer = ""
        finally:
            done.set()
            watching.join()
        if not answer:
            raise RuntimeError((self._complaints or ["it ended without a word"])[-1])
        return json.loads(answer)

    def _sample(self, done: threading.Event) -> None:
        while not done.wait(0.2):
            total = 0
            with contextlib.suppress(psutil.Error):
                one = psutil.Process(self.process.pid)
                for process in [one, *one.children(recursive=True)]:
                    with contextlib.suppress(OSError):
                        total += pss_bytes(process.pid)
            self.most_bytes = max(self.most_bytes, total)

    def _listen(self) -> None:
        for line in self.process.stderr:  # type: ignore[union-attr]
            if line.strip():
                self._complaints.append(line.strip())


def install() -> None:
    """Makes the peers' environments."""
    for name in ("fedjax", "pfl"):
        folder = ROOT / f".venv-{name}"
        subprocess.run(["python3.11", "-m", "venv", "--clear", folder], check=True)
        wanted = ROOT / "benchmarks" / "environments" / f"{name}.txt"
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "-r", wanted], check=True)


def measured(model: str, names: list[str], rounds: int) -> list[Row]:
    """All peers on one model."""
    peers: dict[str, Peer] = {}
    accuracy: dict[str, float] = {}
    try:
        for name in names:
            if not Path(PEERS[name][0]).exists():
                print(f"left out: {name}: there is no {PEERS[name][0]}; see --help", file=sys.stderr)
                continue
            peers[name] = peer = Peer(name, model)
            try:
                peer.start()
            except RuntimeError as error:
                print(f"left out: {name}: {error}", file=sys.stderr)
                peers.pop(name).kill()
        for _ in range(rounds):
            for peer in peers.values():
                peer.round()
        accuracy = {name: peer.end() for name, peer in peers.items()}
    finally:
        for peer in peers.values():
            peer.kill()
    return [row for name in peers for row in rows(model, name, peers, accuracy)]


def rows(model: str, name: str, peers: dict[str, Peer], accuracy: dict[str, float]) -> list[Row]:
    """What one of them came to, and how we compare."""
    peer, ours = peers[name], peers.get("quorate")
    middle = statistics.median(peer.seconds)
    beside = (peer.most_bytes - DATA_BYTES) / 2**20
    start_s = peer.first_s - middle
    found = [
        Row(model, f"{name}: a round", "s", middle),
        Row(model, f"{name}: start-up", "s", start_s),
        Row(model, f"{name}: memory beside the data", "MiB", beside),
        Row(model, f"{name}: accuracy after {len(peer.seconds) + 1} rounds", "", accuracy[name]),
    ]
    if ours is None or peer is ours:
        return found
    times = ratio(peer.seconds, ours.seconds)
    goal = FASTER[name] if model == "2NN" else None
    found.append(
        Row(model, f"{name}'s round over ours", "ratio", times, f"≥ {goal:g}" if goal else "",
            times >= goal if goal else None, "ours, s", statistics.median(ours.seconds))
    )  # fmt: skip
    our_start = ours.first_s - statistics.median(ours.seconds)
    if name == "flower":
        found.append(
            Row(model, "our start-up over flower's", "ratio", our_start / start_s, "≤ 0.05",
                our_start / start_s <= 0.05, "flower's, s", start_s)
        )  # fmt: skip
    if name == "pfl":
        held = (ours.most_bytes - DATA_BYTES) / 2**20
        found.append(
            Row(model, "our memory over pfl's", "ratio", held / beside, "≤ 0.5", held / beside <= 0.5,
                "pfl's, MiB", beside)
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--install", action="store_true", help="make the environments of FedJAX and pfl-research"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--model", choices=WIDTHS, action="append", help="only this one")
    parser.add_argument("--only", choices=PEERS, action="append", help="only this peer, beside us")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    options = parser.parse_args()
    if options.install:
        install()
        return
    names = ["quorate", *(name for name in PEERS if name != "quorate" and name in (options.only or PEERS))]
    found: list[Row] = []
    for model in options.model or WIDTHS:
        made = measured(model, names, 3 if options.quick else 9)
        found += made
        for row in made:
            show(row)
    if options.json:
        content = {
            "benchmark": "simulation_peers",
            "machine": machine(),
            "rows": [asdict(row) for row in found],
        }
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
