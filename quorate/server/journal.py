"""What a run writes while a round is open: the journal that goes before a release, and the rows of its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quorate.errors import StateError
from quorate.server.faults import Point
from quorate.server.schema import LEDGER, ROUNDS, sa
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
            changed = connection.execute(
                ROUNDS.update()
                .where(ROUNDS.c.run == self.run, ROUNDS.c.number == self.number, ROUNDS.c.status == "open")
                .values(revealing=True)
            )
            if changed.rowcount != 1:
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
    last = connection.scalar(sa.select(sa.func.max(LEDGER.c.sequence)).where(LEDGER.c.run == run))
    connection.execute(LEDGER.insert().values(run=run, sequence=(last or 0) + 1, entry=entry))
