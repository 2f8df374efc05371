"""Child workflows of one run."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypedDict

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import (
    CommandType,
    EventType,
    StartChildWorkflowExecutionFailedCause,
)
from temporalio.api.history.v1 import HistoryEvent

from perdure.api.times import duration, timedelta_ns
from perdure.sdk import search_attributes
from perdure.sdk.errors import (
    CancelledFailure,
    ChildWorkflowError,
    FailureError,
    RetryState,
    TerminatedError,
    TimeoutError,
    TimeoutType,
    WorkflowAlreadyStartedError,
)
from perdure.sdk.failures import error_from
from perdure.sdk.options import (
    ChildWorkflowCancellationType,
    ParentClosePolicy,
    Priority,
    RetryPolicy,
    WorkflowIDReusePolicy,
    check_duration,
    check_name,
)
from perdure.sdk.runtime.loop import Future
from perdure.sdk.search_attributes import AnyAttributes
from perdure.sdk.signature import Signature

if TYPE_CHECKING:
    from perdure.sdk.runtime.commands import Record
    from perdure.sdk.runtime.run import Run

_INITIATED: Final = EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED
_CANCEL: Final = EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED
_REQUEST_CANCEL: Final = CommandType.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION
_KIND: Final = ChildWorkflowCancellationType


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildOptions:
    """How a child workflow is started. None stands for "not given".

    Args:
        id: workflow id; default: a random one that replays.
        task_queue: default: the parent's.
        parent_close_policy: what becomes of the child when the parent closes; default: terminate.
        cancellation_type: what cancelling the call does; default: wait until the child is done.
        execution_timeout: limit of the child with all its retries and continued runs.
        run_timeout: limit of one run.
        task_timeout: limit of one workflow task.
        retry: retry policy of the child; default: none.
        cron: cron schedule of the child.
        memo: values shown with the child.
        search_attributes: values by which the child can be found.
        id_reuse_policy: may the id of a closed workflow be taken?
        priority: order among the queue's tasks.
        summary: one line for people, shown by tools.

    Raises:
        ValueError, TypeError: naming the argument that is wrong.
    """

    id: str | None = None
    task_queue: str | None = None
    parent_close_policy: ParentClosePolicy = ParentClosePolicy.TERMINATE
    cancellation_type: ChildWorkflowCancellationType = _KIND.WAIT_CANCELLATION_COMPLETED
    execution_timeout: timedelta | None = None
    run_timeout: timedelta | None = None
    task_timeout: timedelta | None = None
    retry: RetryPolicy | None = None
    cron: str | None = None
    memo: Mapping[str, Any] | None = None
    search_attributes: AnyAttributes | None = None
    id_reuse_policy: WorkflowIDReusePolicy = WorkflowIDReusePolicy.ALLOW_DUPLICATE
    priority: Priority | None = None
    summary: str | None = None

    def __post_init__(self) -> None:
        for name in ("execution_timeout", "run_timeout", "task_timeout"):
            check_duration(name, getattr(self, name))
        check_name("id", self.id)
        check_name("task_queue", self.task_queue)
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise TypeError(f"retry: a RetryPolicy, got {self.retry!r}")


class ChildOptionFields(TypedDict, total=False):
    """The fields of `ChildOptions` as keyword arguments."""

    id: str | None
    task_queue: str | None
    parent_close_policy: ParentClosePolicy | None
    cancellation_type: ChildWorkflowCancellationType | None
    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    retry: RetryPolicy | None
    cron: str | None
    memo: Mapping[str, Any] | None
    search_attributes: AnyAttributes | None
    id_reuse_policy: WorkflowIDReusePolicy | None
    priority: Priority | None
    summary: str | None


class ChildCall(Future[Any]):
    """A started child: a future of its result. `started` is the future of its run id."""

    __slots__ = (
        "cancel_requested",
        "children",
        "kind",
        "name",
        "record",
        "result_type",
        "run_id",
        "started",
        "started_id",
        "workflow_id",
    )

    cancel_requested: bool
    children: Children
    kind: ChildWorkflowCancellationType
    name: str
    record: Record
    result_type: Any
    run_id: str
    started: Started
    started_id: int
    workflow_id: str

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        return self.children.cancel(self, msg)

    def cancel_now(self, msg: Any | None = None) -> bool:
        """End the waits with `asyncio.CancelledError`, whatever the child does."""
        self.started.cancel_now(msg)
        return super().cancel(msg)

    def recorded(self, event_id: int) -> None:
        """The StartChildWorkflowExecutionInitiated event is there."""
        self.children.pending[event_id] = self


class Started(Future[str]):
    """The future of a child's run id. Cancelling it cancels the child."""

    __slots__ = ("call",)
    call: ChildCall

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        return self.call.children.cancel(self.call, msg)

    def cancel_now(self, msg: Any | None = None) -> bool:
        """End the wait."""
        return super().cancel(msg)


