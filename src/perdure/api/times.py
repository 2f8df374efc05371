"""Integer nanoseconds inside, protobuf timestamps and durations at the edges."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

SECOND_NS = 1_000_000_000
MILLISECOND_NS = 1_000_000
_INT64 = 1 << 63
_LONGEST_S = 100 * 365 * 86_400
_LATEST_S = 6_000_000_000
"""The year 2160, so that the sum with the longest duration fits in 64 bits of nanoseconds."""


def timestamp(time_ns: int) -> Timestamp:
    """A protobuf timestamp for nanoseconds since the epoch."""
    seconds, nanos = divmod(time_ns, SECOND_NS)
    return Timestamp(seconds=seconds, nanos=nanos)


def timestamp_ns(value: Timestamp) -> int:
    """Nanoseconds since the epoch; 0 for an unset timestamp. What 64 bits cannot hold is cut."""
    seconds = value.seconds
    if not -_LATEST_S < seconds < _LATEST_S:
        return (_LATEST_S if seconds > 0 else -_LATEST_S) * SECOND_NS
    return seconds * SECOND_NS + value.nanos


def duration(length_ns: int) -> Duration:
    """A protobuf duration for nanoseconds."""
    seconds, nanos = divmod(length_ns, SECOND_NS)
    return Duration(seconds=seconds, nanos=nanos)


def duration_ns(value: Duration) -> int:
    """Nanoseconds; 0 for an unset duration. What is longer than 100 years is cut to that."""
    seconds = value.seconds
    if not -_LONGEST_S < seconds < _LONGEST_S:
        return (_LONGEST_S if seconds > 0 else -_LONGEST_S) * SECOND_NS
    return seconds * SECOND_NS + value.nanos


def timedelta_ns(value: timedelta) -> int:
    """Exact nanoseconds of a timedelta."""
    return ((value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds) * 1_000


def within_64_bits(time_ns: int) -> int:
    """A time, or the nearest one that 64 bits hold: they are of the years 1677 to 2262."""
    return max(-_INT64, min(time_ns, _INT64 - 1))


def datetime_of(time_ns: int) -> datetime:
    """An aware UTC datetime, rounded down to microseconds."""
    seconds, nanos = divmod(time_ns, SECOND_NS)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanos // 1_000)
