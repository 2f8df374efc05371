"""Callers that wait for a run to change."""

from __future__ import annotations

import asyncio


class Watchers:
    """Futures by the key of a run."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, key: int) -> bool:
        return key in self._waiting

    def keys(self) -> list[int]:
        """The runs that somebody waits for."""
        return list(self._waiting)

    def add(self, key: int) -> asyncio.Future[None]:
        """A future for the next time that a run is told of. Cancel it when you are done."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)

        def forget(done: asyncio.Future[None]) -> None:
            """One that was told is forgotten already; this one gave up."""
            waiting = self._waiting.get(key)
            if done.cancelled() and waiting is not None and done in waiting:
                waiting.remove(done)
                if not waiting:
                    del self._waiting[key]

        future.add_done_callback(forget)
        return future

    def tell(self, key: int) -> None:
        """Wake who waits for a run."""
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(None)
