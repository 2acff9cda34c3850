"""Training elsewhere: the application's client, as the agent sees it, is a child process (`worker`).

Whatever happens in there (a crash, an endless loop, memory without end, an answer that is none) ends as
`TrainingFailed`: a dropout of this round, and a line in the agent's log. The coordinator hears what kind of failure it
was, never the application's own words. The child is started when it is needed, kept while the next round may be near,
and closed when the agent is idle.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from quorate.clients.agent.description import Description
from quorate.clients.agent.limits import Limits
from quorate.clients.agent.worker import HEADER, LARGEST_WORDS, pack, unpack
from quorate.errors import DataError, PlanError, QuorateError, TrainingFailed
from quorate.parameters import Parameters
from quorate.rounds import Instruction, State, Update

__all__ = ["ChildClient", "Trainer"]

log = logging.getLogger(__name__)

_LOOK_S = 0.25
"""How often memory, time and conditions are looked at while training runs."""
_MEGABYTE = 10**6
_START_S = 120.0


class Trainer:
    """Holds the child process of one task.

    Args:
        path: `module:attribute` of the task.
        limits: what the child may use.
        check: called every quarter of a second while the child works: raises `TrainingFailed` to stop it.
    """

    def __init__(self, path: str, limits: Limits, check: Callable[[], None] = lambda: None):
        self.path, self._limits, self._check = path, limits, check
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def describe(self) -> Description:
        """What the task is.

        Raises:
            PlanError: the application can't be loaded, or what it says of itself is not a task.
        """
        try:
            return Description.read(self._ask({"do": "describe"}, {}, _START_S)[0])
        except (TrainingFailed, KeyError, TypeError, ValueError, DataError) as error:
            why = error.__cause__ or error  # the owner may hear the application's own words
            raise PlanError(f"--task {self.path}: the task can't be used: {why}") from error

    def work(
        self, what: str, parameters: Parameters, instruction: Instruction, state: State, timeout_s: float
    ) -> tuple[Update, State]:
        """`fit` or `evaluate`, in the child.

        Raises:
            TrainingFailed: it did not come to an end, or its answer is not an update.
        """
        arrays = {"parameters": parameters.vector}
        arrays |= {f"extras/{name}": np.asarray(vector) for name, vector in instruction.extras.items()}
        arrays |= {f"state/{name}": np.asarray(array) for name, array in state.items()}
        words = {
            "do": what,
            "rule": instruction.rule,
            "settings": dict(instruction.settings),
            "slices": {key: list(values) for key, values in instruction.slices.items()},
            "names": list(parameters.layout.names),
        }
        said, answered = self._ask(words, arrays, min(timeout_s, self._limits.training_s))
        return _checked(said, answered)

    def close(self) -> None:
        """Ends the child."""
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _ask(
        self, words: Mapping[str, Any], arrays: Mapping[str, np.ndarray], timeout_s: float
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One order and its answer; whatever goes wrong ends the child."""
        watch = _Watch(self._started(), self._check, self._limits, time.monotonic() + timeout_s)
        connection = self._connection
        assert connection is not None
        try:
            for piece in pack(words, arrays):
                _send(connection, memoryview(piece), watch)
            text_bytes, body_bytes = HEADER.unpack(_receive(connection, HEADER.size, watch))
            if text_bytes > LARGEST_WORDS or body_bytes > self._limits.memory_mb * _MEGABYTE:
                raise TrainingFailed("training gave an answer that is too large", "training-answer")
            text = _receive(connection, text_bytes, watch)
            said, answered = unpack(text, _receive(connection, body_bytes, watch))
        except TrainingFailed:
            self.close()
            raise
        except (OSError, EOFError):
            raise self._ended() from None
        except (ValueError, json.JSONDecodeError) as error:
            self.close()
            log.error("the application's process gave an answer that can't be read: %s", error)
            raise TrainingFailed("training gave an answer that can't be read", "training-answer") from None
        if "failed" in said:
            self.close()  # what it may have left half-done goes with it
            log.error("the application failed: %s", said.get("error", said["failed"]))
            if said["failed"] == "memory":
                raise TrainingFailed("training ran out of memory", "training-memory")
            raise TrainingFailed("training raised an error", "training-error") from QuorateError(
                said["error"]
            )
        return said, answered

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        own, theirs = socket.socketpair()
        with theirs:
            arguments = [
                str(theirs.fileno()),
                str(os.getpid()),
                str(self._limits.memory_mb * _MEGABYTE),
                self.path,
            ]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quorate.clients.agent.worker", *arguments],
                env={name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # where the logs go
                start_new_session=True,
            )
        own.setblocking(False)
        self._connection = own
        return self._process

    def _ended(self) -> TrainingFailed:
        """Why the child is gone."""
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
        code = process.poll()
        self.close()
        log.error("the application's process ended with code %s", code)
        return TrainingFailed("training crashed", "training-crash")


