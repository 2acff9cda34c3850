"""Many light agents in one process, over real gRPC: each has a connection of its own, and real participations.

    python -m benchmarks._agents PORT COUNT PREFIX [--idle]
    python -m benchmarks._agents PORT --enrolled DIRECTORY … [--leaving 0.05]

Training is an update that is there already. With `--idle` no run wants them: they check in, are sent away, and come
back when they are told to, at most `--within` seconds later. With `--enrolled` each has the keys and the certificate of
an agent's directory, and takes part over mutual TLS in signed rounds; `--leaving` is the share of participations that
it breaks off at some moment, without a word. When standard input closes, they end, and what they saw is printed as
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import numpy as np

from quorate.clients.agent.channels import connection, keys_in
from quorate.clients.agent.state import AgentState
from quorate.clients.participation import Participation
from quorate.clients.states import ClientStates
from quorate.errors import ProtocolViolation, QuorateError
from quorate.identity import Holder
from quorate.parameters import Parameters
from quorate.randomness import Randomness
from quorate.rounds import Instruction, State, Update
from quorate.strategies import local_rules
from quorate.wire import device_pb2 as pb
from quorate.wire.streams import VERSIONS, ZSTD, Joiner, cut

METHOD = "/quorate.v1.DeviceService/Participate"
LARGEST_FRAME = 1 << 28
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


class Trivial:
    """A client that has been trained already."""

    rules = frozenset(local_rules.names())

    def __init__(self) -> None:
        self._delta: np.ndarray | None = None

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        if self._delta is None:
            # Random: what compresses is not what models are like.
            self._delta = np.random.default_rng().normal(0, 1e-3, parameters.vector.size).astype(np.float32)
        return Update({"delta": self._delta}, 1, {"loss": 0.0, "accuracy": 0.0}), {}

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        return Update({}, 1)


class Named:
    """An agent without keys."""

    identities = None

    def __init__(self, name: str, port: int):
        self.name, self._port = name, port

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", OPTIONS)

    def prepare(self) -> None:
        """Nothing."""


class Certified:
    """An agent that has enrolled."""

    def __init__(self, directory: Path, port: int):
        self._holder, self._port = Holder(keys_in(directory)), port
        with contextlib.closing(AgentState(directory)) as state:
            self._connection = connection(state, None, None, insecure=False)
        self.name, self.identities = self._connection.device, self._connection.identities

    def channel(self) -> grpc.aio.Channel:
        key, chain = self._holder.tls_pair
        credentials = grpc.ssl_channel_credentials(self._holder.root.pem, key, chain)
        return grpc.aio.secure_channel(f"localhost:{self._port}", credentials, OPTIONS)

    def prepare(self) -> None:
        """The log is followed, so that the others are known; blocks."""
        self._connection.refresh()


class Fleet:
    """All agents of this process."""

    def __init__(self, task: str, within_s: float, leaving: float):
        self.task, self.within_s, self.leaving = task, within_s, leaving
        self.client, self.states = Trivial(), ClientStates()
        self.latencies_s: list[float] = []
        self.rounds = self.left = 0
        self.failures: Counter[str] = Counter()
        self.ended = asyncio.Event()

    async def agent(self, own: Named | Certified, begins_s: float) -> None:
        """Participation after participation."""
        await self._pause(begins_s)
        async with own.channel() as channel:
            method = channel.stream_stream(METHOD)
            while not self.ended.is_set():
                try:
                    await asyncio.to_thread(own.prepare)
                    after_s = await self._participate(method(), own)
                except (grpc.aio.AioRpcError, QuorateError, asyncio.CancelledError) as error:
                    if self.ended.is_set():
                        return
                    self.failures[_words(error)] += 1
                    after_s = random.uniform(0.5, 2.0)
                await self._pause(min(after_s, self.within_s))

    async def _participate(self, call: grpc.aio.StreamStreamCall, own: Named | Certified) -> float:
        check_in = pb.CheckIn(versions=VERSIONS, tasks=[self.task], device=own.name, encodings=[ZSTD])
        begun = time.perf_counter()
        await call.write(pb.DeviceMessage(check_in=check_in).SerializeToString())
        participation = Participation(
            own.name, self.client, self.states, Randomness.system(), identities=own.identities
        )
        joiner, said = Joiner(LARGEST_FRAME, [ZSTD]), 0
        silent_after = random.randrange(4) if random.random() < self.leaving else None
        async for raw in call:
            message = pb.CoordinatorMessage.FromString(raw)
            if message.HasField("come_back"):
                if participation.concluded:
                    self.rounds += 1
                else:
                    self.latencies_s.append(time.perf_counter() - begun)
                return message.come_back.after_s
            frame = joiner.add(message.chunk)
            if frame is not None:
                for answer in participation.receive(frame):
                    if said == silent_after:
                        call.cancel()
                        self.left += 1
                        return random.uniform(1.0, self.within_s)
                    said += 1
                    for chunk in cut(answer):
                        await call.write(pb.DeviceMessage(chunk=chunk).SerializeToString())
        raise ProtocolViolation("the stream ended without a word")

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), max(seconds, 0.001))


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"[:100]
    return f"{type(error).__name__}: {error}"[:100]


async def run(options: argparse.Namespace) -> None:
    fleet = Fleet("nobody-s" if options.idle else "softmax", options.within, options.leaving)
    agents: list[Named | Certified] = [Certified(path, options.port) for path in options.enrolled]
    agents += [Named(f"{options.prefix}-{i}", options.port) for i in range(options.count)]
    tasks = [
        asyncio.create_task(fleet.agent(own, options.within * place / len(agents)))
        for place, own in enumerate(agents)
    ]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    fleet.ended.set()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=5)
    found = {
        "latencies_s": fleet.latencies_s,
        "rounds": fleet.rounds,
        "left": fleet.left,
        "failures": fleet.failures,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=int, nargs="?", default=0)
    parser.add_argument("prefix", nargs="?", default="")
    parser.add_argument("--enrolled", type=Path, nargs="+", default=[], metavar="DIRECTORY")
    parser.add_argument("--leaving", type=float, default=0.0)
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--within", type=float, default=5.0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
