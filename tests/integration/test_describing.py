"""Describe: a run with all that it waits for."""

from __future__ import annotations

import asyncio

import pytest
from api_stage import activity, child, continue_as_new, finish, staged, text, timer, virtual
from temporalio.api.common.v1 import Memo, Payload, Payloads
from temporalio.api.enums.v1 import (
    ParentClosePolicy,
    PendingActivityState,
    PendingWorkflowTaskState,
    WorkflowExecutionStatus,
)
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    RecordActivityTaskHeartbeatRequest,
    RequestCancelWorkflowExecutionRequest,
    RespondActivityTaskFailedRequest,
)

from perdure.api.errors import InvalidArgument, NotFound
from perdure.api.times import timestamp_ns

RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING


@virtual
async def test_a_new_run() -> None:
    async with staged() as stage:
        run_id = await stage.start(
            "a",
            memo=Memo(fields={"note": Payload(data=b"x")}),
            workflow_run_timeout={"seconds": 60},
            workflow_execution_timeout={"seconds": 90},
            request_id="start-1",
            user_metadata={"summary": Payload(data=b"an order")},
        )
        found = await stage.describe("a")
        info = found.workflow_execution_info
        assert (info.execution.workflow_id, info.execution.run_id) == ("a", run_id)
        assert (info.type.name, info.task_queue, info.status) == ("flow", "queue", RUNNING)
        assert (info.history_length, info.state_transition_count) == (2, 1)
        assert info.history_size_bytes > 0
        assert info.memo.fields["note"].data == b"x"
        assert (info.first_run_id, info.root_execution.run_id) == (run_id, run_id)
        assert not info.HasField("close_time")
        config = found.execution_config
        assert config.workflow_run_timeout.seconds == 60
        assert config.default_workflow_task_timeout.seconds == 10
        assert config.user_metadata.summary.data == b"an order"
        extended = found.workflow_extended_info
        start_ns = timestamp_ns(info.start_time)
        assert timestamp_ns(extended.run_expiration_time) - start_ns == 60_000_000_000
        assert timestamp_ns(extended.execution_expiration_time) - start_ns == 90_000_000_000
        assert extended.request_id_infos["start-1"].event_id == 1
        task = found.pending_workflow_task
        assert task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
        assert task.attempt == 1


@virtual
async def test_a_run_that_follows_another_was_started_by_no_request() -> None:
    async with staged() as stage:
        await stage.start("a", request_id="start-1")
        await stage.step(continue_as_new())
        assert not (await stage.describe("a")).workflow_extended_info.request_id_infos


@virtual
async def test_a_started_workflow_task() -> None:
    async with staged() as stage:
        await stage.start("a")
        await asyncio.sleep(2)
        task = await stage.poll()
        found = (await stage.describe("a")).pending_workflow_task
        assert found.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
        assert timestamp_ns(found.started_time) - timestamp_ns(found.scheduled_time) >= 2e9
        await stage.complete(task, timer("t"))
        assert not (await stage.describe("a")).HasField("pending_workflow_task")


@virtual
async def test_an_activity_shows_attempt_failure_heartbeat_and_next_retry() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(activity("1"))
        waiting = (await stage.describe("a")).pending_activities[0]
        assert waiting.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
        assert (waiting.activity_id, waiting.activity_type.name) == ("1", "work")

        task = await stage.poll_activity()
        await stage.api.record_activity_task_heartbeat(
            RecordActivityTaskHeartbeatRequest(
                namespace="default", task_token=task.task_token, details=text("half")
            )
        )
        running = (await stage.describe("a")).pending_activities[0]
        assert running.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        assert running.last_worker_identity == "worker"
        assert running.heartbeat_details == text("half")
        assert running.HasField("last_heartbeat_time")

        failed = RespondActivityTaskFailedRequest(namespace="default", task_token=task.task_token)
        failed.failure.message = "broken"
        failed.failure.application_failure_info.type = "Broken"
        await stage.api.respond_activity_task_failed(failed)
        retrying = (await stage.describe("a")).pending_activities[0]
        assert retrying.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
        assert retrying.attempt == 2
        assert retrying.last_failure.message == "broken"
        assert retrying.heartbeat_details == text("half")
        gap_ns = timestamp_ns(retrying.next_attempt_schedule_time) - timestamp_ns(
            retrying.last_attempt_complete_time
        )
        assert gap_ns == 1_000_000_000
        assert retrying.current_retry_interval.seconds == 1


@virtual
async def test_a_child_is_pending_until_it_closes() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(child("b"))
        await asyncio.sleep(1)
        [found] = (await stage.describe("a")).pending_children
        assert (found.workflow_id, found.workflow_type_name) == ("b", "flow")
        assert found.run_id
        assert found.parent_close_policy == ParentClosePolicy.PARENT_CLOSE_POLICY_TERMINATE
        theirs = (await stage.describe("b")).workflow_execution_info
        assert theirs.parent_execution.workflow_id == "a"
        assert theirs.root_execution.workflow_id == "a"
        await stage.terminate("b")
        await asyncio.sleep(1)
        assert not (await stage.describe("a")).pending_children


@virtual
async def test_a_closed_run_waits_for_nothing() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(activity("1"), timer("t"))
        await stage.api.request_cancel_workflow_execution(
            RequestCancelWorkflowExecutionRequest(
                namespace="default", workflow_execution={"workflow_id": "a"}
            )
        )
        assert (await stage.describe("a")).workflow_extended_info.cancel_requested
        await stage.step(finish())
        found = await stage.describe("a")
        info = found.workflow_execution_info
        assert info.status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
        assert info.HasField("close_time")
        assert info.history_length == len(await stage.history("a"))
        assert not found.pending_activities
        assert not found.HasField("pending_workflow_task")


@virtual
async def test_what_is_shown_is_stored() -> None:
    """A describe beside a start that is being written waits for the write."""
    async with staged() as stage:
        started = asyncio.ensure_future(stage.start("a"))
        await asyncio.sleep(0)
        found = await stage.describe("a")
        key = await stage.node.store.find("default", "a")
        assert key is not None
        assert found.workflow_execution_info.execution.run_id == await started


@virtual
async def test_wrong_requests_are_refused() -> None:
    async with staged() as stage:
        with pytest.raises(InvalidArgument, match="Execution is not set"):
            await stage.api.describe_workflow_execution(
                DescribeWorkflowExecutionRequest(namespace="default")
            )
        with pytest.raises(NotFound, match="workflow not found for ID: a"):
            await stage.describe("a")
        await stage.start("a")
        with pytest.raises(NotFound):
            await stage.describe("a", "11111111-1111-4111-8111-111111111111")


def test_payloads_helper_is_what_workers_send() -> None:
    assert text("x") == Payloads(payloads=[Payload(data=b"x")])
