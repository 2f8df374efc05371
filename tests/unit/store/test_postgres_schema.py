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


async def test_a_newer_schema_is_refused_and_left_alone(postgres_dsn: str) -> None:
    store = PostgresStore(postgres_dsn)
    await store.open()
    await store.close()
    connection = await asyncpg.connect(postgres_dsn)
    newer = len(MIGRATIONS) + 1
    await connection.execute("INSERT INTO perdure.migrations (number) VALUES ($1)", newer)
    with pytest.raises(StoreTooNew, match=f"schema version {newer}, .* install the newer perdure"):
        await PostgresStore(postgres_dsn).open()
    await connection.close()
