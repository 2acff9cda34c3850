"""Simulated time: when the members of a round report, who is late or gone by then, and when the round closes.

A member downloads the broadcast, trains, and uploads its update, each at its own speed; it is lost when its presence
ends before that, or when it comes after the round has closed. A round closes when everybody who still comes has
reported, at its deadline, or after as many reports as the coordinator waits for, and takes a second for each phase of
the sum that follows. Time passes in aborted rounds, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quorate.errors import QuorateError
from quorate.rounds import Member
from quorate.simulations.traces import Traces

__all__ = [
    "LONGEST_WAIT_S",
    "PHASES_AFTER_MASKING",
    "PHASES_BEFORE_MASKING",
    "WAIT_S",
    "Clock",
    "Report",
    "Work",
]

WAIT_S = 600.0
"""For how long nobody is looked for, when there are too few."""
LONGEST_WAIT_S = 30 * 86_400.0

PHASES_BEFORE_MASKING = 2
"""Of a secure sum, a second each: advertise, share. Members of a cohort that is drawn train after them."""
PHASES_AFTER_MASKING = 2
"""Consistency, unmask; an ideal sum takes the time of what it stands for."""

_JITTER = 0.1  # σ of the logarithm of what a member's training takes, from round to round


@dataclass(frozen=True)
class Work:
    """What a round asks of its members.

    Args:
        examples: that each trains on, epochs counted; shape (members,).
        download_bytes: of the broadcast.
        upload_bytes: of an encoded update.
        deadline_s: after which a report is late.
        close_after: how many reports close the round; None waits for all.
        phases_after: of the sum, after the reports; a second each.
    """

    examples: np.ndarray
    download_bytes: int
    upload_bytes: int
    deadline_s: float
    close_after: int | None
    phases_after: int


@dataclass(frozen=True)
class Report:
    """How a round went in simulated time.

    Args:
        unreported: members who were gone or late before their report.
        unfinished: members who reported, and were gone before the round was over.
        seconds: that it took.
    """

    unreported: frozenset[Member]
    unfinished: frozenset[Member]
    seconds: float


class Clock:
    """The simulated time of one run.

    Args:
        traces: when members are there, and how fast.
        members: of the population.
        now_s: what time it is.
    """

    def __init__(self, traces: Traces, members: int, now_s: float = 0.0):
        self.traces, self.members, self.now_s = traces, members, now_s

    def wait_for(self, present: int) -> None:
        """Lets time pass until enough members are there.

        Raises:
            QuorateError: there are not, for a month.
        """
        waited = 0.0
        while self.traces.present(self.members, self.now_s) < present:
            self.now_s += WAIT_S
            waited += WAIT_S
            if waited > LONGEST_WAIT_S:
                raise QuorateError(
                    f"{present} of {self.members} members were never there at the same time in a simulated month; "
                    "fleet.present says how many a round waits for"
                )

    def takes(
        self, indices: np.ndarray, examples: np.ndarray, transferred_bytes: int, rng: np.random.Generator
    ) -> np.ndarray:
        """How many seconds members need from the download to the end of the upload, shape (members,).

        Args:
            indices: theirs in the population, int64.
            examples: that each trains on, epochs counted.
            transferred_bytes: down and up.
            rng: draws how much slower or quicker than usual each of them is.
        """
        jitter = np.exp(_JITTER * rng.standard_normal(len(indices)))
        speeds = self.traces.speeds(indices)
        return np.asarray(examples / speeds.examples_per_s * jitter + transferred_bytes / speeds.bytes_per_s)

    def run(
        self, members: Sequence[Member], indices: np.ndarray, work: Work, rng: np.random.Generator
    ) -> Report:
        """Lets a round pass.

        Args:
            members: of its cohort, all of them there.
            indices: theirs in the population, int64.
            work: what they are to do.
            rng: draws how long they take.
        """
        reported = self.takes(indices, work.examples, work.download_bytes + work.upload_bytes, rng)
        stays = self.traces.stay_s(indices, self.now_s)
        comes = reported <= np.minimum(stays, work.deadline_s)
        closes = self._closes(reported, comes, work)
        in_time = comes & (reported <= closes)
        seconds = closes + work.phases_after
        gone = in_time & (stays < seconds)
        self.now_s += seconds
        return Report(
            frozenset(m for m, there in zip(members, in_time, strict=True) if not there),
            frozenset(m for m, left in zip(members, gone, strict=True) if left),
            seconds,
        )

    def _closes(self, reported: np.ndarray, comes: np.ndarray, work: Work) -> float:
        """When the last report that is waited for is there; the deadline, if somebody is waited for in vain."""
        times = np.sort(reported[comes])
        wanted = len(reported) if work.close_after is None else work.close_after
        if len(times) >= wanted:
            return float(times[wanted - 1]) if wanted else 0.0
        return work.deadline_s if math.isfinite(work.deadline_s) else float(times[-1]) if len(times) else 0.0
