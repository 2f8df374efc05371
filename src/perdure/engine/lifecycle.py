"""A run's beginning, and what others do to it: signals, requests to cancel, termination."""

from __future__ import annotations

from functools import lru_cache

import msgspec
from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import ContinueAsNewInitiator, EventType
from temporalio.api.history.v1 import (
    WorkflowExecutionCancelRequestedEventAttributes,
    WorkflowExecutionOptionsUpdatedEventAttributes,
    WorkflowExecutionSignaledEventAttributes,
    WorkflowExecutionStartedEventAttributes,
)
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
)

from perdure.api import wire
from perdure.api.errors import InvalidArgument, NotFound
from perdure.api.times import duration, timestamp
from perdure.engine import closing, events, retry, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.state import RetryPolicy, RunInfo, RunState, SeenRequest, StartAttributes
from perdure.engine.transition import Transition

_BY_CODE = ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_WORKFLOW


class StartRun(msgspec.Struct, kw_only=True):
    """All that decides a new run. Lengths and times in nanoseconds, 0 for none; bytes serialised.

    Made from a request, from a parent's command, or from the end of the run before.
    """

    namespace: str
    namespace_id: str
    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    request_id: str = ""
    identity: str = ""
    input: bytes = b""  # Payloads
    header: bytes = b""
    memo: bytes = b""
    attributes: bytes = b""  # SearchAttributes
    user_metadata: bytes = b""
    links: bytes = b""  # as fields of an event
    priority: bytes = b""
    eager: bool = False  # the first workflow task goes to whoever starts the run
    execution_timeout_ns: int = 0
    run_timeout_ns: int = 0
    task_timeout_ns: int = 10_000_000_000
    retry: RetryPolicy | None = None
    cron_schedule: str = ""
    first_task_backoff_ns: int = 0
    attempt: int = 1
    # of a run that follows another
    initiator: int = ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_UNSPECIFIED
    first_run_id: str = ""
    original_run_id: str = ""
    continued_from_run_id: str = ""
    execution_deadline_ns: int = 0  # carried along the chain
    continued_failure: bytes = b""
    last_completion_result: bytes = b""
    seen_requests: tuple[str, ...] = ()  # what the run before has applied, or its forerunners
    # of a child
    parent_namespace: str = ""
    parent_namespace_id: str = ""
    parent_workflow_id: str = ""
    parent_run_id: str = ""
    parent_key: int = 0
    parent_initiated_event_id: int = 0
    root_workflow_id: str = ""
    root_run_id: str = ""


_duration = lru_cache(maxsize=1024)(duration)  # to copy from: most runs have the same few


def new_execution(key: int, start: StartRun, now_ns: int) -> Execution:
    """The empty run to which `start` is applied."""
    begins_ns = now_ns + start.first_task_backoff_ns
    execution_deadline = start.execution_deadline_ns
    if not execution_deadline and start.execution_timeout_ns:
        execution_deadline = begins_ns + start.execution_timeout_ns
    run_deadline = begins_ns + start.run_timeout_ns if start.run_timeout_ns else 0
    if execution_deadline:
        run_deadline = min(run_deadline or execution_deadline, execution_deadline)
    info = RunInfo(
        start.namespace,
        start.namespace_id,
        start.workflow_id,
        start.run_id,
        start.first_run_id or start.run_id,
        start.original_run_id or start.run_id,
        start.workflow_type,
        start.task_queue,
        start.request_id,
        now_ns,
        execution_timeout_ns=start.execution_timeout_ns,
        run_timeout_ns=start.run_timeout_ns,
        task_timeout_ns=start.task_timeout_ns,
        execution_deadline_ns=execution_deadline,
        run_deadline_ns=run_deadline,
        attempt=start.attempt,
        retry=start.retry,
        cron_schedule=start.cron_schedule,
        continued_from_run_id=start.continued_from_run_id,
        parent_namespace=start.parent_namespace,
        parent_workflow_id=start.parent_workflow_id,
        parent_run_id=start.parent_run_id,
        parent_key=start.parent_key,
        parent_initiated_event_id=start.parent_initiated_event_id,
        root_workflow_id=start.root_workflow_id,
        root_run_id=start.root_run_id,
        priority=start.priority,
    )
    return Execution(key, info, RunState(), memo=start.memo, attributes=start.attributes)


