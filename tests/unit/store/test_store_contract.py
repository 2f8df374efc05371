"""The stores at hand, each held to the contract."""

from __future__ import annotations

from store_contract import DurableStoreContract, StoreContract

from perdure.store.contract import Store
from perdure.store.sqlite import SqliteStore


class TestSqliteFile(DurableStoreContract):
    def new_store(self) -> Store:
        return SqliteStore(self.directory / "perdure.db")


class TestMemory(StoreContract):
    def new_store(self) -> Store:
        return SqliteStore(":memory:")
