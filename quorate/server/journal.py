"""What a run writes while a round is open: the journal that goes before a release, and the rows of its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quorate.errors import StateError
from quorate.server import statements
from quorate.server.faults import Point
from quorate.server.schema import LEDGER, sa
from quorate.server.state_database import StateDatabase

__all__ = ["LedgerTable", "RoundJournal", "append_entry"]


@dataclass(frozen=True)
class RoundJournal:
    """See `quorate.summation.Journal`: what is written before the round can reveal anything."""

    database: StateDatabase
    run: str
    number: int

    def revealing(self) -> None:
        """Durable when it returns; the round's charge can't be refunded any more.

        Raises:
            StateError: the round is not open: nothing of it may be revealed.
        """
        with self.database.writing(Point.REVEAL) as connection:
            values = {"of_run": self.run, "of_round": self.number, "revealing": True}
            if connection.execute(statements.CHANGE_ROUND, values).rowcount != 1:
                raise StateError(f"round {self.number} of run {self.run} is not open")


@dataclass(frozen=True)
class LedgerTable:
    """The ledger's rows: they are only ever appended."""

    database: StateDatabase
    run: str

    def append(self, entry: bytes) -> None:
        """Adds a row, durably."""
        with self.database.writing(Point.LEDGER) as connection:
            append_entry(connection, self.run, entry)

    def entries(self) -> Sequence[bytes]:
        """All rows, in order."""
        query = sa.select(LEDGER.c.entry).where(LEDGER.c.run == self.run).order_by(LEDGER.c.sequence)
        with self.database.reading() as connection:
            return list(connection.scalars(query))


def append_entry(connection: sa.Connection, run: str, entry: bytes) -> None:
    """Adds a row to a run's ledger, inside a transaction that writes."""
    last: int = connection.scalar(statements.LAST_ENTRY, {"of_run": run}) or 0
    connection.execute(statements.ADD_ENTRY, {"run": run, "sequence": last + 1, "entry": entry})
