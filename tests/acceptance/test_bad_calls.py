"""Bad input on runs that exist: too large, too many, stale, unknown; nothing of it is stored."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    PollWorkflowTaskQueueRequest,
    RecordActivityTaskHeartbeatRequest,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedRequest,
    RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
)

import perdure
from perdure import (
    ActivityError,
    ApplicationError,
    QueryFailedError,
    RetryPolicy,
    RPCError,
    UpdateFailedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowStatus,
    activity,
    workflow,
)
from perdure.testing import environment

LIMIT = 2 * 1024 * 1024
LARGE = "x" * (LIMIT + 1)
ONCE = RetryPolicy(maximum_attempts=1)


@workflow
class Box:
    def __init__(self) -> None:
        self.things: list[Any] = []

    @workflow.run
    async def run(self) -> list[Any]:
        await workflow.wait_condition(lambda: bool(self.things))
        return self.things

    @workflow.signal
    def put(self, n: int) -> None:
        self.things.append(n)

    @workflow.query
    def size(self, factor: int = 1) -> int:
        return factor * len(self.things)

    @workflow.query
    def large(self) -> str:
        return LARGE

    @workflow.update
    async def add(self, n: int) -> int:
        self.things.append(n)
        return n


@activity(retry=ONCE)
async def returns_much() -> str:
    return LARGE


@activity(retry=ONCE)
async def fails_at_length() -> None:
    raise ApplicationError("y" * (LIMIT + 1), LARGE)


@activity(retry=ONCE)
async def takes(text: str) -> int:
    return len(text)


@workflow
async def calls(what: str) -> Any:
    if what == "returns":
        return LARGE
    if what == "argument":
        return await takes(LARGE)
    if what == "memo":
        workflow.upsert_memo({"large": LARGE})
    return await workflow.execute_activity(what, retry=ONCE)


async def _events(handle: perdure.WorkflowHandle[Any]) -> int:
    return len((await handle.fetch_history()).events)


async def _say_much(client: perdure.Client, handle: perdure.WorkflowHandle[Any], call: str) -> None:
    if call == "memo":
        await client.start(Box, id="other", memo={"a": LARGE})
    elif call == "start":
        await client.start("Box", LARGE, id="other")
    elif call == "update_with_start":
        await client.update_with_start(
            Box, id="other", update="add", update_args=[LARGE],
            id_conflict_policy=perdure.WorkflowIDConflictPolicy.FAIL,
        )  # fmt: skip
    elif call == "terminate":
        await handle.terminate(LARGE)
    else:
        await getattr(handle, call)({"signal": "put", "update": "add"}.get(call, "size"), LARGE)


CALLS = ["signal", "update", "update_with_start", "start", "memo", "terminate", "query"]


@pytest.mark.parametrize("call", CALLS)
async def test_a_payload_over_the_limit_changes_nothing(call: str) -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        handle = await env.client.start(Box, id="box")
        assert await handle.query(Box.size) == 0
        before = await _events(handle)
        with pytest.raises((RPCError, QueryFailedError), match=r"exceeds.*2097152"):
            await _say_much(env.client, handle, call)
        assert await _events(handle) == before
        assert (await env.client.count()).count == 1
        await handle.signal(Box.put, 1)
        assert await handle.result() == [1]


@pytest.mark.parametrize("what", ["returns_much", "fails_at_length"])
async def test_an_activity_that_says_too_much_fails_and_says_so(what: str) -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[calls], activities=[returns_much, fails_at_length, takes]),
    ):
        with pytest.raises(WorkflowFailedError) as caught:
            await env.client.execute(calls, what)
        failed = caught.value.cause
        assert isinstance(failed, ActivityError)
        assert failed.activity_type == what
        assert "exceeds size limit" in str(failed.cause)


@pytest.mark.parametrize("what", ["argument", "memo", "returns"])
async def test_a_workflow_that_says_too_much_fails_and_says_so(what: str) -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[calls], activities=[returns_much, fails_at_length, takes]),
    ):
        handle = await env.client.start(calls, what)
        for _ in range(1000):
            described = await handle.describe()
            failures = [
                e.workflow_task_failed_event_attributes.failure.message
                for e in (await handle.fetch_history()).events
                if e.HasField("workflow_task_failed_event_attributes")
            ]
            if failures or described.status is not WorkflowStatus.RUNNING:
                break
            await asyncio.sleep(0.01)
        if described.status is WorkflowStatus.RUNNING:
            assert "limit" in failures[0]
            await handle.terminate()
        else:
            with pytest.raises((WorkflowFailedError, RPCError), match=r"limit|exceed|Large"):
                await handle.result()


async def test_an_unknown_name_is_told_with_those_there_are() -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        handle = await env.client.start(Box)
        with pytest.raises(QueryFailedError, match=r"nothing.*size"):
            await handle.query("nothing")
        with pytest.raises(UpdateFailedError) as caught:
            await handle.update("nothing")
        assert "nothing" in str(caught.value.cause)
        assert "add" in str(caught.value.cause)
        with pytest.raises(UpdateFailedError) as caught:
            await handle.update("add", "no number")
        assert "add" in str(caught.value.cause)
        assert "n" in str(caught.value.cause)
        with pytest.raises(QueryFailedError, match="Query result exceeds limit"):
            await handle.query(Box.large)
        with pytest.raises(QueryFailedError, match="factor"):
            await handle.query("size", "no number")
        with pytest.raises(TypeError, match="put"):
            await handle.signal(Box.put)  # type: ignore[call-arg]
        assert await handle.query(Box.size) == 0
        await handle.signal("put", 4)
        assert await handle.result() == [4]


async def test_who_is_not_there() -> None:
    async with environment() as env:
        nobody = env.client.handle("nobody")
        for call in (
            nobody.describe, nobody.cancel, nobody.terminate, nobody.result, nobody.fetch_history,
            nobody.delete,
        ):  # fmt: skip
            with pytest.raises(WorkflowNotFoundError, match="nobody"):
                await call()
        with pytest.raises(WorkflowNotFoundError, match="nobody"):
            await nobody.signal("x")
        with pytest.raises(WorkflowNotFoundError, match="nobody"):
            await nobody.query("x")
        with pytest.raises(WorkflowNotFoundError, match="nobody"):
            await nobody.update("x")
        with pytest.raises((RPCError, ValueError), match=r"(?i)run_?id"):
            await env.client.handle("nobody", run_id="no uuid").describe()
        assert (await env.client.count()).count == 0


# --- task tokens ----------------------------------------------------------------------------------


@workflow
async def one_step() -> Any:
    return await workflow.execute_activity("work", start_to_close_timeout=timedelta(hours=1))


async def _workflow_task(client: perdure.Client) -> Any:
    request = PollWorkflowTaskQueueRequest(namespace="default", identity="w")
    request.task_queue.name = "default"
    return await client.service.poll_workflow_task_queue(request)


async def test_stale_and_foreign_tokens_are_refused_and_change_nothing() -> None:
    async with environment() as env:
        service = env.client.service
        handle = await env.client.start(one_step)
        async with env.client.worker(workflows=[one_step], activities=[]):
            while not (await handle.describe()).pending_activities:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        request = PollActivityTaskQueueRequest(namespace="default", identity="a")
        request.task_queue.name = "default"
        task = await service.poll_activity_task_queue(request)
        before = await _events(handle)
        # A token of one kind is none of another.
        for method, kind in (
            ("respond_workflow_task_completed", RespondWorkflowTaskCompletedRequest),
            ("respond_workflow_task_failed", RespondWorkflowTaskFailedRequest),
            ("respond_query_task_completed", RespondQueryTaskCompletedRequest),
        ):
            with pytest.raises(RPCError, match=r"(?i)token|not found"):
                await getattr(service, method)(
                    kind(namespace="default", task_token=task.task_token)
                )
        # Nor is one that was changed anywhere, or belongs to another namespace.
        for position in range(len(task.task_token)):
            token = bytearray(task.task_token)
            token[position] ^= 0xFF
            with pytest.raises(RPCError):
                await service.respond_activity_task_completed(
                    RespondActivityTaskCompletedRequest(
                        namespace="default", task_token=bytes(token)
                    )
                )
        with pytest.raises(RPCError):
            await service.respond_activity_task_completed(
                RespondActivityTaskCompletedRequest(namespace="other", task_token=task.task_token)
            )
        assert await _events(handle) == before
        done = RespondActivityTaskCompletedRequest(namespace="default", task_token=task.task_token)
        done.result.payloads.append(Payload(data=b"1", metadata={"encoding": b"json/plain"}))
        await service.respond_activity_task_completed(done)
        after = await _events(handle)
        # It is stale now, for every call.
        for method, made in (
            ("respond_activity_task_completed", done),
            ("respond_activity_task_failed", RespondActivityTaskFailedRequest()),
            ("respond_activity_task_canceled", RespondActivityTaskCanceledRequest()),
            ("record_activity_task_heartbeat", RecordActivityTaskHeartbeatRequest()),
        ):
            made.namespace, made.task_token = "default", task.task_token
            with pytest.raises(RPCError, match=r"not found|completed"):
                await getattr(service, method)(made)
        assert await _events(handle) == after
        async with env.client.worker(workflows=[one_step], activities=[]):
            assert await handle.result() == 1


async def test_a_stale_workflow_task_changes_nothing() -> None:
    async with environment() as env:
        handle = await env.client.start(one_step, task_timeout=timedelta(seconds=1))
        task = await _workflow_task(env.client)
        answer = RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token
        )
        await env.sleep(timedelta(seconds=30))  # it times out
        before = await _events(handle)
        with pytest.raises(RPCError, match="not found"):
            await env.client.service.respond_workflow_task_completed(answer)
        assert await _events(handle) == before
        await handle.terminate()
