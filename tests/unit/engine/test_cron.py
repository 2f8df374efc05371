from datetime import UTC, datetime

import pytest

from perdure.api.errors import InvalidArgument
from perdure.api.times import SECOND_NS
from perdure.engine import cron


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


@pytest.mark.parametrize(
    ("spec", "after", "expected"),
    [
        ("* * * * *", "2026-01-01T00:00:00", "2026-01-01T00:01:00"),
        ("0 12 * * MON", "2026-01-01T00:00:00", "2026-01-05T12:00:00"),
        ("0 12 ? * 1-5", "2026-01-03T00:00:00", "2026-01-05T12:00:00"),
        ("*/15 * * * *", "2026-01-01T00:16:00", "2026-01-01T00:30:00"),
        ("0 0 13 * 5", "2026-01-03T00:00:00", "2026-01-09T00:00:00"),  # day or weekday
        ("0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("@hourly", "2026-01-01T00:00:01", "2026-01-01T01:00:00"),
        ("@weekly", "2026-01-01T00:00:00", "2026-01-04T00:00:00"),
        ("@monthly", "2026-01-01T00:00:00", "2026-02-01T00:00:00"),
        ("@yearly", "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
        ("@every 1h30m", "2026-01-01T00:00:00", "2026-01-01T01:30:00"),
        ("@every 200ms", "2026-01-01T00:00:00", "2026-01-01T00:00:01"),
        ("CRON_TZ=America/New_York 0 9 * * *", "2026-01-01T00:00:00", "2026-01-01T14:00:00"),
        ("TZ=Asia/Tokyo @daily", "2026-01-01T00:00:00", "2026-01-01T15:00:00"),
        ("CRON_TZ=Europe/Paris 0 12 * * *", "2026-07-01T00:00:00", "2026-07-01T10:00:00"),
    ],
)
def test_next_time(spec: str, after: str, expected: str) -> None:
    assert cron.next_ns(spec, ns(after)) == ns(expected)


@pytest.mark.parametrize(
    "spec",
    [
        "nonsense", "* * * *", "* * * * * *", "61 * * * *", "* 24 * * *", "0 0 0 * *", "0 0 * 13 *",
        "0 0 * * 7", "0 0 L * *", "0 0 * * 1#2", "H * * * *", "@every", "@every x",
        "@every 1h x", "@sometimes",
        "CRON_TZ=Mars/Olympus * * * * *", "CRON_TZ=Europe * * * * *",
        "0 0 30 2 *", "5-1-2 * * * *", "*/0 * * * *", "CRON_TZ=../etc/passwd * * * * *",
        "@every 99999999999h",
    ],
)  # fmt: skip
def test_errors_name_the_spec(spec: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        cron.validate(spec)
    assert repr(spec) in caught.value.message


def test_a_spec_has_a_greatest_length() -> None:
    with pytest.raises(InvalidArgument, match="1000 bytes"):
        cron.validate("*" * 1_001)


def test_no_spec_is_valid() -> None:
    cron.validate("")
    cron.validate("@every 5s")


@pytest.mark.parametrize(
    ("spec", "scheduled", "now", "expected_s"),
    [
        # closed within its slot: the next one
        ("0 * * * *", "2026-01-01T01:00:00", "2026-01-01T01:10:00", 50 * 60),
        # slower than the schedule: missed times are skipped
        ("0 * * * *", "2026-01-01T01:00:00", "2026-01-01T03:10:00", 50 * 60),
        # closing at the very moment of a slot: that slot, at once
        ("0 * * * *", "2026-01-01T01:00:00", "2026-01-01T02:00:00", 0),
        ("@every 10m", "2026-01-01T01:00:00", "2026-01-01T01:03:00", 7 * 60),
        ("@every 10m", "2026-01-01T01:00:00", "2026-01-01T01:25:00", 5 * 60),
        ("@every 10m", "2026-01-01T01:00:00", "2026-01-01T01:30:00", 0),
        # before it was due (e.g. the first backoff of a start): that time
        ("0 * * * *", "2026-01-01T05:00:00", "2026-01-01T04:00:00", 3600),
    ],
)
def test_backoff(spec: str, scheduled: str, now: str, expected_s: int) -> None:
    assert cron.backoff_ns(spec, ns(scheduled), ns(now)) == expected_s * SECOND_NS


def test_backoff_is_rounded_up_to_whole_seconds() -> None:
    scheduled = ns("2026-01-01T01:00:00")
    assert cron.backoff_ns("@hourly", scheduled, scheduled + 1) == 3600 * SECOND_NS
    assert cron.backoff_ns("@hourly", scheduled, scheduled + 3599 * SECOND_NS + 1) == SECOND_NS


def test_backoff_is_none_when_the_schedule_never_comes_due() -> None:
    assert cron.backoff_ns("0 0 30 2 *", 0, 10) is None
