"""A clock that skips the time in which nothing happens."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count


class SkippingAlarm:
    """A callback that waits for its time."""

    __slots__ = ("callback", "cancelled", "time_ns")

    def __init__(self, time_ns: int, callback: Callable[[], None]) -> None:
        self.time_ns = time_ns
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Forget it; nothing happens when it has run already."""
        self.cancelled = True


class SkippingClock:
    """The machine's clock plus all that was skipped. Give it to a node; `skip_to` moves it."""

    def __init__(self) -> None:
        self._skipped_ns = 0
        self._latest_ns = 0
        self._waiting: list[tuple[int, int, SkippingAlarm]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None

    def now_ns(self) -> int:
        """Nanoseconds since the epoch; never less than an earlier answer."""
        self._latest_ns = max(self._latest_ns, time.time_ns() + self._skipped_ns)
        return self._latest_ns

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> SkippingAlarm:
        """Call back at that time, or soon if it has passed."""
        alarm = SkippingAlarm(time_ns, callback)
        heapq.heappush(self._waiting, (time_ns, next(self._order), alarm))
        if self._waiting[0][2] is alarm:
            self._arm()
        return alarm

    def skip_to(self, time_ns: int) -> None:
        """Make it that time now, unless it is later already; what is due is called soon."""
        self._skipped_ns += max(0, time_ns - self.now_ns())
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            delay_s = max(0, self._waiting[0][0] - self.now_ns()) / 1e9
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(delay_s, 86_400.0), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now_ns = self.now_ns()
        while self._waiting and self._waiting[0][0] <= now_ns:
            alarm = heapq.heappop(self._waiting)[2]
            if not alarm.cancelled:
                alarm.callback()
        if self._timer is None:
            self._arm()

    def close(self) -> None:
        """Call nothing any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
