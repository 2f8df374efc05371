"""The values in a list filter: times, lengths of time, statuses and the plain types.

Each function raises ValueError with a message that says what would be right.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from temporalio.api.enums.v1 import IndexedValueType, WorkflowExecutionStatus

from perdure.api.times import SECOND_NS, timedelta_ns, within_64_bits
from perdure.store.query import Scalar

_UNIT_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "h": 3_600 * SECOND_NS,
    "d": 86_400 * SECOND_NS,
    "w": 7 * 86_400 * SECOND_NS,
}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w)"
_DURATION = re.compile(rf"([+-]?)((?:{_PART})+)", re.ASCII)
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d)(?:\.(\d{1,9}))?", re.ASCII)
_RELATIVE = re.compile(r"now(?:\(\))?\s*(?:([+-])\s*(.+))?", re.IGNORECASE | re.DOTALL)
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d)(?:\.(\d+))?)?\s*(Z|[+-]\d\d:?\d\d)?",
    re.ASCII | re.IGNORECASE,
)
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_INT64 = 1 << 63
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_STATUS_PREFIX = "WORKFLOW_EXECUTION_STATUS_"
_STATUSES = {
    name.removeprefix(_STATUS_PREFIX).replace("_", "").lower(): number
    for name, number in WorkflowExecutionStatus.items()
    if number
}
_STATUSES["cancelled"] = _STATUSES["canceled"]
_STATUS_NAMES = ", ".join(
    name.removeprefix(_STATUS_PREFIX).title().replace("_", "")
    for name, number in WorkflowExecutionStatus.items()
    if number
)


def status(value: Scalar) -> int:
    """The number of an execution status, from its number or any spelling of its name."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value in _STATUSES.values():
            return value
    elif isinstance(value, str):
        name = value.upper().removeprefix(_STATUS_PREFIX).replace("_", "").lower()
        if name in _STATUSES:
            return _STATUSES[name]
    raise ValueError(f"no such status; there are {_STATUS_NAMES}")


def time_ns(value: Scalar, now_ns: int) -> int:
    """Nanoseconds since the epoch, from RFC 3339, ``now-1h`` and the like, or nanoseconds.

    Times beyond 64 bits are cut to what they hold, as those of search attributes are.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _in_range(value)
    if isinstance(value, str):
        relative = _RELATIVE.fullmatch(value.strip())
        if relative:
            sign, length = relative.groups()
            offset = duration_ns(length.strip()) if length else 0
            return within_64_bits(now_ns - offset if sign == "-" else now_ns + offset)
        if _INTEGER.fullmatch(value):
            return _in_range(int(value))
        absolute = _TIME.fullmatch(value.strip())
        if absolute:
            return within_64_bits(_absolute_ns(*absolute.groups()))
    raise ValueError("a time is written '2026-01-31T12:00:00Z', or now() - 1h")


def _absolute_ns(day: str, clock: str | None, fraction: str | None, zone: str | None) -> int:
    offset = "+00:00" if zone is None or zone in "Zz" else zone
    try:
        moment = datetime.fromisoformat(f"{day}T{clock or '00:00:00'}{offset}")
    except ValueError as error:
        raise ValueError(f"there is no such time: {error}") from None
    return timedelta_ns(moment - _EPOCH) + int((fraction or "")[:9].ljust(9, "0"))


def duration_ns(value: Scalar) -> int:
    """Nanoseconds, from ``1h30m``, ``HH:MM:SS`` or nanoseconds."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _in_range(value)
    if isinstance(value, str):
        text = value.strip()
        clock = _CLOCK.fullmatch(text)
        if clock:
            hours, minutes, seconds, fraction = clock.groups()
            whole = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
            return _in_range(whole * SECOND_NS + int((fraction or "").ljust(9, "0")))
        parts = _DURATION.fullmatch(text)
        if parts:
            return _in_range(_sum_ns(parts[2]) * (-1 if parts[1] == "-" else 1))
        if _INTEGER.fullmatch(text):
            return _in_range(int(text))
    raise ValueError("a duration is written '1h30m', '01:30:00', or as nanoseconds")


def _sum_ns(text: str) -> int:
    total = 0
    for number, unit in re.findall(_PART, text):
        whole, _, fraction = number.partition(".")
        scale = _UNIT_NS[unit]
        total += int(whole or 0) * scale
        if fraction:
            total += int(fraction[:18]) * scale // 10 ** len(fraction[:18])
    return total


def plain(value: Scalar, kind: int) -> Scalar:
    """A value of a search attribute's type, but for times."""
    match kind, value:
        case IndexedValueType.INDEXED_VALUE_TYPE_BOOL, bool():
            return value
        case IndexedValueType.INDEXED_VALUE_TYPE_BOOL, str() if value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
        case IndexedValueType.INDEXED_VALUE_TYPE_BOOL, _:
            raise ValueError("it is a Bool: true or false")
        case IndexedValueType.INDEXED_VALUE_TYPE_INT, int() if not isinstance(value, bool):
            return _in_range(value)
        case IndexedValueType.INDEXED_VALUE_TYPE_INT, _:
            raise ValueError("it is an Int: a whole number, without quotes")
        case IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE, int() | float() if not isinstance(
            value, bool
        ):
            return _finite(float(value))
        case IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE, _:
            raise ValueError("it is a Double: a number, without quotes")
        case _, str():
            return value
    raise ValueError("it is text: write the value in quotes")


_BOOLEANS = {"true": True, "false": False}


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the number is too large for a Double")
    return value


def _in_range(value: int) -> int:
    if not -_INT64 <= value < _INT64:
        raise ValueError("the number does not fit in 64 bits")
    return value
