"""Exceptions to failures and back."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.failure.v1 import Failure

from perdure.sdk import errors
from perdure.sdk.converter import Converter
from perdure.sdk.failures import MAXIMUM_CAUSES, error_from, failure_from

CONVERTER = Converter()


class CardDeclined(Exception):
    pass


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def chain() -> BaseException:
    try:
        try:
            raise ZeroDivisionError("division by zero")
        except ZeroDivisionError as inner:
            raise CardDeclined("no money") from inner
    except CardDeclined as outer:
        return outer


def there_and_back(error: BaseException, converter: Converter = CONVERTER) -> errors.FailureError:
    failure = failure_from(error, converter)
    return error_from(Failure.FromString(failure.SerializeToString()), converter)


def test_type_message_cause_and_trace_are_kept() -> None:
    back = there_and_back(chain())
    assert isinstance(back, errors.ApplicationError)
    assert (back.type, back.message) == ("CardDeclined", "no money")
    assert "raise CardDeclined" in back.stack_trace
    assert isinstance(back.cause, errors.ApplicationError)
    assert (back.cause.type, back.cause.message) == ("ZeroDivisionError", "division by zero")


def test_context_counts_as_cause_unless_it_is_suppressed() -> None:
    def make(suppress: bool) -> BaseException:
        try:
            try:
                raise KeyError("k")
            except KeyError:
                if suppress:
                    raise ValueError("v") from None
                raise ValueError("v")  # noqa: B904
        except ValueError as error:
            return error

    assert there_and_back(make(False)).cause is not None
    assert there_and_back(make(True)).cause is None


EACH: list[errors.FailureError] = [
    errors.ApplicationError(
        "m", 1, {"a": "b"}, type="T", non_retryable=True,
        next_retry_delay=timedelta(seconds=3), category=errors.ErrorCategory.BENIGN,
    ),
    errors.TimeoutError(
        "m", type=errors.TimeoutType.HEARTBEAT, last_heartbeat_details=["at 7"]
    ),
    errors.CancelledFailure("m", "why"),
    errors.TerminatedError("m"),
    errors.ServerError("m", non_retryable=True),
    errors.ActivityError(
        "m", activity_type="a", activity_id="7", identity="me",
        retry_state=errors.RetryState.MAXIMUM_ATTEMPTS_REACHED, scheduled_event_id=5,
        started_event_id=6,
    ),
    errors.ChildWorkflowError(
        "m", namespace="n", workflow_id="w", run_id="r", workflow_type="t",
        retry_state=errors.RetryState.TIMEOUT, initiated_event_id=5, started_event_id=6,
    ),
    errors.NexusOperationError("m", endpoint="e", service="s", operation="o"),
]  # fmt: skip


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_each_kind_comes_back_with_all_it_holds(error: errors.FailureError) -> None:
    def facts(e: errors.FailureError) -> dict[str, Any]:
        hidden = {"failure", "stack_trace"}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(e).items()
            if name not in hidden
        }

    back = there_and_back(error)
    assert type(back) is type(error)
    assert facts(back) == facts(error)


def test_what_was_read_from_history_is_recorded_as_it_was() -> None:
    first = failure_from(chain(), CONVERTER)
    again = failure_from(raised(error_from(first, CONVERTER)), CONVERTER)
    assert again == first


def test_a_new_cause_is_recorded() -> None:
    error = there_and_back(raised(errors.ApplicationError("first")))
    error.__cause__ = ValueError("new")
    assert failure_from(error, CONVERTER).cause.message == "new"


def test_cancellation_is_a_kind_of_its_own() -> None:
    back = there_and_back(asyncio.CancelledError())
    assert isinstance(back, errors.CancelledFailure)


def test_a_conversion_error_is_not_retried() -> None:
    back = there_and_back(errors.ConversionError("m"))
    assert isinstance(back, errors.ApplicationError)
    assert back.non_retryable


def test_endless_and_huge_failures_are_cut() -> None:
    one, two = ValueError("x" * 100_000), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    failure = failure_from(one, CONVERTER)
    assert len(failure.message) < 40_000
    depth = 0
    while failure.HasField("cause"):
        failure, depth = failure.cause, depth + 1
    assert depth == MAXIMUM_CAUSES


def test_an_exception_whose_text_fails_is_recorded_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    failure = failure_from(Broken(), CONVERTER)
    assert failure.application_failure_info.type == "Broken"


def test_a_group_keeps_its_exceptions() -> None:
    group = ExceptionGroup("two", [ValueError("a"), KeyError("b")])
    failure = failure_from(raised(group), CONVERTER)
    assert failure.cause.message == "a"
    assert "KeyError: 'b'" in failure.stack_trace


def test_common_attributes_can_be_hidden() -> None:
    converter = Converter(encode_common_attributes=True)
    failure = failure_from(chain(), converter)
    assert failure.message == failure.cause.message == "Encoded failure"
    assert not failure.stack_trace
    back = error_from(failure, converter)
    assert back.message == "no money"
    assert "raise CardDeclined" in back.stack_trace


def test_a_line_of_text_names_the_cause() -> None:
    error = errors.ActivityError("Activity task failed", activity_type="charge")
    error.__cause__ = errors.ApplicationError("no money", type="CardDeclined")
    assert str(error) == "Activity task failed (charge): CardDeclined: no money"