@dataclass
class _Watch:
    """What is looked at while the child works."""

    process: subprocess.Popen[bytes]
    check: Callable[[], None]
    limits: Limits
    deadline: float

    def look(self) -> None:
        """Raises what ends the training."""
        self.check()
        if time.monotonic() > self.deadline:
            raise TrainingFailed("training took too long", "training-time")
        if _resident_bytes(self.process.pid) > self.limits.memory_mb * _MEGABYTE:
            raise TrainingFailed("training used more memory than it may", "training-memory")


class ChildClient:
    """The client that a participation is given: it trains in the child.

    Args:
        trainer: holds the child.
        rules: the local rules that the application's client implements.
        keys: what it can slice its metrics by.
        timeout_s: how long training may take in this round.
    """

    def __init__(self, trainer: Trainer, rules: frozenset[str], keys: tuple[str, ...], timeout_s: float):
        self.rules, self.keys = rules, keys
        self._trainer, self._timeout_s = trainer, timeout_s

    def fit(self, parameters: Parameters, instruction: Instruction, state: State) -> tuple[Update, State]:
        """See `quorate.fleets.Client`.

        Raises:
            TrainingFailed: see `Trainer.work`.
        """
        return self._trainer.work("fit", parameters, instruction, state, self._timeout_s)

    def evaluate(self, parameters: Parameters, instruction: Instruction, state: State) -> Update:
        """See `quorate.fleets.Client`.

        Raises:
            TrainingFailed: see `Trainer.work`.
        """
        return self._trainer.work("evaluate", parameters, instruction, state, self._timeout_s)[0]


def _checked(words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[Update, State]:
    """An update from what the child said; garbage is refused here, its lengths when it is encoded."""
    vectors: dict[str, np.ndarray] = {}
    state: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        if part == "vectors":
            vectors[rest] = _floats(array)
        else:
            state[rest] = array
    examples, metrics = int(words["examples"]), {k: float(v) for k, v in words["metrics"].items()}
    if examples < 0 or not all(map(math.isfinite, metrics.values())):
        raise TrainingFailed("training gave examples or metrics that are no numbers", "training-answer")
    return Update(vectors, examples, metrics), state


def _floats(array: np.ndarray) -> np.ndarray:
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise TrainingFailed("training gave a vector that is not one row of numbers", "training-answer")
    values = array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise TrainingFailed("training gave values that are not finite", "training-diverged")
    return values


def _send(connection: socket.socket, data: memoryview, watch: _Watch) -> None:
    for _ in _ready(connection, selectors.EVENT_WRITE, watch):
        data = data[connection.send(data) :] if data else data
        if not data:
            return


def _receive(connection: socket.socket, count: int, watch: _Watch) -> bytes:
    received = bytearray(count)
    view = memoryview(received)
    if not count:
        return b""
    for _ in _ready(connection, selectors.EVENT_READ, watch):
        got = connection.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
        if not view:
            break
    return bytes(received)


def _ready(connection: socket.socket, event: int, watch: _Watch) -> Iterable[None]:
    """Each time that the child can be talked to; looks at the watch at least every quarter of a second."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, event)
        looked = time.monotonic()
        while True:
            ready = selector.select(_LOOK_S)
            if not ready or time.monotonic() - looked > _LOOK_S:
                watch.look()
                looked = time.monotonic()
            if ready:
                yield


def _resident_bytes(pid: int) -> int:
    """Of the child and its own children."""
    total = 0
    with contextlib.suppress(psutil.Error):
        child = psutil.Process(pid)
        for process in [child, *child.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += int(process.memory_info().rss)
    return total
