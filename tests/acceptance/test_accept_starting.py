"""Starting: which ids may be used again, what is shown of a start, and starts with a message."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import Any

import pytest
from accept_stage import find, story

from perdure import (
    ApplicationError,
    Client,
    RPCError,
    UpdateFailedError,
    WorkflowAlreadyStartedError,
    WorkflowFailedError,
    WorkflowHandle,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
    WorkflowStatus,
    workflow,
)
from targets import environment

REUSE = WorkflowIDReusePolicy
CONFLICT = WorkflowIDConflictPolicy
USE_EXISTING = CONFLICT.USE_EXISTING
RUNNING, COMPLETED = WorkflowStatus.RUNNING, WorkflowStatus.COMPLETED
FAILED, CANCELED = WorkflowStatus.FAILED, WorkflowStatus.CANCELED
TERMINATED = WorkflowStatus.TERMINATED


@workflow
class Box:
    """Holds what it is told; ends as it is told."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.end = ""

    @workflow.run
    async def run(self, first: str = "first") -> list[str]:
        self.items.append(first)
        await workflow.wait_condition(lambda: bool(self.end))
        if self.end == "fail":
            raise ApplicationError("told to", type="Told")
        return self.items

    @workflow.signal
    def put(self, item: str) -> None:
        self.items.append(item)

    @workflow.signal
    def finish(self, how: str) -> None:
        self.end = how

    @workflow.update
    def add(self, item: str) -> list[str]:
        self.items.append(item)
        return self.items

    @add.validator
    def check(self, item: str) -> None:
        if item == "bad":
            raise ValueError("no bad items")


async def _run_of(client: Client, status: WorkflowStatus, id: str) -> WorkflowHandle[Any]:
    """A run of that id in that state."""
    handle = await client.start(Box, id=id)
    if status in (COMPLETED, FAILED):
        await handle.signal(Box.finish, "fail" if status is FAILED else "well")
    elif status is CANCELED:
        await handle.cancel()
    elif status is TERMINATED:
        await handle.terminate()
    if status not in (RUNNING, COMPLETED):
        with pytest.raises(WorkflowFailedError):
            await handle.result()
    elif status is COMPLETED:
        await handle.result()
    assert (await handle.describe()).status is status
    return handle


RUNNING_WORDS = r"Workflow execution is already running. WorkflowId: {id}, RunId: {run_id}."
FINISHED_WORDS = (
    r"Workflow execution already finished. WorkflowId: {id}, RunId: {run_id}. "
    r"Workflow Id reuse policy: reject duplicate workflow Id."
)
SUCCESS_WORDS = (
    r"Workflow execution already finished successfully. WorkflowId: {id}, RunId: {run_id}. "
    r"Workflow Id reuse policy: allow duplicate workflow Id if last run failed."
)
CLOSED = (COMPLETED, FAILED, CANCELED, TERMINATED)
REFUSED = {
    **{
        (policy, RUNNING): RUNNING_WORDS
        for policy in (
            REUSE.ALLOW_DUPLICATE, REUSE.ALLOW_DUPLICATE_FAILED_ONLY, REUSE.REJECT_DUPLICATE,
        )
    },
    **{(REUSE.REJECT_DUPLICATE, status): FINISHED_WORDS for status in CLOSED},
    (REUSE.ALLOW_DUPLICATE_FAILED_ONLY, COMPLETED): SUCCESS_WORDS,
}  # fmt: skip


@pytest.mark.parametrize("status", [RUNNING, *CLOSED], ids=lambda status: status.name)
@pytest.mark.parametrize("policy", list(REUSE)[1:], ids=lambda policy: policy.name)
async def test_id_reuse_policies(policy: WorkflowIDReusePolicy, status: WorkflowStatus) -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        id = f"reuse-{policy.name}-{status.name}"
        former = await _run_of(env.client, status, id)
        start = env.client.start(Box, id=id, id_reuse_policy=policy)
        words = REFUSED.get((policy, status))
        if words is None:
            again = await start
            assert again.first_run_id != former.first_run_id
            assert (await again.describe()).status is RUNNING
            ended = TERMINATED if status is RUNNING else status
            described = env.client.handle(id, run_id=former.first_run_id).describe()
            assert (await described).status is ended
            await again.terminate()
            return
        with pytest.raises(WorkflowAlreadyStartedError) as caught:
            await start
        assert caught.value.run_id == former.first_run_id
        assert (caught.value.workflow_id, caught.value.workflow_type) == (id, "Box")
        text = words.format(id=id, run_id=former.first_run_id)
        assert text in str(caught.value.__cause__)
        assert (await former.describe()).status is status
        if status is RUNNING:
            await former.terminate()


