"""Commits that a database does some time after their connection broke and their failure was told.

A server that has got a statement finishes it though its client is gone. A commit that starts runs
holds the locks of their workflow ids from its beginning; others hold nothing before they are done.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable, Sequence

from perdure.store.contract import StoreUnavailable, Unit

LATE_S = 8.0
LOCK_TIMEOUT_S = 1.0

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

    async def commit(
        self, units: Sequence[Unit], commit: Callable[[Sequence[Unit]], Awaitable[list[int]]]
    ) -> list[int]:
        """Do a commit now, or later, and say that it failed."""
        await self.locks(units)
        if self._rng.random() >= self.share:
            return await commit(units)
        over = asyncio.Event()
        self._starting.update(dict.fromkeys(_starts(units), over))
        asyncio.get_running_loop().create_task(
            self._land(units, commit, over), context=contextvars.Context()
        )  # of no process: it outlives the one that sent it
        raise StoreUnavailable("injected: the connection broke, and the server goes on with it")

    async def locks(self, units: Sequence[Unit]) -> None:
        """Wait for the workflow ids that a commit starts, but not for ever."""
        for name in _starts(units):
            over = self._starting.get(name)
            if over is not None:
                try:
                    async with asyncio.timeout(LOCK_TIMEOUT_S):
                        await over.wait()
                except TimeoutError:
                    raise StoreUnavailable("injected: a lock is held") from None

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


def _starts(units: Sequence[Unit]) -> list[WorkflowId]:
    return [
        (write.record.namespace, write.record.workflow_id)
        for unit in units
        for write in unit
        if not write.based_on and write.record is not None
    ]
