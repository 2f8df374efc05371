"""The workflow task: how a run asks its worker to go on.

At most one is there at a time: scheduled, or started by a worker. While one is started, events from
outside are buffered. A task that follows a failed one (*transient*), and one made only to carry an
update (*speculative*), have no events in history until they complete; a worker is shown them all
the same (``transient_events``). Answers of workers are in ``commands``.
"""

from __future__ import annotations

import msgspec
from temporalio.api.enums.v1 import EventType, TimeoutType, WorkflowTaskFailedCause
from temporalio.api.enums.v1 import SuggestContinueAsNewReason as Reason
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import (
    WorkflowTaskFailedEventAttributes,
    WorkflowTaskTimedOutEventAttributes,
)

from perdure.api.errors import NotFound
from perdure.engine import buffer, events
from perdure.engine.execution import Execution
from perdure.engine.limits import Limits
from perdure.engine.state import WorkflowTask
from perdure.engine.transition import TaskRef, Transition, unwritten

WORKFLOW = 1  # TaskQueueType
_PACED_FROM_ATTEMPT = 3
_RUNNING = 1  # WorkflowExecutionStatus; not so a paused run, which is open, too
_SERVER = "history-service"  # who Temporal's histories name for what the server does by itself
_SCHEDULED = int(EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED)
_STARTED = int(EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED)


class StartedTask(msgspec.Struct, gc=False):
    """A workflow task that a worker now holds."""

    scheduled_event_id: int
    started_event_id: int
    attempt: int
    stamp: int
    previous_started_event_id: int


# -- scheduling ------------------------------------------------------------------------------------


def ensure_scheduled(tx: Transition, *, early: bool = False) -> None:
    """See to it that a worker looks at new events; `early`: even before the run is to begin."""
    if tx.answering:
        tx.wants_task = True
        return
    run = tx.run
    task = run.state.workflow_task
    if task is None:
        if run.state.status == _RUNNING and (early or not _begins_later(tx)):
            _schedule(tx)
    elif not task.started_ns and task.speculative:
        run.state.workflow_task = None  # new events: it has to be a task like any other
        _schedule(tx)


def _begins_later(tx: Transition) -> bool:
    """Has the run's first workflow task to wait: for a delay, an attempt, a cron time?"""
    return tx.run.state.first_task_backoff_until_ns > tx.now_ns and never_scheduled(tx.run)


def never_scheduled(run: Execution) -> bool:
    """Has the run had no workflow task yet?"""
    state = run.state
    return (
        state.workflow_task is None
        and not state.last_task_started_event_id
        and not state.failed_task_attempts
    )


def schedule_speculative(tx: Transition) -> None:
    """Ask for a worker's attention without a trace, for an update; a no-op beside another task.

    A run that is to begin later begins now.
    """
    run = tx.run
    if run.state.workflow_task is None and run.state.status == _RUNNING:
        _schedule(tx, speculative=True)


def _schedule(tx: Transition, *, speculative: bool = False) -> None:
    run = tx.run
    state, info = run.state, run.info
    attempt = _next_attempt(tx)
    sticky = bool(state.sticky_queue) and attempt == 1
    queue = state.sticky_queue if sticky else info.task_queue
    state.task_stamp += 1
    task = WorkflowTask(
        state.next_event_id, tx.now_ns, queue, sticky, attempt, state.task_stamp,
        timeout_ns=info.task_timeout_ns, speculative=speculative and attempt == 1,
        original_scheduled_ns=tx.now_ns, due_ns=_due_ns(tx, attempt),
    )  # fmt: skip
    state.workflow_task = task
    if attempt == 1 and not task.speculative:
        tx.append(_SCHEDULED, _scheduled(tx.run, task))
    if sticky:
        tx.wake_at(tx.now_ns + state.sticky_timeout_ns)
    if task.due_ns:
        tx.wake_at(task.due_ns)
    else:
        tx.tasks.append(TaskRef(WORKFLOW, queue, task.scheduled_event_id, task.stamp))


def _next_attempt(tx: Transition) -> int:
    """1, or one more than the attempt that failed if nothing new has happened since."""
    state = tx.run.state
    if state.failed_task_attempts and state.next_event_id == state.event_id_after_failure:
        return state.failed_task_attempts + 1
    state.failed_task_attempts = 0
    return 1


def _due_ns(tx: Transition, attempt: int) -> int:
    """When a task that keeps failing may be tried again; 0: now."""
    if attempt < _PACED_FROM_ATTEMPT:
        return 0
    limits = tx.limits
    doubled = limits.task_retry_pause_ns << min(attempt - _PACED_FROM_ATTEMPT, 20)
    return tx.now_ns + min(doubled, limits.task_retry_pause_max_ns)


