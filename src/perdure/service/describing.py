"""Describe: all that is known of one run now, with everything that it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.common.v1 import Payloads
from temporalio.api.common.v1 import RetryPolicy as RetryPolicyMessage
from temporalio.api.enums.v1 import (
    EventType,
    PendingActivityState,
    PendingWorkflowTaskState,
    TaskQueueKind,
)
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import History
from temporalio.api.sdk.v1 import UserMetadata
from temporalio.api.workflow.v1 import (
    PendingActivityInfo,
    PendingChildExecutionInfo,
    PendingWorkflowTaskInfo,
    WorkflowExecutionConfig,
    WorkflowExecutionExtendedInfo,
    WorkflowExecutionInfo,
)
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
)

from perdure.api.errors import InvalidArgument
from perdure.api.times import duration, timestamp
from perdure.engine.execution import Execution
from perdure.engine.state import Activity, Child, RetryPolicy, WorkflowTask
from perdure.service import pages, records, visibility
from perdure.service.reading import reading

if TYPE_CHECKING:
    from perdure.service.node import Node

NORMAL = TaskQueueKind.TASK_QUEUE_KIND_NORMAL


def _set_time(field: Timestamp, time_ns: int) -> None:
    if time_ns:
        field.CopyFrom(timestamp(time_ns))


def _set_length(field: Duration, length_ns: int) -> None:
    if length_ns:
        field.CopyFrom(duration(length_ns))


# -- the run ---------------------------------------------------------------------------------------


def execution_info(run: Execution) -> WorkflowExecutionInfo:
    """The run's list entry, with its counts as of now."""
    info = visibility.execution_info(records.record(run, {}))
    info.history_length = run.state.next_event_id - 1
    info.history_size_bytes = run.state.history_size_bytes
    info.state_transition_count = run.state.transition_count
    info.assigned_build_id = run.state.assigned_build_id
    return info


def config(run: Execution) -> WorkflowExecutionConfig:
    """What the start decided."""
    made = WorkflowExecutionConfig()
    made.task_queue.name = run.info.task_queue
    made.task_queue.kind = NORMAL
    _set_length(made.workflow_execution_timeout, run.info.execution_timeout_ns)
    _set_length(made.workflow_run_timeout, run.info.run_timeout_ns)
    _set_length(made.default_workflow_task_timeout, run.info.task_timeout_ns)
    return made


def extended_info(run: Execution) -> WorkflowExecutionExtendedInfo:
    """Deadlines, cancellation, resets, and the request id of the start."""
    made = WorkflowExecutionExtendedInfo()
    _set_time(made.execution_expiration_time, run.info.execution_deadline_ns)
    _set_time(made.run_expiration_time, run.info.run_deadline_ns)
    _set_time(made.original_start_time, run.info.start_ns)
    made.cancel_requested = run.state.cancel_requested
    made.reset_run_id = run.state.reset_run_id
    if run.info.start_request_id and not run.info.continued_from_run_id:
        started = made.request_id_infos[run.info.start_request_id]
        started.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
        started.event_id = 1
    if run.pause is not None:
        made.pause_info.identity = run.pause.identity
        made.pause_info.reason = run.pause.reason
        _set_time(made.pause_info.paused_time, run.pause.paused_ns)
    return made


# -- what it waits for -----------------------------------------------------------------------------


def pending_workflow_task(task: WorkflowTask) -> PendingWorkflowTaskInfo:
    """A workflow task that is scheduled or started."""
    made = PendingWorkflowTaskInfo()
    made.attempt = task.attempt
    made.scheduled_time.CopyFrom(timestamp(task.scheduled_ns))
    made.original_scheduled_time.CopyFrom(
        timestamp(task.original_scheduled_ns or task.scheduled_ns)
    )
    if task.started_ns:
        made.state = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
        made.started_time.CopyFrom(timestamp(task.started_ns))
    else:
        made.state = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
    return made


def pending_child(child: Child) -> PendingChildExecutionInfo:
    """A child workflow that was initiated and has not closed."""
    return PendingChildExecutionInfo(
        workflow_id=child.workflow_id,
        run_id=child.run_id,
        workflow_type_name=child.workflow_type,
        initiated_id=child.initiated_event_id,
        parent_close_policy=child.parent_close_policy,  # type: ignore[arg-type]
    )


def activity_state(activity: Activity) -> PendingActivityState.ValueType:
    """Whether an attempt runs, waits, is paused, or is asked to cancel."""
    if activity.started_ns:
        if activity.cancel_requested:
            return PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED
        if activity.paused_ns:
            return PendingActivityState.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED
        return PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
    if activity.paused_ns:
        return PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED
    return PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED


