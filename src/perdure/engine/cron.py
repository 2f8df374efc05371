"""Cron schedules as Temporal reads them: five fields, ``@hourly`` and the like, ``@every 90m``,
each optionally after ``CRON_TZ=Europe/Paris `` (or ``TZ=``); UTC without it.

A run's next run is due at the first scheduled time after the one it was itself due at that has not
passed yet: runs that are slower than their schedule skip the times they missed.
"""

from __future__ import annotations

import re
from datetime import datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec
from croniter import croniter
from croniter.croniter import CroniterBadDateError, CroniterError

from perdure.api.errors import InvalidArgument
from perdure.api.times import SECOND_NS

_SPEC_LIMIT_BYTES = 1_000
_DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELD = re.compile(r"[0-9A-Za-z*?,/-]+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "h": 3_600 * SECOND_NS,
}
_MAXIMUM_INTERVAL_NS = 292 * 366 * 24 * 3_600 * SECOND_NS
_FIELD_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_FIELD_NAMES: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset(),
    frozenset(),
    frozenset(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    ),
    frozenset(("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


class Schedule(msgspec.Struct, frozen=True):
    """A parsed spec: either an interval, or five fields in a time zone."""

    interval_ns: int = 0
    fields: str = ""
    zone: str = "UTC"


def validate(spec: str) -> None:
    """Raise InvalidArgument, naming the spec, unless it can be read and ever comes due."""
    if not spec:
        return
    schedule = parse(spec)
    if _next(schedule, 0) is None:
        raise InvalidArgument(
            f"Invalid CronSchedule {spec!r}: no time can be found to satisfy the schedule."
        )


@lru_cache(maxsize=1_024)
def parse(spec: str) -> Schedule:
    """Read a spec. Raises InvalidArgument that names it.

    >>> parse("@every 1h30m").interval_ns // SECOND_NS
    5400
    """
    if len(spec.encode()) > _SPEC_LIMIT_BYTES:
        raise InvalidArgument(f"Invalid CronSchedule: longer than {_SPEC_LIMIT_BYTES} bytes.")
    zone, body = _split_zone(spec)
    if body.startswith("@every "):
        return Schedule(interval_ns=_interval_ns(spec, body.removeprefix("@every ").strip()))
    fields = _DESCRIPTORS.get(body, body)
    _check_fields(spec, fields)
    return Schedule(fields=fields.replace("?", "*"), zone=zone)


def next_ns(spec: str, after_ns: int) -> int | None:
    """The first time strictly after `after_ns`; None when there is none.

    >>> next_ns("0 3 * * *", 0) == 3 * 3600 * SECOND_NS
    True
    """
    return _next(parse(spec), after_ns)


def backoff_ns(spec: str, scheduled_ns: int, now_ns: int) -> int | None:
    """How long from `now_ns` the next run waits, in whole seconds, rounded up; None: there is none.

    `scheduled_ns`: when the present run was due (its start plus its own first backoff).
    """
    schedule = parse(spec)
    if now_ns < scheduled_ns:
        due_ns: int | None = scheduled_ns
    elif schedule.interval_ns:
        first_ns = scheduled_ns // SECOND_NS * SECOND_NS + schedule.interval_ns
        missed = max(0, -(-(now_ns - first_ns) // schedule.interval_ns))
        due_ns = first_ns + missed * schedule.interval_ns
    else:
        due_ns = _next(schedule, max(scheduled_ns, now_ns - 1))
    if due_ns is None:
        return None
    return -(-(due_ns - now_ns) // SECOND_NS) * SECOND_NS


def _next(schedule: Schedule, after_ns: int) -> int | None:
    if schedule.interval_ns:
        return after_ns // SECOND_NS * SECOND_NS + schedule.interval_ns
    start = datetime.fromtimestamp(after_ns // SECOND_NS, _zone(schedule.zone))
    try:
        found = croniter(schedule.fields, start, max_years_between_matches=30).get_next(datetime)
    except CroniterBadDateError:
        return None
    return int(found.timestamp()) * SECOND_NS


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo:
    return ZoneInfo(name)


def _split_zone(spec: str) -> tuple[str, str]:
    body = spec.strip()
    for prefix in ("CRON_TZ=", "TZ="):
        if body.startswith(prefix):
            name, _, body = body.removeprefix(prefix).partition(" ")
            try:
                _zone(name)
            except (KeyError, ValueError, OSError):  # OSError: the name of a directory
                raise InvalidArgument(
                    f"Invalid CronSchedule {spec!r}: unknown time zone {name!r}."
                ) from None
            return name, body.strip()
    return "UTC", body


def _interval_ns(spec: str, text: str) -> int:
    """A length like 1h30m or 1.5h, in whole seconds, at least one, as Temporal reads it."""
    total_ns = 0.0
    position = 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != position:
            break
        position = part.end()
        total_ns += float(part[1]) * _UNIT_NS[part[2]]
    if not text or position != len(text) or total_ns > _MAXIMUM_INTERVAL_NS:
        raise InvalidArgument(f"Invalid CronSchedule {spec!r}: cannot read the duration {text!r}.")
    return max(SECOND_NS, int(total_ns) // SECOND_NS * SECOND_NS)


def _check_fields(spec: str, fields: str) -> None:
    """The plain five-field form only: croniter itself also takes seconds, L, # and hashes."""
    parts = fields.split()
    if len(parts) != 5 or not all(_FIELD.fullmatch(part) for part in parts):
        raise InvalidArgument(
            f"Invalid CronSchedule {spec!r}: expected five fields (minute hour day month weekday), "
            "a descriptor such as @hourly, or @every with a duration."
        )
    for part, (low, high), names in zip(parts, _FIELD_RANGES, _FIELD_NAMES, strict=True):
        numbers = [int(n) for n in re.findall(r"(?<!/)\b\d+", part)]
        words = re.findall(r"[a-z]+", part.lower())
        if any(not low <= n <= high for n in numbers) or not names.issuperset(words):
            raise InvalidArgument(
                f"Invalid CronSchedule {spec!r}: {part!r} is not within {low} to {high}."
            )
    try:
        croniter(fields.replace("?", "*"))
    except (CroniterError, ValueError) as error:
        raise InvalidArgument(f"Invalid CronSchedule {spec!r}: {error}") from None
