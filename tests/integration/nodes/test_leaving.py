"""A node is closed just as news arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from perdure.service.node import Node
from perdure.store.postgres import PostgresStore
from perdure.store.postgres.listening import CHANNEL, Listening

CLOSED_WITHIN_S = 20


class Echo(asyncio.Event):
    """Calls somebody as it is set."""

    then: Callable[[], object]

    def set(self) -> None:
        super().set()
        self.then()


async def test_a_listener_that_is_closed_as_its_echo_comes_back(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell(notice: str) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, listening._on_notice, None, 0, CHANNEL, f"7 {notice}")

    closing: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
    listening = Listening(postgres_dsn, lambda _: None, tell)
    echo = Echo()
    echo.then = lambda: closing.put_nowait(asyncio.create_task(listening.close()))
    monkeypatch.setattr(listening, "_echoed", echo)
    await listening.start(7)
    async with asyncio.timeout(CLOSED_WITHIN_S):
        await (await closing.get())


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
