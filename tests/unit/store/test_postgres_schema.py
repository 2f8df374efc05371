"""The schema of a PostgreSQL database: many nodes that start at once, and one that is too old."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from perdure.store.contract import StoreTooNew
from perdure.store.postgres import PostgresStore
from perdure.store.postgres.schema import MIGRATIONS


async def test_of_many_nodes_that_start_at_once_one_migrates(postgres_dsn: str) -> None:
    for _ in range(5):
        stores = [PostgresStore(postgres_dsn) for _ in range(6)]
        await asyncio.gather(*(store.open() for store in stores))
        assert len({store.node for store in stores}) == len(stores)
        await asyncio.gather(*(store.close() for store in stores))
        connection = await asyncpg.connect(postgres_dsn)
        applied = await connection.fetch("SELECT number FROM perdure.migrations ORDER BY number")
        assert [row[0] for row in applied] == list(range(1, len(MIGRATIONS) + 1))
        await connection.execute("DROP SCHEMA perdure CASCADE")
        await connection.close()


async def note_migration(dsn: str, number: int, oldest: int) -> None:
    """What a newer perdure leaves behind."""
    connection = await asyncpg.connect(dsn)
    statement = "INSERT INTO perdure.migrations (number, oldest) VALUES ($1, $2)"
    await connection.execute(statement, number, oldest)
    await connection.close()


async def test_a_newer_schema_is_refused_and_left_alone(postgres_dsn: str) -> None:
    store = PostgresStore(postgres_dsn)
    await store.open()
    await store.close()
    newer = len(MIGRATIONS) + 1
    await note_migration(postgres_dsn, newer, newer)
    with pytest.raises(StoreTooNew, match=f"schema version {newer}, .* install the newer perdure"):
        await PostgresStore(postgres_dsn).open()


async def test_a_newer_schema_that_leaves_room_is_used(postgres_dsn: str) -> None:
    store = PostgresStore(postgres_dsn)
    await store.open()
    await store.close()
    newer = len(MIGRATIONS) + 1
    await note_migration(postgres_dsn, newer, newer - 1)
    older = PostgresStore(postgres_dsn)
    await older.open()
    assert (await older.sharing.beat([], [])).newer_schema == newer
    await older.close()
    await note_migration(postgres_dsn, newer + 1, newer + 1)
    with pytest.raises(StoreTooNew, match=f"schema version {newer + 1}"):
        await PostgresStore(postgres_dsn).open()


async def test_the_first_schema_is_migrated(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(
        "CREATE SCHEMA perdure; CREATE TABLE perdure.migrations ("
        "number integer PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())"
    )
    await connection.execute(MIGRATIONS[0])
    await connection.execute("INSERT INTO perdure.migrations (number) VALUES (1)")
    store = PostgresStore(postgres_dsn)
    await store.open()
    assert (await store.sharing.beat([], [])).newer_schema == 0
    await store.close()
    found = await connection.fetch("SELECT number, oldest FROM perdure.migrations ORDER BY number")
    assert [tuple(row) for row in found][:2] == [(1, 0), (2, 1)]
    assert len(found) == len(MIGRATIONS)
    await connection.close()
