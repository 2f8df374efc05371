"""Look-ups of one key each that are wanted at the same time, made in one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from perdure.store.contract import StoreError, StoreUnavailable

K = TypeVar("K")
V = TypeVar("V")


class Gathering(Generic[K, V]):
    """One statement is under way at a time; what is asked meanwhile is asked together, after it.

    So every answer is of a moment after the question, and a caller that is alone never waits. A key
    that the database refuses is refused to who asked for it.

    Args:
        look_up: the values of those keys that have one; it may raise StoreError.
    """

    def __init__(self, look_up: Callable[[list[K]], Awaitable[dict[K, V]]]) -> None:
        self._look_up = look_up
        self._keys: dict[K, None] = {}
        self._next: asyncio.Future[dict[K, V | StoreError]] | None = None
        self._turn = asyncio.Lock()

    async def get(self, key: K) -> V | None:
        """The value of one key, or None. Raises what the look-up of it raises."""
        self._keys[key] = None
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._ask())
        found = (await asyncio.shield(self._next)).get(key)
        if isinstance(found, StoreError):
            raise found
        return found

    async def _ask(self) -> dict[K, V | StoreError]:
        async with self._turn:
            keys = list(self._keys)
            self._keys.clear()
            self._next = None
            try:
                return {**await self._look_up(keys)}
            except StoreUnavailable:
                raise
            except StoreError:  # one of them is at fault
                return await self._ask_one_by_one(keys)

    async def _ask_one_by_one(self, keys: list[K]) -> dict[K, V | StoreError]:
        found: dict[K, V | StoreError] = {}
        for key in keys:
            try:
                found |= await self._look_up([key])
            except StoreError as error:
                found[key] = error
        return found
