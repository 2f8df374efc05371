"""What a request must look like before anything is done about it. Pure; raises InvalidArgument."""

from __future__ import annotations

import logging

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from temporalio.api.common.v1 import Priority, RetryPolicy, WorkflowExecution
from temporalio.api.enums.v1 import WorkflowIdConflictPolicy, WorkflowIdReusePolicy
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    ListTaskQueuePartitionsRequest,
    PollActivityTaskQueueRequest,
    PollWorkflowTaskQueueRequest,
    SignalWithStartWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    UpdateTaskQueueConfigRequest,
)

from perdure.api.errors import InvalidArgument
from perdure.api.times import duration_ns
from perdure.engine import cron, priorities
from perdure.service.settings import Settings

log = logging.getLogger("perdure.service")

TERMINATE_IF_RUNNING = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING
REJECT_DUPLICATE = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
TERMINATE_EXISTING = WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING

RESERVED_PREFIX = "/_sys/"

NamesQueue = (
    StartWorkflowExecutionRequest
    | SignalWithStartWorkflowExecutionRequest
    | PollWorkflowTaskQueueRequest
    | PollActivityTaskQueueRequest
    | DescribeTaskQueueRequest
    | ListTaskQueuePartitionsRequest
    | UpdateTaskQueueConfigRequest
)
AnyStart = StartWorkflowExecutionRequest | SignalWithStartWorkflowExecutionRequest


def required(value: str, name: str, settings: Settings) -> None:
    """A name that must be there and must not be too long."""
    if not value:
        raise InvalidArgument(f"{name} is not set on request.")
    bounded(value, name, settings)


def bounded(value: str, name: str, settings: Settings) -> None:
    """A name that must not be too long, in UTF-8."""
    limit = settings.id_bytes_max
    if len(value) * 4 > limit and len(value.encode()) > limit:
        raise InvalidArgument(
            f"{name} length exceeds limit: {len(value.encode())} bytes, {limit} are allowed."
        )
    whole(value, name)


def whole(value: str, name: str) -> None:
    """A name that databases can keep: PostgreSQL has no text with a NUL character in it."""
    if "\0" in value:
        raise InvalidArgument(f"{name} must not contain a NUL character: {value[:100]!r}")


def task_queue(request: NamesQueue, settings: Settings) -> None:
    """The task queue that a request names."""
    if isinstance(request, UpdateTaskQueueConfigRequest):
        name = request.task_queue
    else:
        name = request.task_queue.name
        if not name and not request.HasField("task_queue"):
            raise InvalidArgument("taskQueue is not set")
    if not name:
        raise InvalidArgument("missing task queue name")
    bounded(name, "taskQueue", settings)
    if name.startswith(RESERVED_PREFIX):
        raise InvalidArgument(
            f"task queue name cannot start with reserved prefix {RESERVED_PREFIX}"
        )


def payload(message: Message, name: str, settings: Settings) -> None:
    """A blob that must not be too large."""
    size_bytes, limit = message.ByteSize(), settings.payload_bytes_max
    if size_bytes > limit:
        raise InvalidArgument(
            f"Blob data size exceeds limit: {name} has {size_bytes} bytes, {limit} are allowed "
            "(payload_bytes_max)."
        )
    if size_bytes > settings.payload_bytes_warn:
        log.warning("%s has %d bytes; consider to store it elsewhere", name, size_bytes)


def execution(value: WorkflowExecution, settings: Settings) -> None:
    """Which run a request means."""
    if not value.workflow_id:
        raise InvalidArgument("WorkflowId is not set on request.")
    bounded(value.workflow_id, "WorkflowId", settings)


def workflow_id(value: str, settings: Settings) -> None:
    """The id of a run that is to be started."""
    if not value:
        raise InvalidArgument("WorkflowId is not set on request.")
    size_bytes, limit = len(value.encode()), settings.id_bytes_max
    if size_bytes > limit:
        raise InvalidArgument(f"WorkflowId exceeds maximum allowed length ({size_bytes}/{limit})")
    whole(value, "WorkflowId")


def start(request: AnyStart, settings: Settings) -> None:
    """A start or signal-with-start request."""
    workflow_id(request.workflow_id, settings)
    required(request.workflow_type.name, "WorkflowType", settings)
    task_queue(request, settings)
    bounded(request.request_id, "RequestId", settings)
    bounded(request.identity, "Identity", settings)
    for name in ("workflow_execution_timeout", "workflow_run_timeout", "workflow_task_timeout"):
        if request.HasField(name):
            _length(getattr(request, name), name)
    if request.HasField("retry_policy"):
        retry_policy(request.retry_policy)
    _policies(request)
    _delay(request)
    priority(request.priority)
    payload(request.input, "input", settings)
    payload(request.memo, "memo", settings)
    payload(request.header, "header", settings)


def _length(value: Duration, name: str) -> None:
    if value.seconds < 0 or value.nanos < 0 or not -999_999_999 <= value.nanos <= 999_999_999:
        words = "".join(word.capitalize() for word in name.split("_"))
        raise InvalidArgument(
            f"An invalid {words}Seconds is set on request. cause: negative duration"
        )


def _delay(request: AnyStart) -> None:
    if request.cron_schedule:
        cron.validate(request.cron_schedule)
    if not request.HasField("workflow_start_delay"):
        return
    _length(request.workflow_start_delay, "workflow_start_delay")
    if request.cron_schedule and duration_ns(request.workflow_start_delay):
        raise InvalidArgument("CronSchedule and WorkflowStartDelay may not be used together.")


def _policies(request: AnyStart) -> None:
    reuse, conflict = request.workflow_id_reuse_policy, request.workflow_id_conflict_policy
    if reuse == TERMINATE_IF_RUNNING and conflict:
        raise InvalidArgument(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING cannot "
            "be used together with a WorkflowIDConflictPolicy"
        )
    if conflict == TERMINATE_EXISTING and reuse == REJECT_DUPLICATE:
        raise InvalidArgument(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be "
            "used together with WorkflowIdConflictPolicy "
            "WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING"
        )


def retry_policy(policy: RetryPolicy) -> None:
    """A retry policy; zeros stand for defaults."""
    initial_ns = duration_ns(policy.initial_interval)
    maximum_ns = duration_ns(policy.maximum_interval)
    if policy.maximum_attempts == 1:
        return
    if initial_ns < 0:
        raise InvalidArgument("invalid InitialInterval set on retry policy: negative duration")
    if policy.backoff_coefficient and not policy.backoff_coefficient >= 1:
        raise InvalidArgument("BackoffCoefficient cannot be less than 1 on retry policy.")
    if maximum_ns < 0:
        raise InvalidArgument("invalid MaximumInterval set on retry policy: negative duration")
    if maximum_ns and maximum_ns < initial_ns:
        raise InvalidArgument(
            "MaximumInterval cannot be less than InitialInterval on retry policy."
        )
    if policy.maximum_attempts < 0:
        raise InvalidArgument("MaximumAttempts cannot be negative on retry policy.")


def priority(value: Priority) -> None:
    """The priority of a workflow or activity."""
    fault = priorities.fault(value)
    if fault:
        raise InvalidArgument(fault)


def is_uuid(text: str) -> bool:
    """Has it the form of a run id?"""
    has_form = len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-"
    return has_form and "\0" not in text
