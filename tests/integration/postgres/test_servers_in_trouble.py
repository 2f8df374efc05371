"""A server that has no connection left, restarts, only reads, or waits for its replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest
from pg_stage import Ledger, Traffic, impatient, server_of_its_own, until

import perdure
from perdure.api.errors import Unavailable
from perdure.store.contract import StoreUnavailable
from perdure.store.postgres import PostgresStore, connections
from postgres import PostgresServer

CONNECTIONS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """With few connections, of which three are the superuser's."""
    with server_of_its_own({"max_connections": str(CONNECTIONS)}) as made:
        yield made


@pytest.fixture
async def dsn(server: PostgresServer, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Of a database and a user of the test's own."""
    name = f"db_{abs(hash(request.node.name)) % 10**9}"
    await server.execute(f"CREATE ROLE {name} LOGIN")
    await server.execute(f"CREATE DATABASE {name} OWNER {name}")
    yield server.dsn(name, name)
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def database(dsn: str) -> str:
    return dsn.split("/")[3].partition("?")[0]


@asynccontextmanager
async def all_connections(dsn: str) -> AsyncIterator[None]:
    """Take what is left."""
    async with AsyncExitStack() as stack:

        async def take() -> None:
            for _ in range(CONNECTIONS + 1):
                connection = await asyncpg.connect(dsn)
                stack.callback(connection.terminate)

        with pytest.raises(asyncpg.TooManyConnectionsError):
            await take()
        yield


async def end_connections(server: PostgresServer, dsn: str) -> None:
    await server.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database(dsn)}'"
    )


async def test_a_node_that_finds_no_connection_says_what_to_do(dsn: str) -> None:
    async with all_connections(dsn):
        with pytest.raises(StoreUnavailable, match="raise max_connections, or put PgBouncer"):
            async with perdure.connect(dsn):
                pass


async def test_a_node_makes_do_with_the_connections_that_it_has(dsn: str) -> None:
    store = PostgresStore(dsn)
    await store.open()
    try:
        async with all_connections(dsn):
            found = await asyncio.gather(*(store.find("default", "nobody") for _ in range(50)))
            assert found == [None] * 50
    finally:
        await store.close()


async def test_a_node_that_lost_its_connections_to_others(server: PostgresServer, dsn: str) -> None:
    async with Traffic.on(dsn) as traffic:
        await server.execute(f"ALTER ROLE {database(dsn)} CONNECTION LIMIT 0")
        await end_connections(server, dsn)
        error = await traffic.trouble()
        await until(lambda: "no connection left" in list(traffic.refused.values())[-1].message)
        assert isinstance(error, Unavailable)
        await server.execute(f"ALTER ROLE {database(dsn)} CONNECTION LIMIT -1")
        await traffic.more()


async def test_the_server_restarts(dsn: str, server: PostgresServer) -> None:
    async with Traffic.on(dsn) as traffic:
        for _ in range(2):
            server.stop()
            await traffic.trouble()
            server.start()
            await traffic.more()


async def test_a_node_refuses_a_server_that_only_reads(dsn: str, server: PostgresServer) -> None:
    await server.execute(f"ALTER ROLE {database(dsn)} SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match="turn default_transaction_read_only off"):
        async with perdure.connect(dsn):
            pass
    with pytest.raises(StoreUnavailable, match="read-write"):
        async with perdure.connect(f"{dsn}&target_session_attrs=read-write"):
            pass


async def test_a_server_only_reads_for_a_while(dsn: str, server: PostgresServer) -> None:
    """New sessions may write again, those of before may not: they are given up."""
    async with Traffic.on(dsn) as traffic:
        await server.execute(f"ALTER ROLE {database(dsn)} SET default_transaction_read_only = on")
        await end_connections(server, dsn)
        await until(
            lambda: any("only reads" in error.message for error in traffic.refused.values()),
            traffic.died,
        )
        handle = traffic.client.handle(traffic.told[0])
        assert (await handle.describe()).status  # what is there is read
        await server.execute(f"ALTER ROLE {database(dsn)} RESET default_transaction_read_only")
        await traffic.more()


async def test_a_commit_that_waits_for_a_replica_is_not_cancelled(
    dsn: str, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL would keep it, and show it, though the replica does not have it: what is built on
    it is lost when the replica takes over."""
    monkeypatch.setattr(connections, "WRITE_TIMEOUT_S", 0.5)
    signals = "SELECT count(*) FROM perdure.history"
    async with perdure.connect(dsn) as client:
        await client.start(Ledger, id="ledger")
        [[before]] = await server.fetch(signals, database(dsn))
        await server.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await server.execute("SELECT pg_reload_conf()")
        try:
            with pytest.raises(Unavailable, match="waits for a replica"):
                await impatient(client).handle("ledger").signal("put", "one")
            assert await server.fetch(signals, database(dsn)) == [(before,)]
        finally:
            await server.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await server.execute("SELECT pg_reload_conf()")
        await client.handle("ledger").signal("put", "two")

        async def is_there() -> bool:
            return await server.fetch(signals, database(dsn)) == [(before + 2,)]

        await until(is_there)  # the first, too: it was only not acknowledged
