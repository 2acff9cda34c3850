"""The coordinator's database, with one process that writes to it.

Two things keep a second coordinator out. A lock says at once that somebody is there: of a file (BSD `flock`) beside
SQLite, an advisory lock of the session in PostgreSQL. A lock can be lost without a word, with the connection that held
it; so each writer also has a *term*, a number that it raised when it began, and every transaction reads it under a row
lock before it writes. A coordinator that others took for dead writes nothing any more.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quorate.errors import StateError
from quorate.server import migrating, statements
from quorate.server.database import DatabaseUnusable, connect, reading, writing
from quorate.server.faults import Point, passing
from quorate.server.schema import WRITER, sa

__all__ = ["StateDatabase"]

FILE = "quorate.sqlite"

_ADVISORY = 0x71756F72


class StateDatabase:
    """Opened, with the tables that this version of Quorate needs.

    Args:
        directory: of the state; made by who writes; None for none.
        url: of PostgreSQL; None for SQLite in the directory, or in memory.
        exclusive: to write.

    Raises:
        StateError: it can't be used, somebody else writes there, or it is to be read and there is none.
    """

    def __init__(self, directory: Path | None, url: str | None, *, exclusive: bool):
        self._term: int | None = None
        self._file_lock: int | None = None
        self._session: sa.Connection | None = None
        self._where = f"the state directory {directory}" if url is None else "the database"
        if url is None and directory is not None and not exclusive and not (directory / FILE).exists():
            raise StateError(
                f"there is no state in {directory}: no run was made there (--state names another directory)"
            )
        self.engine = connect(url or (None if directory is None else directory / FILE))
        try:
            if directory is not None and exclusive:
                directory.mkdir(parents=True, exist_ok=True)
                self._lock_file(directory / "lock")
        except OSError as error:
            raise StateError(f"the state directory {directory} can't be used: {error}") from error
        try:
            if exclusive:
                if url is not None:
                    self._lock_session()
                with passing(Point.MIGRATE):
                    migrating.upgrade(self.engine, migrating.STATE)
                self._begin_term()
            else:
                migrating.check(self.engine, self._where)
        except BaseException as error:
            self.close()
            if url is None and isinstance(error, DatabaseUnusable):
                raise StateError(f"the state in {directory} can't be used: {error.cause}") from error
            raise

    def close(self) -> None:
        """Gives the locks back."""
        if self._session is not None:
            self._session.close()
            self._session = None
        self.engine.dispose()
        if self._file_lock is not None:
            os.close(self._file_lock)
            self._file_lock = None

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads: it sees one state.

        Raises:
            StateError: the database does not answer.
        """
        with reading(self.engine) as connection:
            yield connection

    @contextmanager
    def writing(self, point: Point) -> Iterator[sa.Connection]:
        """A transaction that writes, alone, and durable when the block is left.

        Args:
            point: what it is about.

        Raises:
            StateError: this process is not, or no longer, the one that writes; or the database does not answer.
        """
        with passing(point), writing(self.engine) as connection:
            if self._term is None:
                raise StateError(f"{self._where} is open to be read, not to be written to")
            if connection.scalar(statements.TERM) != self._term:
                raise StateError(
                    f"{self._where} was taken over by another process; nothing more is written here"
                )
            yield connection

    def _lock_file(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise StateError(
                f"the state directory {path.parent} is in use by another process; "
                "wait for it, or use another directory"
            ) from None
        self._file_lock = descriptor

    def _lock_session(self) -> None:
        """The lock lives as long as this connection."""
        try:
            self._session = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            taken = self._session.scalar(
                sa.select(sa.func.pg_try_advisory_lock(_ADVISORY, sa.func.hashtext(sa.func.current_schema())))
            )
        except sa.exc.DBAPIError as error:
            raise DatabaseUnusable(str(error.orig).strip()) from error
        if not taken:
            raise StateError(
                "the database is in use by another process; wait for it, or use another database"
            )

    def _begin_term(self) -> None:
        with passing(Point.BEGIN_TERM), writing(self.engine) as connection:
            term = connection.scalar(statements.TERM)
            if term is None:
                connection.execute(WRITER.insert().values(only=0, term=1))
            else:
                connection.execute(WRITER.update().values(term=term + 1))
            self._term = 1 if term is None else term + 1