async def test_id_conflict_fail() -> None:
    async with environment() as env:
        former = await env.client.start(Box, id="conflict-fail")
        with pytest.raises(WorkflowAlreadyStartedError, match=former.first_run_id):
            await env.client.start(Box, id="conflict-fail", id_conflict_policy=CONFLICT.FAIL)
        await former.terminate()


async def test_id_conflict_use_existing() -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        former = await env.client.start(Box, "one", id="conflict-use")
        same = await env.client.start(
            Box, "two", id="conflict-use", id_conflict_policy=USE_EXISTING
        )
        assert same.first_run_id == former.first_run_id
        await same.signal(Box.finish, "well")
        assert await same.result() == ["one"]
        # a closed run is nothing to use: the policy for reuse decides
        new = await env.client.start(Box, "two", id="conflict-use", id_conflict_policy=USE_EXISTING)
        assert new.first_run_id != former.first_run_id
        await new.terminate()
        with pytest.raises(WorkflowAlreadyStartedError):
            await env.client.start(
                Box,
                id="conflict-use",
                id_conflict_policy=USE_EXISTING,
                id_reuse_policy=REUSE.REJECT_DUPLICATE,
            )


async def test_id_conflict_terminate_existing() -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        former = await env.client.start(Box, id="conflict-end")
        new = await env.client.start(
            Box, id="conflict-end", id_conflict_policy=CONFLICT.TERMINATE_EXISTING
        )
        assert new.first_run_id != former.first_run_id
        old = env.client.handle("conflict-end", run_id=former.first_run_id)
        assert (await old.describe()).status is TERMINATED
        ended = await find(old, "WorkflowExecutionTerminated")
        assert ended.reason == "TerminateIfRunning WorkflowIdReusePolicy"
        assert ended.identity == "history-service"
        (details,) = env.client.converter.decode_all(ended.details)
        assert details == f"terminated by new runID: {new.first_run_id}"
        assert (await new.describe()).status is RUNNING
        await new.terminate()


async def test_a_conflict_policy_does_not_go_with_terminate_if_running() -> None:
    async with environment() as env:
        with pytest.raises(RPCError, match=r"Invalid WorkflowIDReusePolicy") as caught:
            await env.client.start(
                Box,
                id="both-policies",
                id_reuse_policy=REUSE.TERMINATE_IF_RUNNING,
                id_conflict_policy=USE_EXISTING,
            )
        assert caught.value.message == (
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING cannot "
            "be used together with a WorkflowIDConflictPolicy"
        )
        assert [run async for run in env.client.list("WorkflowId = 'both-policies'")] == []


async def test_a_request_id_starts_once() -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        first = await env.client.start(Box, "one", id="asked-twice", request_id="r-1")
        same = await env.client.start(Box, "two", id="asked-twice", request_id="r-1")
        assert same.first_run_id == first.first_run_id
        with pytest.raises(WorkflowAlreadyStartedError):
            await env.client.start(Box, id="asked-twice", request_id="r-2")
        await first.signal(Box.finish, "well")
        assert await same.result() == ["one"]
        # nor does it start another once that run is closed
        same = await env.client.start(Box, "two", id="asked-twice", request_id="r-1")
        assert same.first_run_id == first.first_run_id
        assert await same.result() == ["one"]


# --- start delay, memo, search attributes ---------------------------------------------------------


async def test_a_start_delay_holds_the_first_task_back() -> None:
    delay = timedelta(seconds=1)
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        handle = await env.client.start(Box, id="delayed", start_delay=delay)
        assert await story(handle) == ["Started"]
        started = await find(handle, "WorkflowExecutionStarted")
        assert started.first_workflow_task_backoff.ToTimedelta() == delay
        description = await handle.describe()
        assert description.start_time is not None
        assert description.execution_time == description.start_time + delay
        await env.sleep(delay + timedelta(seconds=1))
        await handle.signal(Box.finish, "well")
        await handle.result()
        assert (await story(handle))[:2] == ["Started", "Task"]


