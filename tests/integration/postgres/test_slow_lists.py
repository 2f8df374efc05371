"""Lists and counts that take long wait for each other only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from pg_stage import Ledger, impatient, until

import perdure
from perdure.api.errors import ResourceExhausted
from perdure.store.contract import StoreBusy
from perdure.store.postgres import PostgresStore, connections
from perdure.store.postgres.connections import LISTERS_MAX
from perdure.store.query import Query

MANY = 60
EVERYTHING = Query("default")
WAITING = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(postgres_dsn)
    await store.open()
    yield store
    await store.close()


@asynccontextmanager
async def slow_lists(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """All take as long as the block, which gets another connection to look with."""
    holder, look = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE perdure.runs")
            yield look
    finally:
        await holder.close()
        await look.close()


async def count_at_work(look: asyncpg.Connection, count: int) -> None:
    async def are() -> bool:
        return await look.fetchval(WAITING) == count

    await until(are)


async def test_a_node_gives_signs_of_life_while_many_counts_take_long(
    store: PostgresStore, postgres_dsn: str
) -> None:
    async with slow_lists(postgres_dsn) as look:
        counts = [asyncio.create_task(store.count_runs(EVERYTHING)) for _ in range(MANY)]
        lists = [asyncio.create_task(store.list_runs(EVERYTHING)) for _ in range(MANY)]
        await count_at_work(look, LISTERS_MAX)
        assert (await store.sharing.beat([], [])).nodes == {store.node}
        assert await store.namespaces() == []
        assert not any(task.done() for task in counts + lists)
    assert await asyncio.gather(*counts) == [[([], 0)]] * MANY
    assert await asyncio.gather(*lists) == [[]] * MANY


async def test_who_waits_too_long_for_a_turn_is_told_so(
    store: PostgresStore, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LIST_PATIENCE_S", 0.2)
    async with slow_lists(postgres_dsn) as look:
        counts = [asyncio.create_task(store.count_runs(EVERYTHING)) for _ in range(LISTERS_MAX)]
        await count_at_work(look, LISTERS_MAX)
        for ask in (store.count_runs, store.list_runs):
            with pytest.raises(StoreBusy, match="too many lists and counts at once"):
                await ask(EVERYTHING)
    assert await asyncio.gather(*counts) == [[([], 0)]] * LISTERS_MAX


async def test_who_gives_up_leaves_the_turn_to_others(
    store: PostgresStore, postgres_dsn: str
) -> None:
    async with slow_lists(postgres_dsn) as look:
        counts = [asyncio.create_task(store.count_runs(EVERYTHING)) for _ in range(MANY)]
        await count_at_work(look, LISTERS_MAX)
        for task in counts:
            task.cancel()
        await asyncio.wait(counts)
    assert await store.count_runs(EVERYTHING) == [([], 0)]


async def test_callers_may_try_again(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LIST_PATIENCE_S", 0.0)
    async with perdure.connect(postgres_dsn) as client:
        await client.start(Ledger, id="one")
        async with slow_lists(postgres_dsn) as look:
            counts = [asyncio.create_task(client.count()) for _ in range(MANY)]
            await count_at_work(look, LISTERS_MAX)
            with pytest.raises(ResourceExhausted, match="too many lists and counts at once"):
                await impatient(client).count()
        assert {found.count for found in await asyncio.gather(*counts)} == {1}


async def test_connections_are_opened_when_they_are_needed(
    store: PostgresStore, postgres_dsn: str
) -> None:
    assert store._listers._pool.get_size() == 0
    await asyncio.gather(*(store.count_runs(EVERYTHING) for _ in range(MANY)))
    assert store._listers._pool.get_size() == LISTERS_MAX
