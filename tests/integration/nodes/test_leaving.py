"""A node is closed just as news arrives."""

from __future__ import annotations

import asyncio

import pytest

from perdure.service.node import Node
from perdure.store.postgres import PostgresStore

CLOSED_WITHIN_S = 20


@pytest.mark.parametrize("steps", range(4))
async def test_a_node_that_is_closed_as_it_hears_of_another(postgres_dsn: str, steps: int) -> None:
    node = await Node.open(PostgresStore(postgres_dsn))
    neighbours = node.neighbours
    assert neighbours is not None
    await asyncio.sleep(0.1)  # it waits for news
    neighbours._heard("hello")
    for _ in range(steps):
        await asyncio.sleep(0)
    async with asyncio.timeout(CLOSED_WITHIN_S):
        await neighbours.close()
        await node.close()
