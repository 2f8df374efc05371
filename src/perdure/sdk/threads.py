"""Threads for synchronous activities.

They are daemons: an activity that ignores its cancellation must not keep a process from ending.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Threads"]

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class Threads:
    """Runs functions in up to `maximum` threads, started when they are first needed.

    All methods but `run`'s function belong to one event loop.
    """

    def __init__(self, maximum: int, name: str) -> None:
        assert maximum > 0
        self._maximum = maximum
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function in a thread and return its result or raise what it raised.

        Cancelling the wait does not stop the function.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._busy += 1
        if self._busy > len(self._threads) and len(self._threads) < self._maximum:
            self._start_thread()
        self._jobs.put((function, loop, future))
        try:
            return await future
        finally:
            self._busy -= 1

    def close(self) -> None:
        """Let idle threads end now, and busy ones when their functions return."""
        for _ in self._threads:
            self._jobs.put(None)
        self._threads.clear()

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, loop, future = job
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del job, function, future, result, error  # hold nothing while idle


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):  # a future cannot carry it
        failure = RuntimeError("the function raised StopIteration")
        failure.__cause__ = error
        future.set_exception(failure)
    else:
        future.set_exception(error)
