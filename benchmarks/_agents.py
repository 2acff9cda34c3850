"""Many light agents in one process, over real gRPC: each has a connection of its own, and real participations.

    python -m benchmarks._agents PORT COUNT PREFIX [--idle]

Training is an update that is there already. With `--idle` no run wants them: they check in, are sent away, and come
back when they are told to, at most `--within` seconds later. When standard input closes, they end, and what they saw is
printed as JSON.
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

import grpc
import numpy as np

from quorate.clients.participation import Participation
from quorate.clients.states import ClientStates
from quorate.errors import ProtocolViolation
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


class Fleet:
    """All agents of this process."""

    def __init__(self, port: int, prefix: str, task: str, within_s: float):
        self.port, self.prefix, self.task, self.within_s = port, prefix, task, within_s
        self.client, self.states = Trivial(), ClientStates()
        self.latencies_s: list[float] = []
        self.rounds = self.failures = 0
        self.ended = asyncio.Event()

    async def agent(self, number: int, count: int) -> None:
        """Participation after participation."""
        name = f"{self.prefix}-{number}"
        await self._pause(self.within_s * number / count)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", OPTIONS) as channel:
            method = channel.stream_stream(METHOD)
            while not self.ended.is_set():
                try:
                    after_s = await self._participate(method(), name)
                except (grpc.aio.AioRpcError, ProtocolViolation):
                    self.failures += 1
                    after_s = random.uniform(0.5, 2.0)
                await self._pause(min(after_s, self.within_s))

    async def _participate(self, call: grpc.aio.StreamStreamCall, name: str) -> float:
        check_in = pb.CheckIn(versions=VERSIONS, tasks=[self.task], device=name, encodings=[ZSTD])
        begun = time.perf_counter()
        await call.write(pb.DeviceMessage(check_in=check_in).SerializeToString())
        participation = Participation(name, self.client, self.states, Randomness.system())
        joiner = Joiner(LARGEST_FRAME, [ZSTD])
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
                    for chunk in cut(answer):
                        await call.write(pb.DeviceMessage(chunk=chunk).SerializeToString())
        raise ProtocolViolation("the stream ended without a word")

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), max(seconds, 0.001))


async def run(options: argparse.Namespace) -> None:
    fleet = Fleet(options.port, options.prefix, "nobody-s" if options.idle else "softmax", options.within)
    tasks = [asyncio.create_task(fleet.agent(i, options.count)) for i in range(options.count)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    fleet.ended.set()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=5)
    found = {
        "latencies_s": fleet.latencies_s,
        "rounds": fleet.rounds,
        "failures": fleet.failures,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("prefix")
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--within", type=float, default=5.0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