def start(
    tx: Transition,
    start: StartRun,
    first_signal: SignalWorkflowExecutionRequest | None = None,
) -> None:
    """Write the started event of a run made by `new_execution`, and ask for a worker.

    `first_signal` comes with the start: it is in history before the first workflow task.
    """
    run = tx.run
    extra = start.links
    if start.user_metadata:
        extra += wire.block(events.USER_METADATA, start.user_metadata)
    body = _started(run, start).SerializeToString()
    tx.append(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED, body, extra)
    if run.info.retry is not None or run.info.cron_schedule:
        tx.put(StartAttributes(tx.item_id(), body))
    for request_id in start.seen_requests:
        tx.put(SeenRequest(tx.item_id(), request_id))
    tx.visible = True
    tx.wake_at(run.info.run_deadline_ns)
    if start.first_task_backoff_ns:
        run.state.first_task_backoff_until_ns = tx.now_ns + start.first_task_backoff_ns
        tx.wake_at(run.state.first_task_backoff_until_ns)
    if first_signal is not None:
        signal(tx, first_signal)
    workflow_tasks.ensure_scheduled(tx)


def _started(run: Execution, start: StartRun) -> WorkflowExecutionStartedEventAttributes:
    info = run.info
    event = WorkflowExecutionStartedEventAttributes(
        workflow_id=info.workflow_id,
        original_execution_run_id=info.original_run_id,
        first_execution_run_id=info.first_run_id,
        continued_execution_run_id=info.continued_from_run_id,
        identity=start.identity,
        attempt=info.attempt,
        cron_schedule=info.cron_schedule,
        eager_execution_accepted=start.eager,
    )
    event.initiator = start.initiator  # type: ignore[assignment]
    event.workflow_type.name = info.workflow_type
    event.task_queue.MergeFromString(events.task_queue(info.task_queue))
    if info.execution_timeout_ns:
        event.workflow_execution_timeout.CopyFrom(_duration(info.execution_timeout_ns))
    if info.run_timeout_ns or info.parent_workflow_id or start.initiator == _BY_CODE:
        event.workflow_run_timeout.CopyFrom(_duration(info.run_timeout_ns))
    event.workflow_task_timeout.CopyFrom(_duration(info.task_timeout_ns))
    if start.first_task_backoff_ns or start.initiator != _BY_CODE:
        event.first_workflow_task_backoff.CopyFrom(_duration(start.first_task_backoff_ns))
    if info.retry is not None:
        event.retry_policy.CopyFrom(retry.message_of(info.retry))
    if info.execution_deadline_ns:
        event.workflow_execution_expiration_time.CopyFrom(timestamp(info.execution_deadline_ns))
    _add_serialised(event, start)
    _add_family(event, start)
    return event


def _add_serialised(event: WorkflowExecutionStartedEventAttributes, start: StartRun) -> None:
    for name, body in (
        ("input", start.input),
        ("header", start.header),
        ("memo", start.memo),
        ("search_attributes", start.attributes),
        ("priority", start.priority),
        ("continued_failure", start.continued_failure),
        ("last_completion_result", start.last_completion_result),
    ):
        if body:
            getattr(event, name).MergeFromString(body)


def _add_family(event: WorkflowExecutionStartedEventAttributes, start: StartRun) -> None:
    if start.parent_workflow_id:
        event.parent_workflow_namespace = start.parent_namespace
        event.parent_workflow_namespace_id = start.parent_namespace_id
        event.parent_workflow_execution.workflow_id = start.parent_workflow_id
        event.parent_workflow_execution.run_id = start.parent_run_id
        event.parent_initiated_event_id = start.parent_initiated_event_id
    if start.root_workflow_id:
        event.root_workflow_execution.workflow_id = start.root_workflow_id
        event.root_workflow_execution.run_id = start.root_run_id


