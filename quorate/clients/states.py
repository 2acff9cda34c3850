"""What clients keep between rounds: staged when they train, kept only when the round's outcome says committed.

One SQLite file holds the states of a device's tasks, or of a simulation's many clients; what is kept from a run and
what is staged in a round of it are apart, so that a process that was killed between the two loses neither.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Mapping

import numpy as np
import safetensors.numpy

from quorate.rounds import Member, Outcome, State

__all__ = ["ClientStates"]


class ClientStates:
    """States by run and member.

    Args:
        path: the file; None keeps everything in memory.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self._connection = sqlite3.connect(
            ":memory:" if path is None else os.fspath(path), check_same_thread=False
        )
        with self._connection:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS states (run TEXT, member TEXT, round INTEGER, kept INTEGER, state BLOB,"
                " PRIMARY KEY (run, member, round))"
            )

    def get(self, run: str, member: Member) -> State:
        """What the member kept from the last committed round it was in; empty if there is none."""
        row = self._connection.execute(
            "SELECT state FROM states WHERE run = ? AND member = ? AND kept = 1", (run, member)
        ).fetchone()
        return {} if row is None else safetensors.numpy.load(row[0])

    def among(self, run: str, members: Collection[Member]) -> dict[Member, State]:
        """What members kept, as `get` has it; those who kept nothing are left out."""
        anybody = "SELECT 1 FROM states WHERE run = ? AND kept = 1 LIMIT 1"
        if self._connection.execute(anybody, (run,)).fetchone() is None:
            return {}
        return {member: state for member in members if (state := self.get(run, member))}

    def stage(self, run: str, round: int, states: Mapping[Member, State]) -> None:
        """Notes what members will keep if the round is committed. Durable when it returns."""
        rows = [
            (
                run,
                member,
                round,
                safetensors.numpy.save({k: np.array(v, order="C") for k, v in state.items()}),
            )
            for member, state in states.items()
            if state
        ]
        if rows:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, 0, ?)", rows)

    def conclude(self, run: str, round: int, outcome: Outcome) -> None:
        """Keeps what was staged in the round, or drops it. Idempotent."""
        with self._connection:
            if outcome is Outcome.COMMITTED:
                self._connection.execute(
                    "DELETE FROM states WHERE run = :run AND kept = 1 AND member IN"
                    " (SELECT member FROM states WHERE run = :run AND round = :round AND kept = 0)",
                    {"run": run, "round": round},
                )
                self._connection.execute(
                    "UPDATE states SET kept = 1 WHERE run = ? AND round = ?", (run, round)
                )
            else:
                self._connection.execute(
                    "DELETE FROM states WHERE run = ? AND round = ? AND kept = 0", (run, round)
                )

    @classmethod
    def loaded(cls, dumped: bytes) -> ClientStates:
        """In memory, what was `dumped`: for a process that lives for one message only."""
        states = cls()
        states._connection.deserialize(dumped)
        return states

    def dumped(self) -> bytes:
        """All of it, as bytes."""
        return self._connection.serialize()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()
