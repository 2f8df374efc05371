"""The seam of time: nothing in the service asks the system or the loop for it directly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

_time_ns = time.time_ns  # the real ones: workflow code is shown others
_monotonic_ns = time.monotonic_ns

_LOOK_EVERY_S: Final = 30.0


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
    """The machine's clock, until it is told to follow another one.

    A clock that is set ahead, as after a sleep of the machine, is followed at once. When it is set
    back, this one goes at half its speed until both agree: it never stands still, for then no alarm
    would ring and no poll would end. Once it follows another clock, what somebody does to the
    machine's is nothing to it: the time since the other one was seen last is measured steadily.

    Args:
        time_ns: what the machine's clock shows.
        steady_ns: counts on whatever is done to the clock.
    """

    def __init__(
        self,
        time_ns: Callable[[], int] = _time_ns,
        steady_ns: Callable[[], int] = _monotonic_ns,
    ) -> None:
        self._time_ns = time_ns
        self._steady_ns = steady_ns
        self._looked_ns = steady_ns()
        self._latest_ns = 0
        self._ahead_ns: int | None = None  # what the followed clock is ahead of the steady one

    def follow(self, other_ns: int, asked_ns: int) -> None:
        """Go by another clock, which showed `other_ns` at some moment since `asked_ns`."""
        now_ns = self.now_ns()
        steady_ns = self._looked_ns
        least_ns, most_ns = other_ns - steady_ns, other_ns - steady_ns + now_ns - asked_ns
        if self._ahead_ns is None:
            self._ahead_ns = now_ns - steady_ns
            self._latest_ns = 0  # nothing was timed yet
        self._ahead_ns = min(max(self._ahead_ns, least_ns), most_ns)

    def now_ns(self) -> int:
        steady_ns = self._steady_ns()
        passed_ns, self._looked_ns = steady_ns - self._looked_ns, steady_ns
        shown_ns = self._time_ns() if self._ahead_ns is None else steady_ns + self._ahead_ns
        self._latest_ns = max(shown_ns, self._latest_ns + passed_ns // 2)
        return self._latest_ns

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> Alarm:
        return _Wait(self, time_ns, callback)


class _Wait:
    """Looks at the clock now and then, for it may be set, or the machine sleep, while one waits."""

    __slots__ = ("_callback", "_clock", "_handle", "_time_ns")

    def __init__(self, clock: SystemClock, time_ns: int, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._time_ns = time_ns
        self._callback = callback
        self._wait(time_ns - clock.now_ns())

    def cancel(self) -> None:
        self._handle.cancel()

    def _wait(self, left_ns: int) -> None:
        delay_s = min(max(0, left_ns) / 1e9, _LOOK_EVERY_S)
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        left_ns = self._time_ns - self._clock.now_ns()
        if left_ns > 0:
            self._wait(left_ns)
        else:
            self._callback()


async def sleep_until(clock: Clock, time_ns: int) -> None:
    """Wait on a node's clock."""
    while clock.now_ns() < time_ns:
        rung = asyncio.Event()
        alarm = clock.call_at(time_ns, rung.set)
        try:
            await rung.wait()
        finally:
            alarm.cancel()
