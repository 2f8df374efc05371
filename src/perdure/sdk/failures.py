"""Exceptions to recorded failures and back.

A failure keeps the exception's class name as its type, its message, its stack trace, its details,
and the chain of its causes. What is read back raises as the classes of ``perdure.sdk.errors``.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from google.protobuf.message import Message
from temporalio.api.enums.v1 import ApplicationErrorCategory as ApplicationErrorCategoryMessage
from temporalio.api.enums.v1 import RetryState as RetryStateMessage
from temporalio.api.enums.v1 import TimeoutType as TimeoutTypeMessage
from temporalio.api.failure.v1 import Failure

from perdure.api.times import duration, duration_ns, timedelta_ns
from perdure.sdk import errors
from perdure.sdk.converter import Converter
from perdure.sdk.options import timedelta_or_none

__all__ = ["error_from", "failure_from", "fill_attempt_failure", "fill_failure"]

SOURCE: Final = "perdure"

MAXIMUM_CAUSES: Final = 32
"""How many causes deep a recorded failure goes."""

MAXIMUM_MESSAGE_LENGTH: Final = 32_768
MAXIMUM_STACK_TRACE_LENGTH: Final = 32_768

_OWN_FILES: Final = str(Path(__file__).parent)


# --- exception to failure ---------------------------------------------------------------------


def failure_from(error: BaseException, converter: Converter) -> Failure:
    """The failure to record for an exception."""
    failure = Failure()
    fill_failure(failure, error, converter)
    return failure


def fill_failure(
    failure: Failure, error: BaseException, converter: Converter, *, depth: int = 0
) -> None:
    """Describe an exception in an empty failure message.

    A failure that came from history and is raised on is recorded as it was, with the stack trace
    of where it happened first.
    """
    if isinstance(error, errors.FailureError) and _is_unchanged(error):
        assert error.failure is not None
        failure.CopyFrom(error.failure)
        if converter.encode_common_attributes:
            _hide_chain(failure, converter)
        return
    failure.source = SOURCE
    failure.message = _shortened(_message(error), MAXIMUM_MESSAGE_LENGTH)
    failure.stack_trace = _shortened(
        stack_trace(error.__traceback__) + _inner_traces(error), MAXIMUM_STACK_TRACE_LENGTH
    )
    _fill_info(failure, error, converter)
    cause = _cause(error)
    if cause is not None and cause is not error and depth < MAXIMUM_CAUSES:
        fill_failure(failure.cause, cause, converter, depth=depth + 1)
    if converter.encode_common_attributes:
        _hide(failure, converter)


def fill_attempt_failure(failure: Failure, error: BaseException, converter: Converter) -> None:
    """Describe why an attempt of an activity failed: what user code has raised.

    Servers take it for no other kind of failure, so that, say, the timeout of something that the
    activity itself has waited for is not mistaken for the activity's own: it becomes the cause.
    """
    fill_failure(failure, error, converter)
    if failure.HasField("application_failure_info"):
        return
    cause = Failure()
    cause.CopyFrom(failure)
    failure.Clear()
    failure.message = cause.message
    failure.source = SOURCE
    failure.application_failure_info.type = type(error).__name__
    failure.cause.CopyFrom(cause)


def stack_trace(trace: TracebackType | None) -> str:
    """The frames of a traceback as text, without those of the SDK that called the user's code."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OWN_FILES):
        trace = trace.tb_next
    return "".join(traceback.format_tb(trace))


def _is_unchanged(error: errors.FailureError) -> bool:
    """Was the error read from history, and has nobody given it another cause since?"""
    if error.failure is None:
        return False
    return error.failure.HasField("cause") == (error.__cause__ is not None)


def _message(error: BaseException) -> str:
    if isinstance(error, errors.FailureError):
        return error.message
    if isinstance(error, asyncio.CancelledError):
        return str(error) or "Cancelled"
    try:
        return str(error)
    except Exception as problem:  # a user's __str__ may fail; the failure must still be recorded
        return f"<no message: {type(problem).__name__}>"


def _inner_traces(error: BaseException) -> str:
    """The exceptions of a group, in full, since a failure has but one cause."""
    if not isinstance(error, BaseExceptionGroup):
        return ""
    texts = ["".join(traceback.format_exception(inner)) for inner in error.exceptions[:16]]
    return "\n".join(["", *texts])


