"""Drives a node through its RPCs the way the oracle is driven: one operation, one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import (
    CommandType,
    EventType,
    WorkflowExecutionStatus,
    WorkflowIdConflictPolicy,
    WorkflowIdReusePolicy,
)
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    RequestCancelWorkflowExecutionRequest,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)

QUEUE = "queue"
REUSE = {
    "allow": WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
    "failed_only": WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY,
    "reject_duplicate": WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
}
CONFLICT = {
    "fail": WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
    "use_existing": WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
    "terminate": WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING,
}


def event_name(number: int) -> str:
    """EVENT_TYPE_TIMER_STARTED → TimerStarted."""
    words = EventType.Name(number).removeprefix("EVENT_TYPE_").lower().split("_")  # type: ignore[arg-type]
    return "".join(word.capitalize() for word in words)


def status_name(number: int) -> str:
    """WORKFLOW_EXECUTION_STATUS_TIMED_OUT → TimedOut."""
    name = WorkflowExecutionStatus.Name(number)  # type: ignore[arg-type]
    words = name.removeprefix("WORKFLOW_EXECUTION_STATUS_").lower().split("_")
    return "".join(word.capitalize() for word in words)


def command(kind: str, name: str) -> Command:
    """The protobuf command for one of the oracle's."""
    made = Command()
    if kind == "activity":
        made.command_type = CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK
        activity = made.schedule_activity_task_command_attributes
        activity.activity_id, length_ms, attempts = name.split(":")
        activity.activity_type.name = "work"
        activity.task_queue.name = QUEUE
        activity.start_to_close_timeout.FromMilliseconds(int(length_ms))
        activity.retry_policy.initial_interval.FromSeconds(1)
        activity.retry_policy.backoff_coefficient = 2
        activity.retry_policy.maximum_attempts = int(attempts)
    elif kind == "timer":
        made.command_type = CommandType.COMMAND_TYPE_START_TIMER
        timer = made.start_timer_command_attributes
        timer.timer_id, length_ms = name.split(":")
        timer.start_to_fire_timeout.FromMilliseconds(int(length_ms))
    elif kind == "cancel_timer":
        made.command_type = CommandType.COMMAND_TYPE_CANCEL_TIMER
        made.cancel_timer_command_attributes.timer_id = name
    elif kind == "cancel_activity":
        made.command_type = CommandType.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK
        made.request_cancel_activity_task_command_attributes.scheduled_event_id = int(name)
    elif kind == "marker":
        made.command_type = CommandType.COMMAND_TYPE_RECORD_MARKER
        made.record_marker_command_attributes.marker_name = "note"
    elif kind == "complete":
        made.command_type = CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION
        made.complete_workflow_execution_command_attributes.SetInParent()
    elif kind == "fail":
        made.command_type = CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION
        made.fail_workflow_execution_command_attributes.failure.message = "no"
        made.fail_workflow_execution_command_attributes.failure.application_failure_info.type = "No"
    elif kind == "cancel":
        made.command_type = CommandType.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION
        made.cancel_workflow_execution_command_attributes.SetInParent()
    else:
        assert kind == "continue", kind
        made.command_type = CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION
        again = made.continue_as_new_workflow_execution_command_attributes
        again.workflow_type.name = "flow"
        again.task_queue.name = QUEUE
    return made


