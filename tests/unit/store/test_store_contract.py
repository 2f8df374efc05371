"""The stores at hand, each held to the contract."""

from __future__ import annotations

import pytest
from store_contract import DurableStoreContract, StoreContract

from perdure.store.contract import Store
from perdure.store.postgres import PostgresStore
from perdure.store.sqlite import SqliteStore


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
