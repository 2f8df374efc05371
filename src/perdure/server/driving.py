"""Running a coroutine by hand until it really waits, and only then as a task.

Most calls end without waiting for anything, or wait for one commit: for the first a task and its
turn of the loop are pure cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Started(Generic[T]):
    """A coroutine that took its first step and waits for something. Await it to go on.

    Attributes:
        resumed: it is awaited. A task that is cancelled before would never reach the coroutine.
    """

    __slots__ = ("_coroutine", "_first", "resumed")

    def __init__(self, coroutine: Coroutine[Any, Any, T], first: Any) -> None:
        self._coroutine = coroutine
        self._first = first
        self.resumed = False

    def __await__(self) -> Generator[Any, Any, T]:
        self.resumed = True
        coroutine, waited_for = self._coroutine, self._first
        while True:
            try:
                try:
                    yield waited_for
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as error:
                    waited_for = coroutine.throw(error)
                else:
                    waited_for = coroutine.send(None)
            except StopIteration as end:
                result: T = end.value
                return result


class Driven(Generic[T]):
    """A started coroutine as a task, which can be cancelled at any time.

    Args:
        started: what goes on.
        loop: where.
    """

    __slots__ = ("_loop", "_started", "task")

    def __init__(self, started: Started[T], loop: asyncio.AbstractEventLoop) -> None:
        self._started = started
        self._loop = loop
        self.task: asyncio.Task[T] = loop.create_task(_go_on(started))

    def cancel(self) -> None:
        """Cancel what the coroutine waits for."""
        if self._started.resumed:
            self.task.cancel()
        else:  # its first turn is due already: this one comes after
            self._loop.call_soon(self.task.cancel)


async def _go_on(started: Started[T]) -> T:
    return await started
