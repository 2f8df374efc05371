from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from harness import Harness

from perdure.store.contract import Store
from perdure.store.postgres import PostgresStore
from perdure.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "file", "postgres"])
def make_store(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], Store]:
    if request.param == "postgres":
        dsn: str = request.getfixturevalue("postgres_dsn")
        return lambda: PostgresStore(dsn)
    path = ":memory:" if request.param == "memory" else tmp_path / "test.db"
    return lambda: SqliteStore(path)


@pytest.fixture
def on_disk(tmp_path: Path) -> Callable[[], Store]:
    return lambda: SqliteStore(tmp_path / "test.db")


@pytest.fixture
async def node(make_store: Callable[[], Store]) -> AsyncIterator[Harness]:
    harness = await Harness(make_store).open()
    yield harness
    await harness.close()