def _cause(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None:
        return error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    return None if error.__suppress_context__ else error.__context__


def _shortened(text: str, maximum_length: int) -> str:
    """The text with what is over the limit cut from its middle, and what UTF-8 cannot hold."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= maximum_length:
        return text
    half = maximum_length // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _fill_info(failure: Failure, error: BaseException, converter: Converter) -> None:
    if isinstance(error, asyncio.CancelledError):
        failure.canceled_failure_info.SetInParent()
        return
    for kind, fill in _FILLERS:
        if isinstance(error, kind):
            fill(failure, error, converter)
            return
    info = failure.application_failure_info
    info.type = type(error).__name__
    info.non_retryable = isinstance(error, errors.ConversionError)


def _fill_application(failure: Failure, error: Any, converter: Converter) -> None:
    info = failure.application_failure_info
    info.type = error.type or ""
    info.non_retryable = error.non_retryable
    if error.details:
        converter.fill(info.details, error.details)
    if error.next_retry_delay is not None:
        info.next_retry_delay.CopyFrom(duration(timedelta_ns(error.next_retry_delay)))
    info.category = ApplicationErrorCategoryMessage.ValueType(int(error.category))


def _fill_timeout(failure: Failure, error: Any, converter: Converter) -> None:
    info = failure.timeout_failure_info
    info.timeout_type = TimeoutTypeMessage.ValueType(int(error.type))
    if error.last_heartbeat_details:
        converter.fill(info.last_heartbeat_details, error.last_heartbeat_details)


def _fill_cancelled(failure: Failure, error: Any, converter: Converter) -> None:
    failure.canceled_failure_info.SetInParent()
    if error.details:
        converter.fill(failure.canceled_failure_info.details, error.details)


def _fill_terminated(failure: Failure, error: Any, converter: Converter) -> None:
    failure.terminated_failure_info.SetInParent()


def _fill_server(failure: Failure, error: Any, converter: Converter) -> None:
    failure.server_failure_info.SetInParent()
    failure.server_failure_info.non_retryable = error.non_retryable


def _fill_activity(failure: Failure, error: Any, converter: Converter) -> None:
    info = failure.activity_failure_info
    info.activity_type.name = error.activity_type
    info.activity_id = error.activity_id
    info.identity = error.identity
    info.retry_state = RetryStateMessage.ValueType(int(error.retry_state))
    info.scheduled_event_id = error.scheduled_event_id
    info.started_event_id = error.started_event_id


def _fill_child(failure: Failure, error: Any, converter: Converter) -> None:
    info = failure.child_workflow_execution_failure_info
    info.namespace = error.namespace
    info.workflow_execution.workflow_id = error.workflow_id
    info.workflow_execution.run_id = error.run_id
    info.workflow_type.name = error.workflow_type
    info.retry_state = RetryStateMessage.ValueType(int(error.retry_state))
    info.initiated_event_id = error.initiated_event_id
    info.started_event_id = error.started_event_id


def _fill_nexus(failure: Failure, error: Any, converter: Converter) -> None:
    info = failure.nexus_operation_execution_failure_info
    info.endpoint = error.endpoint
    info.service = error.service
    info.operation = error.operation
    info.operation_token = error.operation_token
    info.scheduled_event_id = error.scheduled_event_id


_Fill = Callable[[Failure, Any, Converter], None]

_FILLERS: Final[tuple[tuple[type[errors.FailureError], _Fill], ...]] = (
    (errors.ApplicationError, _fill_application),
    (errors.ActivityError, _fill_activity),
    (errors.ChildWorkflowError, _fill_child),
    (errors.CancelledFailure, _fill_cancelled),
    (errors.TimeoutError, _fill_timeout),
    (errors.TerminatedError, _fill_terminated),
    (errors.ServerError, _fill_server),
    (errors.NexusOperationError, _fill_nexus),
)


def _hide(failure: Failure, converter: Converter) -> None:
    """Move what people read into a payload, which the codec can encrypt."""
    attributes = {"message": failure.message, "stack_trace": failure.stack_trace}
    failure.encoded_attributes.CopyFrom(converter.encode(attributes))
    failure.message = "Encoded failure"
    failure.stack_trace = ""


def _hide_chain(failure: Failure, converter: Converter) -> None:
    """Hide what is readable in a failure and its causes: a server or a child process made it."""
    if not failure.HasField("encoded_attributes"):
        _hide(failure, converter)
    if failure.HasField("cause"):
        _hide_chain(failure.cause, converter)


# --- failure to exception ---------------------------------------------------------------------


def error_from(failure: Failure, converter: Converter, *, depth: int = 0) -> errors.FailureError:
    """The exception for a recorded failure, with its causes chained as ``__cause__``."""
    message, trace = failure.message, failure.stack_trace
    if failure.HasField("encoded_attributes"):
        message, trace = _revealed(failure, converter)
    info = failure.WhichOneof("failure_info")
    make = _MAKERS.get(info or "", _make_application)
    error = make(message, getattr(failure, info) if info else None, converter)
    error.stack_trace = trace
    error.failure = failure
    if failure.HasField("cause") and depth < 4 * MAXIMUM_CAUSES:
        error.__cause__ = error_from(failure.cause, converter, depth=depth + 1)
    return error


def _revealed(failure: Failure, converter: Converter) -> tuple[str, str]:
    """Message and stack trace from the payload that `_hide` made; what is there if it is not."""
    attributes = converter.decode(failure.encoded_attributes)
    if not isinstance(attributes, dict):
        return failure.message, failure.stack_trace
    return (
        str(attributes.get("message", failure.message)),
        str(attributes.get("stack_trace", failure.stack_trace)),
    )


def _make_application(message: str, info: Any, converter: Converter) -> errors.FailureError:
    if info is None:
        return errors.FailureError(message)
    delay_ns = duration_ns(info.next_retry_delay)
    return errors.ApplicationError(
        message,
        *converter.decode_all(info.details),
        type=info.type or None,
        non_retryable=info.non_retryable,
        next_retry_delay=timedelta_or_none(delay_ns),
        category=errors.ErrorCategory(min(info.category, errors.ErrorCategory.BENIGN)),
    )


def _make_timeout(message: str, info: Any, converter: Converter) -> errors.FailureError:
    return errors.TimeoutError(
        message,
        type=errors.TimeoutType(info.timeout_type),
        last_heartbeat_details=converter.decode_all(info.last_heartbeat_details),
    )


def _make_cancelled(message: str, info: Any, converter: Converter) -> errors.FailureError:
    details = converter.decode_all(info.details)
    return errors.CancelledFailure(message or "Cancelled", *details)


def _make_terminated(message: str, info: Any, converter: Converter) -> errors.FailureError:
    return errors.TerminatedError(message or "Workflow terminated")


def _make_server(message: str, info: Any, converter: Converter) -> errors.FailureError:
    return errors.ServerError(message, non_retryable=info.non_retryable)


def _make_reset(message: str, info: Any, converter: Converter) -> errors.FailureError:
    details = converter.decode_all(info.last_heartbeat_details)
    return errors.ApplicationError(message or "Workflow reset", *details, type="ResetWorkflow")


def _make_activity(message: str, info: Any, converter: Converter) -> errors.FailureError:
    return errors.ActivityError(
        message,
        activity_type=info.activity_type.name,
        activity_id=info.activity_id,
        retry_state=errors.RetryState(info.retry_state),
        identity=info.identity,
        scheduled_event_id=info.scheduled_event_id,
        started_event_id=info.started_event_id,
    )


def _make_child(message: str, info: Any, converter: Converter) -> errors.FailureError:
    return errors.ChildWorkflowError(
        message,
        namespace=info.namespace,
        workflow_id=info.workflow_execution.workflow_id,
        run_id=info.workflow_execution.run_id,
        workflow_type=info.workflow_type.name,
        retry_state=errors.RetryState(info.retry_state),
        initiated_event_id=info.initiated_event_id,
        started_event_id=info.started_event_id,
    )


def _make_nexus(message: str, info: Message, converter: Converter) -> errors.FailureError:
    values = {field.name: value for field, value in info.ListFields()}
    names = ("endpoint", "service", "operation", "operation_token", "scheduled_event_id")
    return errors.NexusOperationError(message, **{n: values[n] for n in names if n in values})


_MAKERS: Final[dict[str, Callable[[str, Any, Converter], errors.FailureError]]] = {
    "application_failure_info": _make_application,
    "timeout_failure_info": _make_timeout,
    "canceled_failure_info": _make_cancelled,
    "terminated_failure_info": _make_terminated,
    "server_failure_info": _make_server,
    "reset_workflow_failure_info": _make_reset,
    "activity_failure_info": _make_activity,
    "child_workflow_execution_failure_info": _make_child,
    "nexus_operation_execution_failure_info": _make_nexus,
    "nexus_handler_failure_info": _make_nexus,
}
