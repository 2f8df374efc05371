"""Executing local activities: attempts, retries and time limits, while the task is open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.failure.v1 import Failure

from perdure.api.times import timedelta_ns
from perdure.sdk.errors import (
    ApplicationError,
    ConversionError,
    RetryState,
    TimeoutError,
    TimeoutType,
)
from perdure.sdk.failures import failure_from
from perdure.sdk.options import RetryPolicy, type_name
from perdure.sdk.runtime.locals import LocalResult

if TYPE_CHECKING:
    from perdure.sdk.runtime.locals import LocalCall
    from perdure.sdk.runtime.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAttempt:
    """One attempt of a local activity, for the worker's activity side to execute.

    Attributes:
        input: its arguments.
        scheduled_ns: workflow time of the call, since the epoch.
        start_to_close_timeout, schedule_to_close_timeout: enforced by the caller already.
    """

    activity_id: str
    activity_type: str
    attempt: int
    input: Payloads
    headers: Mapping[str, Payload]
    workflow_id: str
    run_id: str
    workflow_type: str
    namespace: str
    task_queue: str
    scheduled_ns: int
    start_to_close_timeout: timedelta | None
    schedule_to_close_timeout: timedelta | None
    retry: RetryPolicy


RunLocalActivity = Callable[[LocalAttempt], Awaitable[Payloads]]
"""Executes one attempt: the result's payloads, or the activity's exception. It is cancelled when
the attempt is to stop."""


async def execute(run: Run, call: LocalCall, run_local_activity: RunLocalActivity) -> LocalResult:
    """All attempts that are worth making before the workflow is told."""
    policy = call.options.retry or RetryPolicy()
    attempt = call.attempt
    began_ns = time.monotonic_ns()
    while True:
        try:
            made = _attempt(run, call, attempt, policy)
            result = await _limited(run_local_activity(made), call, began_ns)
            return LocalResult(attempt=attempt, result=result)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            state, delay_ns = _next(error, policy, attempt, call, began_ns)
            failure = failure_from(error, run.converter)
            if state is not RetryState.IN_PROGRESS:
                return LocalResult(
                    attempt=attempt, failure=_wrapped(call, failure, state), retry_state=state
                )
            if delay_ns > call.retry_threshold_ns:
                return LocalResult(
                    attempt=attempt,
                    failure=_wrapped(call, failure, state),
                    retry_after_ns=delay_ns,
                    retry_state=state,
                )
            await asyncio.sleep(delay_ns / 1e9)
            attempt += 1


def _attempt(run: Run, call: LocalCall, attempt: int, policy: RetryPolicy) -> LocalAttempt:
    return LocalAttempt(
        activity_id=call.activity_id,
        activity_type=call.name,
        attempt=attempt,
        input=call.input(),
        headers=call.headers,
        workflow_id=run.workflow_id,
        run_id=run.run_id,
        workflow_type=run.type_name,
        namespace=run.namespace,
        task_queue=run.task_queue,
        scheduled_ns=call.scheduled_ns,
        start_to_close_timeout=call.options.effective_start_to_close_timeout,
        schedule_to_close_timeout=call.options.schedule_to_close_timeout,
        retry=policy,
    )


async def _limited(awaitable: Awaitable[Payloads], call: LocalCall, began_ns: int) -> Payloads:
    """The attempt within its time limits.

    Raises:
        TimeoutError: of perdure, naming the limit.
    """
    limit_s, kind = _limit(call, began_ns)
    if limit_s is None:
        return await awaitable
    scope = asyncio.timeout(max(limit_s, 0.0))
    try:
        async with scope:
            return await awaitable
    except builtin_timeout_error:
        if scope.expired():
            raise TimeoutError("activity timeout", type=kind) from None
        raise


builtin_timeout_error = asyncio.TimeoutError


def _limit(call: LocalCall, began_ns: int) -> tuple[float | None, TimeoutType]:
    start_to_close = call.options.effective_start_to_close_timeout
    whole = call.options.schedule_to_close_timeout
    limits = []
    if start_to_close is not None:
        limits.append((start_to_close.total_seconds(), TimeoutType.START_TO_CLOSE))
    if whole is not None:
        spent_s = (time.monotonic_ns() - began_ns) / 1e9
        limits.append((whole.total_seconds() - spent_s, TimeoutType.SCHEDULE_TO_CLOSE))
    return min(limits) if limits else (None, TimeoutType.UNSPECIFIED)


def _next(
    error: Exception, policy: RetryPolicy, attempt: int, call: LocalCall, began_ns: int
) -> tuple[RetryState, int]:
    """Is there another attempt, and after how many nanoseconds?"""
    kind = type(error).__name__
    delay: timedelta | None = None
    if isinstance(error, ApplicationError):
        if error.non_retryable:
            return RetryState.NON_RETRYABLE_FAILURE, 0
        kind = error.type or kind
        delay = error.next_retry_delay
    if isinstance(error, ConversionError):  # the same values would not convert again
        return RetryState.NON_RETRYABLE_FAILURE, 0
    if isinstance(error, TimeoutError) and error.type is TimeoutType.SCHEDULE_TO_CLOSE:
        return RetryState.TIMEOUT, 0
    if kind in {type_name(name) for name in policy.non_retryable_error_types}:
        return RetryState.NON_RETRYABLE_FAILURE, 0
    if policy.maximum_attempts and attempt >= policy.maximum_attempts:
        return RetryState.MAXIMUM_ATTEMPTS_REACHED, 0
    delay_ns = timedelta_ns(delay) if delay is not None else backoff_ns(policy, attempt)
    whole = call.options.schedule_to_close_timeout
    if whole is not None and time.monotonic_ns() - began_ns + delay_ns >= timedelta_ns(whole):
        return RetryState.TIMEOUT, 0
    return RetryState.IN_PROGRESS, delay_ns


def backoff_ns(policy: RetryPolicy, attempt: int) -> int:
    """How long to wait after an attempt, in nanoseconds."""
    first_ns = timedelta_ns(policy.initial_interval)
    longest = policy.maximum_interval
    longest_ns = 100 * first_ns if longest is None else timedelta_ns(longest)
    try:
        return min(int(first_ns * policy.backoff_coefficient ** (attempt - 1)), longest_ns)
    except OverflowError:
        return longest_ns


def _wrapped(call: LocalCall, cause: Failure, state: RetryState) -> Failure:
    """An activity failure as the server would make one of a remote activity's."""
    failure = Failure(message="Activity task failed", cause=cause)
    info = failure.activity_failure_info
    info.activity_id = call.activity_id
    info.activity_type.name = call.name
    info.retry_state = int(state)  # type: ignore[assignment]
    return failure
