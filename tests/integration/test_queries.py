"""Queries: beside a workflow task, by a task of their own, and when they cannot be answered."""

from __future__ import annotations

import asyncio

import pytest
from api_stage import QUEUE, Stage, activity, execution, finish, soon, staged, timer, virtual
from temporalio.api.enums.v1 import (
    QueryRejectCondition,
    QueryResultType,
    WorkflowExecutionStatus,
)
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    QueryWorkflowRequest,
    RespondQueryTaskCompletedRequest,
)

from perdure.api.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    QueryFailed,
    WorkflowNotReady,
)
from perdure.service.settings import Settings

NOT_OPEN = QueryRejectCondition.QUERY_REJECT_CONDITION_NOT_OPEN
NOT_CLEAN = QueryRejectCondition.QUERY_REJECT_CONDITION_NOT_COMPLETED_CLEANLY
FAILED = QueryResultType.QUERY_RESULT_TYPE_FAILED


def said(answer: object) -> str:
    return answer.query_result.payloads[0].data.decode()  # type: ignore[attr-defined]


async def waiting_run(stage: Stage, sticky: str = "") -> None:
    """A run that waits for a timer, its workflow task done."""
    await stage.start("a")
    await stage.step(timer("t"), sticky=sticky)


# -- by a task of its own --------------------------------------------------------------------------


@virtual
async def test_an_idle_run_is_asked_by_a_task_of_its_own() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        before = await stage.history("a")
        asked = soon(stage.query("a"))
        task = await stage.poll()
        assert task.query.query_type == "state"
        assert list(task.history.events) == before
        assert not task.queries
        await stage.answer_query(task, "fine")
        assert said(await asked) == "fine"
        assert await stage.history("a") == before


@virtual
async def test_a_closed_run_is_asked_too() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(finish("42"))
        asked = soon(stage.query("a"))
        task = await stage.poll()
        assert task.history.events[-1].event_id == 5
        await stage.answer_query(task, "over")
        assert said(await asked) == "over"


@virtual
async def test_the_worker_that_has_the_run_cached_is_asked_first() -> None:
    async with staged() as stage:
        await waiting_run(stage, sticky="sticky-1")
        normal, sticky = soon(stage.poll()), soon(stage.poll("sticky-1", QUEUE))
        await asyncio.sleep(0.1)
        asked = soon(stage.query("a"))
        task = await sticky
        assert task.query.query_type == "state"
        assert not task.history.events
        await stage.answer_query(task, "cached")
        assert said(await asked) == "cached"
        assert not normal.done()
        normal.cancel()


@virtual
async def test_another_worker_is_asked_when_the_cached_ones_is_gone() -> None:
    async with staged() as stage:
        await waiting_run(stage, sticky="sticky-1")
        asked = soon(stage.query("a"))
        task = await stage.poll()
        assert len(task.history.events) == 5
        await stage.answer_query(task, "replayed")
        assert said(await asked) == "replayed"


@virtual
async def test_another_worker_is_asked_when_the_cached_one_stops_polling() -> None:
    async with staged() as stage:
        await waiting_run(stage, sticky="sticky-1")
        gone = soon(stage.poll("sticky-1", QUEUE))
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.sleep(0.1)
        asked = soon(stage.query("a"))
        task = await stage.poll()  # after the sticky wait
        assert len(task.history.events) == 5
        await stage.answer_query(task, "replayed")
        assert said(await asked) == "replayed"


@virtual
async def test_a_worker_that_does_not_answer_is_followed_by_another() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.query("a"))
        silent = await stage.poll()
        task = await stage.poll()
        await stage.answer_query(task, "second")
        assert said(await asked) == "second"
        with pytest.raises(NotFound, match="query task not found"):
            await stage.answer_query(silent, "first")


@virtual
async def test_without_a_worker_the_caller_is_told_so() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        await asyncio.sleep(60)
        with pytest.raises(FailedPrecondition, match="no poller seen for task queue 'queue'"):
            await stage.query("a")


@virtual
async def test_a_worker_that_comes_in_time_still_answers() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        await asyncio.sleep(60)
        asked = soon(stage.query("a"))
        await asyncio.sleep(5)
        await stage.answer_query(await stage.poll(), "late")
        assert said(await asked) == "late"


