"""Processes whose clock jumps: Python's own, by an offset in seconds that a test writes to a file.

It is `sitecustomize`, so that children and fresh processes of the same id have it too. What reads the machine's clock
without Python does not jump: OpenSSL's own check of a certificate, and log lines.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

JUMPING = """
import datetime, os, time

real, real_time = datetime.datetime, time.time

def offset():
    with open(os.environ["JUMPED_BY"]) as file:
        return float(file.read() or 0)

class Kind(type(real)):
    def __instancecheck__(cls, value):
        return isinstance(value, real)

class Jumping(real, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(seconds=offset())

datetime.datetime = Jumping
time.time = lambda: real_time() + offset()
"""

HOUR, DAY, YEAR = 3600.0, 86_400.0, 365 * 86_400.0


@dataclass(frozen=True)
class Clock:
    """A clock that can be set.

    Args:
        folder: for its files; made.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "sitecustomize.py").write_text(JUMPING)
        self.jump(0.0)

    def jump(self, by_s: float) -> None:
        """Sets it so much ahead of the machine's."""
        beside = self.folder / "new"
        beside.write_text(str(by_s))
        beside.replace(self.folder / "offset")

    @property
    def environment(self) -> dict[str, str]:
        """Of the processes that have it."""
        path = os.pathsep.join((str(self.folder), os.getcwd()))
        return {**os.environ, "PYTHONPATH": path, "JUMPED_BY": str(self.folder / "offset")}
