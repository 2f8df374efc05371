"""The stores at hand, each held to the contract."""

from __future__ import annotations

import asyncpg
import pytest
from store_contract import DurableStoreContract, StoreContract

from perdure.store.contract import Store
from perdure.store.postgres import PostgresStore
from perdure.store.sqlite import SqliteStore

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'perdure'"


class TestSqliteFile(DurableStoreContract):
    def new_store(self) -> Store:
        return SqliteStore(self.directory / "perdure.db")


class TestMemory(StoreContract):
    def new_store(self) -> Store:
        return SqliteStore(":memory:")


class TestPostgres(DurableStoreContract):
    @pytest.fixture(autouse=True)
    def _database(self, postgres_dsn: str) -> None:
        self.dsn = postgres_dsn

    def new_store(self) -> Store:
        return PostgresStore(self.dsn)


class TestPostgresOfALaterVersion(StoreContract):
    """A migration of one that lets this version go on has added a column to every table."""

    @pytest.fixture(autouse=True)
    async def _database(self, postgres_dsn: str) -> None:
        self.dsn = postgres_dsn
        first = PostgresStore(postgres_dsn)
        await first.open()
        await first.close()
        connection = await asyncpg.connect(postgres_dsn)
        for row in await connection.fetch(TABLES):
            statement = f"ALTER TABLE perdure.{row[0]} ADD COLUMN later text NOT NULL DEFAULT 'new'"
            await connection.execute(statement)
        await connection.close()

    def new_store(self) -> Store:
        return PostgresStore(self.dsn)
