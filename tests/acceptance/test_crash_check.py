"""The crash test's own eyes: it must see what it looks for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import crash_check

RECORDED_NS = 1_000_000_000


def history(attempt: int, *, timed_out: bool = False) -> list[HistoryEvent]:
    """Activity "1", completed at its attempt of that number; the one before may have timed out."""
    scheduled, started, completed = (HistoryEvent(event_id=n) for n in (1, 2, 3))
    scheduled.event_type = EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    scheduled.activity_task_scheduled_event_attributes.activity_id = "1"
    started.event_type = EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
    started.activity_task_started_event_attributes.attempt = attempt
    if timed_out:
        failure = started.activity_task_started_event_attributes.last_failure
        failure.timeout_failure_info.SetInParent()
    completed.event_type = EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
    completed.activity_task_completed_event_attributes.scheduled_event_id = 1
    completed.activity_task_completed_event_attributes.started_event_id = 2
    completed.event_time.FromNanoseconds(RECORDED_NS)
    return [scheduled, started, completed]


def call(attempt: int, time_ns: int = RECORDED_NS - 1) -> dict[str, Any]:
    return {"run_id": "r", "activity_id": "1", "attempt": attempt, "time_ns": time_ns}


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([call(1), call(2)], []),
        ([call(1), call(2), call(3)], ["ran again (attempt 3)"]),
        ([call(1), call(2, RECORDED_NS + 1)], ["ran again (attempt 2)"]),
        ([call(1), call(2), call(2)], ["attempt 2 ran 2 times"]),
        ([call(1)], ["it never ran"]),
    ],
)
def test_an_execution_that_must_not_have_been_is_found(
    calls: list[dict[str, Any]], words: list[str]
) -> None:
    faults = crash_check.repeated([stored(history(attempt=2))], calls)
    assert len(faults) == len(words)
    assert all(word in fault for word, fault in zip(words, faults, strict=True))


def test_an_attempt_that_timed_out_may_run_late() -> None:
    calls = [call(1, RECORDED_NS + 1), call(2)]
    assert crash_check.repeated([stored(history(attempt=2, timed_out=True))], calls) == []
    assert len(crash_check.repeated([stored(history(attempt=2))], calls)) == 1


def stored(events: list[HistoryEvent]) -> Any:
    record = SimpleNamespace(run_id="r", workflow_id="w")
    return SimpleNamespace(workflow_id="w", loaded=SimpleNamespace(record=record), events=events)


def test_books_with_something_missing_or_done_twice_are_found() -> None:
    size = crash_check.Size(orders=1, chunks=0, approvals=0)
    good = [
        {"service": "payments", "key": "order-0/1", "cents": 1000},
        {"service": "parcels", "key": "order-0/2"},
        {"service": "mail", "key": "order-0"},
    ]
    assert crash_check.book_faults(good, size) == []
    assert len(crash_check.book_faults(good[:2], size)) == 1
    assert len(crash_check.book_faults([*good, good[0]], size)) == 2
