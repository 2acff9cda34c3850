"""The child process in which the application's code runs: it trains when it is asked to, and knows nothing else.

    python -m quorate.clients.agent.worker DESCRIPTOR PARENT MEMORY_BYTES module:attribute

It is given a descriptor of a socket to the agent, the agent's process id, and one task (`module:attribute`, a
`quorate.task.Task` with data). It never sees keys or other members' messages. What it writes to standard output goes
where the agent's logs go. It ends with the agent: the kernel kills it when the agent is gone (prctl(2),
PR_SET_PDEATHSIG); where the kernel has no such thing, a thread looks every second.

A message is two lengths, a JSON header, and named arrays in safetensors' format.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from quorate import plugins
from quorate.clients.slices import client_of
from quorate.fleets import Client
from quorate.rounds import Instruction
from quorate.task import Task

__all__ = ["HEADER", "LARGEST_WORDS", "pack", "serve", "unpack"]

HEADER = struct.Struct(">IQ")
LARGEST_WORDS = 1 << 20
_PR_SET_PDEATHSIG = 1


def pack(words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[bytes]:
    """A message as pieces to send one after the other."""
    text = json.dumps(words).encode()
    body = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return [HEADER.pack(len(text), len(body)), text, body]


def unpack(text: bytes, body: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A message's words and arrays.

    Raises:
        ValueError: it is no message.
    """
    words = json.loads(text)
    if not isinstance(words, dict):
        raise ValueError("a message's words are an object")
    try:
        return words, dict(safetensors.numpy.load(body))
    except Exception as error:  # safetensors has an exception type of its own, which it does not export
        raise ValueError(f"a message's arrays can't be read: {error}") from error


def main(descriptor: str, parent: str, memory_bytes: str, path: str) -> None:
    """Confines itself, then serves."""
    _confine(int(memory_bytes))
    _end_with(int(parent))
    serve(socket.socket(fileno=int(descriptor)), path)


def serve(connection: socket.socket, path: str) -> None:
    """Does what is asked until the agent is gone."""
    sys.path.insert(0, os.getcwd())
    application: _Application | None = None
    while (message := _receive(connection)) is not None:
        words, arrays = message
        try:
            application = application or _Application(path)
            answer = pack(*application.do(words, arrays))
        except MemoryError:
            answer = pack({"failed": "memory"}, {})
        except Exception as error:  # the application's own: a failed training, not a dead child
            traceback.print_exc()
            answer = pack({"failed": "error", "error": f"{type(error).__name__}: {error}"[:1000]}, {})
        for piece in answer:
            connection.sendall(piece)


class _Application:
    """The task, and its client once it is needed."""

    def __init__(self, path: str):
        found = plugins.find("quorate.tasks", path)
        found = found() if callable(found) and not isinstance(found, Task) else found
        if not isinstance(found, Task):
            raise TypeError(f"{path} is no quorate.Task but a {type(found).__name__}")
        self.task = found
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """Made when it is first needed, with the device's data."""
        if self._client is None:
            self._client = client_of(self.task)
        return self._client

    def do(
        self, words: dict[str, Any], arrays: dict[str, np.ndarray]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One order, and what it came to."""
        if words["do"] == "describe":
            return self._described(), {}
        own = _parts(arrays)
        instruction = Instruction(
            words["rule"], words["settings"], own.get("extras", {}), slices=words.get("slices", {})
        )
        parameters = self.task.layout.subset(words["names"]).unflatten(arrays["parameters"])
        result = getattr(self.client, words["do"])(parameters, instruction, own.get("state", {}))
        update, state = result if isinstance(result, tuple) else (result, {})
        said = {"examples": int(update.examples), "metrics": {k: float(v) for k, v in update.metrics.items()}}
        vectors = {f"vectors/{name}": np.asarray(value) for name, value in update.vectors.items()}
        return said, vectors | {f"state/{name}": np.asarray(value) for name, value in state.items()}

    def _described(self) -> dict[str, Any]:
        model = self.task.model
        return {
            "name": model.name,
            "settings": dict(model.settings),
            "layout": [[name, list(shape)] for name, shape in self.task.layout.entries],
            "metrics": list(model.metrics),
            "rules": sorted(self.client.rules),
            "keys": list(getattr(self.client, "keys", ())),
        }


def _parts(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        part, slash, rest = name.partition("/")
        if slash:
            found.setdefault(part, {})[rest] = array
    return found


def _receive(connection: socket.socket) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    header = _exactly(connection, HEADER.size)
    if header is None:
        return None
    text_bytes, body_bytes = HEADER.unpack(header)
    text, body = _exactly(connection, text_bytes), _exactly(connection, body_bytes)
    return None if text is None or body is None else unpack(text, body)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    received = bytearray(count)
    view = memoryview(received)
    while view:
        got = connection.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return bytes(received)


def _confine(memory_bytes: int) -> None:
    """Of the lowest priority, with no more private memory than allowed, and the first to go when memory is short."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("1000")
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent decides


def _end_with(parent: int) -> None:
    """Sees to it that this process does not outlive the agent, whatever the application is doing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=[parent], daemon=True).start()
    if os.getppid() != parent:  # it was gone before anybody watched
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
