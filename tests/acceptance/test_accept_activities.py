"""Activities as a Temporal user expects them: timeouts, retries, heartbeats, cancellation."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from perdure import (
    ActivityCancellationType,
    ActivityError,
    ActivityNotFoundError,
    ActivityOptions,
    ApplicationError,
    Client,
    RetryPolicy,
    RetryState,
    TimeoutError,
    TimeoutType,
    WorkflowFailedError,
    WorkflowHandle,
    activity,
    workflow,
)
from targets import environment

ONCE = RetryPolicy(maximum_attempts=1)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
CALLS: dict[str, list[Any]] = {}
TOKENS: dict[str, asyncio.Future[bytes]] = {}


@activity
async def hangs(key: str) -> str:
    try:
        await activity.wait_for_cancelled()
        await asyncio.sleep(60)
    finally:
        CALLS.setdefault(key, []).append("ended")
    return "never"


@activity
async def waits_outside(key: str) -> str:
    TOKENS[key].set_result(activity.info().task_token)
    activity.raise_complete_async()


@activity
async def fails(key: str, mode: str) -> str:
    CALLS.setdefault(key, []).append(activity.info().attempt)
    if mode == "non-retryable":
        raise ApplicationError("no", type="No", non_retryable=True)
    if mode == "delay" and activity.info().attempt == 1:
        raise ApplicationError("later", next_retry_delay=timedelta(hours=7))
    if mode == "delay":
        return "done"
    raise ValueError(mode)


@activity
async def beats(key: str) -> Any:
    info = activity.info()
    CALLS.setdefault(key, []).append(list(info.heartbeat_details))
    if info.attempt == 1:
        activity.heartbeat("half", 50)
        await asyncio.sleep(60)
    return list(info.heartbeat_details)


OPTIONS: dict[str, ActivityOptions] = {}


@workflow
async def one(kind: str, key: str, mode: str) -> Any:
    return await workflow.execute_activity(
        kind, *([key, mode] if kind == "fails" else [key]), **NAMED[mode]
    )


NAMED: dict[str, dict[str, Any]] = {
    "start-to-close": {"start_to_close_timeout": SECOND / 20, "retry": ONCE},
    "schedule-to-close": {"schedule_to_close_timeout": SECOND / 20},
    "heartbeat": {
        "heartbeat_timeout": SECOND / 20,
        "start_to_close_timeout": HOUR,
        "retry": ONCE,
    },
    "schedule-to-start": {
        "schedule_to_start_timeout": SECOND,
        "start_to_close_timeout": HOUR,
        "task_queue": "nobody",
    },
    "beats": {
        "heartbeat_timeout": SECOND / 20,
        "start_to_close_timeout": HOUR,
        "retry": RetryPolicy(initial_interval=timedelta(milliseconds=1)),
    },
    "attempts": {
        "retry": RetryPolicy(initial_interval=HOUR, maximum_interval=2 * HOUR, maximum_attempts=5)
    },
    "once": {"retry": ONCE},
    "types": {"retry": RetryPolicy(non_retryable_error_types=[ValueError])},
    "non-retryable": {},
    "delay": {"retry": RetryPolicy(initial_interval=timedelta(milliseconds=1))},
    "expires": {
        "schedule_to_close_timeout": 3 * SECOND,  # the third attempt would begin after 3.3
        "retry": RetryPolicy(initial_interval=1.1 * SECOND),
    },
    "outside": {"start_to_close_timeout": HOUR, "activity_id": "outside-1"},
}


async def _failure(client: Client, kind: str, mode: str) -> ActivityError:
    with pytest.raises(WorkflowFailedError) as caught:
        await client.execute(one, kind, mode, mode)
    assert isinstance(caught.value.cause, ActivityError)
    return caught.value.cause


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("start-to-close", TimeoutType.START_TO_CLOSE),
        ("schedule-to-close", TimeoutType.SCHEDULE_TO_CLOSE),
        ("heartbeat", TimeoutType.HEARTBEAT),
        ("schedule-to-start", TimeoutType.SCHEDULE_TO_START),
    ],
)
async def test_each_timeout_says_which_it_was(mode: str, kind: TimeoutType) -> None:
    async with (
        environment() as env,
        env.client.worker(
            workflows=[one], activities=[hangs], graceful_shutdown_timeout=timedelta(0)
        ),
    ):
        failure = await _failure(env.client, "hangs", mode)
        cause = failure.cause
        assert isinstance(cause, TimeoutError)
        assert cause.type is kind
        assert failure.activity_type == "hangs"


@pytest.mark.only_on("embedded", reason="hours are skipped")
async def test_attempts_back_off_up_to_the_longest_interval() -> None:
    CALLS.clear()
    async with environment() as env, env.client.worker(workflows=[one], activities=[fails]):
        before = env.now()
        failure = await _failure(env.client, "fails", "attempts")
        assert failure.retry_state is RetryState.MAXIMUM_ATTEMPTS_REACHED
        assert CALLS["attempts"] == [1, 2, 3, 4, 5]
        assert (env.now() - before) // HOUR == 1 + 2 + 2 + 2


@pytest.mark.parametrize("mode", ["types", "non-retryable"])
async def test_what_is_not_retryable_is_tried_once(mode: str) -> None:
    CALLS.clear()
    async with environment() as env, env.client.worker(workflows=[one], activities=[fails]):
        failure = await _failure(env.client, "fails", mode)
        assert failure.retry_state is RetryState.NON_RETRYABLE_FAILURE
        assert CALLS[mode] == [1]


@pytest.mark.only_on("embedded", reason="hours are skipped")
async def test_a_failure_names_its_own_next_delay() -> None:
    async with environment() as env, env.client.worker(workflows=[one], activities=[fails]):
        before = env.now()
        assert await env.client.execute(one, "fails", "delay", "delay") == "done"
        assert (env.now() - before) // HOUR == 7


async def test_no_attempt_begins_that_would_be_over_the_whole_timeout() -> None:
    CALLS.clear()
    async with environment() as env, env.client.worker(workflows=[one], activities=[fails]):
        failure = await _failure(env.client, "fails", "expires")
        assert CALLS["expires"] == [1, 2]
        assert failure.retry_state is RetryState.TIMEOUT
        assert isinstance(failure.cause, ApplicationError)
        assert failure.cause.type == "ValueError"


async def test_heartbeat_details_reach_the_next_attempt() -> None:
    CALLS.clear()
    async with (
        environment() as env,
        env.client.worker(
            workflows=[one], activities=[beats], graceful_shutdown_timeout=timedelta(0)
        ),
    ):
        assert await env.client.execute(one, "beats", "b", "beats") == ["half", 50]
        # On a busy machine an attempt may be over its 50 ms before its answer is there.
        assert CALLS["b"][:2] == [[], ["half", 50]]


async def _pending(handle: WorkflowHandle[Any]) -> Any:
    """The run's only activity that is not done, once it is scheduled."""
    while not (pending := (await handle.describe()).pending_activities):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    (one,) = pending
    return one


