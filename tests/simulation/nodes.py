"""Nodes that come and go over a database that stays."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from perdure.service.clock import Alarm
from perdure.service.node import Node
from perdure.store.contract import Store
from perdure.store.sqlite import SqliteStore
from perdure.testing.faults import Faults, FaultyStore
from perdure.testing.virtual_loop import VirtualLoop


class LoopClock:
    """A node's clock on a virtual loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ns(self) -> int:
        return self._loop.now_ns()

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> Alarm:
        delay_s = max(0, time_ns - self.now_ns()) / 1e9
        return self._loop.call_later(delay_s, callback)


class Disk:
    """A store that outlives the nodes that open it, one after the other.

    Args:
        inner: what holds the truth; default: SQLite in memory.
        faults: what may go wrong with commits.
    """

    def __init__(self, inner: Store | None = None, faults: Faults | None = None) -> None:
        self.inner: Store = inner or SqliteStore(":memory:")
        self.faults = faults or Faults()
        self.store: FaultyStore | None = None
        self.wrap: Callable[[Store], Store] | None = None
        self._opened = False

    async def open(self, rng: random.Random) -> Node:
        """A fresh process."""
        if not self._opened:
            await self.inner.open()
            self._opened = True
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        inner = self.wrap(self.inner) if self.wrap else self.inner
        self.store = FaultyStore(inner, self.faults, rng)
        return await Node.open(self.store, clock=LoopClock(loop), rng=rng)

    def heal(self) -> None:
        """From now on commits succeed."""
        self.faults.refused = self.faults.unanswered = self.faults.crash = 0.0

    async def kill(self) -> None:
        """The process dies with all that it was doing."""
        if self.store is not None:
            self.store.crash()
        await cancel_others()

    async def crash_and_open(self, rng: random.Random) -> Node:
        """The process dies with all that it was doing, and another one opens the database."""
        await self.kill()
        return await self.open(rng)

    async def close(self) -> None:
        """The end of the world."""
        await self.kill()
        await self.inner.close()


async def cancel_others() -> None:
    """End every task but this one, as the death of the process does; none may linger."""
    current = asyncio.current_task()
    for _ in range(50):
        others = [task for task in asyncio.all_tasks() if task is not current]
        others.sort(key=lambda task: (len(task.get_name()), task.get_name()))  # the same each time
        if not others:
            return
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=0.001)
    raise AssertionError(f"tasks that cannot be ended: {asyncio.all_tasks()}")
