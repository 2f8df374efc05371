"""The schema of a PostgreSQL database: many nodes that start at once, and one that is too old."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from store_rows import start

from perdure.store.contract import StoreError, StoreTooNew, StoreUnavailable
from perdure.store.postgres import PostgresStore, schema
from perdure.store.postgres.schema import MIGRATIONS
from postgres import PostgresServer


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


async def first_schema(dsn: str) -> asyncpg.Connection:
    """A database as the first version left it."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "CREATE SCHEMA perdure; CREATE TABLE perdure.migrations ("
        "number integer PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())"
    )
    await connection.execute(MIGRATIONS[0])
    await connection.execute("INSERT INTO perdure.migrations (number) VALUES (1)")
    return connection


async def test_the_first_schema_is_migrated(postgres_dsn: str) -> None:
    connection = await first_schema(postgres_dsn)
    store = PostgresStore(postgres_dsn)
    await store.open()
    assert (await store.sharing.beat([], [])).newer_schema == 0
    await store.close()
    found = await connection.fetch("SELECT number, oldest FROM perdure.migrations ORDER BY number")
    assert [tuple(row) for row in found][:2] == [(1, 0), (2, 1)]
    assert len(found) == len(MIGRATIONS)
    await connection.close()


async def test_a_node_stops_when_a_newer_schema_breaks_its_very_beat(postgres_dsn: str) -> None:
    store = PostgresStore(postgres_dsn)
    await store.open()
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("ALTER TABLE perdure.letters RENAME COLUMN address TO recipient")
    with pytest.raises(StoreError, match="does not exist"):
        await store.sharing.beat([], [])
    newer = len(MIGRATIONS) + 1
    await note_migration(postgres_dsn, newer, newer)
    with pytest.raises(StoreTooNew, match=f"schema version {newer}"):
        await store.sharing.beat([], [])
    await connection.close()
    await store.close()


async def test_a_migration_lets_others_pass_when_it_cannot_lock_a_table(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a table keeps all others from it."""
    monkeypatch.setattr(schema, "_LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr(schema, "_PAUSE_S", 0.01)
    connection = await first_schema(postgres_dsn)
    await connection.execute("BEGIN; LOCK TABLE perdure.migrations IN ACCESS SHARE MODE")
    with pytest.raises(StoreUnavailable, match="holds locks for too long"):
        await PostgresStore(postgres_dsn).open()
    monkeypatch.setattr(schema, "_TRIES", 1000)
    store = PostgresStore(postgres_dsn)
    opening = asyncio.create_task(store.open())
    other = await asyncpg.connect(postgres_dsn)
    for _ in range(5):
        assert len(await other.fetch("SELECT FROM perdure.migrations")) == 1
        await asyncio.sleep(0.05)
    assert not opening.done()
    await connection.execute("COMMIT")
    await opening
    for each in (other, connection, store):
        await each.close()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_transactions_must_be_read_committed(postgres_dsn: str, isolation: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    database = await connection.fetchval("SELECT current_database()")
    setting = "default_transaction_isolation"
    await connection.execute(f"ALTER DATABASE {database} SET {setting} = '{isolation}'")
    with pytest.raises(StoreError, match=f"{isolation} by default.*ALTER ROLE.*{setting}=read%20"):
        await PostgresStore(postgres_dsn).open()
    assert not await connection.fetch("SELECT FROM pg_namespace WHERE nspname = 'perdure'")
    stores = [PostgresStore(f"{postgres_dsn}&{setting}=read%20committed") for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        assert await store._read(f"SHOW {setting}") == [("read committed",)]
        await store.close()
    await connection.close()


async def test_a_schema_that_is_there_needs_no_right_to_make_one(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"CREATE ROLE {database} LOGIN")
    dsn = postgres_server.dsn(database, database)
    with pytest.raises(StoreError, match="CREATE on the database, or to own the schema"):
        await PostgresStore(dsn).open()
    await connection.execute(f"CREATE SCHEMA perdure AUTHORIZATION {database}")
    store = PostgresStore(dsn)
    await store.open()
    assert await store.commit([[start(1)]]) == []
    await store.close()
    await connection.execute(f"DROP OWNED BY {database}; DROP ROLE {database}")
    await connection.close()
