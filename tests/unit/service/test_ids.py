"""Blocks of ids: never one twice, refilled ahead of need."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.api.errors import Unavailable
from perdure.service.ids import Ids
from perdure.store.contract import StoreUnavailable


class Counter:
    """As much of a store as ids need."""

    def __init__(self) -> None:
        self.next = 1
        self.broken = False

    async def allocate(self, count: int) -> int:
        await asyncio.sleep(0)
        if self.broken:
            raise StoreUnavailable("it is out")
        first = self.next
        self.next += count
        return first


async def test_ids_count_up_over_blocks() -> None:
    store: Any = Counter()
    ids = Ids(store, 10)
    await ids.open()
    taken = []
    for _ in range(35):
        taken.append(ids.take())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert taken == list(range(1, 36))
    await ids.close()


async def test_a_store_that_gives_none_is_asked_again() -> None:
    store: Any = Counter()
    ids = Ids(store, 10)
    await ids.open()
    store.broken = True
    for _ in range(10):
        ids.take()
        for _ in range(3):
            await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="no fresh ids: it is out"):
        ids.take()
    for _ in range(3):
        await asyncio.sleep(0)
    store.broken = False
    with pytest.raises(Unavailable):
        ids.take()
    for _ in range(3):
        await asyncio.sleep(0)
    assert ids.take() == 11
    await ids.close()
