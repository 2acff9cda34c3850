"""A worker of the unmasking pool: adds masks to a place in a buffer that it shares with its parent.

    python -m quorate.server.unmasking_worker DESCRIPTOR

It reads tasks from standard input and answers each with one byte on standard output, until its input ends: when the
parent is gone, so is the worker. Masks' keys go through the pipe, and are written nowhere.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

from quorate.privacy.secagg.keys import KEY_BYTES
from quorate.privacy.secagg.masks import Mask, MaskStream

__all__ = ["DONE", "Task", "read_task", "write_task"]

DONE = b"\x01"
_HEADER = struct.Struct(">QQBI")  # offset in bytes, elements, bytes an element, masks


@dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Args:
        offset: of its place in the buffer, in bytes; a multiple of the cache line.
        length: in elements.
        itemsize: 2 or 4 bytes an element.
        masks: what to add, from the first element of a vector on; empty: go on with the masks of the task before, where
            they stopped.
    """

    offset: int
    length: int
    itemsize: int
    masks: Sequence[Mask]


def write_task(pipe: IO[bytes], task: Task) -> None:
    """Sends a task to a worker's standard input."""
    keys = b"".join(mask.key for mask in task.masks)
    signs = bytes(mask.negative for mask in task.masks)
    pipe.write(_HEADER.pack(task.offset, task.length, task.itemsize, len(signs)) + keys + signs)
    pipe.flush()


def read_task(pipe: IO[bytes]) -> Task | None:
    """What `write_task` sent; None at the end."""
    header = pipe.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    offset, length, itemsize, count = _HEADER.unpack(header)
    keys, signs = pipe.read(count * KEY_BYTES), pipe.read(count)
    if len(signs) < count:
        return None
    masks = [Mask(keys[KEY_BYTES * i : KEY_BYTES * (i + 1)], bool(sign)) for i, sign in enumerate(signs)]
    return Task(offset, length, itemsize, masks)


def main(descriptor: int) -> None:
    """Works until there are no more tasks."""
    stream: MaskStream | None = None
    with mmap.mmap(descriptor, 0) as memory:
        while (task := read_task(sys.stdin.buffer)) is not None:
            place = np.frombuffer(memory, f"u{task.itemsize}", task.length, task.offset)
            if task.masks:
                stream = MaskStream(task.masks, place.dtype)
            assert stream is not None
            stream.add(place)
            del place  # the memory can't be unmapped while it is looked at
            sys.stdout.buffer.write(DONE)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
