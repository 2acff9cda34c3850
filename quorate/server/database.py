"""A database: how it is opened, and what a transaction is. SQLite in a file, or PostgreSQL by URL.

SQLite runs in write-ahead mode and is flushed to the disk at each commit, PostgreSQL commits synchronously: what was
written is there when the block is left. In SQLite a transaction that writes takes the write lock when it begins (`BEGIN
IMMEDIATE`): what it reads first stays true until it commits, whichever process it is in. A transaction that only reads
sees one state, in both.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from quorate.errors import MissingExtra, StateError
from quorate.server.schema import sa

__all__ = ["DatabaseUnusable", "connect", "reading", "writing"]


class DatabaseUnusable(StateError):
    """The database does not answer, or not as a database.

    Args:
        cause: in the database's own words.
    """

    def __init__(self, cause: str):
        self.cause = cause
        super().__init__(f"the database can't be used: {cause}")


def connect(place: Path | str | None) -> sa.Engine:
    """Opens a database; nothing is connected yet.

    Args:
        place: a file of SQLite, or the URL of a PostgreSQL database; None keeps it in memory, for as long as the engine
            lives.

    Raises:
        StateError: the URL is none, or of another kind.
        MissingExtra: PostgreSQL's driver is not installed.
    """
    if isinstance(place, str):
        engine = sa.create_engine(_postgresql(place), pool_pre_ping=True)
        sa.event.listen(engine, "connect", _prepare_postgresql)
        return engine
    if place is None:
        engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    else:
        engine = sa.create_engine(f"sqlite:///{place}")
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that only reads: it sees one state.

    Raises:
        DatabaseUnusable: it does not answer.
    """
    options = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with _answering(), engine.connect() as plain:
        connection = plain.execution_options(**options)
        with connection.begin():
            yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that writes, durable when the block is left. Ctrl-C waits for its end.

    Raises:
        DatabaseUnusable: it does not answer; whether the transaction is there, who opens it again sees.
    """
    with _uninterrupted(), _answering(), engine.connect() as plain:
        connection = plain.execution_options(quorate_writes=True)
        with connection.begin():
            yield connection


def _postgresql(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        url = None
    if url is None or url.drivername not in ("postgresql", "postgres"):
        raise StateError(
            f"database: found {text.partition(':')[0]!r}; accepted: postgresql://USER@HOST/NAME, or none for SQLite"
        )
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise MissingExtra("postgres", "a PostgreSQL database") from error
    return url.set(drivername="postgresql+psycopg")


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO on")
    connection.commit()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = (
        None  # transactions begin where `_begin_sqlite` says so, not where the driver guesses
    )
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("quorate_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError | sa.exc.DataError):
            raise  # our own fault
        raise DatabaseUnusable(str(error.orig).strip()) from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is left: a transaction is there or not, and nobody asks which."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(signal.SIGINT, came[0])
