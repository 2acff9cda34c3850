"""Ends what TensorFlow Federated leaves running: its `worker_binary` outlives its parent otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest


@pytest.fixture(autouse=True, scope="session")
def no_process_is_left() -> Iterator[None]:
    yield
    left = [child for child in psutil.Process().children(recursive=True) if "worker_binary" in child.name()]
    for child in left:
        child.kill()
    psutil.wait_procs(left, timeout=10)
