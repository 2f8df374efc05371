"""What PostgreSQL refuses for good, and what only now."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from store_rows import start, step, task

from perdure.store.contract import StoreRefused, StoreUnavailable, Write
from perdure.store.postgres import PostgresStore

WIDE = "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x9FFF), k=950)))
"""2,850 bytes that cannot be compressed: more than a row of an index takes."""


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(postgres_dsn)
    await store.open()
    await store.commit([[start(1)]])
    yield store
    await store.close()


def waiting(**changes: Any) -> Write:
    return step(1, 1, put_tasks=[task(9, 1, **changes)])


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (start(2, workflow_id="a\0b"), "invalid byte sequence"),
        (start(2, search_attributes={"City": "a\0b"}), "unsupported Unicode escape sequence"),
        (start(2, workflow_type=WIDE), "index row size .* exceeds"),
        (waiting(queue=WIDE), "index row size .* exceeds"),
        (waiting(queue="\ud800"), "surrogates not allowed"),
        (waiting(stamp=1 << 63), "out of int64 range"),
    ],
)
async def test_what_the_database_can_never_hold(
    store: PostgresStore, write: Write, why: str
) -> None:
    with pytest.raises(StoreRefused, match=why) as error:
        await store.commit([[write]])
    assert error.value.refused


async def test_a_constraint_of_somebody_else_may_be_lifted(store: PostgresStore) -> None:
    await store._read("ALTER TABLE perdure.states ADD CONSTRAINT none CHECK (version < 2)")
    with pytest.raises(StoreUnavailable, match="none"):
        await store.commit([[step(1, 1)]])
