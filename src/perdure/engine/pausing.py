"""A run that is held: events still arrive, but no worker gets a task of it until it goes on."""

from __future__ import annotations

from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus, WorkflowTaskFailedCause
from temporalio.api.history.v1 import (
    HistoryEvent,
    WorkflowExecutionPausedEventAttributes,
    WorkflowExecutionUnpausedEventAttributes,
)
from temporalio.api.workflowservice.v1 import (
    PauseWorkflowExecutionRequest,
    UnpauseWorkflowExecutionRequest,
)

from perdure.api.errors import FailedPrecondition
from perdure.engine import activities, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.lifecycle import AlreadyClosed
from perdure.engine.state import Pause
from perdure.engine.transition import Transition

_RUNNING = int(WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING)
_PAUSED = int(WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED)
_BEFORE_START = (
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_PAUSE_REQUESTED_BEFORE_TASK_STARTED
)
_IGNORABLE = HistoryEvent(worker_may_ignore=True).SerializeToString()


def holds(run: Execution) -> list[str]:
    """What of a run is paused, in the words of the search attribute TemporalPauseInfo."""
    found = []
    if run.pause is not None:
        found += [f"Workflow:{run.info.workflow_id}", f"Reason:{run.pause.reason}"]
    types = {each.activity_type for each in run.activities.values() if each.paused_ns}
    return found + [f"property:activityType={name}" for name in sorted(types)]


def pause(tx: Transition, request: PauseWorkflowExecutionRequest) -> None:
    """Hold the run; the same request again does nothing.

    A workflow task that a worker has may still be answered; one that none has is taken away.
    Raises AlreadyClosed, FailedPrecondition (it is held already).
    """
    run = tx.run
    if not run.is_open:
        raise AlreadyClosed
    if run.is_held:
        if run.pause is not None and request.request_id == run.pause.request_id != "":
            return
        raise FailedPrecondition("workflow is already paused.")
    workflow_tasks.withdraw(tx, _BEFORE_START)
    event = WorkflowExecutionPausedEventAttributes(
        identity=request.identity, reason=request.reason, request_id=request.request_id
    )
    tx.record(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_PAUSED, event, extra=_IGNORABLE)
    run.state.status = _PAUSED
    tx.put(Pause(tx.item_id(), tx.now_ns, request.identity, request.reason, request.request_id))
    tx.visible = True


def unpause(tx: Transition, request: UnpauseWorkflowExecutionRequest) -> None:
    """Let the run go on: what is ready is offered again, and its code gets to see what came.

    Raises AlreadyClosed, FailedPrecondition (it is not held).
    """
    run = tx.run
    if not run.is_open:
        raise AlreadyClosed
    if not run.is_held:
        raise FailedPrecondition("workflow is not paused.")
    event = WorkflowExecutionUnpausedEventAttributes(
        identity=request.identity, reason=request.reason, request_id=request.request_id
    )
    tx.record(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UNPAUSED, event, extra=_IGNORABLE)
    run.state.status = _RUNNING
    if run.pause is not None:
        tx.drop(run.pause)
    tx.visible = True
    tx.wake_at(run.state.first_task_backoff_until_ns)
    for activity in list(run.activities.values()):
        if not activity.started_ns and not activity.waiting:
            activity.stamp += 1  # a task that was left lying is void
            activities.offer(tx, activity)
            tx.put(activity)
    workflow_tasks.ensure_scheduled(tx)
