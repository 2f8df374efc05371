"""Fresh ids without a trip to the store: taken in blocks, ahead of need."""

from __future__ import annotations

import asyncio

from perdure.api.errors import Unavailable
from perdure.store.contract import Store, StoreError


class Ids:
    """Numbers for runs, task rows and messages. What a block has left at the end is never used."""

    def __init__(self, store: Store, block: int) -> None:
        self._store = store
        self._block = block
        self._next = 0
        self._end = 0
        self._spare: tuple[int, int] | None = None
        self._refill: asyncio.Task[None] | None = None
        self._failure: StoreError | None = None

    async def open(self) -> None:
        """Take the first block."""
        self._next = await self._store.allocate(self._block)
        self._end = self._next + self._block

    def take(self) -> int:
        """A fresh id. Raises Unavailable when the store gave none for a whole block's time."""
        if self._next == self._end:
            if self._spare is None:
                self._start_refill()
                why = f": {self._failure}" if self._failure else " at the moment; try again."
                raise Unavailable(f"The database gives no fresh ids{why}")
            self._next, self._end = self._spare
            self._spare = None
        fresh = self._next
        self._next += 1
        if self._spare is None and self._end - self._next < self._block // 2:
            self._start_refill()
        return fresh

    def _start_refill(self) -> None:
        if self._refill is None or self._refill.done():
            self._refill = asyncio.get_running_loop().create_task(self._get_spare())

    async def _get_spare(self) -> None:
        try:
            first = await self._store.allocate(self._block)
        except StoreError as error:
            self._failure = error
            return  # the next take() tries again
        self._failure = None
        self._spare = (first, first + self._block)

    async def close(self) -> None:
        """Wait for a refill that is under way."""
        if self._refill is not None:
            await asyncio.wait([self._refill])
