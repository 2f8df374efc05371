"""Notices of other nodes, when the connection that brings them breaks or falls silent."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from pg_proxy import proxy_of
from pg_stage import until

from perdure.store.contract import StoreUnavailable
from perdure.store.postgres import PostgresStore, connections, listening
from perdure.store.postgres.connections import READERS_MAX
from perdure.store.postgres.store import ID_BLOCK
from postgres import PostgresServer

END_LISTENERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE query LIKE 'LISTEN%' AND datname = current_database()"
)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[tuple[PostgresStore, list[str]]]:
    """A store, and what it heard."""
    heard: list[str] = []
    store = PostgresStore(dsn)
    store.sharing.listener = heard.append
    await store.open()
    try:
        await until(lambda: heard == [""])
        yield store, heard
    finally:
        await store.close()


async def test_a_listener_goes_on_when_what_it_calls_fails(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as (store, heard):

        def fail(_: str) -> None:
            heard.append("failed")
            raise RuntimeError("a fault in the program")

        store.sharing.listener = fail
        look = await asyncpg.connect(postgres_dsn)
        await look.execute(END_LISTENERS)
        await until(lambda: "failed" in heard)
        store.sharing.listener = heard.append
        await until(lambda: heard[-1] == "")
        await look.execute("SELECT pg_notify('perdure', '0 news')")
        await until(lambda: heard[-1] == "news")
        await look.close()


async def test_a_listener_needs_no_other_connection(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT_S", 0.2)
    async with opened(postgres_dsn) as (store, heard):
        look = await asyncpg.connect(postgres_dsn)
        await look.execute("BEGIN; LOCK TABLE perdure.namespaces")
        busy = [asyncio.create_task(store.namespaces()) for _ in range(READERS_MAX)]
        await look.execute(END_LISTENERS)
        await until(lambda: heard == ["", ""])
        await look.execute("COMMIT; SELECT pg_notify('perdure', '0 news')")
        await until(lambda: heard[-1] == "news")
        await asyncio.gather(*busy)
        await look.close()


async def test_a_connection_that_fell_silent_is_replaced(
    postgres_server: PostgresServer, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a firewall forgot it, or the server was fenced off: nothing ends it."""
    monkeypatch.setattr(listening, "_HEARD_WITHIN_S", 0.2)
    directory = Path(tempfile.mkdtemp(prefix="perdure-way-"))
    dsn = postgres_dsn.replace(str(postgres_server.directory), str(directory))
    try:
        async with (
            proxy_of(postgres_server.directory, directory) as proxy,
            opened(postgres_dsn) as (other, _),
            opened(dsn) as (store, heard),
        ):

            async def beats_until_deaf(is_deaf: bool) -> None:
                async def beat() -> bool:
                    await store.sharing.beat([], [])
                    return store.sharing.deaf is is_deaf

                await until(beat)

            await beats_until_deaf(False)
            proxy.silence("LISTEN")
            await beats_until_deaf(True)
            await until(lambda: heard == ["", ""])
            await beats_until_deaf(False)
            await other.sharing.tell("news")
            await until(lambda: heard[-1] == "news")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def test_an_echo_that_is_late_ends_the_deafness(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres_dsn) as (store, _):
        store._sharing._listening.echo_sent(asyncio.get_running_loop().time())
        assert not store.sharing.deaf
        monkeypatch.setattr(listening, "_HEARD_WITHIN_S", 0.0)
        assert store.sharing.deaf
        await store.sharing.tell(listening.ECHO)
        await until(lambda: not store.sharing.deaf)


async def test_who_may_only_read_looks_for_another_server_to_listen_to(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as (store, heard):
        look = await asyncpg.connect(postgres_dsn)
        name = await look.fetchval("SELECT current_database()")
        await look.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await look.execute(
            END_LISTENERS.replace("LIKE", "NOT LIKE") + " AND pid <> pg_backend_pid()"
        )
        await until(lambda: only_reads(store))
        await until(lambda: heard == ["", ""])
        await look.close()


async def only_reads(store: PostgresStore) -> bool:
    """Whether the store finds that it may not write."""
    try:
        await store.allocate(ID_BLOCK)
    except StoreUnavailable as error:
        return "only reads" in str(error)
    return False
