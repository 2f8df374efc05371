"""What a service may know of whoever calls it, beside the request.

A door sets it around the call that it passes on; a call from this process needs to set nothing.

Example:
    >>> token = CALLER.set(Caller(in_process=False, deadline_ns=clock.now_ns() + 5 * SECOND_NS))
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, NamedTuple


class Caller(NamedTuple):
    """Who calls.

    Attributes:
        in_process: it dies with this process, so that its tasks are offered again at a restart.
        deadline_ns: when it stops to wait for an answer, on the service's clock; 0 for never.
    """

    in_process: bool = True
    deadline_ns: int = 0


CALLER: Final[ContextVar[Caller]] = ContextVar("caller", default=Caller())  # noqa: B039


def until(now_ns: int, longest_ns: int) -> int:
    """When to answer with what is there: after ``longest_ns``, or just before the caller leaves.

    The answer needs time to reach the caller, so a tenth of what it has left, but between 10 ms and
    a second, is kept for that.
    """
    deadline_ns = CALLER.get().deadline_ns
    if not deadline_ns:
        return now_ns + longest_ns
    left_ns = deadline_ns - now_ns
    margin_ns = min(max(left_ns // 10, _MARGIN_MIN_NS), _MARGIN_MAX_NS)
    return now_ns + min(longest_ns, max(left_ns - margin_ns, 0))


_MARGIN_MIN_NS: Final = 10_000_000
_MARGIN_MAX_NS: Final = 1_000_000_000