def _scheduled(run: Execution, task: WorkflowTask) -> bytes:
    queue = events.task_queue(task.queue, run.info.task_queue if task.sticky else "")
    return events.workflow_task_scheduled(queue, task.timeout_ns, task.attempt)


def _started(task: WorkflowTask, scheduled_event_id: int) -> bytes:
    return events.workflow_task_started(
        scheduled_event_id,
        task.identity,
        task.request_id,
        task.suggest_continue_as_new,
        task.suggest_reasons,
        task.history_size_bytes,
    )


def offer_again(tx: Transition) -> None:
    """Put a task whose pause is over, or whose sticky worker is gone, on its queue."""
    task = tx.run.state.workflow_task
    assert task is not None
    assert not task.started_ns
    task.due_ns = 0
    tx.tasks.append(TaskRef(WORKFLOW, task.queue, task.scheduled_event_id, task.stamp))


def _reasons_to_continue_as_new(run: Execution, limits: Limits) -> tuple[int, ...]:
    """Why a run should go on as a new one; empty when it need not."""
    state = run.state
    found = []
    if state.history_size_bytes > limits.history_suggest_bytes > 0:
        found.append(int(Reason.SUGGEST_CONTINUE_AS_NEW_REASON_HISTORY_SIZE_TOO_LARGE))
    if state.next_event_id > limits.history_suggest_events > 0:
        found.append(int(Reason.SUGGEST_CONTINUE_AS_NEW_REASON_TOO_MANY_HISTORY_EVENTS))
    if len(run.updates) >= limits.updates_suggest > 0:
        found.append(int(Reason.SUGGEST_CONTINUE_AS_NEW_REASON_TOO_MANY_UPDATES))
    return tuple(found)


# -- a worker takes it -----------------------------------------------------------------------------


def start(
    tx: Transition, *, identity: str, request_id: str, in_process: bool, holder: int = 0
) -> StartedTask:
    """A worker takes the scheduled task. Raises NotFound when there is none to take.

    `in_process`: the worker dies with the process of node `holder`.
    """
    state = tx.run.state
    task = state.workflow_task
    if task is None or task.started_ns or not tx.run.is_open:
        raise NotFound("Workflow task not found.")
    written = task.attempt == 1 and not task.speculative
    if not written and state.next_event_id != task.scheduled_event_id:
        _write_scheduled(tx, task)  # events came while it waited: now it is a task like any other
        written = True
    task.started_ns = tx.now_ns
    task.identity = identity
    task.request_id = request_id
    task.in_process = in_process
    task.holder = holder
    task.history_size_bytes = state.history_size_bytes
    task.suggest_reasons = _reasons_to_continue_as_new(tx.run, tx.limits)
    task.suggest_continue_as_new = bool(task.suggest_reasons)
    if written:
        task.started_event_id = tx.append(_STARTED, _started(task, task.scheduled_event_id))
    else:
        task.started_event_id = task.scheduled_event_id + 1
    tx.wake_at(tx.now_ns + task.timeout_ns)
    return StartedTask(
        task.scheduled_event_id,
        task.started_event_id,
        task.attempt,
        task.stamp,
        state.last_task_started_event_id,
    )


def _write_scheduled(tx: Transition, task: WorkflowTask) -> None:
    task.attempt = 1
    task.speculative = False
    tx.run.state.failed_task_attempts = 0
    task.scheduled_event_id = tx.append(_SCHEDULED, _scheduled(tx.run, task))


def write(tx: Transition, task: WorkflowTask) -> None:
    """Put the events of a started task into history, if they are not there yet."""
    if task.attempt == 1 and not task.speculative:
        return
    task.speculative = False
    task.scheduled_event_id = tx.append(_SCHEDULED, _scheduled(tx.run, task))
    task.started_event_id = tx.append(_STARTED, _started(task, task.scheduled_event_id))


def first_command_event_id(run: Execution) -> int:
    """The id of the event that the first command of an answer to the started task will write."""
    task = run.state.workflow_task
    missing = 2 if task is not None and (task.attempt > 1 or task.speculative) else 0
    return run.state.next_event_id + missing + 1  # after the task's completed event


def transient_events(run: Execution) -> bytes:
    """The events of the present task that history does not hold, framed; empty if it holds them."""
    task = run.state.workflow_task
    if task is None or (task.attempt == 1 and not task.speculative):
        return b""
    scheduled = unwritten(
        task.scheduled_event_id, task.scheduled_ns, _SCHEDULED, _scheduled(run, task)
    )
    if not task.started_ns:
        return scheduled
    body = _started(task, task.scheduled_event_id)
    return scheduled + unwritten(task.started_event_id, task.started_ns, _STARTED, body)


