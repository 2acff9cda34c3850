"""Where a coordinator can die: every write and every send has a name, and a moment before and after it.

Each transaction of the store and of the enrolment authority, and each message to a member, passes its point, so that a
test can kill the process at all of them, and none is forgotten: `StateDatabase.writing` asks for the point. In
production nobody watches.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Point", "Watch", "passing", "watch"]


class Point(enum.StrEnum):
    """What is about to happen, or has happened."""

    MIGRATE = "bring the tables up to date"
    BEGIN_TERM = "begin a term as the one that writes"
    OPEN_RUN = "open a run"
    HOST_RUN = "note a run that is wanted"
    WANT_RUN = "note what is wanted of a run"
    FINISH_RUN = "note that a run is finished"
    OPEN_ROUND = "open a round"
    LEDGER = "append to the ledger"
    ASSIGN = "note a cohort"
    REVEAL = "note that something may be revealed"
    COMMIT = "commit a round"
    ABORT = "abort a round"
    VERSION = "note a published version"
    MAKE_TOKEN = "make a token"
    ENROL = "enrol a party"
    RENEW = "note a renewal"
    REVOKE = "revoke a party"
    SEND_ASSIGNMENT = "send an assignment"
    SEND_SUM = "send a message of the sum"
    SEND_OUTCOME = "send an outcome"
    PUBLISH = "publish a version"

    @property
    def sends(self) -> bool:
        """Whether something leaves the coordinator there; else it writes."""
        return self.name.startswith("SEND_") or self is Point.PUBLISH


Watch = Callable[[Point, str, bool], None]
"""Told of a point, of which one it is where that matters (the phase of a sum), and whether it is over."""

_watch: Watch | None = None


def watch(told: Watch | None) -> None:
    """Has every point of this process told to a function; None to nobody."""
    global _watch
    _watch = told


@contextmanager
def passing(point: Point, which: str = "") -> Iterator[None]:
    """Stands around a write or a send. What failed is not over."""
    if _watch is not None:
        _watch(point, which, False)
    yield
    if _watch is not None:
        _watch(point, which, True)
