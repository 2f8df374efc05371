"""Reset: a new run from a point of an old one, in one step with leaving the old one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from api_stage import (
    Answers,
    Stage,
    activity,
    continue_as_new,
    execution,
    finish,
    names,
    soon,
    staged,
    timer,
    virtual,
)
from temporalio.api.enums.v1 import ResetReapplyExcludeType, WorkflowExecutionStatus
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest

from perdure.api.errors import InvalidArgument, NotFound, Unavailable
from perdure.store.contract import Loaded, Store, StoreUnavailable, Unit

TERMINATED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED
COMPLETED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING


async def reset(
    stage: Stage, event_id: int, run_id: str = "", request_id: str = "r", **fields: Any
) -> str:
    request = ResetWorkflowExecutionRequest(
        namespace="default",
        workflow_execution=execution("a", run_id),
        workflow_task_finish_event_id=event_id,
        request_id=request_id,
        reason="try again",
        **fields,
    )
    return (await stage.api.reset_workflow_execution(request)).run_id


def signals(events: Sequence[HistoryEvent]) -> list[str]:
    return [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in events
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]


def contiguous(events: Sequence[HistoryEvent]) -> bool:
    return [event.event_id for event in events] == list(range(1, len(events) + 1))


@virtual
async def test_an_open_run_is_left_and_a_new_one_goes_on() -> None:
    async with staged() as stage:
        old = await stage.start("a")
        await stage.step(timer("t"))
        await stage.signal("a", "late")
        new = await reset(stage, 4)
        assert (await stage.describe("a", old)).workflow_execution_info.status == TERMINATED
        assert (await stage.describe("a")).workflow_execution_info.execution.run_id == new
        events = await stage.history("a")
        assert contiguous(events)
        assert names(events) == [
            "WorkflowExecutionStarted",
            "WorkflowTaskScheduled",
            "WorkflowTaskStarted",
            "WorkflowTaskFailed",
            "WorkflowExecutionSignaled",
            "WorkflowTaskScheduled",
        ]
        failed = events[3].workflow_task_failed_event_attributes
        assert (failed.base_run_id, failed.new_run_id) == (old, new)
        task = await stage.poll()
        assert task.workflow_execution.run_id == new
        await stage.complete(task, finish("2"))
        assert (await stage.describe("a")).workflow_execution_info.status == COMPLETED
        assert (await stage.describe("a", old)).workflow_extended_info.reset_run_id == new


@virtual
async def test_a_closed_run_is_reset_too() -> None:
    async with staged() as stage:
        old = await stage.start("a")
        await stage.step(activity("1"))
        await stage.terminate("a")
        new = await reset(stage, 4)
        assert new != old
        assert (await stage.describe("a")).workflow_execution_info.status == RUNNING
        assert (await stage.poll()).workflow_execution.run_id == new


@virtual
async def test_a_parked_worker_gets_the_whole_history_of_the_new_run() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(timer("t"))
        await stage.signal("a", "late")
        polled = soon(stage.poll())
        await asyncio.sleep(0.1)
        await stage.complete(await polled)
        parked = soon(stage.poll())
        await asyncio.sleep(0.1)
        await reset(stage, 4)
        task = await parked
        assert list(task.history.events) == await stage.history("a")


@virtual
async def test_signals_that_a_running_task_had_not_seen_are_applied_again() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(timer("t"))
        await stage.signal("a", "first")
        await stage.poll()
        await stage.signal("a", "buffered")
        await reset(stage, 4)
        assert signals(await stage.history("a")) == ["first", "buffered"]


@virtual
async def test_signals_of_the_runs_that_followed_are_applied_again() -> None:
    async with staged() as stage:
        first = await stage.start("a")
        task = await stage.poll()
        await stage.signal("a", "seen")
        await stage.complete(task, timer("t"))
        await stage.complete(await stage.poll(), continue_as_new())
        await stage.signal("a", "later")
        new = await reset(stage, 4, run_id=first)
        events = await stage.history("a", new)
        assert signals(events) == ["seen", "later"]
        assert contiguous(events)


@virtual
async def test_what_is_excluded_is_not_applied_again() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(timer("t"))
        await stage.signal("a", "late")
        kind = ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL
        await reset(stage, 4, reset_reapply_exclude_types=[kind])
        assert signals(await stage.history("a")) == []


@virtual
async def test_a_signal_may_come_with_the_reset() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(timer("t"))
        request: Any = {"post_reset_operations": [{"signal_workflow": {"signal_name": "go"}}]}
        await reset(stage, 4, **request)
        assert signals(await stage.history("a")) == ["go"]


@virtual
async def test_the_same_request_again_is_the_same_reset() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(timer("t"))
        new = await reset(stage, 4)
        assert await reset(stage, 4) == new
        assert await reset(stage, 4, request_id="another") != new


@virtual
async def test_callers_of_the_old_run_go_on_with_the_new_one() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(timer("t"))
        asked = soon(stage.update("a"))
        await asyncio.sleep(0.1)
        new = await reset(stage, 4)
        answered = False
        while not answered:
            task = await stage.poll()
            answers = Answers()
            for message in task.messages:
                answers.accept(message).complete("u")
                answered = True
            await stage.complete(task, updates=answers)
        answer = await asked
        assert answer.update_ref.workflow_execution.run_id == new
        assert answer.outcome.HasField("success")


@virtual
async def test_points_that_are_no_end_of_a_task_are_refused_and_nothing_changes() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(timer("t"), timer("u"))
        before = await stage.history("a")
        for event_id in (0, 1, 2, 6, 99):
            with pytest.raises(InvalidArgument):
                await reset(stage, event_id)
        assert await stage.history("a") == before
        assert (await stage.describe("a")).workflow_execution_info.status == RUNNING


@virtual
async def test_wrong_requests_are_refused() -> None:
    async with staged() as stage:
        with pytest.raises(InvalidArgument, match="Execution is not set"):
            await stage.api.reset_workflow_execution(
                ResetWorkflowExecutionRequest(namespace="default")
            )
        with pytest.raises(InvalidArgument, match="RequestId is not set"):
            await reset(stage, 4, request_id="")
        with pytest.raises(NotFound):
            await reset(stage, 4)


class Trouble:
    """Lets a store commit, or not, and say that it failed."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = ""
        self.reachable = True
        load, commit = store.load, store.commit

        async def shaky_load(key: int) -> Loaded | None:
            if not self.reachable:
                raise StoreUnavailable("broken")
            return await load(key)

        async def shaky_commit(units: Sequence[Unit]) -> list[int]:
            if self.fails == "before":
                raise StoreUnavailable("broken")
            conflicts = await commit(units)
            if self.fails == "after":
                raise StoreUnavailable("broken")
            return conflicts

        monkeypatch.setattr(store, "load", shaky_load)
        monkeypatch.setattr(store, "commit", shaky_commit)


