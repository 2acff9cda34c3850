"""What must outlive the agent's process: one SQLite file, durable before anything that follows from it leaves.

    participations   every round that the device began: once each, for ever; what of it is exposed; how it ended
    events           what a participation showed the coordinator, for the device's own budget
    trainings        what a participation costs an example, where it trained by DP-SGD
    refusals         what the device declined, and why
    facts            paused or not, the newest time that was seen, what was last heard
    states           what clients keep between rounds (`quorate.clients.states`)

A round is begun once: a coordinator that assigns it again, to make the device answer for two different sets of
survivors, is refused, after a reboot too. That its vector or its shares leave the device is written down before they
do. A participation is charged to the budget when its vector leaves, even if the answer then got lost.

Time never goes back: what is written bears the newest time that was ever seen, so that a participation never counts
for less than its period when a clock is set back. A clock that is set forward is believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from quorate.errors import PolicyRefused, StateError

if TYPE_CHECKING:
    from quorate.clients.states import ClientStates
    from quorate.privacy import Event, ExampleEvent
    from quorate.rounds import Outcome
    from quorate.summation import Exposure

__all__ = ["AgentState", "Past", "held", "holder"]

FILE = "agent.sqlite"
_MOST_UNDECIDED = 32
_MOST_REFUSALS = 1000
_NOTHING = 0
"""`Exposure.NOTHING`."""

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, event TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS participations (
    run TEXT NOT NULL, round INTEGER NOT NULL, task TEXT NOT NULL, began REAL NOT NULL,
    event INTEGER REFERENCES events (number), exposure INTEGER NOT NULL, outcome TEXT, PRIMARY KEY (run, round)
);
CREATE TABLE IF NOT EXISTS trainings (
    run TEXT NOT NULL, round INTEGER NOT NULL, event TEXT NOT NULL, PRIMARY KEY (run, round)
);
CREATE INDEX IF NOT EXISTS undecided ON participations (began) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS refusals (
    time REAL NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Past:
    """A round that the device began.

    Args:
        run: the run's id.
        round: the round's number.
        task: the task's name.
        began: seconds since 1970.
        exposure: what left the device.
        outcome: None while the device has not heard it.
    """

    run: str
    round: int
    task: str
    began: float
    exposure: Exposure
    outcome: Outcome | None


class AgentState:
    """The agent's memory. Opened by the running agent, and by commands that look at it or set a fact.

    Args:
        directory: where the file is; made if it is not there.
        clock: seconds since 1970.

    Raises:
        StateError: the file is not the agent's, or can't be read.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time):
        self.directory, self._clock = directory, clock
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = directory / FILE
        try:
            # Rows of other processes' commands are waited for.
            self._connection = sqlite3.connect(
                self.path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise StateError(f"{self.path} is not an agent's state: {error}") from error
        os.chmod(self.path, 0o600)

    @cached_property
    def states(self) -> ClientStates:
        """What clients keep between rounds. Loaded with NumPy when it is needed, which an agent that waits does not."""
        from quorate.clients.states import ClientStates

        return ClientStates(self.path)

    def now(self) -> float:
        """The newest time that was ever seen, in seconds since 1970."""
        return max(self._clock(), float(self.fact("newest_time") or 0.0))

    # --- facts

    def fact(self, name: str) -> str | None:
        """What was noted under a name."""
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", [name]).fetchone()
        return None if row is None else str(row[0])

    def note(self, **facts: str | float | None) -> None:
        """Notes facts; None forgets one. What is noted already is not written again."""
        if all(self.fact(name) == (None if value is None else str(value)) for name, value in facts.items()):
            return
        with self._transaction():
            for name, value in facts.items():
                self._note(name, value)

    def _note(self, name: str, value: str | float | None) -> None:
        if value is None:
            self._connection.execute("DELETE FROM facts WHERE name = ?", [name])
        else:
            self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", [name, str(value)])

    def come_back(self, after_s: float) -> None:
        """Notes when the coordinator wants the device again, so that a restart does not bring it back early."""
        with self._transaction():
            self._note("next_check_in", repr(self._passes() + after_s))

    def away_s(self) -> float:
        """How long the device is still to stay away."""
        return max(0.0, float(self.fact("next_check_in") or 0.0) - self.now())

    # --- participations

    def begin(
        self, task: str, run: str, round: int, event: Event | None, training: ExampleEvent | None = None
    ) -> None:
        """Writes down that the device takes part in a round. Durable when it returns.

        Args:
            task: the task's name.
            run: the run's id.
            round: the round's number.
            event: what it shows the coordinator; None: everything.
            training: what it costs an example; None: what nobody has bounded.

        Raises:
            PolicyRefused: it took part in this round before.
        """
        with self._transaction():
            now = self._passes()
            known = self._connection.execute(
                "SELECT began FROM participations WHERE run = ? AND round = ?", [run, round]
            ).fetchone()
            if known is not None:
                raise PolicyRefused(
                    f"this device has begun round {round} of run {run} before; it answers once", "repeated"
                )
            self._connection.execute(
                "INSERT INTO participations VALUES (?, ?, ?, ?, ?, ?, NULL)",
                [run, round, task, now, self._number(event), _NOTHING],
            )
            if training is not None:
                from quorate.privacy.dp_sgd import encode_example_event

                self._connection.execute(
                    "INSERT INTO trainings VALUES (?, ?, ?)", [run, round, encode_example_event(training)]
                )

    def expose(self, run: str, round: int, exposure: Exposure) -> None:
        """Writes down what the next answer exposes. Durable when it returns."""
        with self._transaction():
            self._connection.execute(
                "UPDATE participations SET exposure = MAX(exposure, ?) WHERE run = ? AND round = ?",
                [exposure, run, round],
            )

    def conclude(self, run: str, round: int, outcome: Outcome) -> None:
        """Keeps what was staged in the round, or drops it. Idempotent; a round that was not begun is no matter."""
        self.states.conclude(run, round, outcome)
        with self._transaction():
            self._connection.execute(
                "UPDATE participations SET outcome = ? WHERE run = ? AND round = ? AND outcome IS NULL",
                [outcome.value, run, round],
            )

    def give_up(self) -> None:
        """Ends the rounds from which nothing left the device: to it they are as good as aborted."""
        rows = self._connection.execute(
            "SELECT run, round FROM participations WHERE outcome IS NULL AND exposure = ?", [_NOTHING]
        ).fetchall()
        if not rows:
            return
        from quorate.rounds import Outcome

        for run, round in rows:
            self.conclude(run, round, Outcome.ABORTED)

    def undecided(self) -> list[tuple[str, int]]:
        """The newest rounds whose outcome the device does not know: runs and rounds."""
        rows = self._connection.execute(
            "SELECT run, round FROM participations WHERE outcome IS NULL AND exposure > ? ORDER BY began DESC LIMIT ?",
            [_NOTHING, _MOST_UNDECIDED],
        )
        return [(str(run), int(round)) for run, round in rows]

    def spent(self, period_s: float) -> Mapping[Event, int]:
        """The participations of the last `period_s` seconds in which the vector left, by what they showed."""
        rows = self._connection.execute(
            "SELECT e.event, COUNT(*) FROM participations p JOIN events e ON p.event = e.number"
            " WHERE p.exposure > ? AND p.began > ? GROUP BY e.event",
            [_NOTHING, self.now() - period_s],
        )
        from quorate.privacy.events import decode_event

        return Counter({decode_event(json.loads(event)): count for event, count in rows})

    def trained(self, period_s: float) -> Mapping[ExampleEvent | None, int]:
        """The participations of the last `period_s` seconds in which the vector left, by what they cost an example.

        None is one that protected no example.
        """
        rows = self._connection.execute(
            "SELECT t.event, COUNT(*) FROM participations p"
            " LEFT JOIN trainings t ON p.run = t.run AND p.round = t.round"
            " WHERE p.exposure > ? AND p.began > ? GROUP BY t.event",
            [_NOTHING, self.now() - period_s],
        )
        from quorate.privacy.dp_sgd import decode_example_event

        return Counter(
            {None if event is None else decode_example_event(event): count for event, count in rows}
        )

    def past(self, count: int) -> list[Past]:
        """The last rounds, the newest first."""
        from quorate.rounds import Outcome
        from quorate.summation import Exposure

        rows = self._connection.execute(
            "SELECT run, round, task, began, exposure, outcome FROM participations ORDER BY began DESC LIMIT ?",
            [count],
        )
        return [
            Past(run, round, task, began, Exposure(exposure), None if outcome is None else Outcome(outcome))
            for run, round, task, began, exposure, outcome in rows
        ]

    def totals(self) -> Mapping[str, int]:
        """How many participations there were, by outcome (`undecided` where it is not known)."""
        rows = self._connection.execute(
            "SELECT COALESCE(outcome, 'undecided'), COUNT(*) FROM participations GROUP BY 1 ORDER BY 1"
        )
        return {str(outcome): int(count) for outcome, count in rows}

    # --- refusals

    def refused(self, run: str, round: int, code: str, reason: str) -> None:
        """Writes down what the device declined; the oldest are forgotten."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO refusals VALUES (?, ?, ?, ?, ?)", [self._passes(), run, round, code, reason]
            )
            self._connection.execute(
                "DELETE FROM refusals WHERE rowid <= (SELECT MAX(rowid) FROM refusals) - ?", [_MOST_REFUSALS]
            )

    def refusals(self) -> Mapping[str, int]:
        """How often the device declined, by code."""
        rows = self._connection.execute("SELECT code, COUNT(*) FROM refusals GROUP BY code ORDER BY code")
        return {str(code): int(count) for code, count in rows}

    def close(self) -> None:
        """Closes the file."""
        if "states" in self.__dict__:
            self.states.close()
        self._connection.close()

    # --- below

    def _number(self, event: Event | None) -> int | None:
        if event is None:
            return None
        from quorate.privacy.events import encode_event

        text = json.dumps(encode_event(event), sort_keys=True, separators=(",", ":"))
        self._connection.execute("INSERT OR IGNORE INTO events (event) VALUES (?)", [text])
        (number,) = self._connection.execute("SELECT number FROM events WHERE event = ?", [text]).fetchone()
        return int(number)

    def _passes(self) -> float:
        """Now; noted, so that it never goes back."""
        now = self.now()
        self._note("newest_time", repr(now))
        return now

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing.

        Raises:
            StateError: it can't be written: the disk is full, say.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk ends it by itself
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StateError(f"{self.path} can't be written: {error}") from error


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Holds a state directory for this process alone.

    Raises:
        StateError: another agent holds it.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            raise StateError(f"{directory} is in use by the agent with process id {holder}") from None
        os.pwrite(
            descriptor, f"{os.getpid():<32}".encode(), 0
        )  # in place: there is room for it on a full disk too
        yield
    finally:
        os.close(descriptor)


def holder(directory: Path) -> int | None:
    """The process id of the agent that holds a state directory; None when none does."""
    try:
        with held(directory):
            return None
    except StateError:
        return int((directory / "agent.lock").read_text(encoding="ascii") or 0) or None
