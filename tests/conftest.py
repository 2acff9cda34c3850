"""What holds for all tests."""

import os
from collections.abc import Iterator

# Before NumPy is loaded, and for the processes that tests start: tests run side by side, and threads of a library that
# wait for each other would take their cores from them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.postgres import Server, server

# A machine that is busy is no failure; `pytest-timeout` ends what hangs.
settings.register_profile("quorate", parent=settings(), deadline=None)
settings.load_profile("quorate")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A PostgreSQL server; tests that ask for it are skipped where it is not installed."""
    with server() as started:
        yield started
