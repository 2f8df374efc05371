"""Connections that fall silent, with nobody to end them, while the database is in reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pg_proxy import Proxy, proxy_of

from perdure.store.contract import StoreUnavailable
from perdure.store.postgres import PostgresStore, connections
from postgres import PostgresServer

WITHIN_S = 20

Behind = tuple[PostgresStore, Proxy]


@pytest.fixture
async def behind(
    postgres_server: PostgresServer, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Behind]:
    """A store that has connections of all kinds through a proxy."""
    monkeypatch.setattr(connections, "BEAT_TIMEOUT_S", 0.5)
    with TemporaryDirectory(prefix="perdure-way-") as directory:
        store = PostgresStore(postgres_dsn.replace(str(postgres_server.directory), directory))
        async with proxy_of(postgres_server.directory, Path(directory)) as proxy:
            await store.open()
            await store.sharing.beat([], [])
            assert await store.namespaces() == []
            assert await store.delete(1) == 0
            yield store, proxy
            await store.close()


async def test_a_sign_of_life_is_given_on_another_connection(behind: Behind) -> None:
    store, proxy = behind
    proxy.silence("INSERT INTO perdure.nodes")
    async with asyncio.timeout(WITHIN_S):
        assert (await store.sharing.beat([], [])).nodes == {store.node}


async def test_the_others_are_replaced_then_too(behind: Behind) -> None:
    store, proxy = behind
    proxy.silence("")
    async with asyncio.timeout(WITHIN_S):
        await store.sharing.beat([], [])
        assert await store.namespaces() == []
        assert await store.delete(1) == 0


async def test_who_may_only_read_looks_for_another_connection(
    behind: Behind, postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    store, _ = behind
    name = postgres_dsn.split("/")[3].partition("?")[0]
    read_only = f"ALTER DATABASE {name} SET default_transaction_read_only ="
    await postgres_server.execute(f"{read_only} on")
    await store._heart.expire()
    with pytest.raises(StoreUnavailable, match="only reads"):
        await store.sharing.beat([], [])
    await postgres_server.execute(f"{read_only} off")
    assert (await store.sharing.beat([], [])).nodes == {store.node}
