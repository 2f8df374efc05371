"""Signals and cancel requests to other workflows, from one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.sdk.errors import ApplicationError
from perdure.sdk.runtime.loop import Future

if TYPE_CHECKING:
    from perdure.sdk.runtime.children import ChildCall
    from perdure.sdk.runtime.commands import Record
    from perdure.sdk.runtime.run import Run

_SIGNAL: Final = EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED
_CANCEL: Final = EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED
_REQUEST_CANCEL: Final = CommandType.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION


class Delivery(Future[None]):
    """The future of one signal or cancel request: done when it has reached the other workflow."""

    __slots__ = ("call", "externals", "record", "target")

    call: ChildCall | None
    externals: Externals
    record: Record | None
    target: str

    def cancel(self, msg: Any | None = None) -> bool:
        if self.record is not None:
            self.externals.run.take_back(self.record)
        return super().cancel(msg)

    def recorded(self, event_id: int) -> None:
        """The …Initiated event is there."""
        self.externals.pending[event_id] = self


class Externals:
    """What is on its way, by the id of its …Initiated event."""

    __slots__ = ("pending", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pending: dict[int, Delivery] = {}

    def _delivery(self, target: str) -> Delivery:
        delivery = Delivery(loop=self.run.loop)
        delivery.call = None
        delivery.externals = self
        delivery.record = None
        delivery.target = target
        return delivery

    def expect_cancel(self, call: ChildCall | None) -> Delivery:
        """The owner of a child's cancel request; the call to end when it has arrived."""
        delivery = self._delivery("child workflow")
        delivery.call = call
        return delivery

    def signal(
        self,
        workflow_id: str,
        run_id: str,
        signal: Any,
        args: Sequence[Any],
        *,
        child: bool = False,
        headers: Mapping[str, Payload] | None = None,
    ) -> Delivery:
        """Emit the command that signals another workflow.

        Args:
            signal: a name, or a handler made by ``@workflow.signal``.
        """
        from perdure.sdk.workflow.definition import handler_name

        run = self.run
        name, signature = handler_name("signal", signal)
        run.check_writable(f"signal {name!r} to workflow {workflow_id!r}")
        if signature is not None:
            args = signature.bind(tuple(args), {})
        command = None
        if not run.replaying:
            command = run.new_command()
            command.command_type = CommandType.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION
            attributes = command.signal_external_workflow_execution_command_attributes
            attributes.namespace = run.namespace
            attributes.execution.workflow_id = workflow_id
            attributes.execution.run_id = run_id
            attributes.signal_name = name
            attributes.child_workflow_only = child
            run.fill_arguments(attributes.input, args, signature)
            for key, value in (headers or {}).items():
                attributes.header.fields[key].CopyFrom(value)
        delivery = self._delivery(workflow_id)
        delivery.record = run.emit(_SIGNAL, (workflow_id, name), command, delivery)
        return delivery

    def cancel(self, workflow_id: str, run_id: str, reason: str) -> Delivery:
        """Emit the command that asks another workflow to cancel."""
        run = self.run
        run.check_writable(f"cancelling workflow {workflow_id!r}")
        command = None
        if not run.replaying:
            command = run.new_command()
            command.command_type = _REQUEST_CANCEL
            attributes = command.request_cancel_external_workflow_execution_command_attributes
            attributes.namespace = run.namespace
            attributes.workflow_id = workflow_id
            attributes.run_id = run_id
            attributes.reason = reason
        delivery = self._delivery(workflow_id)
        delivery.record = run.emit(_CANCEL, (workflow_id,), command, delivery)
        return delivery

    # --- events -------------------------------------------------------------------------------

    def signaled(self, event: HistoryEvent) -> None:
        """ExternalWorkflowExecutionSignaled."""
        self._done(event.external_workflow_execution_signaled_event_attributes.initiated_event_id)

    def cancel_delivered(self, event: HistoryEvent) -> None:
        """ExternalWorkflowExecutionCancelRequested."""
        attributes = event.external_workflow_execution_cancel_requested_event_attributes
        self._done(attributes.initiated_event_id)

    def _done(self, initiated_id: int) -> None:
        delivery = self.pending.pop(initiated_id, None)
        if delivery is None or delivery.done():
            return
        delivery.set_result(None)
        if delivery.call is not None and not delivery.call.done():
            delivery.call.cancel_now()

    def signal_failed(self, event: HistoryEvent) -> None:
        """SignalExternalWorkflowExecutionFailed."""
        attributes = event.signal_external_workflow_execution_failed_event_attributes
        self._failed(attributes.initiated_event_id, "signal")

    def cancel_failed(self, event: HistoryEvent) -> None:
        """RequestCancelExternalWorkflowExecutionFailed."""
        attributes = event.request_cancel_external_workflow_execution_failed_event_attributes
        self._failed(attributes.initiated_event_id, "cancel")

    def _failed(self, initiated_id: int, what: str) -> None:
        delivery = self.pending.pop(initiated_id, None)
        if delivery is None or delivery.done():
            return
        delivery.set_exception(
            ApplicationError(
                f"Unable to {what} workflow {delivery.target!r}: it does not exist or is closed",
                type="ExternalWorkflowNotFound",
                non_retryable=True,
            )
        )
        if delivery.record is None:
            delivery.exception()  # a child that closed by itself: how it ended is told elsewhere