def check_token(run: Execution, scheduled_event_id: int, started_event_id: int, stamp: int) -> None:
    """Raise NotFound unless a worker holds just this task."""
    task = run.state.workflow_task
    if (
        task is None
        or not task.started_ns
        or task.stamp != stamp
        or task.scheduled_event_id != scheduled_event_id
        or task.started_event_id != started_event_id
    ):
        raise NotFound("Workflow task not found.")


# -- it ends badly ---------------------------------------------------------------------------------


def fail(
    tx: Transition,
    cause: int,
    failure: Failure | None = None,
    identity: str = "",
    *,
    worker_version: bytes = b"",
) -> None:
    """The started task failed; another takes its place, and the run goes on."""
    task = _held(tx)
    if task.speculative:
        write(tx, task)
    if task.attempt == 1:
        event = WorkflowTaskFailedEventAttributes(
            scheduled_event_id=task.scheduled_event_id,
            started_event_id=task.started_event_id,
            identity=identity or task.identity,
        )
        event.cause = cause  # type: ignore[assignment]
        if failure is not None:
            event.failure.CopyFrom(failure)
        body = event.SerializeToString() + worker_version
        tx.append(EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED, body)
    _end(tx, task, counts=True)
    ensure_scheduled(tx)


def withdraw(tx: Transition, cause: int) -> None:
    """Take a task away that no worker has; one that a worker has stays."""
    state = tx.run.state
    task = state.workflow_task
    if task is None or task.started_ns:
        return
    if task.attempt == 1 and not task.speculative:
        event = WorkflowTaskFailedEventAttributes(
            scheduled_event_id=task.scheduled_event_id, identity=_SERVER
        )
        event.cause = cause  # type: ignore[assignment]
        tx.append(EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED, event)
    state.workflow_task = None


def force_out(tx: Transition) -> None:
    """The run is closed from outside: end a started task, and let buffered events be seen."""
    task = tx.run.state.workflow_task
    if task is None or not task.started_ns:
        tx.run.state.workflow_task = None
        return
    if task.speculative:
        write(tx, task)
    if task.attempt == 1:
        event = WorkflowTaskFailedEventAttributes(
            scheduled_event_id=task.scheduled_event_id,
            started_event_id=task.started_event_id,
            cause=WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,
            identity=_SERVER,
        )
        tx.append(EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED, event)
    _end(tx, task, counts=True)


def time_out(tx: Transition, timeout_type: int) -> None:
    """The task was not started (sticky queues) or not answered in time."""
    task = tx.run.state.workflow_task
    assert task is not None
    waited = timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START
    if task.attempt == 1 and not task.speculative:
        event = WorkflowTaskTimedOutEventAttributes(
            scheduled_event_id=task.scheduled_event_id, started_event_id=task.started_event_id
        )
        event.timeout_type = timeout_type  # type: ignore[assignment]
        tx.append(EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT, event)
    _end(tx, task, counts=not waited)
    if task.speculative and not tx.has_events:
        schedule_speculative(tx)
    else:
        ensure_scheduled(tx)


def take_back(tx: Transition) -> None:
    """The worker that holds the task is gone: another gets it, and no attempt is counted."""
    task = _held(tx)
    written = task.attempt == 1 and not task.speculative
    if written:
        event = WorkflowTaskTimedOutEventAttributes(
            scheduled_event_id=task.scheduled_event_id, started_event_id=task.started_event_id
        )
        event.timeout_type = TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE
        tx.append(EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT, event)
    if not written and not task.speculative:
        state = tx.run.state  # noted before buffered events come in: with news it is no retry
        state.failed_task_attempts = task.attempt - 1
        state.event_id_after_failure = state.next_event_id
    _end(tx, task, counts=False)
    if task.speculative:
        schedule_speculative(tx)
    else:
        ensure_scheduled(tx)


def forget_sticky(tx: Transition) -> None:
    """The worker that has the run in its cache is gone: any worker may have the next task."""
    state = tx.run.state
    state.sticky_queue = ""
    state.sticky_timeout_ns = 0
    task = state.workflow_task
    if task is not None and task.sticky and not task.started_ns:
        time_out(tx, TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START)


def _held(tx: Transition) -> WorkflowTask:
    task = tx.run.state.workflow_task
    if task is None or not task.started_ns:
        raise NotFound("Workflow task not found.")
    return task


def _end(tx: Transition, task: WorkflowTask, *, counts: bool) -> None:
    state = tx.run.state
    state.workflow_task = None
    fresh_worker = bool(state.sticky_queue)  # the next one has nothing cached: it begins anew
    state.sticky_queue = ""
    state.sticky_timeout_ns = 0
    if counts and not fresh_worker:
        state.failed_task_attempts = task.attempt
        state.event_id_after_failure = state.next_event_id
    buffer.flush(tx)