class Driver:
    """RPC calls on one node, with short polls: an empty queue answers at once.

    Args:
        service: of the node.
        patience_s: how long a poll of a kind of tasks waits, for nodes that live in real time.
    """

    def __init__(
        self, service: Any, patience_s: Callable[[str], float] = lambda kind: 0.001
    ) -> None:
        self.service = service
        self.patience_s = patience_s

    async def start(self, workflow_id: str, request_id: str, reuse: str, conflict: str) -> str:
        request = StartWorkflowExecutionRequest(
            namespace="default",
            workflow_id=workflow_id,
            request_id=request_id,
            workflow_id_reuse_policy=REUSE[reuse],
            workflow_id_conflict_policy=CONFLICT[conflict],
        )
        request.workflow_type.name = "flow"
        request.task_queue.name = QUEUE
        response = await self.service.start_workflow_execution(request)
        return str(response.run_id)

    async def signal(self, workflow_id: str, request_id: str) -> None:
        await self.service.signal_workflow_execution(
            SignalWorkflowExecutionRequest(
                namespace="default",
                workflow_execution=WorkflowExecution(workflow_id=workflow_id),
                signal_name="poke",
                request_id=request_id,
            )
        )

    async def request_cancel(self, workflow_id: str, request_id: str) -> None:
        await self.service.request_cancel_workflow_execution(
            RequestCancelWorkflowExecutionRequest(
                namespace="default",
                workflow_execution=WorkflowExecution(workflow_id=workflow_id),
                request_id=request_id,
            )
        )

    async def terminate(self, workflow_id: str) -> None:
        await self.service.terminate_workflow_execution(
            TerminateWorkflowExecutionRequest(
                namespace="default", workflow_execution=WorkflowExecution(workflow_id=workflow_id)
            )
        )

    async def poll_workflow(self) -> PollWorkflowTaskQueueResponse | None:
        request = PollWorkflowTaskQueueRequest(namespace="default", identity="driver")
        request.task_queue.name = QUEUE
        poll = self.service.poll_workflow_task_queue(request)
        task = await _soon(poll, self.patience_s("workflow"))
        return task if task is not None and task.task_token else None

    async def complete_task(self, token: bytes, commands: list[tuple[str, str]]) -> None:
        await self.service.respond_workflow_task_completed(
            RespondWorkflowTaskCompletedRequest(
                namespace="default", task_token=token, commands=[command(*c) for c in commands]
            )
        )

    async def fail_task(self, token: bytes) -> None:
        await self.service.respond_workflow_task_failed(
            RespondWorkflowTaskFailedRequest(namespace="default", task_token=token)
        )

    async def poll_activity(self) -> PollActivityTaskQueueResponse | None:
        request = PollActivityTaskQueueRequest(namespace="default", identity="driver")
        request.task_queue.name = QUEUE
        poll = self.service.poll_activity_task_queue(request)
        task = await _soon(poll, self.patience_s("activity"))
        return task if task is not None and task.task_token else None

    async def complete_activity(self, token: bytes) -> None:
        await self.service.respond_activity_task_completed(
            RespondActivityTaskCompletedRequest(namespace="default", task_token=token)
        )

    async def cancel_activity(self, token: bytes) -> None:
        await self.service.respond_activity_task_canceled(
            RespondActivityTaskCanceledRequest(namespace="default", task_token=token)
        )

    async def fail_activity(self, token: bytes, retryable: bool) -> None:
        request = RespondActivityTaskFailedRequest(namespace="default", task_token=token)
        request.failure.message = "broken"
        request.failure.application_failure_info.type = "Broken"
        request.failure.application_failure_info.non_retryable = not retryable
        await self.service.respond_activity_task_failed(request)

    async def history(self, workflow_id: str, run_id: str) -> list[Any]:
        request = GetWorkflowExecutionHistoryRequest(
            namespace="default",
            execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
        )
        events = []
        while True:
            page = await self.service.get_workflow_execution_history(request)
            events += page.history.events
            if not page.next_page_token:
                return events
            request.next_page_token = page.next_page_token

    async def describe(self, workflow_id: str, run_id: str) -> Any:
        return await self.service.describe_workflow_execution(
            DescribeWorkflowExecutionRequest(
                namespace="default",
                execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
            )
        )

    async def count(self, query: str) -> int:
        response = await self.service.count_workflow_executions(
            CountWorkflowExecutionsRequest(namespace="default", query=query)
        )
        return int(response.count)


async def _soon(poll: Any, patience_s: float) -> Any:
    """A poll's answer if there is one now; a node must stand polls that are given up."""
    try:
        return await asyncio.wait_for(poll, timeout=patience_s)
    except TimeoutError:
        return None
