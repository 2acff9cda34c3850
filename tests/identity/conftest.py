from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.server.authority import Authority
from tests.identity.authorities import Clock, authority


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ours(tmp_path: Path, clock: Clock) -> Iterator[Authority]:
    """An authority whose clock the test moves."""
    made = authority(tmp_path / "authority", clock)
    yield made
    made.close()
