"""Spreads unmasking over processes that share memory.

Taking the masks off a sum is most of the server's work: one AES key stream a survivor, and k a dropout, each as long as
the vector. `cryptography` holds the interpreter's lock, so that threads would gain nothing and would hold up the
coordinator's sessions: here each of several processes adds its share of the masks up, in its own place of a buffer that
all of them share.

The vector goes through the buffer in chunks, so that memory beyond it is the buffer. A chunk of it is changed once
every worker has answered: where one dies, the vector holds whole chunks, and the rest is unmasked in this process.
Workers are started by the first sum that is worth it, live until `close`, and end with their parent. They
are processes of their own, not forks (a coordinator has threads) and not `multiprocessing`'s (which would run an
unguarded main program again).
"""

from __future__ import annotations

import logging
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

import numpy as np

from quorate.privacy.secagg import Mask, add_masks
from quorate.processors import cores
from quorate.server import unmasking_worker
from quorate.server.unmasking_worker import DONE, Task, write_task

__all__ = ["WORTH_BYTES", "UnmaskingPool"]

log = logging.getLogger(__name__)

WORTH_BYTES = 1 << 29
"""Below so many bytes of mask (some 0.1 s on one core) workers, which take 0.3 s to start, are not worth it."""

_BUFFER_BYTES = 1 << 25
_LINE_BYTES = 64


class UnmaskingPool:
    """Adds masks to a vector, as `quorate.privacy.secagg.add_masks` does, on several cores where that is worth it.

    A context manager: leaving it ends the workers.

    Args:
        workers: how many; None: one a core that this process may use. With one, or where the system can't share
            anonymous memory by a descriptor (Linux can), everything is done in this process.
        worth_bytes: from how many bytes of mask on workers are used.
    """

    def __init__(self, workers: int | None = None, worth_bytes: int = WORTH_BYTES):
        self._count = (workers or cores()) if hasattr(os, "memfd_create") else 1
        self._worth_bytes = worth_bytes
        self._workers: list[subprocess.Popen[bytes]] = []
        self._memory: mmap.mmap | None = None
        self._lock = threading.Lock()  # one buffer: one sum at a time

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers' process ids; empty before the first sum that was worth it."""
        return tuple(worker.pid for worker in self._workers)

    def __call__(self, vector: np.ndarray, masks: Sequence[Mask]) -> None:
        """Adds masks to a whole vector, in place, modulo the ring.

        Args:
            vector: shape (m,), uint16 or uint32, contiguous.
            masks: what to add.
        """
        done = 0
        if self._count > 1 and len(masks) * vector.nbytes >= self._worth_bytes:
            with self._lock:
                try:
                    self._start()
                    while done < len(vector):
                        done += self._add(vector, masks, done)
                except OSError as error:
                    log.warning(
                        "an unmasking worker is gone (%s): the rest is unmasked in this process", error
                    )
                    self._end()
                except BaseException:
                    self._end()  # what the workers are doing is nobody's any more
                    raise
        if done < len(vector):
            add_masks(vector[done:], masks, done)

    def close(self) -> None:
        """Ends the workers."""
        with self._lock:
            self._end()

    def __enter__(self) -> UnmaskingPool:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _add(self, vector: np.ndarray, masks: Sequence[Mask], start: int) -> int:
        """Does one chunk and returns its length.

        Raises:
            OSError: a worker is gone; the vector is as it was.
        """
        assert self._memory is not None
        size = _BUFFER_BYTES // len(self._workers) & -_LINE_BYTES  # of each worker's place, in bytes
        length = min(len(vector) - start, size // vector.itemsize)
        chunk = vector[start : start + length]
        busy, places = [], []
        for number, worker in enumerate(self._workers):
            share = masks[number :: len(self._workers)]
            if not share:
                continue
            place = np.frombuffer(self._memory, vector.dtype, length, number * size)
            place[:] = 0
            task = Task(number * size, length, vector.itemsize, () if start else share)
            write_task(_pipe(worker.stdin), task)
            busy.append(worker)
            places.append(place)
        for worker in busy:
            if _pipe(worker.stdout).read(1) != DONE:
                raise ConnectionError(f"process {worker.pid} ended with status {worker.wait()}")
        for place in places:
            np.add(chunk, place, out=chunk)
        return length

    def _start(self) -> None:
        if self._workers:
            return
        descriptor = os.memfd_create("quorate-unmasking")
        try:
            os.ftruncate(descriptor, _BUFFER_BYTES)
            self._memory = mmap.mmap(descriptor, _BUFFER_BYTES)
            for _ in range(self._count):
                self._workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", unmasking_worker.__name__, str(descriptor)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        pass_fds=[descriptor],
                        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                        start_new_session=True,  # Ctrl-C is for the coordinator, which closes what it opened
                    )
                )
        finally:
            os.close(descriptor)

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.communicate()
        self._workers, self._memory = [], None


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