async def test_describe_shows_the_last_failure_while_retrying() -> None:
    async with environment() as env, env.client.worker(workflows=[one], activities=[fails]):
        handle = await env.client.start(one, "fails", "d", "attempts")
        pending = await _pending(handle)
        while pending.attempt < 2:
            await asyncio.sleep(0.01)
            pending = await _pending(handle)
        assert (pending.attempt, pending.maximum_attempts) == (2, 5)
        assert isinstance(pending.last_failure, ApplicationError)
        assert (pending.last_failure.type, pending.last_failure.message) == (
            "ValueError",
            "attempts",
        )
        assert pending.next_attempt_time is not None
        assert pending.next_attempt_time > env.now()
        await handle.terminate()


@pytest.mark.parametrize("by", ["token", "id"])
async def test_completion_from_outside(by: str) -> None:
    TOKENS[by] = asyncio.get_running_loop().create_future()
    async with environment() as env, env.client.worker(workflows=[one], activities=[waits_outside]):
        handle = await env.client.start(one, "waits_outside", by, "outside")
        token = await TOKENS[by]
        outside = (
            env.client.activity_handle(task_token=token)
            if by == "token"
            else env.client.activity_handle(workflow_id=handle.id, activity_id="outside-1")
        )
        await outside.heartbeat("seen")
        (pending,) = (await handle.describe()).pending_activities
        assert list(pending.heartbeat_details) == ["seen"]
        await outside.complete("by hand")
        assert await handle.result() == "by hand"
        with pytest.raises(ActivityNotFoundError):  # the token is stale now
            await outside.complete("twice")
        with pytest.raises(ActivityNotFoundError):
            await outside.heartbeat("late")


