"""An event loop on which time costs nothing and every run of a seed is the same run.

When nothing is ready the loop does not wait: it moves its clock to the next timer. Only one thread
may use it; a program that waits for a thread or a socket is reported as a deadlock, not hung.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Every task waits, and no timer will ever wake one."""


class _SkippingSelector(selectors.BaseSelector):
    """Answers a wait by moving the clock instead of sleeping."""

    def __init__(self, skip: Callable[[float], None]) -> None:
        self._skip = skip
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self._keys[fd] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("every task waits, and no timer will wake one")
        if timeout > 0:
            self._skip(timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class _Future(asyncio.Future[Any]):
    """Hashed by its number: a set of them has the same order in every run."""

    def __init__(self, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(**options)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    """The same for tasks."""

    def __init__(self, work: Any, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.SelectorEventLoop):
    """A single-threaded loop on virtual time.

    Args:
        epoch_ns: the wall-clock time, in nanoseconds since the epoch, at which the loop starts.
    """

    def __init__(self, epoch_ns: int = 1_700_000_000_000_000_000) -> None:
        self._elapsed_s = 0.0
        self._epoch_ns = epoch_ns
        self._numbers = count(1)
        super().__init__(_SkippingSelector(self._advance))
        self.set_task_factory(self.new_task)

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(next(self._numbers), loop=self)

    def new_task(self, loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
        """A task, as the loop's factory makes it."""
        return _Task(work, next(self._numbers), loop=loop, **options)

    def _advance(self, seconds: float) -> None:
        # One microsecond more than asked: rounding must never leave a timer a hair in the future.
        self._elapsed_s += seconds + 1e-6

    def time(self) -> float:
        return self._elapsed_s

    def now_ns(self) -> int:
        """The virtual wall clock, in nanoseconds since the epoch."""
        return self._epoch_ns + round(self._elapsed_s * 1e9)


def run(main: Coroutine[Any, Any, T], *, epoch_ns: int = 1_700_000_000_000_000_000) -> T:
    """Run a coroutine to its end on a fresh virtual loop."""
    loop = VirtualLoop(epoch_ns)
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            _cancel_all(loop)
        finally:
            loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
