"""A fresh database and an old one come to the same tables, and nothing of an old one is lost."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import quorate.server.migrating as migrating
from quorate.errors import IdentityRefused, StateError
from quorate.identity import Holder, Role
from quorate.server.authority import Authority
from quorate.server.database import connect, writing
from quorate.server.migrating import RECORDS, STATE
from quorate.server.schema import AUTHORITY, METADATA, RUNS
from quorate.server.store import Store, opened
from tests.identity.authorities import HOUR, Clock, authority, device, party


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path: Path) -> tuple[Path, str | None]:
    return tmp_path, None if request.param == "sqlite" else request.getfixturevalue("postgresql").fresh()


def engine_of(where: tuple[Path, str | None]) -> sa.Engine:
    directory, url = where
    return connect(url or directory / "quorate.sqlite")


def script() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(migrating.MIGRATIONS))
    return ScriptDirectory.from_config(config)


def versions(history: migrating.History) -> list[str]:
    """All of a history, the newest first."""
    return [revision.revision for revision in script().iterate_revisions(history.head, "base")]


def migrated_to(connection: sa.Connection, version: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrating.MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, version)


def at_version(where: tuple[Path, str | None], version: str) -> None:
    """A database as an earlier version left it, with a run and a round."""
    engine = engine_of(where)
    with writing(engine) as connection:
        migrated_to(connection, version)
        connection.execute(
            RUNS.insert().values(
                id="ada",
                terms_hash="ab",
                terms=b"terms",
                simulated=False,
                status="open",
                created="2026-01-01",
            )
        )
        connection.exec_driver_sql(
            "INSERT INTO rounds (run, number, base_version, status, revealing, opened) "
            "VALUES ('ada', 1, 0, 'open', true, '2026-01-01T00:00:00+00:00')"
        )
    engine.dispose()


def tables(where: tuple[Path, str | None]) -> dict[str, object]:
    engine = engine_of(where)
    found = sa.inspect(engine)
    described = {
        name: (
            sorted((c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)),
            found.get_pk_constraint(name)["constrained_columns"],
            sorted((k["constrained_columns"], k["referred_table"]) for k in found.get_foreign_keys(name)),
            sorted(k["column_names"] for k in found.get_unique_constraints(name)),
        )
        for name in found.get_table_names()
    }
    engine.dispose()
    return described


def test_the_newest_migrations_are_those_that_the_code_names() -> None:
    assert sorted(script().get_heads()) == sorted([STATE.head, RECORDS.head])
    assert not set(versions(STATE)) & set(versions(RECORDS))


@pytest.mark.parametrize("version", versions(STATE))
def test_an_old_database_comes_to_what_a_fresh_one_has(where, version: str, tmp_path: Path, request) -> None:
    at_version(where, version)
    Store(where[0], database=where[1]).close()
    fresh = (tmp_path / "fresh", None if where[1] is None else request.getfixturevalue("postgresql").fresh())
    Store(fresh[0], database=fresh[1]).close()
    assert tables(where) == tables(fresh)
    engine = engine_of(where)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


@pytest.mark.parametrize("version", versions(STATE))
def test_nothing_of_an_old_database_is_lost(where, version: str) -> None:
    at_version(where, version)
    with contextlib.closing(Store(where[0], database=where[1])) as store:
        assert [(run.id, run.terms) for run in store.runs()] == [("ada", b"terms")]
        assert [(past.number, past.status, past.revealing) for past in store.rounds("ada")] == [
            (1, "open", True)
        ]
        assert store.open_round("ada", 0) == 2


def test_tables_that_are_older_than_the_migrations_are_taken_over(where) -> None:
    at_version(where, "1")
    engine = engine_of(where)
    with writing(engine) as connection:
        for dropped in ("alembic_version", "hosted", "participations"):
            connection.exec_driver_sql(f"DROP TABLE {dropped}")
    engine.dispose()
    with contextlib.closing(Store(where[0], database=where[1])) as store:
        assert [run.id for run in store.runs()] == ["ada"]
    assert {"hosted", "participations", "writer"} <= set(tables(where))


def test_a_migration_that_fails_leaves_the_database_as_it_was(where, monkeypatch: pytest.MonkeyPatch) -> None:
    at_version(where, "1")
    before = tables(where)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("alembic.operations.Operations.create_table", fail)
    with pytest.raises(OSError, match="no space"):
        Store(where[0], database=where[1])
    monkeypatch.undo()
    assert tables(where) == before
    Store(where[0], database=where[1]).close()


def test_looking_does_not_migrate(where) -> None:
    at_version(where, "1")
    before = tables(where)
    with pytest.raises(StateError, match="by another version of Quorate"), opened(*where):
        pass
    assert tables(where) == before


def test_a_database_of_a_newer_version_is_refused(where) -> None:
    Store(where[0], database=where[1]).close()
    engine = engine_of(where)
    with writing(engine) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '999'")
    engine.dispose()
    with pytest.raises(StateError, match="by a newer version of Quorate"):
        Store(where[0], database=where[1])


def test_looking_into_an_empty_database_makes_nothing(where) -> None:
    engine_of(where).connect().close()
    with pytest.raises(StateError, match="there is no state in"), opened(*where):
        pass
    assert tables(where) == {}


# --- an authority's records


OF_AN_AUTHORITY = {
    "tokens": {"digest": b"d", "note": "n", "created": "c", "expires": "e", "used": "u", "party": "ada"},
    "parties": {
        "name": "ada", "place": 0, "role": "device", "hosts": "", "note": "n", "enrolled": "e", "expires": "x",
        "revoked": "lost",
    },
    "log": {"place": 0, "content": b"c", "hash": b"h"},
}  # fmt: skip


@pytest.mark.parametrize("named", [True, False], ids=["migrated", "older than the migrations"])
@pytest.mark.parametrize("version", versions(RECORDS))
def test_old_records_come_to_what_fresh_ones_have_and_nothing_is_lost(
    where, version: str, named: bool, tmp_path: Path, request
) -> None:
    engine = engine_of(where)
    with writing(engine) as connection:
        migrated_to(connection, version)
        for table, row in OF_AN_AUTHORITY.items():
            connection.execute(sa.insert(sa.table(table, *map(sa.column, row))).values(**row))
        if not named:
            connection.exec_driver_sql("DROP TABLE alembic_version")
    migrating.upgrade(engine, RECORDS)
    fresh = (tmp_path / "fresh", None if where[1] is None else request.getfixturevalue("postgresql").fresh())
    fresh[0].mkdir()
    made = engine_of(fresh)
    migrating.upgrade(made, RECORDS)
    made.dispose()
    assert tables(where) == tables(fresh)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), AUTHORITY) == []
        for name, table in AUTHORITY.tables.items():
            (row,) = connection.execute(sa.select(table)).mappings()
            assert OF_AN_AUTHORITY[name].items() <= row.items()
    engine.dispose()


def test_an_authority_that_is_older_than_the_migrations_goes_on(tmp_path: Path) -> None:
    clock, folder = Clock(), tmp_path / "authority"
    before = authority(folder, clock)
    enrolled, left = device(tmp_path / "enrolled", before), device(tmp_path / "left", before)
    party(tmp_path / "operator", before, Role.OPERATOR)
    before.revoke(left.name, "lost")
    unused = before.token(HOUR).text
    parties, head = before.parties(), before.head()
    before.close()
    with contextlib.closing(sqlite3.connect(folder / "authority.sqlite")) as records:
        records.execute("DROP TABLE alembic_version")
    after = Authority(folder, clock=clock)
    assert (after.parties(), after.head().hash) == (parties, head.hash)
    assert after.roll.check(enrolled.certificate, Role.DEVICE).name == enrolled.name
    with pytest.raises(IdentityRefused, match="is revoked"):
        after.roll.check(left.certificate, Role.DEVICE)
    fresh = Holder.create(tmp_path / "fresh", after.root)
    after.enrol(unused, fresh.request())
    assert after.head().size == head.size + 1
    after.close()
    with contextlib.closing(sqlite3.connect(folder / "authority.sqlite")) as records:
        assert records.execute("SELECT version_num FROM alembic_version").fetchall() == [(RECORDS.head,)]


def test_an_authority_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    authority(folder, Clock()).close()
    with contextlib.closing(sqlite3.connect(folder / "authority.sqlite")) as records, records:
        records.execute("UPDATE alembic_version SET version_num = 'authority_999'")
    with pytest.raises(StateError, match="by a newer version of Quorate"):
        Authority(folder)
