"""From the tables of an earlier version to those of this one (Alembic), and from none at all.

A fresh database gets today's tables at once; an older one is led there by the migrations, in one transaction. A test
holds that both come to the same. Alembic is imported only where there is something to migrate.

There are two histories: a coordinator's state, and an authority's records. Their migrations are beside each other, and
none of them follows one of the other history.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quorate.errors import StateError
from quorate.server.database import reading, writing
from quorate.server.schema import AUTHORITY, METADATA, sa

__all__ = ["MIGRATIONS", "RECORDS", "STATE", "History", "WrongSchema", "check", "upgrade"]


@dataclass(frozen=True)
class History:
    """What the tables of a database were, and are.

    Args:
        tables: as they are today.
        head: the newest migration, which comes to them.
    """

    tables: sa.MetaData
    head: str


STATE = History(METADATA, "4")
"""Of a coordinator."""

RECORDS = History(AUTHORITY, "authority_1")
"""Of an enrolment authority."""

MIGRATIONS = Path(__file__).parent / "migrations"

_VERSION = sa.Table(
    "alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True)
)


class WrongSchema(StateError):
    """The database has other tables than this version of Quorate."""


def check(engine: sa.Engine, where: str) -> None:
    """Refuses a coordinator's database that is not as this version has it.

    Raises:
        WrongSchema: who writes to it next migrates it, or it is newer than this version.
    """
    with reading(engine) as connection:
        found = _found(connection, STATE)
    if found is None:
        raise WrongSchema(f"there is no state in {where}: no run was made there")
    if found != STATE.head:
        raise WrongSchema(
            f"{where} was last written to by another version of Quorate; an older one is brought up to date when a run "
            "is started there, a newer one needs that version"
        )


def upgrade(engine: sa.Engine, history: History) -> None:
    """Makes the tables, or brings them up to date, in one transaction.

    In PostgreSQL only one process may do so at a time; in SQLite it is the only one that writes.

    Args:
        engine: of the database.
        history: of its tables.

    Raises:
        WrongSchema: the database is newer than this version of Quorate.
    """
    with writing(engine) as connection:
        found = _found(connection, history)
        if found == history.head:
            return
        if found is None:
            history.tables.create_all(connection)
            _VERSION.create(connection)
            connection.execute(_VERSION.insert().values(version_num=history.head))
            return
        _migrate(connection, history)


def _found(connection: sa.Connection, history: History) -> str | None:
    """The version of what is there; None where there is nothing."""
    tables = sa.inspect(connection).get_table_names()
    if _VERSION.name in tables:
        return connection.scalar(sa.select(_VERSION.c.version_num))
    return "" if set(tables) & set(history.tables.tables) else None


def _migrate(connection: sa.Connection, history: History) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, history.head)
    except CommandError as error:
        raise WrongSchema(
            "the database was last written to by a newer version of Quorate, and needs that version"
        ) from error
