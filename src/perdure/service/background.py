"""Work beside the calls, which no error ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from perdure.api.errors import RPCError
from perdure.store.contract import StoreError

log = logging.getLogger("perdure.service")

_PAUSE_S: Final = 1.0


class Background:
    """What one part of a node does beside the calls: it ends together, and tells of its errors."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str | None = None) -> None:
        """Do something once; an error is only told."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def repeat(self, turn: Callable[[], Awaitable[None]], name: str) -> None:
        """Do something again and again, and go on after an error, though not at once."""
        self.spawn(_repeated(turn, name), name)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _tell(error, getattr(task.get_coro(), "__qualname__", task.get_name()))

    async def close(self, grace_s: float = 0.0) -> None:
        """Wait a while for what is under way, then end it."""
        tasks = set(self._tasks)
        if tasks and grace_s:
            _, tasks = await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _repeated(turn: Callable[[], Awaitable[None]], name: str) -> None:
    while True:
        try:
            await turn()
        except Exception as error:
            _tell(error, name)
            await asyncio.sleep(_PAUSE_S)


def _tell(error: BaseException, name: str) -> None:
    if isinstance(error, StoreError | RPCError):  # the world's, which a few words explain
        log.warning("%s: %s", name, error)
    else:
        log.error("%s failed", name, exc_info=error)
