"""A fresh database and an old one come to the same tables, and nothing of an old one is lost."""

import contextlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import quorate.server.migrating as migrating
from quorate.errors import StateError
from quorate.server.database import connect, writing
from quorate.server.schema import METADATA, RUNS
from quorate.server.store import Store, opened


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


def at_version(where: tuple[Path, str | None], version: str) -> None:
    """A database as an earlier version left it, with a run and a round."""
    engine = engine_of(where)
    config = Config()
    config.set_main_option("script_location", str(migrating.MIGRATIONS))
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)
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


def test_the_newest_migration_is_the_one_that_the_code_names() -> None:
    assert script().get_heads() == [migrating.HEAD]


@pytest.mark.parametrize("version", [revision.revision for revision in script().walk_revisions()])
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


@pytest.mark.parametrize("version", [revision.revision for revision in script().walk_revisions()])
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