# --- cancellation ---------------------------------------------------------------------------------


@activity(heartbeat_timeout=SECOND)
async def cancellable(key: str) -> str:
    CALLS.setdefault(key, []).append("began")
    try:
        while True:
            activity.heartbeat()
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        CALLS[key].append("asked")
        if key.startswith("refuses"):
            return "finished anyway"
        raise


@workflow
async def cancels(key: str, kind: int) -> str:
    call = cancellable.options(cancellation_type=ActivityCancellationType(kind))
    task = asyncio.create_task(call(key))
    await asyncio.sleep(0.05)
    task.cancel()
    try:
        return await task
    except ActivityError as error:
        return f"failed: {type(error.cause).__name__}"
    except asyncio.CancelledError:
        return "cancelled"


@pytest.mark.parametrize(
    ("key", "kind", "expected", "asked"),
    [
        ("try", ActivityCancellationType.TRY_CANCEL, "cancelled", None),
        ("wait", ActivityCancellationType.WAIT_CANCELLATION_COMPLETED, "cancelled", True),
        (
            "refuses",
            ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            "finished anyway",
            True,
        ),
        ("abandon", ActivityCancellationType.ABANDON, "cancelled", False),
    ],
)
async def test_cancellation_types(key: str, kind: int, expected: str, asked: bool | None) -> None:
    CALLS.clear()
    async with (
        environment() as env,
        env.client.worker(
            workflows=[cancels], activities=[cancellable], graceful_shutdown_timeout=timedelta(0)
        ),
    ):
        handle = await env.client.start(cancels, key, int(kind))
        result = await asyncio.wait_for(handle.result(), 20)
        assert result == expected
        if asked is not None:
            assert ("asked" in CALLS.get(key, [])) is asked


# --- local activities -----------------------------------------------------------------------------

LOCAL_RUNS: list[int] = []


@activity(retry=RetryPolicy(initial_interval=timedelta(milliseconds=1)))
async def local_step(n: int) -> int:
    LOCAL_RUNS.append(n)
    if n == 2 and LOCAL_RUNS.count(2) < 3:
        raise RuntimeError("again")
    return n * 10


@workflow
async def locally() -> list[int]:
    first = await local_step.local(1)
    await asyncio.sleep(0.05)
    second = await local_step.local(2)
    await asyncio.sleep(0.05)
    return [first, second, await local_step.local(3)]


@pytest.mark.parametrize("cached", [0, 1, 100])
async def test_local_activities_are_markers_and_are_not_repeated(cached: int) -> None:
    LOCAL_RUNS.clear()
    async with (
        environment() as env,
        env.client.worker(workflows=[locally], activities=[local_step], max_cached_runs=cached),
    ):
        handle = await env.client.start(locally)
        assert await handle.result() == [10, 20, 30]
        assert LOCAL_RUNS == [1, 2, 2, 2, 3]
        events = (await handle.fetch_history()).events
        markers = [e for e in events if e.HasField("marker_recorded_event_attributes")]
        assert len(markers) == 3
        assert not any(e.HasField("activity_task_scheduled_event_attributes") for e in events)


# --- what an attempt failed with ------------------------------------------------------------------


@activity(retry=ONCE)
async def waits_for_another(kind: str) -> None:
    raise TimeoutError("the other service was slow", type=TimeoutType.HEARTBEAT)


async def test_a_failure_of_another_kind_is_the_cause_of_the_attempts() -> None:
    """It must not be taken for a timeout of the activity itself."""
    async with (
        environment() as env,
        env.client.worker(workflows=[one], activities=[waits_for_another]),
    ):
        with pytest.raises(WorkflowFailedError) as caught:
            await env.client.execute(one, "waits_for_another", "k", "once")
        failure = caught.value.cause
        assert isinstance(failure, ActivityError)
        assert isinstance(failure.cause, ApplicationError)
        assert failure.cause.type == "TimeoutError"
        assert failure.cause.message == "the other service was slow"
        assert isinstance(failure.cause.cause, TimeoutError)
        assert failure.cause.cause.type is TimeoutType.HEARTBEAT
