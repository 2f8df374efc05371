"""A run's end, and the run that may follow it: by continue-as-new, retry or cron."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message
from temporalio.api.command.v1 import (
    CancelWorkflowExecutionCommandAttributes,
    CompleteWorkflowExecutionCommandAttributes,
    ContinueAsNewWorkflowExecutionCommandAttributes,
    FailWorkflowExecutionCommandAttributes,
)
from temporalio.api.common.v1 import Memo, Payload, Payloads, SearchAttributes
from temporalio.api.enums.v1 import (
    ContinueAsNewInitiator,
    EventType,
    RetryState,
    TimeoutType,
    WorkflowExecutionStatus,
)
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import (
    ChildWorkflowExecutionCanceledEventAttributes,
    ChildWorkflowExecutionCompletedEventAttributes,
    ChildWorkflowExecutionFailedEventAttributes,
    ChildWorkflowExecutionTerminatedEventAttributes,
    ChildWorkflowExecutionTimedOutEventAttributes,
    WorkflowExecutionCanceledEventAttributes,
    WorkflowExecutionCompletedEventAttributes,
    WorkflowExecutionContinuedAsNewEventAttributes,
    WorkflowExecutionFailedEventAttributes,
    WorkflowExecutionStartedEventAttributes,
    WorkflowExecutionTerminatedEventAttributes,
    WorkflowExecutionTimedOutEventAttributes,
)

from perdure.api.times import duration_ns
from perdure.engine import children, cron, retry, updates, workflow_tasks
from perdure.engine.state import Child, SeenRequest, Update
from perdure.engine.transition import Transition

if TYPE_CHECKING:
    from perdure.engine.lifecycle import StartRun

_Status = WorkflowExecutionStatus
_Initiator = ContinueAsNewInitiator
_REQUESTS_KEPT: Final = 100  # by a run that follows another: the latest
_STATUS_COMPLETED = int(_Status.WORKFLOW_EXECUTION_STATUS_COMPLETED)
_COMPLETED = int(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED)
_CHILD_COMPLETED = int(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED)
_CONTINUED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW


# -- by command ------------------------------------------------------------------------------------


def complete(
    tx: Transition, command: CompleteWorkflowExecutionCommandAttributes, completed_event_id: int
) -> None:
    """The workflow's code returned."""
    result = command.result.SerializeToString()
    tx.successor = _next_cron(tx, last_completion_result=result)
    event = WorkflowExecutionCompletedEventAttributes(
        workflow_task_completed_event_id=completed_event_id, new_execution_run_id=_next_id(tx)
    )
    news = ChildWorkflowExecutionCompletedEventAttributes()
    if command.HasField("result"):
        event.result.CopyFrom(command.result)
        news.result.CopyFrom(command.result)
    _close(tx, _STATUS_COMPLETED, _COMPLETED, event, _CHILD_COMPLETED, news)


def fail(
    tx: Transition, command: FailWorkflowExecutionCommandAttributes, completed_event_id: int
) -> None:
    """The workflow's code raised: another attempt, the next cron run, or the end."""
    failure = command.failure
    state = _retry(tx, failure)
    event = WorkflowExecutionFailedEventAttributes(
        workflow_task_completed_event_id=completed_event_id, new_execution_run_id=_next_id(tx)
    )
    event.failure.CopyFrom(failure)
    event.retry_state = state  # type: ignore[assignment]
    news = ChildWorkflowExecutionFailedEventAttributes()
    news.failure.CopyFrom(failure)
    news.retry_state = state  # type: ignore[assignment]
    _close(tx, _Status.WORKFLOW_EXECUTION_STATUS_FAILED,
           EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED, event,
           EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED, news)  # fmt: skip


def cancel(
    tx: Transition, command: CancelWorkflowExecutionCommandAttributes, completed_event_id: int
) -> None:
    """The workflow's code ended because it was asked to cancel."""
    event = WorkflowExecutionCanceledEventAttributes(
        workflow_task_completed_event_id=completed_event_id
    )
    news = ChildWorkflowExecutionCanceledEventAttributes()
    if command.HasField("details"):
        event.details.CopyFrom(command.details)
        news.details.CopyFrom(command.details)
    _close(tx, _Status.WORKFLOW_EXECUTION_STATUS_CANCELED,
           EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED, event,
           EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED, news)  # fmt: skip


