"""The server's queue of notices is full, as a session of another application does not read them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import asyncpg
import pytest
from pg_stage import Ledger, server_of_its_own, until

import perdure
from perdure.store.contract import NamespaceRow
from perdure.store.postgres import PostgresStore
from perdure.store.sharing import Letter
from postgres import PostgresServer, major_version


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    if major_version() < 17:
        pytest.skip("its queue has a fixed size of 8 GB before PostgreSQL 17")
    with server_of_its_own({"max_notify_queue_pages": "64"}) as made:
        yield made


@pytest.fixture
async def dsn(server: PostgresServer) -> AsyncIterator[str]:
    await server.execute("CREATE DATABASE work")
    yield server.dsn("work")
    await server.execute("DROP DATABASE work WITH (FORCE)")


@pytest.fixture
async def listener(server: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    """In another database, idle in transaction."""
    connection = await asyncpg.connect(server.dsn())
    await connection.execute("LISTEN other")
    await connection.execute("BEGIN; SELECT 1")
    yield connection
    connection.terminate()


async def fill(server: PostgresServer) -> None:
    notify = "SELECT pg_notify('other', n || repeat('x', 7000)) FROM generate_series(1, 10) AS n"
    with suppress(asyncpg.ProgramLimitExceededError):
        while True:
            await server.execute(notify)


async def test_what_is_written_is_written_and_said_to_be_untold_once(
    server: PostgresServer,
    dsn: str,
    listener: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, other = PostgresStore(dsn), PostgresStore(dsn)
    await store.open()
    await other.open()
    heard: list[str] = []
    other.sharing.listener = heard.append
    try:
        await fill(server)
        with caplog.at_level(logging.WARNING, "perdure.store"):
            for _ in range(3):
                assert (await store.sharing.beat([], [])).nodes == {store.node}
                await store.sharing.news.close()  # type: ignore[attr-defined]
            assert await store.put_namespace(NamespaceRow("sales", "id", b"body"))
            await store.sharing.post(Letter("two", b"hello"))
            await store.sharing.tell("hello")
            await store.sharing.news.close()  # type: ignore[attr-defined]
        assert await other.sharing.collect(["two"], 9) == [Letter("two", b"hello")]
        assert [row.name for row in await other.namespaces()] == ["sales"]
        told = [line.getMessage() for line in caplog.records if "cannot be told" in line.message]
        assert len(told) == 1
        assert "queue of notices is full" in told[0]
        await listener.close()

        async def is_heard() -> bool:
            await store.sharing.tell("again")
            return "again" in heard

        await until(is_heard)
    finally:
        await store.close()
        await other.close()


async def test_nodes_start_and_work_together(
    server: PostgresServer, dsn: str, listener: asyncpg.Connection
) -> None:
    await fill(server)
    async with perdure.connect(dsn) as one, perdure.connect(dsn) as two:
        await one.start(Ledger, id="ledger", search_attributes={"City": "Ulm"})
        async with two.worker(workflows=[Ledger], activities=[]):
            await one.handle("ledger").signal("put", "close")
            async with asyncio.timeout(60):
                assert await one.handle("ledger").result() == ["close"]
