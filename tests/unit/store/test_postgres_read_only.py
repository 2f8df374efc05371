"""A store that only looks: it changes nothing, joins nobody, and serves on a replica as well."""

from __future__ import annotations

import logging

import asyncpg
import pytest

from perdure.sdk.client import Client
from perdure.service.node import Node
from perdure.store.contract import NamespaceRow, StoreError, StoreTooNew, StoreUnavailable
from perdure.store.postgres import PostgresStore
from perdure.store.postgres.schema import MIGRATIONS
from postgres import PostgresServer


@pytest.fixture
async def database(postgres_dsn: str) -> str:
    """One with tables and the default namespace."""
    node = await Node.open(PostgresStore(postgres_dsn))
    await node.close()
    return postgres_dsn


async def fetch(dsn: str, statement: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def test_an_empty_database_is_left_empty(postgres_dsn: str) -> None:
    with pytest.raises(StoreError, match=r"no tables in .*: start a server or a worker first"):
        await PostgresStore(postgres_dsn, read_only=True).open()
    schemas = "SELECT nspname FROM pg_namespace WHERE nspname = 'perdure'"
    assert await fetch(postgres_dsn, schemas) == []


async def test_an_older_schema_is_not_migrated(database: str) -> None:
    await fetch(database, f"DELETE FROM perdure.migrations WHERE number = {len(MIGRATIONS)}")
    with pytest.raises(StoreError, match="schema of an older perdure: the first server or worker"):
        await PostgresStore(database, read_only=True).open()
    applied = "SELECT max(number) FROM perdure.migrations"
    assert await fetch(database, applied) == [(len(MIGRATIONS) - 1,)]


async def test_a_newer_schema_is_refused_unless_it_leaves_room(database: str) -> None:
    newer = len(MIGRATIONS) + 1
    noted = "INSERT INTO perdure.migrations (number, oldest) VALUES"
    await fetch(database, f"{noted} ({newer}, {newer - 1})")
    store = PostgresStore(database, read_only=True)
    await store.open()
    await store.close()
    await fetch(database, f"{noted} ({newer + 1}, {newer + 1})")
    with pytest.raises(StoreTooNew, match=f"schema version {newer + 1}"):
        await PostgresStore(database, read_only=True).open()


async def test_it_writes_nothing_and_joins_nobody(database: str) -> None:
    before = await fetch(database, "SELECT last_value FROM perdure.ids")
    store = PostgresStore(database, read_only=True)
    await store.open()
    assert store.sharing is None
    for write in (
        lambda: store.commit([]),
        lambda: store.allocate(1),
        lambda: store.delete(1),
        lambda: store.put_namespace(NamespaceRow("n", "i", b"")),
    ):
        with pytest.raises(StoreUnavailable, match="open for reading only"):
            await write()
    store.index_attributes([], 30)
    assert [row.name for row in await store.namespaces()] == ["default"]
    await store.close()
    assert await fetch(database, "SELECT FROM perdure.nodes") == []
    assert await fetch(database, "SELECT last_value FROM perdure.ids") == before


async def test_it_looks_into_a_server_that_only_reads(
    database: str, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Of several, whichever answers."""
    [[name]] = await fetch(database, "SELECT current_database()")
    await fetch(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    here = str(postgres_server.directory)
    several = database.replace(here, f"/none,{here}") + "&target_session_attrs=read-write"
    store = PostgresStore(several, read_only=True)
    node = Node(store)
    await store.open()
    await node.namespaces.open()
    with caplog.at_level(logging.WARNING):
        client = Client(node.service)
        assert (await client.count()).count == 0
        assert [run async for run in client.list()] == []
    assert not caplog.records
    await store.close()