def continue_as_new(
    tx: Transition,
    command: ContinueAsNewWorkflowExecutionCommandAttributes,
    completed_event_id: int,
) -> None:
    """The workflow's code starts over with a fresh history."""
    next_run = tx.successor = _continued(tx, command)
    event = WorkflowExecutionContinuedAsNewEventAttributes(
        new_execution_run_id=next_run.run_id,
        workflow_task_completed_event_id=completed_event_id,
    )
    event.workflow_type.name = next_run.workflow_type
    event.task_queue.name = next_run.task_queue
    event.task_queue.kind = command.task_queue.kind or 1  # type: ignore[assignment]
    event.workflow_run_timeout.FromNanoseconds(next_run.run_timeout_ns)
    event.workflow_task_timeout.FromNanoseconds(next_run.task_timeout_ns)
    event.initiator = command.initiator
    for name in (
        "input", "header", "failure", "last_completion_result", "backoff_start_interval",
    ):  # fmt: skip
        if command.HasField(name):
            getattr(event, name).CopyFrom(getattr(command, name))
    event.memo.MergeFromString(next_run.memo)
    event.search_attributes.MergeFromString(next_run.attributes)
    _close(tx, _Status.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW, _CONTINUED, event, 0, None)


# -- from outside ----------------------------------------------------------------------------------


def terminate(
    tx: Transition, reason: str, details: Payloads | None = None, identity: str = ""
) -> None:
    """End an open run at once; nothing follows it."""
    workflow_tasks.force_out(tx)
    event = WorkflowExecutionTerminatedEventAttributes(reason=reason, identity=identity)
    if details is not None and details.payloads:
        event.details.CopyFrom(details)
    _close(tx, _Status.WORKFLOW_EXECUTION_STATUS_TERMINATED,
           EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED, event,
           EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED,
           ChildWorkflowExecutionTerminatedEventAttributes())  # fmt: skip


def time_out(tx: Transition) -> None:
    """The run's or the execution's timeout ran out."""
    workflow_tasks.force_out(tx)
    failure = Failure(message="workflow timeout", source="Server")
    failure.timeout_failure_info.timeout_type = TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE
    state: int = RetryState.RETRY_STATE_TIMEOUT
    deadline = tx.run.info.execution_deadline_ns
    if not deadline or tx.now_ns < deadline:
        state = _retry(tx, failure)
    event = WorkflowExecutionTimedOutEventAttributes(new_execution_run_id=_next_id(tx))
    event.retry_state = state  # type: ignore[assignment]
    news = ChildWorkflowExecutionTimedOutEventAttributes()
    news.retry_state = state  # type: ignore[assignment]
    _close(tx, _Status.WORKFLOW_EXECUTION_STATUS_TIMED_OUT,
           EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT, event,
           EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT, news)  # fmt: skip


def enforce_history_limit(tx: Transition) -> None:
    """End a run whose history has grown past the bound, and say why."""
    limits, state = tx.limits, tx.run.state
    if not tx.run.is_open:
        return
    if 0 < limits.history_events_max < state.next_event_id - 1:
        terminate(tx, "Workflow history count exceeds limit.", identity="history-service")
    elif 0 < limits.history_bytes_max < state.history_size_bytes:
        terminate(tx, "Workflow history size exceeds limit.", identity="history-service")


# -- the end ---------------------------------------------------------------------------------------


def _close(
    tx: Transition, status: int, event_type: int, event: Message, news_type: int, news: Any
) -> None:
    """Write the closing event, tell the family, and let go of all that was pending."""
    run = tx.run
    state = run.state
    state.workflow_task = None
    state.close_event_id = tx.append(event_type, event)
    state.status = status
    state.close_ns = tx.now_ns
    state.successor_run_id = _next_id(tx)
    children.close_all(tx)
    if news is not None:
        children.tell_parent(tx, news_type, news)
    updates.abort(tx)
    for item in list(run.items.values()):
        starting = isinstance(item, Child) and not item.key  # its delivery may be under way
        if not starting and not isinstance(item, Update | SeenRequest):
            tx.drop(item)
    state.in_process_activities = 0
    state.wake_at_ns = 0
    tx.tasks.clear()
    tx.closed = tx.visible = tx.wake_changed = True


def _next_id(tx: Transition) -> str:
    return tx.successor.run_id if tx.successor is not None else ""


# -- what follows ----------------------------------------------------------------------------------


def _retry(tx: Transition, failure: Failure) -> int:
    """Set tx.successor if another attempt or cron run follows; the RetryState to record."""
    info = tx.run.info
    pause_ns, state = retry.decide(
        info.retry, info.attempt, tx.now_ns, info.execution_deadline_ns, failure
    )
    if pause_ns >= 0:
        tx.successor = _following(
            tx,
            initiator=_Initiator.CONTINUE_AS_NEW_INITIATOR_RETRY,
            attempt=info.attempt + 1,
            first_task_backoff_ns=pause_ns,
            continued_failure=failure.SerializeToString(),
        )
        return RetryState.RETRY_STATE_IN_PROGRESS
    tx.successor = _next_cron(tx, continued_failure=failure.SerializeToString())
    return state