async def test_what_happens_to_a_run_that_waits_for_its_start() -> None:
    delay = timedelta(seconds=3)
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        ended = await env.client.start(Box, id="delayed-ended", start_delay=delay)
        await ended.terminate(reason="not wanted")
        assert await story(ended) == ["Started", "Terminated"]
        signalled = await env.client.start(Box, id="delayed-signalled", start_delay=delay)
        await signalled.signal(Box.put, "hi")
        assert await story(signalled) == ["Started", "Signaled"]  # the signal waits, too
        await signalled.signal(Box.finish, "well")
        assert await signalled.result() == ["hi", "first"]
        cancelled = await env.client.start(Box, id="delayed-cancelled", start_delay=delay)
        await cancelled.cancel()
        with pytest.raises(WorkflowFailedError, match="was cancelled"):
            await cancelled.result()
        assert await story(cancelled) == ["Started", "CancelRequested", "Task", "Canceled"]
        description = await cancelled.describe()  # a cancellation does not wait
        assert description.close_time is not None
        assert description.execution_time is not None
        assert description.close_time < description.execution_time
        updated = await env.client.start(Box, id="delayed-updated", start_delay=delay)
        assert await updated.update(Box.add, "now") == ["now"]  # nor does an update
        await updated.signal(Box.finish, "well")
        assert await updated.result() == ["now", "first"]


async def test_memo_and_search_attributes_are_shown() -> None:
    async with environment() as env:
        handle = await env.client.start(
            Box,
            id="noted",
            memo={"who": "me", "how": {"n": 1}},
            search_attributes={"CustomKeywordField": "k-1", "CustomIntField": 7},
        )
        description = await handle.describe()
        assert dict(description.memo) == {"who": "me", "how": {"n": 1}}
        shown = description.search_attributes.by_name()
        assert (shown["CustomKeywordField"], shown["CustomIntField"]) == ("k-1", 7)
        await handle.terminate()


@workflow
async def notes() -> list[Any]:
    seen: list[Any] = [dict(workflow.memo()), workflow.info().search_attributes.by_name()]
    workflow.upsert_memo({"step": 2, "gone": None})
    workflow.upsert_search_attributes({"CustomIntField": 8, "CustomKeywordField": None})
    await asyncio.sleep(1)
    return [*seen, dict(workflow.memo()), workflow.info().search_attributes.by_name()]


async def test_memo_and_search_attributes_are_upserted() -> None:
    async with environment() as env, env.client.worker(workflows=[notes], activities=[]):
        handle = await env.client.start(
            notes,
            id="upserted",
            memo={"kept": 1, "gone": 1},
            search_attributes={"CustomKeywordField": "k-2", "CustomIntField": 7},
        )
        assert await handle.result() == [
            {"kept": 1, "gone": 1},
            {"CustomKeywordField": "k-2", "CustomIntField": 7},
            {"kept": 1, "step": 2},
            {"CustomIntField": 8},
        ]
        description = await handle.describe()
        assert dict(description.memo) == {"kept": 1, "step": 2}
        shown = description.search_attributes.by_name()
        assert shown["CustomIntField"] == 8
        assert "CustomKeywordField" not in shown
        assert await story(handle) == [
            "Started",
            "Task",
            "WorkflowPropertiesModified",
            "UpsertWorkflowSearchAttributes",
            "TimerStarted",
            "TimerFired",
            "Task",
            "Completed",
        ]


# --- with a signal, with an update ----------------------------------------------------------------


