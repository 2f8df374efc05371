"""The seam of time: nothing in the service asks the system or the loop for it directly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

_time_ns = time.time_ns  # the real one: workflow code is shown another


class Alarm(Protocol):
    """A callback that waits for its time."""

    def cancel(self) -> None:
        """Forget it; nothing happens when it has run already."""


class Clock(Protocol):
    """Where a node gets its time from."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch; never less than an earlier answer."""

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> Alarm:
        """Call back on the loop's thread at that time, or soon if it has passed."""


class SystemClock:
    """The machine's clock; when that is set back, this one stands still.

    Args:
        time_ns: what the machine's clock shows.
    """

    def __init__(self, time_ns: Callable[[], int] = _time_ns) -> None:
        self._time_ns = time_ns
        self._latest_ns = 0
        self._ahead_ns = 0  # what the followed clock is ahead of the machine's
        self._follows = False

    def follow(self, other_ns: int, asked_ns: int) -> None:
        """Go by another clock, which showed `other_ns` at some moment since `asked_ns`."""
        here_ns = self.now_ns()
        if other_ns > here_ns:
            self._ahead_ns += other_ns - here_ns
        elif other_ns < asked_ns:
            self._ahead_ns -= asked_ns - other_ns
            if not self._follows:
                self._latest_ns = 0  # nothing was timed yet
        self._follows = True

    def now_ns(self) -> int:
        now_ns = self._time_ns() + self._ahead_ns
        if now_ns < self._latest_ns:
            return self._latest_ns
        self._latest_ns = now_ns
        return now_ns

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> Alarm:
        delay_s = max(0, time_ns - self.now_ns()) / 1e9
        # A month at a time: selectors refuse longer waits. Callers look at the clock when called.
        return asyncio.get_running_loop().call_later(min(delay_s, 2_592_000.0), callback)


async def sleep_until(clock: Clock, time_ns: int) -> None:
    """Wait on a node's clock."""
    while clock.now_ns() < time_ns:
        rung = asyncio.Event()
        alarm = clock.call_at(time_ns, rung.set)
        try:
            await rung.wait()
        finally:
            alarm.cancel()
