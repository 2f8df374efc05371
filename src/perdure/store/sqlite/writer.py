"""The thread that waits for the disk, so that the event loop need not.

One job at a time. The thread sleeps on a lock, the cheapest wake-up there is, and answers with one
``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable


class Writer:
    """Runs one function at a time on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._wake = threading.Lock()
        self._wake.acquire()
        self._job: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """Run `work` on the thread; the future brings its end or its exception."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        assert self._job is None, "one job at a time"

        def job() -> None:
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:  # it belongs to who waits for the future
                error = raised
            self._job = None
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, future, error)

        self._job = job
        self._wake.release()
        return future

    def stop(self) -> None:
        """End the thread once its job is done."""
        if self._thread.is_alive():
            assert self._job is None, "one job at a time"
            self._job = _leave
            self._wake.release()
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            job = self._job
            assert job is not None
            if job is _leave:
                return
            job()


def _leave() -> None:
    raise AssertionError("a mark, never called")


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