@virtual
async def test_a_reset_that_could_not_be_stored_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged() as stage:
        trouble = Trouble(stage.node.store, monkeypatch)
        old = await stage.start("a")
        await stage.step(timer("t"))
        trouble.fails = "before"
        with pytest.raises(Unavailable):
            await reset(stage, 4)
        trouble.fails = ""
        assert (await stage.describe("a", old)).workflow_execution_info.status == RUNNING
        new = await reset(stage, 4)
        assert (await stage.describe("a", old)).workflow_extended_info.reset_run_id == new
        assert (await stage.poll()).workflow_execution.run_id == new


@virtual
@pytest.mark.parametrize("reachable", [True, False])
async def test_a_reset_whose_answer_was_lost_is_found_again(
    reachable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged() as stage:
        trouble = Trouble(stage.node.store, monkeypatch)
        old = await stage.start("a")
        await stage.step(timer("t"))
        trouble.fails, trouble.reachable = "after", reachable
        if reachable:  # the node sees for itself that it was stored
            await reset(stage, 4)
        else:
            with pytest.raises(Unavailable):
                await reset(stage, 4)
        trouble.fails, trouble.reachable = "", True
        new = await reset(stage, 4)
        assert (await stage.describe("a", old)).workflow_extended_info.reset_run_id == new
        assert (await stage.describe("a")).workflow_execution_info.execution.run_id == new
        if reachable:
            assert (await stage.poll()).workflow_execution.run_id == new