@virtual
async def test_no_answer_at_all_ends_in_time() -> None:
    async with staged() as stage:
        await waiting_run(stage)

        async def silent_worker() -> None:
            while True:
                await stage.poll()

        worker = soon(silent_worker())
        with pytest.raises(DeadlineExceeded, match="no worker answered query 'state'"):
            await stage.query("a")
        worker.cancel()


@virtual
async def test_a_caller_that_gives_up_leaves_nothing() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.query("a"))
        await asyncio.sleep(1)
        asked.cancel()
        await asyncio.sleep(0)
        assert not stage.node.query_tasks._tasks
        polled = soon(stage.poll())
        await asyncio.sleep(1)
        assert not polled.done()
        polled.cancel()


# -- with a workflow task --------------------------------------------------------------------------


@virtual
async def test_a_query_sees_events_that_came_before_it() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        await stage.signal("a")
        asked = soon(stage.query("a"))
        await asyncio.sleep(0.1)
        task = await stage.poll()
        [query_id] = task.queries
        assert not task.query.query_type
        await stage.complete(task, queries={query_id: "signalled"})
        assert said(await asked) == "signalled"


@virtual
async def test_a_query_beside_a_running_task_comes_after_it() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        await stage.signal("a")
        task = await stage.poll()
        asked = soon(stage.query("a"))
        await asyncio.sleep(0.1)
        await stage.complete(task)
        direct = await stage.poll()
        assert direct.query.query_type == "state"
        await stage.answer_query(direct, "after")
        assert said(await asked) == "after"


@virtual
async def test_buffered_signals_are_seen_before_the_query() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        await stage.signal("a")
        task = await stage.poll()
        await stage.signal("a", "second")  # buffered
        asked = soon(stage.query("a"))
        await asyncio.sleep(0.1)
        await stage.complete(task)
        following = await stage.poll()
        [query_id] = following.queries
        signals = [
            event.workflow_execution_signaled_event_attributes.signal_name
            for event in following.history.events
        ]
        assert "second" in signals
        await stage.complete(following, queries={query_id: "both"})
        assert said(await asked) == "both"


@virtual
async def test_the_first_workflow_task_answers_too() -> None:
    async with staged() as stage:
        await stage.start("a")
        asked = soon(stage.query("a"))
        await asyncio.sleep(0.1)
        task = await stage.poll()
        [query_id] = task.queries
        await stage.complete(task, timer("t"), queries={query_id: "new"})
        assert said(await asked) == "new"


@virtual
async def test_a_task_that_closes_the_run_answers_its_queries() -> None:
    async with staged() as stage:
        await stage.start("a")
        asked = soon(stage.query("a"))
        await asyncio.sleep(0.1)
        task = await stage.poll()
        [query_id] = task.queries
        await stage.complete(task, finish(), queries={query_id: "last"})
        assert said(await asked) == "last"


@virtual
async def test_a_worker_that_ignores_queries_gets_one_by_itself() -> None:
    async with staged() as stage:
        await stage.start("a")
        asked = soon(stage.query("a"))
        await asyncio.sleep(0.1)
        await stage.complete(await stage.poll(), timer("t"))
        await stage.answer_query(await stage.poll(), "now")
        assert said(await asked) == "now"


@virtual
async def test_a_lost_task_brings_its_queries_again() -> None:
    async with staged() as stage:
        await stage.start("a")
        asked = soon(stage.query("a"))
        await asyncio.sleep(0.1)
        await stage.fail(await stage.poll())
        task = await stage.poll()
        [query_id] = task.queries
        await stage.complete(task, timer("t"), queries={query_id: "retried"})
        assert said(await asked) == "retried"


