"""How fast tasks of a queue may be given out, and how fast they came and went lately."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from perdure.store.sharing import interval_ns

_SECOND_NS: Final = 1_000_000_000
NEVER_NS: Final = 1 << 62

_SLICE_NS: Final = 5 * _SECOND_NS
_SLICES: Final = 6


class Rate:
    """So many a second, and no more than one second's worth at once.

    Kept as one moment: when the next one would be due if they were given out evenly. Somebody who
    comes up to a burst earlier is served.

    Args:
        per_second: 0 gives out nothing.
    """

    __slots__ = ("_burst_ns", "_due_ns", "_interval_ns", "per_second")

    def __init__(self, per_second: float) -> None:
        if not 0 <= per_second < float("inf"):
            raise ValueError(f"a rate is 0 or more, got {per_second}")
        self.per_second = per_second
        self._interval_ns = interval_ns(per_second) if per_second else NEVER_NS
        self._burst_ns = max(0, int(per_second) - 1) * self._interval_ns
        self._due_ns = 0

    def ready_ns(self) -> int:
        """The moment from which one may be given out."""
        return self._due_ns - self._burst_ns if self.per_second else NEVER_NS

    def spend(self, now_ns: int) -> bool:
        """Give one out, if it is time."""
        if now_ns < self.ready_ns():
            return False
        self._due_ns = max(self._due_ns, now_ns) + self._interval_ns
        return True


_PERMIT_LIVES_NS: Final = _SECOND_NS
_PAUSE_MIN_NS: Final = 20_000_000


class SharedRate(Rate):
    """The same over all nodes of a database: each asks it for permits before it gives tasks out.

    A node that is alone keeps count itself.

    Args:
        per_second: 0 gives out nothing.
        is_shared: whether other nodes are there.

    Attributes:
        asking: permits are on their way.
    """

    __slots__ = ("_granted_ns", "_is_shared", "_permits", "asking")

    def __init__(self, per_second: float, is_shared: Callable[[], bool]) -> None:
        super().__init__(per_second)
        self._is_shared = is_shared
        self._permits = 0
        self._granted_ns = 0
        self.asking = False

    @property
    def must_ask(self) -> bool:
        """Whether nothing can be given out before the database permits it."""
        return self.per_second > 0 and self._is_shared() and not self._permits

    @property
    def burst(self) -> int:
        """How many may be given out at once."""
        return max(1, int(self.per_second))

    @property
    def pause_ns(self) -> int:
        """After how long to ask again."""
        return max(self._interval_ns, _PAUSE_MIN_NS)

    def grant(self, permits: int, now_ns: int) -> None:
        """The database permits so many more, to be given out now."""
        self._permits = permits
        self._granted_ns = now_ns

    def ready_ns(self) -> int:
        if not self._is_shared():
            return super().ready_ns()
        return 0 if self._permits else NEVER_NS

    def spend(self, now_ns: int) -> bool:
        if not self._is_shared():
            return super().spend(now_ns)
        if now_ns - self._granted_ns > _PERMIT_LIVES_NS:
            self._permits = 0
        if not self._permits:
            return False
        self._permits -= 1
        self._due_ns = max(self._due_ns, now_ns) + self._interval_ns  # for when it is alone again
        return True


class Count:
    """How many a second, over the last half minute, or since it began if that is less."""

    __slots__ = ("_began_ns", "_counts", "_slice")

    def __init__(self, began_ns: int) -> None:
        self._counts = [0] * _SLICES
        self._slice = began_ns // _SLICE_NS
        self._began_ns = began_ns

    def add(self, now_ns: int) -> None:
        """One more."""
        if now_ns // _SLICE_NS != self._slice:
            self._move(now_ns)
        self._counts[-1] += 1

    def per_second(self, now_ns: int) -> float:
        """The rate."""
        self._move(now_ns)
        first_ns = max(self._began_ns, (self._slice - _SLICES + 1) * _SLICE_NS)
        return sum(self._counts) * _SECOND_NS / max(now_ns - first_ns, _SECOND_NS)

    def _move(self, now_ns: int) -> None:
        """Let go of what is too old."""
        slice_now = now_ns // _SLICE_NS
        passed = min(max(slice_now - self._slice, 0), _SLICES)
        self._counts = self._counts[passed:] + [0] * passed
        self._slice = max(self._slice, slice_now)


class Flow:
    """Tasks of one level of a queue: those that came, and those that were given out."""

    __slots__ = ("added", "dispatched")

    def __init__(self, began_ns: int) -> None:
        self.added = Count(began_ns)
        self.dispatched = Count(began_ns)
