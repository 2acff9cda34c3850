"""What the cases of `benchmarks.peers` share: the plan, what a case comes to, and our own run of it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import quorate as q

NODES = 4
PLAN = Path(__file__).with_name("peers.toml")


@dataclass(frozen=True)
class Outcome:
    """What a case came to.

    Args:
        seconds: of each round, the first one (which starts things) left out where there are others.
        accuracy: on the test set, after the last round.
        lines: of the user's own code and configuration.
    """

    seconds: list[float]
    accuracy: float
    lines: int


def ours(rounds: int, fleet: Any, written: int, settings: Sequence[str] = ()) -> Outcome:
    """The plan on a fleet, perhaps with other settings."""
    plan = q.read_plan(PLAN, [f"rounds.count={rounds}", *settings])
    ends = [time.perf_counter()]
    run = q.run(plan, fleet=fleet, watch=lambda report: ends.append(time.perf_counter()))
    return Outcome(between(ends), run.metrics["accuracy"], written)


def between(ends: list[float]) -> list[float]:
    """The seconds of each round but the first, from when they ended; of the first if there is no other."""
    seconds = [after - before for before, after in pairwise(ends)]
    return seconds[1:] or seconds


def simulation(rounds: int) -> Outcome:
    return ours(rounds, None, lines(PLAN))


def lines(*written: Path | Callable[..., Any]) -> int:
    """Of files and functions, those that say something: blank ones and comments are not counted."""
    texts = [one.read_text() if isinstance(one, Path) else inspect.getsource(one) for one in written]
    said = [line.strip() for text in texts for line in text.splitlines()]
    return sum(bool(line) and not line.startswith(("#", '"""')) for line in said)
