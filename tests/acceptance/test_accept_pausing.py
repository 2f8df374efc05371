"""A paused run: what comes is recorded, and nothing is given to a worker until it goes on."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType

from perdure import (
    QueryRejectedError,
    RPCError,
    WorkflowHandle,
    WorkflowNotFoundError,
    WorkflowStatus,
    activity,
    workflow,
)
from targets import environment

calls: list[str] = []


@activity(start_to_close_timeout=timedelta(seconds=5))
async def work(name: str) -> str:
    calls.append(name)
    return name


@workflow
class Steps:
    def __init__(self) -> None:
        self.asked = 0

    @workflow.run
    async def run(self, count: int) -> int:
        done = 0
        while done < count:
            await workflow.wait_condition(lambda: self.asked > done)  # noqa: B023
            await work(workflow.info().workflow_id)
            done += 1
        return done

    @workflow.signal
    def ask(self) -> None:
        self.asked += 1

    @workflow.query
    def seen(self) -> int:
        return self.asked

    @workflow.update
    def change(self) -> int:
        self.asked += 1
        return self.asked


@workflow
async def sleeper() -> str:
    await asyncio.sleep(1)
    return "slept"


async def story(handle: WorkflowHandle[Any]) -> list[str]:
    history = await handle.fetch_history()
    names = [EventType.Name(event.event_type) for event in history.events]
    return [name.removeprefix("EVENT_TYPE_").title().replace("_", "") for name in names]


async def until(handle: WorkflowHandle[Any], event: str) -> None:
    """Wait until the run has come that far."""
    while event not in await story(handle):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


STARTED = ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
TASK = ["WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted"]


async def test_a_paused_run_records_and_does_nothing_and_then_goes_on() -> None:
    async with environment() as env:
        client = env.client
        calls.clear()
        async with client.worker(workflows=[Steps], activities=[work]):
            handle = await client.start(Steps, 1, id="held")
            assert await handle.query(Steps.seen) == 0
            await handle.pause(reason="an audit")
            await handle.signal(Steps.ask)
            await asyncio.sleep(0.05)
            assert (await story(handle))[-2:] == [
                "WorkflowExecutionPaused",
                "WorkflowExecutionSignaled",
            ]
            assert (await handle.describe()).status is WorkflowStatus.PAUSED
            assert (await client.count("ExecutionStatus = 'Paused'")).count == 1
            assert "held" not in calls
            await handle.unpause(reason="all is well")
            assert await handle.result() == 1
            assert calls.count("held") == 1
            events = await story(handle)
        at = events.index("WorkflowExecutionPaused")
        assert events[at : at + 6] == [
            "WorkflowExecutionPaused", "WorkflowExecutionSignaled", "WorkflowExecutionUnpaused",
            *TASK,
        ]  # fmt: skip


async def test_queries_and_updates_are_refused_meanwhile() -> None:
    async with environment() as env:
        client = env.client
        async with client.worker(workflows=[Steps], activities=[work]):
            handle = await client.start(Steps, 1, id="asked")
            await handle.query(Steps.seen)
            await handle.pause()
            with pytest.raises(QueryRejectedError, match=r"(?i)paused"):
                await handle.query(Steps.seen)
            with pytest.raises(
                RPCError, match=r"Workflow is paused\. Cannot update the workflow\."
            ):
                await handle.update(Steps.change)
            await handle.unpause()
            assert await handle.update(Steps.change) == 1
            assert await handle.result() == 1


async def test_a_task_that_nobody_has_is_taken_away() -> None:
    async with environment() as env:
        client = env.client
        handle = await client.start(Steps, 1, id="early")
        await handle.pause()
        assert await story(handle) == [
            *STARTED, "WorkflowTaskFailed", "WorkflowExecutionPaused"
        ]  # fmt: skip
        async with client.worker(workflows=[Steps], activities=[work]):
            await asyncio.sleep(0.05)
            assert len(await story(handle)) == 4
            await handle.signal(Steps.ask)
            await handle.unpause()
            assert await handle.result() == 1


async def test_a_waiting_activity_stays_until_the_run_goes_on() -> None:
    async with environment() as env:
        client = env.client
        calls.clear()
        async with client.worker(workflows=[Steps], activities=[]):
            handle = await client.start(Steps, 1, id="waiting")
            await handle.signal(Steps.ask)
            await until(handle, "ActivityTaskScheduled")
            await handle.pause()
        async with client.worker(workflows=[Steps], activities=[work]):
            await asyncio.sleep(0.05)
            assert "waiting" not in calls
            await handle.unpause()
            assert await handle.result() == 1
        assert calls.count("waiting") == 1


async def test_a_timer_fires_and_is_heard_later() -> None:
    async with environment() as env:
        client = env.client
        async with client.worker(workflows=[sleeper], activities=[]):
            handle = await client.start(sleeper, id="asleep")
            await until(handle, "TimerStarted")
            await handle.pause()
            await env.sleep(timedelta(seconds=2))
            assert (await story(handle))[-2:] == ["WorkflowExecutionPaused", "TimerFired"]
            await handle.unpause()
            assert await handle.result() == "slept"


@pytest.mark.only_on(
    "embedded",
    "perdure",
    "cluster",
    reason="Temporal answers INTERNAL to a pause before the first task",
)
async def test_a_start_delay_that_ends_meanwhile_is_not_lost() -> None:
    async with environment() as env:
        client = env.client
        async with client.worker(workflows=[sleeper], activities=[]):
            handle = await client.start(sleeper, id="late", start_delay=timedelta(seconds=1))
            await handle.pause()
            await env.sleep(timedelta(seconds=2))
            assert await story(handle) == ["WorkflowExecutionStarted", "WorkflowExecutionPaused"]
            await handle.unpause()
            assert await handle.result() == "slept"


async def test_a_paused_run_can_be_terminated() -> None:
    async with environment() as env:
        client = env.client
        handle = await client.start(sleeper, id="ended")
        await handle.pause()
        await handle.terminate()
        assert (await handle.describe()).status is WorkflowStatus.TERMINATED


async def test_pausing_wrongly_is_refused() -> None:
    async with environment() as env:
        client = env.client
        handle = await client.start(sleeper, id="wrong")
        with pytest.raises(RPCError, match="workflow is not paused"):
            await handle.unpause()
        await handle.pause()
        with pytest.raises(RPCError, match="workflow is already paused"):
            await handle.pause()
        await handle.terminate()
        with pytest.raises(WorkflowNotFoundError, match="workflow execution already completed"):
            await handle.pause()
        with pytest.raises(WorkflowNotFoundError):
            await client.handle("nobody").pause()


async def test_a_pause_survives_a_restart(tmp_path: Any) -> None:
    import perdure

    target = f"sqlite:///{tmp_path / 'held.db'}"
    async with perdure.connect(target) as client:
        handle = await client.start(Steps, 1, id="kept")
        await handle.pause(reason="over night")
    async with (
        perdure.connect(target) as client,
        client.worker(workflows=[Steps], activities=[work]),
    ):
        handle = client.handle("kept", result_type=int)
        await handle.signal("ask")
        await asyncio.sleep(0.05)
        assert (await handle.describe()).status is WorkflowStatus.PAUSED
        await handle.unpause()
        assert await handle.result() == 1