async def test_signal_with_start() -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):

        async def tell(item: str, **options: Any) -> WorkflowHandle[Any]:
            return await env.client.start(
                Box, id="told", start_signal=Box.put, start_signal_args=[item], **options
            )

        first = await tell("a")
        assert (await story(first))[:2] == ["Started", "Signaled"]
        same = await tell("b")
        assert same.first_run_id == first.first_run_id
        await first.signal(Box.finish, "well")
        assert sorted(await first.result()) == ["a", "b", "first"]
        new = await tell("c")
        assert new.first_run_id != first.first_run_id
        replaced = await tell("d", id_conflict_policy=CONFLICT.TERMINATE_EXISTING)
        assert replaced.first_run_id != new.first_run_id
        await replaced.signal(Box.finish, "well")
        assert await replaced.result() == ["d", "first"]
        with pytest.raises(WorkflowAlreadyStartedError):
            await tell("e", id_reuse_policy=REUSE.REJECT_DUPLICATE)


async def test_signal_with_start_asked_twice_signals_once() -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        options: Any = {
            "id": "told-twice",
            "request_id": "r-3",
            "start_signal": Box.put,
            "start_signal_args": ["a"],
        }
        first = await env.client.start(Box, **options)
        same = await env.client.start(Box, **options)
        assert same.first_run_id == first.first_run_id
        await first.signal(Box.finish, "well")
        assert await first.result() == ["a", "first"]


async def test_signal_with_start_and_a_delay() -> None:
    """The signal that comes with a delayed start waits with it; a later one does not."""
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        handle = await env.client.start(
            Box,
            id="told-later",
            start_signal=Box.put,
            start_signal_args=["a"],
            start_delay=timedelta(seconds=1),
        )
        assert await story(handle) == ["Started", "Signaled"]
        await env.sleep(timedelta(seconds=2))
        assert (await story(handle))[:3] == ["Started", "Signaled", "Task"]
        await handle.signal(Box.finish, "well")
        assert await handle.result() == ["a", "first"]


async def test_update_with_start() -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):

        async def add(item: str, policy: WorkflowIDConflictPolicy = USE_EXISTING) -> Any:
            return await env.client.update_with_start(
                Box,
                id="updated",
                update=Box.add,
                update_args=[item],
                update_id=f"add-{item}",
                id_conflict_policy=policy,
            )

        first = await add("a")
        assert await first.result() == ["a"]  # handlers run before the run's own code
        assert first.run_id
        second = await add("b")
        assert second.run_id == first.run_id
        assert await second.result() == ["a", "first", "b"]
        again = await add("b")  # the same id: done once
        assert await again.result() == ["a", "first", "b"]
        with pytest.raises(WorkflowAlreadyStartedError) as caught:
            await add("c", CONFLICT.FAIL)
        assert caught.value.run_id == first.run_id
        rejected = await add("bad")
        with pytest.raises(UpdateFailedError, match="no bad items"):
            await rejected.result()
        handle = env.client.handle("updated")
        await handle.signal(Box.finish, "well")
        assert await handle.result() == ["a", "first", "b"]
        assert (await story(handle))[:4] == [
            "Started",
            "Task",
            "UpdateAccepted",
            "UpdateCompleted",
        ]


async def test_a_rejected_update_leaves_the_run_it_started() -> None:
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        rejected = await env.client.update_with_start(
            Box,
            id="refused",
            update=Box.add,
            update_args=["bad"],
            id_conflict_policy=USE_EXISTING,
        )
        with pytest.raises(UpdateFailedError, match="no bad items"):
            await rejected.result()
        handle = env.client.handle("refused")
        assert (await handle.describe()).status is RUNNING
        assert await story(handle) == ["Started", "Task"]
        await handle.terminate()


async def test_update_with_start_after_the_run_closed() -> None:
    """Another run is started, unless the policy for reuse forbids it."""
    async with environment() as env, env.client.worker(workflows=[Box], activities=[]):
        former = await _run_of(env.client, COMPLETED, "updated-again")
        options: Any = {
            "id": "updated-again",
            "update": Box.add,
            "update_args": ["x"],
            "id_conflict_policy": USE_EXISTING,
        }
        with pytest.raises(WorkflowAlreadyStartedError, match=re.escape(former.first_run_id or "")):
            await env.client.update_with_start(
                Box, **options, id_reuse_policy=REUSE.REJECT_DUPLICATE
            )
        update = await env.client.update_with_start(Box, **options)
        assert update.run_id != former.first_run_id
        assert await update.result() == ["x"]
        await env.client.handle("updated-again").terminate()