def pending_activity(activity: Activity, now_ns: int) -> PendingActivityInfo:
    """An activity that has not closed: its attempt, last failure, last heartbeat and next retry."""
    made = PendingActivityInfo()
    made.activity_id = activity.activity_id
    made.activity_type.name = activity.activity_type
    made.state = activity_state(activity)
    made.attempt = 1 if activity.reset else activity.attempt
    made.maximum_attempts = activity.retry.maximum_attempts if activity.retry else 0
    if activity.schedule_to_close_ns:
        made.expiration_time.CopyFrom(
            timestamp(activity.scheduled_ns + activity.schedule_to_close_ns)
        )
    _fill_progress(made, activity)
    _fill_retry(made, activity, now_ns)
    _fill_options(made, activity)
    if activity.paused_ns:
        made.paused = True
        made.pause_info.pause_time.CopyFrom(timestamp(activity.paused_ns))
        made.pause_info.manual.identity = activity.pause_identity
        made.pause_info.manual.reason = activity.pause_reason
    if activity.priority:
        made.priority.MergeFromString(activity.priority)
    return made


def _fill_progress(made: PendingActivityInfo, activity: Activity) -> None:
    _set_time(made.last_started_time, activity.started_ns)
    _set_time(made.last_heartbeat_time, activity.last_heartbeat_ns)
    _set_time(made.last_attempt_complete_time, activity.last_attempt_complete_ns)
    made.last_worker_identity = activity.started_identity or activity.last_worker_identity
    if activity.heartbeat_details:
        made.heartbeat_details.CopyFrom(Payloads.FromString(activity.heartbeat_details))
    if activity.last_failure:
        made.last_failure.CopyFrom(Failure.FromString(activity.last_failure))


def _fill_retry(made: PendingActivityInfo, activity: Activity, now_ns: int) -> None:
    """`scheduled_time` is when the present attempt became, or will become, ready."""
    due_ns = activity.due_ns or activity.scheduled_ns
    made.scheduled_time.CopyFrom(timestamp(due_ns))
    if activity.started_ns or due_ns <= now_ns or activity.paused_ns:
        return
    made.next_attempt_schedule_time.CopyFrom(timestamp(due_ns))
    if activity.last_attempt_complete_ns:
        made.current_retry_interval.CopyFrom(
            duration(max(0, due_ns - activity.last_attempt_complete_ns))
        )


def _fill_options(made: PendingActivityInfo, activity: Activity) -> None:
    options = made.activity_options
    options.task_queue.name = options.task_queue.normal_name = activity.queue
    options.schedule_to_close_timeout.CopyFrom(duration(activity.schedule_to_close_ns))
    options.schedule_to_start_timeout.CopyFrom(duration(activity.schedule_to_start_ns))
    options.start_to_close_timeout.CopyFrom(duration(activity.start_to_close_ns))
    options.heartbeat_timeout.CopyFrom(duration(activity.heartbeat_ns))
    if activity.retry is not None:
        options.retry_policy.CopyFrom(_retry_policy(activity.retry))


def _retry_policy(retry: RetryPolicy) -> RetryPolicyMessage:
    made = RetryPolicyMessage(
        backoff_coefficient=retry.backoff_coefficient,
        maximum_attempts=retry.maximum_attempts,
        non_retryable_error_types=retry.non_retryable_types,
    )
    _set_length(made.initial_interval, retry.initial_interval_ns)
    _set_length(made.maximum_interval, retry.maximum_interval_ns)
    return made


def describe(run: Execution, now_ns: int) -> DescribeWorkflowExecutionResponse:
    """The whole answer."""
    answer = DescribeWorkflowExecutionResponse(
        execution_config=config(run),
        workflow_execution_info=execution_info(run),
        workflow_extended_info=extended_info(run),
    )
    if run.is_open:
        answer.pending_activities.extend(
            pending_activity(activity, now_ns) for activity in run.activities.values()
        )
        answer.pending_children.extend(pending_child(child) for child in run.children.values())
        if run.state.workflow_task is not None:
            answer.pending_workflow_task.CopyFrom(pending_workflow_task(run.state.workflow_task))
    return answer


class DescribeRPCs:
    """Describe, as a part of the service."""

    node: Node

    async def describe_workflow_execution(
        self, request: DescribeWorkflowExecutionRequest
    ) -> DescribeWorkflowExecutionResponse:
        """What a run is, has done and waits for; of what is shown, nothing can be lost any more.

        Raises:
            InvalidArgument: no or a wrong execution.
            NotFound: no such run.
        """
        node = self.node
        node.namespaces.get(request.namespace)
        if not request.HasField("execution"):
            raise InvalidArgument("Execution is not set on request.")
        execution = request.execution
        key = await node.executions.resolve(
            request.namespace, execution.workflow_id, execution.run_id
        )
        answer = await node.executions.view(
            key, lambda entry: describe(entry.run, node.clock.now_ns())
        )
        metadata = await self._user_metadata(key)
        if metadata is not None:
            answer.execution_config.user_metadata.CopyFrom(metadata)
        return answer

    async def _user_metadata(self, key: int) -> UserMetadata | None:
        """What the caller of the start wrote for people to read: only the first event has it."""
        with reading():
            found = await self.node.store.history(key, 1, 1, limit=1)
        if not found:
            return None  # deleted meanwhile
        [event] = History.FromString(next(pages.frames(found[0].events))).events
        return event.user_metadata if event.HasField("user_metadata") else None
