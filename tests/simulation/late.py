"""Commits that a database does some time after their connection broke and their failure was told.

A server that has got a statement finishes it though its client is gone. A commit that starts runs
holds the locks of their workflow ids from its beginning; others hold nothing before they are done.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable, Sequence

from perdure.store.contract import StoreLocked, StoreUnavailable, Unit

LATE_S = 8.0
HELD_S = 8.0
LOCK_TIMEOUT_S = 1.0
PATIENCE_S = 0.3  # of a commit with rows that others hold

WorkflowId = tuple[str, str]  # namespace, workflow id


class Late:
    """What the database is still to do.

    Args:
        seed: decides all, and nothing else: other draws of a seed stay what they are. None: no
            commit is late.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._rng = random.Random(f"late {seed}")
        self._starting: dict[WorkflowId, asyncio.Event] = {}
        self.share = 0.0 if seed is None else self._rng.choice([0.0, 0.0, 0.02, 0.1])
        self.landed = 0
        self.strangers = Strangers(seed)

    async def commit(
        self, units: Sequence[Unit], commit: Callable[[Sequence[Unit]], Awaitable[list[int]]]
    ) -> list[int]:
        """Do a commit now, or later, and say that it failed."""
        await self._locks(units)
        await self.strangers.commit(units)
        if self._rng.random() >= self.share:
            return await commit(units)
        over = asyncio.Event()
        self._starting.update(dict.fromkeys(_starts(units), over))
        asyncio.get_running_loop().create_task(
            self._land(units, commit, over), context=contextvars.Context()
        )  # of no process: it outlives the one that sent it
        raise StoreUnavailable("injected: the connection broke, and the server goes on with it")

    async def settle(self, units: Sequence[Unit]) -> None:
        """Wait until a commit that failed is over, but not for ever."""
        await self._locks(units)
        self.strangers.settle(units)

    async def _locks(self, units: Sequence[Unit]) -> None:
        """Wait for the workflow ids that a commit starts, but not for ever."""
        for name in _starts(units):
            over = self._starting.get(name)
            if over is not None:
                try:
                    async with asyncio.timeout(LOCK_TIMEOUT_S):
                        await over.wait()
                except TimeoutError:
                    held = [place for place, unit in enumerate(units) if name in _starts([unit])]
                    raise StoreLocked("injected: a workflow id is locked", held) from None

    async def _land(
        self,
        units: Sequence[Unit],
        commit: Callable[[Sequence[Unit]], Awaitable[list[int]]],
        over: asyncio.Event,
    ) -> None:
        await asyncio.sleep(self._rng.random() ** 3 * LATE_S)
        left_out = await commit(units)
        self.landed += len(left_out) < len(units)
        over.set()
        for name in _starts(units):
            if self._starting.get(name) is over:
                del self._starting[name]


class Strangers:
    """Sessions of others that hold the rows of runs for a while, as an operator's may.

    Args:
        seed: as that of `Late`.
    """

    def __init__(self, seed: int | None) -> None:
        self._rng = random.Random(f"stranger {seed}")
        self.share = 0.0 if seed is None else self._rng.choice([0.0, 0.0, 0.01, 0.05])
        self._held_until: dict[int, float] = {}  # by the key of a run
        self.held = 0

    async def commit(self, units: Sequence[Unit]) -> None:
        """Wait for rows that are held, and raise StoreLocked if they are for long."""
        if self._rng.random() < self.share:
            self._hold(units)
        locked = self._locked(units)
        if locked:
            await asyncio.sleep(PATIENCE_S)
            locked = self._locked(units)
        if locked:
            self.held += 1
            raise StoreLocked("injected: another session holds rows", locked)

    def settle(self, units: Sequence[Unit]) -> None:
        """The commit may be waiting for these rows, too."""
        if self._locked(units):
            raise StoreUnavailable("injected: another session holds rows")

    def _hold(self, units: Sequence[Unit]) -> None:
        keys = [write.key for unit in units for write in unit if write.based_on]
        if keys:
            length_s = self._rng.random() ** 3 * HELD_S
            self._held_until[self._rng.choice(keys)] = _now_s() + length_s

    def _locked(self, units: Sequence[Unit]) -> list[int]:
        now_s, held = _now_s(), self._held_until
        return [
            place
            for place, unit in enumerate(units)
            if any(held.get(write.key, 0.0) > now_s for write in unit)
        ]


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _starts(units: Sequence[Unit]) -> list[WorkflowId]:
    return [
        (write.record.namespace, write.record.workflow_id)
        for unit in units
        for write in unit
        if not write.based_on and write.record is not None
    ]
