"""Options are checked where they are written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from perdure.sdk.options import (
    DEFAULT_START_TO_CLOSE_TIMEOUT,
    ActivityOptions,
    Priority,
    RetryPolicy,
)
from perdure.sdk.starting import StartOptions

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("make", "arguments", "named"),
    [
        (RetryPolicy, {"initial_interval": 1}, "initial_interval"),
        (RetryPolicy, {"initial_interval": timedelta(0)}, "initial_interval"),
        (RetryPolicy, {"backoff_coefficient": 0.5}, "backoff_coefficient"),
        (RetryPolicy, {"maximum_attempts": -1}, "maximum_attempts"),
        (RetryPolicy, {"maximum_interval": timedelta(milliseconds=1)}, "maximum_interval"),
        (RetryPolicy, {"non_retryable_error_types": "ValueError"}, "non_retryable_error_types"),
        (ActivityOptions, {"start_to_close_timeout": 3}, "start_to_close_timeout"),
        (ActivityOptions, {"heartbeat_timeout": -SECOND}, "heartbeat_timeout"),
        (ActivityOptions, {"task_queue": ""}, "task_queue"),
        (ActivityOptions, {"activity_id": "x" * 1001}, "activity_id"),
        (ActivityOptions, {"retry": 3}, "retry"),
        (Priority, {"key": 0}, "key"),
        (Priority, {"fairness_weight": 0}, "fairness_weight"),
        (StartOptions, {"id": ""}, "id"),
        (StartOptions, {"id": "ü" * 501}, "id"),
        (StartOptions, {"run_timeout": 3}, "run_timeout"),
        (StartOptions, {"start_signal_args": [1]}, "start_signal_args"),
        (StartOptions, {"cron": "* * * * *", "start_delay": SECOND}, "start_delay"),
    ],
)
def test_a_mistake_is_reported_with_the_argument(
    make: type, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{named}: "):
        make(**arguments)


def test_a_retry_policy_is_its_message() -> None:
    policy = RetryPolicy(
        initial_interval=timedelta(milliseconds=1500),
        backoff_coefficient=1.5,
        maximum_interval=timedelta(minutes=1),
        maximum_attempts=4,
        non_retryable_error_types=[ValueError, "Other"],
    )
    message = policy.to_message()
    assert list(message.non_retryable_error_types) == ["ValueError", "Other"]
    assert message.initial_interval.ToTimedelta() == timedelta(milliseconds=1500)
    back = RetryPolicy.from_message(message)
    assert back.to_message() == message
    assert RetryPolicy.from_message(RetryPolicy().to_message()) == RetryPolicy()


def test_ten_minutes_when_no_timeout_is_given() -> None:
    assert ActivityOptions().effective_start_to_close_timeout == DEFAULT_START_TO_CLOSE_TIMEOUT
    whole = ActivityOptions(schedule_to_close_timeout=SECOND)
    assert whole.effective_start_to_close_timeout is None
    both = ActivityOptions(start_to_close_timeout=SECOND)
    assert both.effective_start_to_close_timeout == SECOND


def test_merging_keeps_what_is_not_given() -> None:
    options = ActivityOptions(task_queue="a", heartbeat_timeout=SECOND)
    merged = options.merged(task_queue="b", heartbeat_timeout=None)
    assert (merged.task_queue, merged.heartbeat_timeout) == ("b", SECOND)
    assert options.merged() is options
    with pytest.raises(TypeError, match="timeout: no option of an activity"):
        options.merged(timeout=SECOND)
