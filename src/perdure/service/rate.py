"""How fast tasks of a queue may be given out."""

from __future__ import annotations

from typing import Final

_SECOND_NS: Final = 1_000_000_000
NEVER_NS: Final = 1 << 62


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
        self._interval_ns = round(_SECOND_NS / per_second) if per_second else NEVER_NS
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
