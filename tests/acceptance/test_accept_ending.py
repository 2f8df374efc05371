"""Ending runs from outside: cancel, terminate, delete."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from accept_stage import chain, find, story, until

from perdure import (
    ActivityCancellationType,
    ActivityError,
    ApplicationError,
    CancelledFailure,
    Client,
    RPCError,
    TerminatedError,
    WorkflowFailedError,
    WorkflowHandle,
    WorkflowNotFoundError,
    WorkflowStatus,
    activity,
    workflow,
)
from targets import environment

SECOND = timedelta(seconds=1)
ASKED: dict[str, str] = {}


@workflow
async def sleeps(seconds: int = 3600) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@workflow
async def cleans_up(result: str) -> str:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(1)  # a run that was asked to cancel may still do things
        if result == "fail":
            raise ApplicationError("no way back", type="Stuck") from None
        if not result:
            raise
    return result


async def _failure(handle: WorkflowHandle[Any]) -> WorkflowFailedError:
    with pytest.raises(WorkflowFailedError) as caught:
        await handle.result()
    assert caught.value.workflow_id == handle.id
    return caught.value


# --- cancel ---------------------------------------------------------------------------------------


async def test_a_cancelled_timer_and_run() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        handle = await env.client.start(sleeps, id="cancelled")
        await until(handle, "TimerStarted")
        await handle.cancel(reason="not wanted")
        await handle.cancel(reason="not wanted at all")  # nothing more
        failure = await _failure(handle)
        assert str(failure) == "Workflow cancelled was cancelled: Workflow cancelled"
        assert isinstance(failure.cause, CancelledFailure)
        assert (await handle.describe()).status is WorkflowStatus.CANCELED
        assert await story(handle) == [
            "Started",
            "Task",
            "TimerStarted",
            "CancelRequested",
            "Task",
            "TimerCanceled",
            "Canceled",
        ]
        request = await find(handle, "WorkflowExecutionCancelRequested")
        assert request.cause == "not wanted"
        assert request.identity == env.client.identity


async def test_cancelled_before_the_first_task() -> None:
    async with environment() as env:
        handle = await env.client.start(sleeps, id="cancelled-early")
        await handle.cancel()
        async with env.client.worker(workflows=[sleeps], activities=[]):
            await _failure(handle)
        words = await story(handle)
        # the code may take its first step, but nothing of it remains
        assert words[:3] == ["Started", "WorkflowTaskScheduled", "CancelRequested"]
        assert words[-1] == "Canceled"
        assert "ActivityTaskScheduled" not in words


@pytest.mark.parametrize(
    ("result", "last"), [("done", "Completed"), ("", "Canceled"), ("fail", "Failed")]
)
async def test_a_run_decides_how_it_ends_when_cancelled(result: str, last: str) -> None:
    async with environment() as env, env.client.worker(workflows=[cleans_up], activities=[]):
        handle = await env.client.start(cleans_up, result, id=f"cleaned-{last}")
        await until(handle, "TimerStarted")
        await handle.cancel()
        if result == "done":
            assert await handle.result() == "done"
        else:
            failure = await _failure(handle)
            expected = ApplicationError if result else CancelledFailure
            assert type(failure.cause) is expected
        assert await story(handle) == [
            "Started",
            "Task",
            "TimerStarted",
            "CancelRequested",
            "Task",
            "TimerCanceled",
            "TimerStarted",
            "TimerFired",
            "Task",
            last,
        ]


async def test_a_closed_run_is_cancelled_in_vain() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        handle = await env.client.start(sleeps, 1, id="too-late")
        assert await handle.result() == "slept"
        before = await story(handle)
        await handle.cancel()
        await env.client.handle("too-late", run_id=handle.first_run_id).cancel()
        assert await story(handle) == before
        assert (await handle.describe()).status is WorkflowStatus.COMPLETED


async def test_what_is_not_there_cannot_be_ended() -> None:
    async with environment() as env:
        await env.client.start(sleeps, id="there")
        for handle, words in (
            (env.client.handle("nowhere"), "workflow not found for ID: nowhere"),
            (
                env.client.handle("there", run_id="01a20756-97b9-7a02-8b9a-bce7c07c7f41"),
                'workflow execution not found for workflow ID "there" and run ID '
                '"01a20756-97b9-7a02-8b9a-bce7c07c7f41"',
            ),
        ):
            for call in (handle.cancel, handle.terminate, handle.delete, handle.describe):
                with pytest.raises(WorkflowNotFoundError) as caught:
                    await call()
                assert words in str(caught.value)
                assert caught.value.workflow_id == handle.id
            with pytest.raises(WorkflowNotFoundError, match="not found"):
                await handle.fetch_history()
        await env.client.handle("there").terminate()


# --- cancel while an activity runs ----------------------------------------------------------------


@activity(heartbeat_timeout=2 * SECOND, start_to_close_timeout=10 * SECOND)
async def works(key: str) -> str:
    ASKED[key] = "began"
    try:
        for _ in range(100):
            activity.heartbeat()
            await asyncio.sleep(0.02)
            if ASKED[key] == "let go":
                return "worked"
    except asyncio.CancelledError:
        ASKED[key] = "asked"
        if key == "refuses":
            return "finished anyway"
        if key == "fails":
            raise ApplicationError("broke", non_retryable=True) from None
        raise
    return "never asked"


@workflow
async def calls(key: str, kind: int) -> str:
    return await works.options(cancellation_type=ActivityCancellationType(kind))(key)


@workflow
async def shields(key: str) -> str:
    work = asyncio.create_task(works(key))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        return f"after all {await work}"


async def _cancelled_in_activity(client: Client, flow: Any, *args: Any) -> WorkflowHandle[Any]:
    key = args[0]
    ASKED.pop(key, None)
    handle = await client.start(flow, *args, id=f"in-activity-{key}")
    while ASKED.get(key) != "began":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await handle.cancel()
    return handle


TRY = ActivityCancellationType.TRY_CANCEL
WAIT = ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
ABANDON = ActivityCancellationType.ABANDON


@pytest.mark.parametrize(
    ("key", "kind", "between", "last"),
    [
        ("try", TRY, ["ActivityTaskCancelRequested"], "Canceled"),
        (
            "wait",
            WAIT,
            [
                "ActivityTaskCancelRequested",
                "ActivityTaskStarted",
                "ActivityTaskCanceled",
                "Task",
            ],
            "Canceled",
        ),
        (
            "refuses",
            WAIT,
            [
                "ActivityTaskCancelRequested",
                "ActivityTaskStarted",
                "ActivityTaskCompleted",
                "Task",
            ],
            "Completed",
        ),
        (
            "fails",
            WAIT,
            ["ActivityTaskCancelRequested", "ActivityTaskStarted", "ActivityTaskFailed", "Task"],
            "Failed",
        ),
        ("abandon", ABANDON, [], "Canceled"),
    ],
)
async def test_cancelled_in_an_activity(key: str, kind: int, between: list[str], last: str) -> None:
    async with (
        environment() as env,
        env.client.worker(
            workflows=[calls], activities=[works], graceful_shutdown_timeout=timedelta(0)
        ),
    ):
        handle = await _cancelled_in_activity(env.client, calls, key, int(kind))
        if last == "Completed":
            assert await handle.result() == "finished anyway"
        else:
            failure = await _failure(handle)
            kinds = [line.split(":")[0] for line in chain(failure)]
            assert kinds == (
                ["WorkflowFailedError", "ActivityError", "ApplicationError"]
                if last == "Failed"
                else ["WorkflowFailedError", "CancelledFailure"]
            )
            if last == "Failed":
                assert isinstance(failure.cause, ActivityError)
        assert await story(handle) == [
            "Started",
            "Task",
            "ActivityTaskScheduled",
            "CancelRequested",
            "Task",
            *between,
            last,
        ]
        if kind is ABANDON:
            assert ASKED[key] == "began"


async def test_a_shielded_activity_goes_on() -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[shields], activities=[works]),
    ):
        handle = await _cancelled_in_activity(env.client, shields, "shielded")
        await until(handle, "Task", 2)
        ASKED["shielded"] = "let go"
        assert await handle.result() == "after all worked"
        assert await story(handle) == [
            "Started",
            "Task",
            "ActivityTaskScheduled",
            "CancelRequested",
            "Task",
            "ActivityTaskStarted",
            "ActivityTaskCompleted",
            "Task",
            "Completed",
        ]


# --- terminate ------------------------------------------------------------------------------------


async def test_terminate() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        handle = await env.client.start(sleeps, id="terminated")
        await until(handle, "TimerStarted")
        await handle.terminate("detail", 2, reason="enough")
        failure = await _failure(handle)
        assert str(failure) == "Workflow terminated was terminated: enough"
        assert isinstance(failure.cause, TerminatedError)
        assert list(failure.cause.details) == ["detail", 2]
        assert await story(handle) == ["Started", "Task", "TimerStarted", "Terminated"]
        ended = await find(handle, "WorkflowExecutionTerminated")
        assert (ended.reason, ended.identity) == ("enough", env.client.identity)
        with pytest.raises(WorkflowNotFoundError, match="workflow execution already completed"):
            await handle.terminate()
        with pytest.raises(WorkflowNotFoundError, match="workflow execution already completed"):
            await handle.signal("anything")


async def test_a_handle_ends_its_own_chain_of_runs_only() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        former = await env.client.start(sleeps, 1, id="namesakes")
        await former.result()
        later = await env.client.start(sleeps, id="namesakes")
        for call in (former.cancel, former.terminate):
            with pytest.raises(WorkflowNotFoundError, match="workflow execution not found"):
                await call()
        assert (await later.describe()).status is WorkflowStatus.RUNNING
        await later.terminate()


# --- delete ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["open", "closed"])
async def test_delete(state: str) -> None:
    id = f"deleted-{state}"
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        handle = await env.client.start(sleeps, 1 if state == "closed" else 3600, id=id)
        if state == "closed":
            await handle.result()
        kept = await env.client.start(sleeps, id=f"{id}-kept")
        await handle.delete()
        for _ in range(200):  # a real server deletes in the background
            if [run.id async for run in env.client.list(f"WorkflowId = '{id}'")] == []:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("still listed")
        assert (await env.client.count(f"WorkflowId = '{id}'")).count == 0
        with pytest.raises(WorkflowNotFoundError, match=f"workflow not found for ID: {id}"):
            await env.client.handle(id).describe()
        with pytest.raises(WorkflowNotFoundError, match=f"workflow not found for ID: {id}"):
            await env.client.handle(id).fetch_history()
        with pytest.raises((WorkflowNotFoundError, RPCError), match="not found"):
            await env.client.handle(id).signal("anything")
        # the id is free again, and nothing else is gone
        again = await env.client.start(sleeps, 1, id=id)
        assert await again.result() == "slept"
        assert (await kept.describe()).status is WorkflowStatus.RUNNING
        await kept.terminate()


async def test_a_deleted_run_leaves_the_others_of_its_id() -> None:
    async with environment() as env, env.client.worker(workflows=[sleeps], activities=[]):
        former = await env.client.start(sleeps, 1, id="deleted-one")
        await former.result()
        later = await env.client.start(sleeps, 1, id="deleted-one")
        await later.result()
        await env.client.handle("deleted-one", run_id=former.first_run_id).delete()
        for _ in range(200):
            runs = [run.run_id async for run in env.client.list("WorkflowId = 'deleted-one'")]
            if runs == [later.first_run_id]:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(runs)
        assert (await env.client.handle("deleted-one").describe()).run_id == later.first_run_id
        assert await env.client.handle("deleted-one").result() == "slept"
