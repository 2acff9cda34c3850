"""Writing files so that a crash leaves the old state or the new one, and excluding others from a folder.

A file is written beside its place, flushed to the disk, and renamed over it; then its folder is flushed,
because a rename is durable only with the folder (POSIX `rename`, `fsync`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["exclusive", "flush_folder", "flush_tree", "replace_file", "write_file"]

_FLUSHES = 16
"""How many files are flushed at a time."""


def write_file(path: Path, data: bytes, mode: int = 0o644, *, flush: bool = True) -> None:
    """Write a new file and flush it to the disk. The folder is not flushed.

    Args:
        path: must not exist.
        data: the whole content.
        mode: the permissions it is created with, before the process's umask.
        flush: not for one of many files, which `flush_tree` flushes together.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if flush:
            os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file in place of what may be there: readers see the old content or the new, never both.

    Args:
        path: what is replaced.
        data: the whole content.
        mode: the permissions it is created with, before the process's umask.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        write_file(beside, data, mode)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Make the creations and renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(path: Path) -> None:
    """Make a folder with everything in it durable: its files side by side, which a disk does in the time of a few."""
    found = list(os.walk(path))
    with ThreadPoolExecutor(_FLUSHES) as pool:
        for _ in pool.map(
            _flush_file, [os.path.join(folder, name) for folder, _, names in found for name in names]
        ):
            pass  # so that an error is raised
    for folder, _, _ in found:
        flush_folder(Path(folder))


def _flush_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock file (BSD `flock`) while the block runs; others, also in this process, wait for it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
