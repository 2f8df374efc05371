"""An event loop for tests with a real database, on which waiting for a time costs nothing.

As on the virtual loop, the clock moves to the next timer when nobody has anything to do. But here
sockets are real: what the database is asked is waited for first, in real time.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import asyncpg
import pytest

from perdure.store.postgres.connections import Pool

_QUIET_S = 0.002
"""Time is skipped after so long without a word from the database, as it may send notices."""
_LOOK_S = 0.05
_WAITS: Final[tuple[tuple[Any, str], ...]] = (
    (asyncpg, "connect"),
    (asyncpg.Connection, "add_listener"),
    (Pool, "open"),
    (Pool, "close"),
)
"""What waits for the database without a connection from a pool."""


class Usage:
    """How many calls wait for the database."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        patch.setattr(Pool, "connection", self._while_used(Pool.connection))
        for owner, name in _WAITS:
            patch.setattr(owner, name, self._while_called(getattr(owner, name)))

    def _while_used(self, connection: Callable[..., Any]) -> Callable[..., Any]:
        @asynccontextmanager
        async def use(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
            with self._counted():
                async with connection(*arguments, **options) as used:
                    yield used

        return use

    def _while_called(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            with self._counted():
                return await function(*arguments, **options)

        return call

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


class SkippingLoop(asyncio.SelectorEventLoop):
    """A loop that skips the time in which everybody waits for it.

    Args:
        is_busy: whether somebody waits for the database.
    """

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._skipped_s = 0.0
        self._began_ns = time.time_ns() - time.monotonic_ns()
        super().__init__(_SkippingSelector(self._skip, is_busy))

    def _skip(self, seconds: float) -> None:
        self._skipped_s += seconds

    def time(self) -> float:
        return time.monotonic() + self._skipped_s

    def now_ns(self) -> int:
        """The wall clock of the loop, in nanoseconds since the epoch."""
        return self._began_ns + time.monotonic_ns() + round(self._skipped_s * 1e9)


class _SkippingSelector(selectors.DefaultSelector):
    def __init__(self, skip: Callable[[float], None], is_busy: Callable[[], bool]) -> None:
        super().__init__()
        self._skip = skip
        self._is_busy = is_busy

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        left_s = _LOOK_S if timeout is None else timeout
        ready = super().select(min(left_s, _LOOK_S if self._is_busy() else _QUIET_S))
        if not ready and timeout is not None and not self._is_busy():
            self._skip(max(0.0, timeout - _QUIET_S))
        return ready


def run(main: Coroutine[Any, Any, None], is_busy: Callable[[], bool]) -> None:
    """Run a coroutine to its end on a fresh loop."""
    with asyncio.Runner(loop_factory=lambda: SkippingLoop(is_busy)) as runner:
        runner.run(main)
