"""Other sessions hold locks and do nothing: calls are refused in time, the rest goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from pg_stage import Ledger, Traffic, expected, impatient, order, until, working

from perdure import Client
from perdure.api.errors import Unavailable
from perdure.store.postgres import batch, connections, schema, statements

QUICK_S = 0.5


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are seconds; tests need not wait for so long."""
    monkeypatch.setattr(connections, "STATEMENT_TIMEOUT_S", 2 * QUICK_S)
    monkeypatch.setattr(connections, "WRITE_TIMEOUT_S", 2 * QUICK_S)
    usual, short = f"'{statements.LOCK_TIMEOUT}'", "'60ms'"
    monkeypatch.setitem(
        statements.PARTS, "states", statements.PARTS["states"].replace(usual, short)
    )
    monkeypatch.setattr(batch, "_BEGIN", batch._BEGIN.replace(usual, short))
    batch._statement.cache_clear()


@asynccontextmanager
async def idle_in_transaction(dsn: str, *did: str) -> AsyncIterator[asyncpg.Connection]:
    """A session that did this, and has not ended its transaction."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("BEGIN")
        for statement in did:
            await connection.execute(statement)
        yield connection
    finally:
        connection.terminate()


def lock_of(workflow_id: str) -> str:
    return (
        "SELECT FROM perdure.states WHERE key = "
        f"(SELECT key FROM perdure.runs WHERE workflow_id = '{workflow_id}') FOR UPDATE"
    )


async def finished(client: Client, name: str) -> None:
    assert await client.handle(name, result_type=str).result() == expected(name)


async def test_a_row_that_another_session_holds(postgres_dsn: str) -> None:
    async with working(postgres_dsn) as client:
        handle = await client.start(Ledger, id="held")
        async with idle_in_transaction(postgres_dsn, lock_of("held")):
            with pytest.raises(Unavailable, match=r"holds locks .* idle in transaction"):
                await impatient(client).handle("held").signal("put", "lost")
            assert (await handle.describe()).status.name == "RUNNING"  # reads do not wait
            await client.execute(order, "free", id="free")  # nor do other runs
            patient = asyncio.create_task(handle.signal("put", "kept"))
            await asyncio.sleep(2 * QUICK_S)
            assert not patient.done()
        await patient
        await handle.signal("put", "close")
        assert await handle.result() == ["kept", "close"]


async def test_others_go_on_while_a_run_that_another_session_holds_is_written_to(
    postgres_dsn: str,
) -> None:
    async with working(postgres_dsn) as client:
        ledgers = [await client.start(Ledger, id=f"held-{n}") for n in range(3)]
        locks = [lock_of(ledger.id) for ledger in ledgers]
        number = batch.lock_number(("default", "named"))
        async with idle_in_transaction(
            postgres_dsn, *locks, f"SELECT pg_advisory_xact_lock({number})"
        ):
            waiting = [asyncio.create_task(ledger.signal("put", "close")) for ledger in ledgers]
            waiting.append(asyncio.create_task(client.start(order, "named", id="named")))
            names = [f"free-{n}" for n in range(8)]
            await asyncio.gather(*(client.execute(order, name, id=name) for name in names))
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        for ledger in ledgers:
            assert await ledger.result() == ["close"]
        await finished(client, "named")


async def test_the_server_ends_a_session_that_idles(postgres_dsn: str) -> None:
    async with working(postgres_dsn) as client:
        handle = await client.start(Ledger, id="held")
        mine = "SET idle_in_transaction_session_timeout = '1s'"
        async with idle_in_transaction(postgres_dsn, mine, lock_of("held")):
            await handle.signal("put", "close")  # tried again until the server has ended it
        assert await handle.result() == ["close"]


async def test_a_table_that_another_session_holds(postgres_dsn: str) -> None:
    async with Traffic.on(postgres_dsn) as traffic:
        async with idle_in_transaction(postgres_dsn, "LOCK TABLE perdure.states"):
            error = await traffic.trouble()
            assert "holds locks" in error.message
            assert "pg_stat_activity" in error.message
        await traffic.more()


async def test_the_lock_of_a_workflow_id_that_another_session_holds(postgres_dsn: str) -> None:
    number = batch.lock_number(("default", "named"))
    async with working(postgres_dsn) as client:
        async with idle_in_transaction(postgres_dsn, f"SELECT pg_advisory_xact_lock({number})"):
            with pytest.raises(Unavailable, match="holds locks"):
                await impatient(client).start(order, "named", id="named")
            await client.execute(order, "free", id="free")
            started = asyncio.create_task(client.start(order, "named", id="named"))
            await asyncio.sleep(QUICK_S)
            assert not started.done()
        await started
        await finished(client, "named")


async def test_a_server_that_ends_idle_transactions_at_once(postgres_dsn: str) -> None:
    """Those of a node are never idle for long, whatever the server is told about them."""
    name = postgres_dsn.split("/")[3].partition("?")[0]
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(
        f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '200ms'"
    )
    await connection.close()
    async with working(postgres_dsn) as client:
        names = [f"order-{number}" for number in range(30)]
        await asyncio.gather(*(client.start(order, name, id=name) for name in names))
        await asyncio.gather(*(finished(client, name) for name in names))


async def test_a_migration_waits_as_long_as_another_node_migrates(postgres_dsn: str) -> None:
    lock = f"SELECT pg_advisory_xact_lock({schema._LOCK})"
    async with idle_in_transaction(postgres_dsn, lock) as other:

        async def serve() -> None:
            async with working(postgres_dsn) as client:
                await client.execute(order, "first", id="first")

        serving = asyncio.create_task(serve())
        await asyncio.sleep(6 * QUICK_S)
        assert not serving.done()
        await other.execute("COMMIT")
        await serving


async def test_locks_are_not_kept_by_what_was_refused(postgres_dsn: str) -> None:
    """After a refusal no connection of the node is in a transaction."""
    async with working(postgres_dsn) as client:
        await client.start(Ledger, id="held")
        async with idle_in_transaction(postgres_dsn, lock_of("held")) as other:
            with pytest.raises(Unavailable):
                await impatient(client).handle("held").signal("put", "lost")
            count = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
            )
            await until(lambda: _is_zero(other, count))


async def _is_zero(connection: asyncpg.Connection, count: str) -> bool:
    return bool(await connection.fetchval(count) == 0)