def _next_cron(tx: Transition, **result: bytes) -> StartRun | None:
    info, state = tx.run.info, tx.run.state
    if not info.cron_schedule:
        return None
    due_ns = state.first_task_backoff_until_ns or info.start_ns
    pause_ns = cron.backoff_ns(info.cron_schedule, due_ns, tx.now_ns)
    deadline = info.execution_deadline_ns
    if pause_ns is None or (deadline and tx.now_ns + pause_ns > deadline):
        return None
    return _following(
        tx,
        initiator=_Initiator.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE,
        first_task_backoff_ns=pause_ns,
        **result,
    )


def _following(tx: Transition, **changes: Any) -> StartRun:
    """The next run of the chain, as this one was started, but for `changes`."""
    from perdure.engine.lifecycle import StartRun  # which closes runs

    info = tx.run.info
    values: dict[str, Any] = {
        name: getattr(info, name)
        for name in (
            "namespace", "namespace_id", "workflow_id", "workflow_type", "task_queue",
            "execution_timeout_ns", "run_timeout_ns", "task_timeout_ns", "retry",
            "cron_schedule", "first_run_id", "execution_deadline_ns", "parent_namespace",
            "parent_workflow_id", "parent_run_id", "parent_key", "parent_initiated_event_id",
            "root_workflow_id", "root_run_id", "priority",
        )
    }  # fmt: skip
    started = _start_attributes(tx)
    values |= {
        "run_id": tx.new_id(),
        "continued_from_run_id": info.run_id,
        "request_id": info.start_request_id,
        "seen_requests": tuple(tx.run.requests)[-_REQUESTS_KEPT:],  # sent again, they come here
        "memo": tx.run.memo,
        "attributes": tx.run.attributes,
        "input": started.input.SerializeToString(),
        "header": started.header.SerializeToString(),
        "parent_namespace_id": started.parent_workflow_namespace_id or info.namespace_id,
        "last_completion_result": started.last_completion_result.SerializeToString(),
    }
    return StartRun(**(values | changes))


def _start_attributes(tx: Transition) -> WorkflowExecutionStartedEventAttributes:
    kept = tx.run.start_attributes
    return WorkflowExecutionStartedEventAttributes.FromString(kept.attributes if kept else b"")


def _continued(
    tx: Transition, command: ContinueAsNewWorkflowExecutionCommandAttributes
) -> StartRun:
    """The run that a continue-as-new command describes; what it leaves out stays as it was."""
    info = tx.run.info
    run_timeout_ns = duration_ns(command.workflow_run_timeout) or info.run_timeout_ns
    if info.execution_timeout_ns:
        run_timeout_ns = min(run_timeout_ns or info.execution_timeout_ns, info.execution_timeout_ns)
    task_timeout_ns = duration_ns(command.workflow_task_timeout) or info.task_timeout_ns
    changes: dict[str, Any] = {
        "initiator": command.initiator or _Initiator.CONTINUE_AS_NEW_INITIATOR_WORKFLOW,
        "workflow_type": command.workflow_type.name or info.workflow_type,
        "task_queue": command.task_queue.name or info.task_queue,
        "run_timeout_ns": run_timeout_ns,
        "task_timeout_ns": min(task_timeout_ns, run_timeout_ns or task_timeout_ns),
        "first_task_backoff_ns": duration_ns(command.backoff_start_interval),
        "input": command.input.SerializeToString(),
        "header": command.header.SerializeToString(),
        "cron_schedule": command.cron_schedule or info.cron_schedule,
        "last_completion_result": command.last_completion_result.SerializeToString(),
        "continued_failure": command.failure.SerializeToString(),
    }
    if command.HasField("memo"):  # it takes the place of the old one, as a whole
        changes["memo"] = merged_memo(b"", command.memo)
    if command.HasField("search_attributes"):
        changes["attributes"] = merged_attributes(b"", command.search_attributes)
    if command.HasField("retry_policy"):
        changes["retry"] = retry.policy(command.retry_policy)
    return _following(tx, **changes)


def merged_memo(old: bytes, changes: Memo) -> bytes:
    """A memo with the changed fields in place; a field set to null is removed."""
    if not changes.fields:
        return old
    memo = Memo.FromString(old)
    for name, payload in changes.fields.items():
        if is_null(payload):
            memo.fields.pop(name, None)
        else:
            memo.fields[name].CopyFrom(payload)
    return memo.SerializeToString(deterministic=True)


def merged_attributes(old: bytes, changes: SearchAttributes) -> bytes:
    """Search attributes with the changed ones in place; one set to null or nothing is removed."""
    if not changes.indexed_fields:
        return old
    attributes = SearchAttributes.FromString(old)
    for name, payload in changes.indexed_fields.items():
        if is_null(payload) or payload.data in (b"null", b"[]"):
            attributes.indexed_fields.pop(name, None)
        else:
            attributes.indexed_fields[name].CopyFrom(payload)
    return attributes.SerializeToString(deterministic=True)


def is_null(payload: Payload) -> bool:
    """Whether a payload says that there is no value."""
    encoding = payload.metadata.get("encoding")
    return encoding == b"binary/null" or (encoding == b"json/plain" and payload.data == b"null")