@virtual
async def test_many_queries_share_a_task_and_too_many_are_refused() -> None:
    async with staged() as stage:
        await stage.start("a")
        many = [soon(stage.query("a")) for _ in range(Settings().queries_per_run_max + 1)]
        await asyncio.sleep(0.1)
        task = await stage.poll()
        assert len(task.queries) == Settings().queries_per_run_max
        await stage.complete(task, timer("t"), queries=dict.fromkeys(task.queries, "x"))
        outcomes = await asyncio.gather(*many, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert len(refused) == 1
        assert "query buffer is full" in str(refused[0])
        assert not stage.node.executions.companions


# -- no answer -------------------------------------------------------------------------------------


async def fail_query(stage: Stage, task: PollWorkflowTaskQueueResponse) -> None:
    request = RespondQueryTaskCompletedRequest(
        namespace="default", task_token=task.task_token, completed_type=FAILED
    )
    request.error_message = "unknown query state"
    request.failure.message = "unknown query state"
    request.failure.application_failure_info.type = "ValueError"
    await stage.api.respond_query_task_completed(request)


@virtual
async def test_a_failing_handler_is_told_with_its_failure() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        asked = soon(stage.query("a"))
        await fail_query(stage, await stage.poll())
        with pytest.raises(QueryFailed, match="unknown query state") as caught:
            await asked
        [detail] = caught.value.details
        assert detail.failure.application_failure_info.type == "ValueError"  # type: ignore[attr-defined]


@virtual
async def test_a_run_that_never_had_a_task_cannot_be_asked() -> None:
    async with staged() as stage:
        await stage.start("a", workflow_start_delay={"seconds": 60})
        with pytest.raises(WorkflowNotReady, match="not scheduled yet"):
            await stage.query("a")
        await stage.terminate("a")
        with pytest.raises(FailedPrecondition, match="closed before WorkflowTaskStarted"):
            await stage.query("a")


@virtual
async def test_a_run_whose_task_keeps_failing_cannot_be_asked() -> None:
    async with staged() as stage:
        await stage.start("a")
        for _ in range(3):
            await stage.fail(await stage.poll())
        with pytest.raises(WorkflowNotReady, match="Workflow Task in failed state"):
            await stage.query("a")


@virtual
async def test_waiting_queries_end_when_the_task_keeps_failing() -> None:
    async with staged() as stage:
        await stage.start("a")
        asked = soon(stage.query("a"))
        await asyncio.sleep(0.1)
        for _ in range(3):
            await stage.fail(await stage.poll())
        with pytest.raises(WorkflowNotReady):
            await asked


@virtual
@pytest.mark.parametrize(
    ("condition", "close", "rejected"),
    [(NOT_OPEN, "complete", True), (NOT_CLEAN, "complete", False), (NOT_CLEAN, "stop", True)],
)
async def test_closed_runs_are_rejected_on_demand(
    condition: QueryRejectCondition.ValueType, close: str, rejected: bool
) -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(*([finish()] if close == "complete" else [timer("t")]))
        if close == "stop":
            await stage.terminate("a")
        asked = soon(stage.query("a", query_reject_condition=condition))
        if rejected:
            status = (await asked).query_rejected.status
            expected = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
            if close == "stop":
                expected = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED
            assert status == expected
        else:
            await stage.answer_query(await stage.poll(), "ok")
            assert said(await asked) == "ok"


@virtual
async def test_wrong_requests_are_refused() -> None:
    async with staged() as stage:
        await waiting_run(stage)
        request = QueryWorkflowRequest(namespace="default")
        with pytest.raises(InvalidArgument, match="Execution is not set"):
            await stage.api.query_workflow(request)
        request.execution.CopyFrom(execution("a"))
        with pytest.raises(InvalidArgument, match="WorkflowQuery is not set"):
            await stage.api.query_workflow(request)
        request.query.CopyFrom(WorkflowQuery())
        request.query.SetInParent()
        with pytest.raises(InvalidArgument, match="QueryType is not set"):
            await stage.api.query_workflow(request)
        with pytest.raises(NotFound):
            await stage.query("never")
        with pytest.raises(InvalidArgument, match="Task token"):
            await stage.api.respond_query_task_completed(RespondQueryTaskCompletedRequest())


@virtual
async def test_too_many_queries_in_all_are_refused() -> None:
    async with staged(settings=Settings(queries_max=1)) as stage:
        await waiting_run(stage)
        first = soon(stage.query("a"))
        await asyncio.sleep(0.1)
        with pytest.raises(Exception, match="1 queries wait"):
            await stage.query("a")
        await stage.answer_query(await stage.poll(), "ok")
        await first


@virtual
async def test_a_query_does_not_disturb_activities() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(activity("1"))
        asked = soon(stage.query("a"))
        await stage.answer_query(await stage.poll(), "busy")
        assert said(await asked) == "busy"
        assert (await stage.poll_activity()).activity_id == "1"
