"""Nodes that share a PostgreSQL database: who lives, who died, and what they held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from store_rows import closed, start, step

from perdure.store.contract import NOBODY, OTHERS, THIS_NODE, MessageRow, StoreUndelivered
from perdure.store.postgres import PostgresStore, sharing
from perdure.store.postgres.leases import SECOND_NS, SILENT_NODE_LIVES_NS
from perdure.store.sharing import FIRST_RUN, Beat

WITHIN_S = 20
LONG_NS = 3_600 * SECOND_NS
WAITING = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


@dataclass
class Stage:
    """Three nodes, and a way to look below."""

    stores: list[PostgresStore]
    look: asyncpg.Connection

    @property
    def one(self) -> PostgresStore:
        return self.stores[0]

    @property
    def two(self) -> PostgresStore:
        return self.stores[1]

    async def beat(self) -> None:
        """All live, and have for a while."""
        for store in self.stores:
            await awake(store)

    async def pass_time(self, by_ns: int = SILENT_NODE_LIVES_NS + SECOND_NS) -> None:
        """Nobody gives a sign of life for so long: to the rows it is as if they were older."""
        await self.look.execute(
            f"UPDATE perdure.nodes SET seen_ns = seen_ns - {by_ns}, "
            f"taken_until_ns = taken_until_ns - {by_ns}"
        )

    async def set_back(self, by_ns: int = LONG_NS) -> None:
        """The database's clock is so much behind what it showed: a server took over."""
        await self.pass_time(-by_ns)
        for store in self.stores:
            known, (from_ns, until_ns) = store._sharing, store._sharing._judges_ns
            known._judges_ns = from_ns + by_ns, until_ns + by_ns
            known._beat_ns += by_ns

    async def somebody_waits(self) -> None:
        """Wait until a session waits for a lock."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                if await self.look.fetchval(WAITING):
                    return
                await asyncio.sleep(0.01)


async def beat(store: PostgresStore) -> Beat:
    return await store.sharing.beat([], [])


async def slept(store: PostgresStore) -> Beat:
    """It comes back after a while."""
    from_ns, until_ns = store._sharing._judges_ns
    store._sharing._judges_ns = from_ns - LONG_NS, until_ns - LONG_NS
    return await beat(store)


async def awake(store: PostgresStore) -> None:
    """It comes back, and sees the database for a while."""
    now_ns = (await slept(store)).now_ns
    store._sharing._judges_ns = now_ns, now_ns + sharing.BEATS_APART_NS


@pytest.fixture
async def stage(postgres_dsn: str) -> AsyncIterator[Stage]:
    stores = [PostgresStore(postgres_dsn) for _ in range(3)]
    for store in stores:
        await store.open()
    look = await asyncpg.connect(postgres_dsn)
    yield Stage(stores, look)
    await look.close()
    for store in stores:
        await store.close()


async def new_run(store: PostgresStore, **changes: Any) -> int:
    """Start a run; `changes` are of the write."""
    key = await store.allocate(1)
    write = start(key)
    for name, value in changes.items():
        setattr(write, name, value)
    assert await store.commit([[write]]) == []
    return key


async def test_a_node_hears_who_lives(stage: Stage) -> None:
    one, two, _ = stage.stores
    alone = await beat(one)
    assert alone.nodes == {one.node}
    assert not one.sharing.has_company
    both = await beat(two)
    assert both.nodes == {one.node, two.node}
    assert two.sharing.has_company
    assert both.died == frozenset()
    assert alone.now_ns <= both.now_ns <= alone.now_ns + LONG_NS
    assert both.newer_schema == 0


async def test_a_silent_node_is_buried_by_one_other(stage: Stage) -> None:
    one, two, three = stage.stores
    await stage.beat()
    await stage.pass_time()
    await awake(three)
    found = await beat(one)
    assert (found.died, found.nodes) == ({two.node}, {one.node, three.node})
    during = await beat(three)  # the funeral goes on
    assert (during.died, during.nodes) == (frozenset(), {one.node, three.node})
    await stage.pass_time(sharing.FUNERAL_NS + SECOND_NS)
    await awake(three)
    assert (await beat(three)).died == {one.node, two.node}  # who took it died, too
    await three.sharing.bury([one.node, two.node])
    await stage.pass_time()
    assert (await beat(three)).died == frozenset()


async def test_a_node_that_was_silent_lives_again(stage: Stage) -> None:
    one, two, _ = stage.stores
    await stage.beat()
    await stage.pass_time()
    await beat(two)
    found = await beat(one)
    assert two.node in found.nodes
    assert two.node not in found.died


async def test_after_an_outage_of_the_database_nobody_is_dead_before_all_had_time_to_come_back(
    stage: Stage,
) -> None:
    one, two, three = stage.stores
    await stage.beat()
    key = await new_run(two, in_flight=THIS_NODE)
    await stage.pass_time()
    everybody = {store.node for store in stage.stores}
    for again in (await slept(one), await beat(one)):  # the others had no chance yet
        assert (again.nodes, again.died) == (everybody, frozenset())
    assert (await one.sharing.orphans()).keys == []
    assert await one.in_flight() == []
    await slept(two)
    await awake(one)
    last = await beat(one)  # the third died meanwhile
    assert (last.nodes, last.died) == (everybody - {three.node}, {three.node})
    assert (await one.sharing.orphans()).keys == []
    await stage.pass_time()
    await awake(one)
    assert (await one.sharing.orphans()).keys == [key]


async def judges(store: PostgresStore) -> None:
    """It gave signs of life for as long as a silent node lives."""
    from_ns, until_ns = store._sharing._judges_ns
    assert from_ns > store._sharing._beat_ns, "it is one already"
    store._sharing._judges_ns = store._sharing._beat_ns, until_ns


async def test_after_a_fail_over_to_a_clock_that_is_behind_the_dead_are_found_as_ever(
    stage: Stage,
) -> None:
    one, two, three = stage.stores
    everybody = {store.node for store in stage.stores}
    await stage.beat()
    key = await new_run(three, in_flight=THIS_NODE)
    await stage.set_back()
    first = await beat(one)  # the others had no chance yet
    assert (first.nodes, first.died) == (everybody, frozenset())
    assert (await one.sharing.orphans()).keys == []
    assert await one.sharing.dead(everybody) == frozenset()
    await beat(two)
    await judges(one)
    second = await beat(one)  # the third died before
    assert (second.nodes, second.died) == ({one.node, two.node}, {three.node})
    assert (await one.sharing.orphans()).keys == [key]
    assert await one.sharing.dead(everybody) == {three.node}
    await one.sharing.bury(sorted(everybody - {one.node}))
    assert await stage.look.fetchval("SELECT count(*) FROM perdure.nodes") == 2


async def test_a_node_that_is_new_when_the_clock_goes_back_waits_no_longer_for_that(
    stage: Stage,
) -> None:
    one = stage.one
    await beat(one)
    await stage.set_back()
    now_ns = (await beat(one)).now_ns
    assert one._sharing._judges_ns[0] == now_ns + SILENT_NODE_LIVES_NS


async def test_a_funeral_that_began_by_a_clock_that_was_ahead_is_over(stage: Stage) -> None:
    one, two, three = stage.stores
    await stage.beat()
    await stage.pass_time()
    await awake(three)
    assert (await beat(one)).died == {two.node}
    await stage.set_back()
    await beat(one)
    await beat(three)
    await judges(three)
    assert (await beat(three)).died == {two.node}


async def test_a_clock_that_is_set_back_a_little_makes_nobody_dead(stage: Stage) -> None:
    one = stage.one
    everybody = {store.node for store in stage.stores}
    await stage.beat()
    await stage.set_back(SECOND_NS)
    await beat(one)
    await judges(one)
    found = await beat(one)
    assert (found.nodes, found.died) == (everybody, frozenset())


async def test_a_new_node_does_not_know_who_is_dead(stage: Stage) -> None:
    one, two, _ = stage.stores
    await beat(two)
    await new_run(two, in_flight=THIS_NODE)
    await stage.pass_time()
    found = await beat(one)
    assert (found.nodes, found.died) == ({one.node, two.node}, frozenset())
    assert await one.in_flight() == []


async def test_who_came_back_is_not_buried(stage: Stage) -> None:
    one, two, three = stage.stores
    await stage.beat()
    await stage.pass_time()
    assert (await beat(one)).died == {two.node, three.node}
    await slept(two)  # goes on, while its work is taken over
    await one.sharing.bury([two.node, three.node])
    assert (await beat(one)).nodes == {one.node, two.node}
    assert await stage.look.fetchval("SELECT count(*) FROM perdure.nodes") == 2


async def test_beats_wait_for_nobody_while_they_hold_the_row_of_another(stage: Stage) -> None:
    """Or those of nodes that find each other dead would be a deadlock."""
    await stage.beat()
    for _ in range(100):
        await stage.look.execute("UPDATE perdure.nodes SET seen_ns = 1, taken_until_ns = 0")
        await asyncio.gather(*(beat(store) for store in stage.stores))


async def test_a_beat_that_waits_for_its_own_row_holds_no_other(stage: Stage) -> None:
    one, two, _ = stage.stores
    await stage.beat()
    await stage.pass_time()
    async with stage.look.transaction():
        await stage.look.execute(f"UPDATE perdure.nodes SET id = id WHERE id = {one.node}")
        waiting = asyncio.create_task(beat(one))
        await stage.somebody_waits()
        await stage.look.execute(
            f"SELECT FROM perdure.nodes WHERE id = {two.node} FOR UPDATE NOWAIT"
        )
    await waiting


async def test_a_node_that_leaves_is_gone_at_once(stage: Stage) -> None:
    one, two, _ = stage.stores
    await beat(one)
    await beat(two)
    await two.sharing.bury([two.node])
    assert (await beat(one)).nodes == {one.node}
    assert not one.sharing.has_company


async def test_orphans_are_open_runs_of_workers_that_died_with_their_node(stage: Stage) -> None:
    one, two = stage.one, stage.two
    await stage.beat()
    mine = await new_run(one, in_flight=THIS_NODE)
    of_two = await new_run(two, in_flight=THIS_NODE)
    ended = await new_run(two, in_flight=THIS_NODE)
    await two.commit([[step(ended, 1, record=closed(ended), in_flight=THIS_NODE)]])
    await new_run(two, in_flight=NOBODY)
    assert (await one.sharing.orphans()).keys == []
    await two.sharing.bury([two.node])
    assert (await one.sharing.orphans()).keys == [of_two]
    assert await one.in_flight() == [of_two]
    await one.commit([[step(of_two, 1, in_flight=NOBODY)]])
    assert (await one.sharing.orphans()).keys == []
    assert await one.sharing.version(mine) == 1


async def test_dead_is_who_is_silent_or_has_left(stage: Stage) -> None:
    one, two, three = stage.stores
    everybody = [store.node for store in stage.stores]
    await stage.beat()
    assert await one.sharing.dead(everybody) == frozenset()
    await two.sharing.bury([two.node])
    assert await one.sharing.dead(everybody) == {two.node}
    await stage.pass_time()
    assert await one.sharing.dead(everybody) == {two.node, three.node}
    await slept(one)  # it was away itself, and cannot tell silence from that
    assert await one.sharing.dead(everybody) == {two.node}


async def test_a_run_that_workers_of_two_nodes_hold_is_looked_at_when_any_node_dies(
    stage: Stage,
) -> None:
    one, two = stage.one, stage.two
    await stage.beat()
    key = await new_run(one, in_flight=THIS_NODE)
    await two.commit([[step(key, 1, in_flight=THIS_NODE)]])
    assert (await one.sharing.orphans()).keys == [key]
    await two.commit([[step(key, 2, in_flight=NOBODY)]])
    await two.commit([[step(key, 3, in_flight=THIS_NODE)]])
    await one.commit([[step(key, 4, in_flight=OTHERS)]])  # still held by those of two
    assert (await one.sharing.orphans()).keys == []
    await two.sharing.bury([two.node])
    assert (await one.sharing.orphans()).keys == [key]


async def test_orphans_are_looked_for_page_by_page(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_ORPHANS_AT_ONCE", 2)
    await stage.beat()
    held = [await new_run(stage.two, in_flight=THIS_NODE) for _ in range(3)]
    others = [await new_run(stage.one, in_flight=THIS_NODE) for _ in range(2)]
    await stage.two.sharing.bury([stage.two.node])
    pages, after = [], FIRST_RUN
    while True:
        page = await stage.one.sharing.orphans(after)
        pages.append(page.keys)
        if page.last is None:
            break
        after = page.last
    assert len(pages) == (len(held) + len(others)) // 2 + 1
    assert sorted(key for keys in pages for key in keys) == held


# -- deleting --------------------------------------------------------------------------------------


async def test_what_a_commit_adds_while_its_run_is_to_be_deleted_is_seen(stage: Stage) -> None:
    one = stage.one
    key = await new_run(one)
    async with stage.look.transaction():  # another node's commit
        await stage.look.execute(
            f"UPDATE perdure.states SET version = 2 WHERE key = {key};"
            f"INSERT INTO perdure.items (key, id, body) VALUES ({key}, 1, 'item')"
        )
        deleting = asyncio.create_task(one.delete(key))
        await stage.somebody_waits()
    assert await deleting
    assert await stage.look.fetchval("SELECT count(*) FROM perdure.items") == 0
    key = await new_run(one)
    async with stage.look.transaction():
        await stage.look.execute(
            f"UPDATE perdure.states SET version = 2 WHERE key = {key};"
            f"INSERT INTO perdure.messages (id, key, body) VALUES (77, {key}, 'message')"
        )
        deleting = asyncio.create_task(one.delete(key))
        await stage.somebody_waits()
    with pytest.raises(StoreUndelivered):
        await deleting
    assert await one.messages(0, 9) == [MessageRow(77, key, b"message")]


async def test_messages_whose_sender_is_gone_are_swept(stage: Stage) -> None:
    key = await new_run(stage.one)
    kept = MessageRow(await stage.one.allocate(1), key, b"kept")
    await stage.one.commit([[step(key, 1, put_messages=[kept])]])
    await stage.look.execute(
        f"INSERT INTO perdure.messages (id, key, body) VALUES (1, {key + 1}, 'lost')"
    )
    await stage.two.sharing.sweep()
    assert await stage.one.messages(0, 9) == [kept]