class Children:
    """Pending children by the id of their StartChildWorkflowExecutionInitiated event."""

    __slots__ = ("pending", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pending: dict[int, ChildCall] = {}

    def start(
        self,
        name: str,
        args: Sequence[Any],
        signature: Signature | None,
        options: ChildOptions,
        result_type: Any = Any,
        headers: Mapping[str, Payload] | None = None,
    ) -> ChildCall:
        """Emit the command; `ChildCall.started` is done when the child has a run."""
        run = self.run
        run.check_writable(f"child workflow {name!r}")
        workflow_id = options.id or str(run.streams.uuid4("perdure.child_id"))
        command = None
        if not run.replaying:
            command = _start_command(run, name, workflow_id, options)
            attributes = command.start_child_workflow_execution_command_attributes
            run.fill_arguments(attributes.input, args, signature)
            for key, value in (headers or {}).items():
                attributes.header.fields[key].CopyFrom(value)
        call = ChildCall(loop=run.loop)
        call.started = Started(loop=run.loop)
        call.started.call = call
        call.cancel_requested = False
        call.children = self
        call.kind = options.cancellation_type
        call.name = name
        call.result_type = signature if signature is not None else result_type
        call.run_id = ""
        call.started_id = 0
        call.workflow_id = workflow_id
        call.record = run.emit(_INITIATED, (workflow_id, name), command, call)
        return call

    def cancel(self, call: ChildCall, msg: Any | None) -> bool:
        """Cancel a call in the way of its cancellation type."""
        run = self.run
        if call.kind is _KIND.ABANDON or run.take_back(call.record):
            return call.cancel_now(msg)
        self.request_cancel(call)
        if call.kind is _KIND.TRY_CANCEL:
            return call.cancel_now(msg)
        return True

    def request_cancel(self, call: ChildCall, reason: str = "") -> None:
        """Emit the command that asks the child to cancel, once."""
        run = self.run
        if call.cancel_requested or call.done() or run.take_back(call.record):
            return
        run.check_writable("cancelling a child workflow")
        call.cancel_requested = True
        command = None
        if not run.replaying:
            command = run.new_command()
            command.command_type = _REQUEST_CANCEL
            attributes = command.request_cancel_external_workflow_execution_command_attributes
            attributes.namespace = run.namespace
            attributes.workflow_id = call.workflow_id
            attributes.child_workflow_only = True
            attributes.reason = reason
        waits = call if call.kind is _KIND.WAIT_CANCELLATION_REQUESTED else None
        owner = run.externals.expect_cancel(waits)
        run.emit(_CANCEL, (call.workflow_id,), command, owner)

    # --- events -------------------------------------------------------------------------------

    def started(self, event: HistoryEvent) -> None:
        """ChildWorkflowExecutionStarted."""
        attributes = event.child_workflow_execution_started_event_attributes
        call = self.pending.get(attributes.initiated_event_id)
        if call is None:
            return
        call.run_id = attributes.workflow_execution.run_id
        call.started_id = event.event_id
        if not call.started.done():
            call.started.set_result(call.run_id)

    def start_failed(self, event: HistoryEvent) -> None:
        """StartChildWorkflowExecutionFailed."""
        attributes = event.start_child_workflow_execution_failed_event_attributes
        call = self.pending.pop(attributes.initiated_event_id, None)
        if call is None:
            return
        cause = StartChildWorkflowExecutionFailedCause.Name(attributes.cause)
        exists = "ALREADY_EXISTS" in cause
        error = self._error(call, "Child workflow was not started", attributes.initiated_event_id)
        error.__cause__ = (
            WorkflowAlreadyStartedError(call.workflow_id, call.name)
            if exists
            else FailureError(cause.removeprefix("START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_"))
        )
        if not call.started.done():
            call.started.set_exception(error)
            call.started.exception()  # whoever awaits the result hears of it: do not warn
        if not call.done():
            call.set_exception(error)
            call.exception()

    def completed(self, event: HistoryEvent) -> None:
        """ChildWorkflowExecutionCompleted."""
        attributes = event.child_workflow_execution_completed_event_attributes
        call = self.pending.pop(attributes.initiated_event_id, None)
        if call is None or call.done():
            return
        type_ = call.result_type
        if isinstance(type_, Signature):
            type_ = type_.return_type
        call.set_result(self.run.decode_result(attributes.result, type_, call.name))

    def failed(self, event: HistoryEvent) -> None:
        """ChildWorkflowExecutionFailed."""
        attributes = event.child_workflow_execution_failed_event_attributes
        cause = error_from(attributes.failure, self.run.converter)
        self._fail(attributes, cause, attributes.retry_state)

    def timed_out(self, event: HistoryEvent) -> None:
        """ChildWorkflowExecutionTimedOut."""
        attributes = event.child_workflow_execution_timed_out_event_attributes
        cause = TimeoutError("Child workflow timed out", type=TimeoutType.START_TO_CLOSE)
        self._fail(attributes, cause, attributes.retry_state)

    def terminated(self, event: HistoryEvent) -> None:
        """ChildWorkflowExecutionTerminated."""
        attributes = event.child_workflow_execution_terminated_event_attributes
        self._fail(attributes, TerminatedError(), RetryState.NON_RETRYABLE_FAILURE)

    def canceled(self, event: HistoryEvent) -> None:
        """ChildWorkflowExecutionCanceled."""
        attributes = event.child_workflow_execution_canceled_event_attributes
        call = self.pending.get(attributes.initiated_event_id)
        if call is not None and call.cancel_requested and not call.done():
            del self.pending[attributes.initiated_event_id]
            call.cancel_now()
            return
        details = self.run.converter.decode_all(attributes.details)
        self._fail(attributes, CancelledFailure("Cancelled", *details), 0)

    def _fail(self, attributes: Any, cause: FailureError, retry_state: int) -> None:
        call = self.pending.pop(attributes.initiated_event_id, None)
        if call is None or call.done():
            return
        error = self._error(call, "Child workflow execution failed", attributes.initiated_event_id)
        error.retry_state = RetryState(retry_state)
        error.__cause__ = cause
        call.set_exception(error)

    def _error(self, call: ChildCall, message: str, initiated_id: int) -> ChildWorkflowError:
        return ChildWorkflowError(
            message,
            namespace=self.run.namespace,
            workflow_id=call.workflow_id,
            run_id=call.run_id,
            workflow_type=call.name,
            initiated_event_id=initiated_id,
            started_event_id=call.started_id,
        )


class ChildHandle:
    """A child that was started. Await the handle for the child's result."""

    __slots__ = ("_call", "_run")

    def __init__(self, run: Run, call: ChildCall) -> None:
        self._run = run
        self._call = call

    def __await__(self) -> Generator[Any, None, Any]:
        return self._call.__await__()

    @property
    def id(self) -> str:
        """The child's workflow id."""
        return self._call.workflow_id

    @property
    def run_id(self) -> str:
        """The run id of the child's first run."""
        return self._call.run_id

    def done(self) -> bool:
        """Has the child ended?"""
        return self._call.done()

    def signal(self, signal: Any, *args: Any) -> Any:
        """Send a signal to the child; awaiting the answer waits until it is delivered.

        Raises:
            ApplicationError: the child is closed.
        """
        return self._run.externals.signal(self.id, "", signal, args, child=True)

    def cancel(self, reason: str = "") -> None:
        """Ask the child to cancel. Awaiting the handle then tells how it ended."""
        self._run.children.request_cancel(self._call, reason)


def _start_command(run: Run, name: str, workflow_id: str, options: ChildOptions) -> Command:
    command = run.new_command()
    command.command_type = CommandType.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION
    attributes = command.start_child_workflow_execution_command_attributes
    attributes.namespace = run.namespace
    attributes.workflow_id = workflow_id
    attributes.workflow_type.name = name
    attributes.task_queue.name = options.task_queue or run.task_queue
    attributes.parent_close_policy = int(options.parent_close_policy)  # type: ignore[assignment]
    attributes.workflow_id_reuse_policy = int(options.id_reuse_policy)  # type: ignore[assignment]
    for label, length in (
        ("workflow_execution_timeout", options.execution_timeout),
        ("workflow_run_timeout", options.run_timeout),
        ("workflow_task_timeout", options.task_timeout),
    ):
        if length is not None:
            getattr(attributes, label).CopyFrom(duration(timedelta_ns(length)))
    if options.retry is not None:
        attributes.retry_policy.CopyFrom(options.retry.to_message())
    attributes.cron_schedule = options.cron or ""
    for key, value in (options.memo or {}).items():
        attributes.memo.fields[key].CopyFrom(run.converter.encode(value))
    if options.search_attributes:
        search_attributes.of(options.search_attributes).fill(attributes.search_attributes)
    if options.priority is not None:
        attributes.priority.priority_key = options.priority.key or 0
        attributes.priority.fairness_key = options.priority.fairness_key
        attributes.priority.fairness_weight = options.priority.fairness_weight or 0.0
    if options.summary:
        command.user_metadata.summary.CopyFrom(run.converter.encode(options.summary))
    return command
