"""The schema of the challenge service on SQLite and PostgreSQL: made, taken back, waited for, old, or newer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, inspect, select, text

from services.challenge.adapters import migrations
from services.challenge.adapters.engine import Database, open_database
from services.challenge.adapters.tables import metadata, scores
from services.common.errors import FailedPrecondition
from tests.postgres import DATABASES, PostgresServer


@pytest.fixture(params=DATABASES)
async def url(request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'challenge.db'}"
    return await postgres_server.empty_database()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = open_database(url)
    yield database
    await database.close()


def differences(connection: Connection) -> object:
    return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


async def test_replicas_that_migrate_at_once_make_the_tables_of_the_code(url: str, database: Database) -> None:
    others = [open_database(url) for _ in range(3)]
    done = await asyncio.gather(*map(migrations.migrate, (database, *others)), return_exceptions=True)
    await asyncio.gather(*(each.close() for each in others))
    assert done == [None] * 4
    assert await database.read(lambda connection: connection.run_sync(differences)) == []
    assert (await migrations.read(database)).missing == ()


async def test_a_schema_goes_back_and_forth_and_keeps_what_is_in_it(database: Database) -> None:
    await migrations.migrate(database)
    await database.write(lambda connection: connection.execute(insert(scores).values(player="bob", score=7)))
    await migrations.downgrade(database, "0001")
    assert (await migrations.read(database)).missing == ("0002",)
    await migrations.migrate(database)
    assert await database.read(lambda connection: connection.scalar(select(scores.c.score))) == 7
    assert await database.read(lambda connection: connection.run_sync(differences)) == []
    await migrations.downgrade(database, "base")
    assert await database.read(lambda connection: connection.run_sync(tables)) == set()
    await migrations.migrate(database)
    assert await database.read(lambda connection: connection.run_sync(tables)) == set(metadata.tables)


async def test_who_may_not_migrate_waits_for_who_may_and_else_names_the_command(
    url: str, database: Database
) -> None:
    with pytest.raises(FailedPrecondition, match=r"at nothing, this version needs 0002: run `mesh migrate`"):
        await migrations.ready(database, migrates=False, within=0)
    waiting = asyncio.create_task(migrations.ready(database, migrates=False, within=30))
    operator = open_database(url)
    await migrations.ready(operator, migrates=True, within=0)
    await operator.close()
    await waiting


async def test_a_schema_that_is_newer_is_used_and_never_touched(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await migrations.migrate(database)
    newer = text("UPDATE alembic_version SET version_num = '9999'")
    await database.write(lambda connection: connection.execute(newer))
    with caplog.at_level(logging.WARNING):
        await migrations.ready(database, migrates=True, within=0)
    assert (await migrations.read(database)).revision == "9999"
    assert "newer (9999)" in caplog.text


async def test_keys_of_postgresql_are_compared_by_byte(postgres_server: PostgresServer) -> None:
    url = await postgres_server.empty_database()
    database = open_database(url)
    await migrations.migrate(database)
    await database.close()
    by_locale = """
        SELECT c.relname, a.attname FROM pg_index i
        JOIN pg_class c ON c.oid = i.indrelid
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname <> 'alembic_version'
        AND a.attcollation NOT IN (0, '"C"'::regcollation)
    """
    assert await postgres_server.execute(by_locale, url.rpartition("/")[2]) == []
