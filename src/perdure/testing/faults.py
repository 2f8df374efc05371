"""A store that fails as real ones do: on purpose, and the same way for the same seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.store.contract import Store, StoreUnavailable, Unit


class Faults(msgspec.Struct):
    """How often a commit goes wrong: probabilities per commit, and the longest delay in seconds.

    ``refused``: nothing is written, and the store says that it failed. ``unanswered``: everything
    is written, and the store says that it failed, as when a connection breaks at a bad moment.
    ``crash``: the process is to die at this commit, half of the time before and half after it.
    """

    refused: float = 0.0
    unanswered: float = 0.0
    crash: float = 0.0
    delay_s: float = 0.0


class FaultyStore:
    """Stands before a store, injects faults into commits, and passes all else through.

    Args:
        inner: the store that holds the truth; it outlives this object.
        faults: what may go wrong.
        rng: decides what does.

    ``crashed`` is set when the process is to die: from then on no call is ever answered, just as
    for a process that is gone. Whoever drives the simulation drops the node and opens another.
    """

    def __init__(self, inner: Store, faults: Faults, rng: random.Random) -> None:
        self._inner = inner
        self.faults = faults
        self._rng = rng
        self.crashed = asyncio.Event()
        self.commits = 0
        self.node = inner.node

    def crash(self) -> None:
        """Die now."""
        self.crashed.set()

    async def open(self) -> None:
        """The inner store is open already: it stands for the disk, and this for a new process."""
        self.node = await self._inner.allocate(1)

    async def close(self) -> None:
        """The inner store stays open."""

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        """Commit, refuse, commit and lose the answer, or die."""
        await self._alive()
        faults, rng = self.faults, self._rng
        self.commits += 1
        if faults.delay_s:
            await asyncio.sleep(rng.random() * faults.delay_s)
            await self._alive()
        dice = rng.random()
        if dice < faults.crash:
            if rng.random() < 0.5:
                await self._inner.commit(units)
            self.crash()
            await self._alive()
        if dice < faults.crash + faults.refused:
            raise StoreUnavailable("injected: the commit was refused, nothing is written")
        conflicts = await self._inner.commit(units)
        if dice < faults.crash + faults.refused + faults.unanswered:
            raise StoreUnavailable("injected: the commit's answer was lost")
        return conflicts

    async def _alive(self) -> None:
        if self.crashed.is_set():
            await asyncio.get_running_loop().create_future()  # never answered

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(inner):
            return inner

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._alive()
            return await inner(*args, **kwargs)

        return call
