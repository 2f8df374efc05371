"""`asyncio.as_completed` and `gather` in workflow code: in an order that replays.

asyncio puts what it is given into a set first. Sets of our tasks and futures are in order already
(see `loop`), but a set of coroutines is in the order of memory addresses, and so tasks would be
made of them in that order.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
from collections.abc import Callable, Iterable
from typing import Any, Final

from perdure.sdk.runtime.context import state

_real_as_completed: Final[Callable[..., Any]] = asyncio.as_completed


def _as_completed(fs: Iterable[Any], *, timeout: float | None = None) -> Any:
    if state.run is not None and not asyncio.isfuture(fs) and not asyncio.iscoroutine(fs):
        fs = [asyncio.ensure_future(f) for f in dict.fromkeys(fs)]
    return _real_as_completed(fs, timeout=timeout)


def _gathering_hash(self: Any) -> int:
    loop = self._loop
    if type(loop).__name__ != "WorkflowLoop":
        return object.__hash__(self)
    if not hasattr(self, "_perdure_hash"):
        loop.sequence = self._perdure_hash = loop.sequence + 1
    number: int = self._perdure_hash
    return number


def install() -> dict[Any, Callable[..., Any]]:
    """Put the dispatchers in place; originals and their dispatchers."""
    _as_completed.__name__ = _as_completed.__qualname__ = "as_completed"
    _as_completed.__doc__ = _real_as_completed.__doc__
    asyncio.as_completed = _as_completed
    asyncio.tasks.as_completed = _as_completed
    asyncio.tasks._GatheringFuture.__hash__ = _gathering_hash  # type: ignore[attr-defined]
    return {_real_as_completed: _as_completed}
