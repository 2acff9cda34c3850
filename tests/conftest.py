"""What holds for all tests."""

from collections.abc import Iterator

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
