"""Ids of a PostgreSQL database: no number is ever given twice, and they last."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
from store_rows import start, step

from perdure.store.postgres import PostgresStore
from perdure.store.postgres.store import ID_BLOCK
from perdure.store.sharing import Letter
from postgres import running_server

LAST = "SELECT last_value FROM perdure.ids"


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(postgres_dsn)
    await store.open()
    yield store
    await store.close()


async def test_letters_take_no_blocks_of_ids(store: PostgresStore, postgres_dsn: str) -> None:
    look = await asyncpg.connect(postgres_dsn)
    before = await look.fetchval(LAST)
    numbers = [await store.sharing.post(Letter("two", b"")) for _ in range(20)]
    assert await look.fetchval(LAST) == before
    assert len(set(numbers)) == 20
    await look.close()


@pytest.mark.parametrize(
    ("form", "number"),
    [("(id, address, created_ns, body) OVERRIDING SYSTEM VALUE", "nextval('perdure.ids'), "),
     ("(address, created_ns, body)", "")],
)  # fmt: skip
async def test_letters_of_nodes_that_let_the_database_number_them(
    store: PostgresStore, postgres_dsn: str, form: str, number: str
) -> None:
    """Those of former versions do, and go on with this version's tables."""
    mine = await store.sharing.post(Letter("two", b"mine"))
    former = await asyncpg.connect(postgres_dsn)
    theirs = await former.fetchval(
        f"INSERT INTO perdure.letters {form} VALUES ({number}'two', 1, 'theirs') RETURNING id"
    )
    assert theirs != mine
    taken = await store.sharing.collect(["two"], 9)
    assert taken == [Letter("two", b"theirs"), Letter("two", b"mine")]
    await former.close()


async def test_a_block_that_was_given_before_a_crash_is_not_given_again() -> None:
    """Though the sequence was moved, and logged for blocks ahead, by one who did not wait."""
    with running_server({"wal_writer_delay": "10s"}) as server:
        one, two = PostgresStore(server.dsn()), PostgresStore(server.dsn())
        await one.open()
        hasty = await asyncpg.connect(server.dsn())
        while await hasty.fetchval("SELECT log_cnt FROM perdure.ids"):
            await hasty.fetchval("SELECT nextval('perdure.ids')")
        await hasty.execute("SET synchronous_commit = off; SELECT nextval('perdure.ids')")
        given = [await one.allocate(ID_BLOCK), await one.allocate(ID_BLOCK)]
        hasty.terminate()
        server.stop()
        server.start()
        await one.close()
        await two.open()
        anew = {two.node // ID_BLOCK, await two.allocate(ID_BLOCK) // ID_BLOCK}
        assert anew.isdisjoint(first // ID_BLOCK for first in given)
        await two.close()


async def test_keys_may_be_large(store: PostgresStore, postgres_dsn: str) -> None:
    """A node that starts uses a block up, however few ids it needs; so did every letter once."""
    look = await asyncpg.connect(postgres_dsn)
    await look.execute("SELECT setval('perdure.ids', 1 + (1::bigint << 62))")
    await look.close()
    key = await store.allocate(ID_BLOCK)
    assert key > 1 << 62
    write = start(key)
    write.put_items = [(0, b"first"), (7, b"other")]
    assert await store.commit([[write]]) == []
    assert await store.commit([[step(key, 1, drop_items=[0])]]) == []
    found = await store.load(key)
    assert found is not None
    assert (found.record.key, found.items) == (key, [(7, b"other")])