# -- what others do --------------------------------------------------------------------------------


class AlreadyClosed(NotFound):
    """The run has ended. Whoever only asked it to cancel has what they wanted."""

    def __init__(self) -> None:
        super().__init__("workflow execution already completed")


def _check_open(tx: Transition) -> None:
    if not tx.run.is_open:
        raise AlreadyClosed


def _is_repeated(tx: Transition, request_id: str) -> bool:
    """Whether the request was applied before; if not, it is remembered."""
    if not request_id:
        return False
    if request_id in tx.run.requests:
        return True
    tx.put(SeenRequest(tx.item_id(), request_id))
    return False


def signal(
    tx: Transition,
    request: SignalWorkflowExecutionRequest,
    *,
    external_workflow_id: str = "",
    external_run_id: str = "",
) -> None:
    """Record a signal; one with a request id that was seen before does nothing.

    Raises NotFound (closed), InvalidArgument (too many signals in this run).
    """
    if request.request_id in tx.run.requests:
        return  # also when the run has closed since: it was delivered
    _check_open(tx)
    state, limit = tx.run.state, tx.limits.signals_max
    if 0 < limit <= state.signal_count:
        raise InvalidArgument(
            f"exceeded workflow execution limit for signal events: {limit} signals in one run; "
            "continue as new to take more"
        )
    _is_repeated(tx, request.request_id)
    state.signal_count += 1
    event = WorkflowExecutionSignaledEventAttributes(
        signal_name=request.signal_name,
        identity=request.identity,
        request_id=request.request_id,
    )
    if request.HasField("input"):
        event.input.CopyFrom(request.input)
    if request.HasField("header"):
        event.header.CopyFrom(request.header)
    if external_workflow_id:
        event.external_workflow_execution.workflow_id = external_workflow_id
        event.external_workflow_execution.run_id = external_run_id
    extra = events.links(request.links) if request.links else b""
    tx.record(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED, event, extra=extra)
    workflow_tasks.ensure_scheduled(tx)
    closing.enforce_history_limit(tx)


def request_cancel(
    tx: Transition,
    request: RequestCancelWorkflowExecutionRequest,
    *,
    external_workflow_id: str = "",
    external_run_id: str = "",
    external_initiated_event_id: int = 0,
) -> None:
    """Ask the workflow's code to cancel; asked a second time, nothing more is recorded.

    It does not wait for the first workflow task to be due: cancelling a run that waits for its
    start, its next attempt or its cron time ends the waiting. Raises AlreadyClosed.
    """
    _check_open(tx)
    state = tx.run.state
    if state.cancel_requested:
        return
    state.cancel_requested = True
    state.cancel_request_id = request.request_id
    event = WorkflowExecutionCancelRequestedEventAttributes(
        cause=request.reason,
        identity=request.identity,
        external_initiated_event_id=external_initiated_event_id,
    )
    if external_workflow_id:
        event.external_workflow_execution.workflow_id = external_workflow_id
        event.external_workflow_execution.run_id = external_run_id
    extra = events.links(request.links) if request.links else b""
    tx.record(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED, event, extra=extra)
    workflow_tasks.ensure_scheduled(tx, early=True)


def terminate(
    tx: Transition, reason: str, details: Payloads | None = None, identity: str = ""
) -> None:
    """End the run from outside; its code is not asked. Raises NotFound (closed)."""
    _check_open(tx)
    closing.terminate(tx, reason, details, identity)


def attach(tx: Transition, request_id: str, links: bytes) -> None:
    """Record that another start with a request id of its own leads to this open run.

    `links`: as fields of an event. The same request id a second time does nothing.
    """
    if request_id and _is_repeated(tx, request_id):
        return
    event = WorkflowExecutionOptionsUpdatedEventAttributes(attached_request_id=request_id)
    extra = links + events.WORKER_MAY_IGNORE
    tx.record(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED, event, extra=extra)
