"""The RPCs that reach a run from outside: signal, request to cancel, terminate, pause."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from temporalio.api.common.v1 import Link, Payloads
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import (
    PauseWorkflowExecutionRequest,
    PauseWorkflowExecutionResponse,
    RequestCancelWorkflowExecutionRequest,
    RequestCancelWorkflowExecutionResponse,
    SignalWithStartWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    SignalWorkflowExecutionResponse,
    TerminateWorkflowExecutionRequest,
    TerminateWorkflowExecutionResponse,
    UnpauseWorkflowExecutionRequest,
    UnpauseWorkflowExecutionResponse,
)

from perdure.api.errors import InvalidArgument, NotFound
from perdure.engine import lifecycle, pausing
from perdure.engine.lifecycle import AlreadyClosed
from perdure.engine.transition import Transition
from perdure.service import validation

if TYPE_CHECKING:
    from perdure.service.node import Node

AnyRequest = (
    SignalWorkflowExecutionRequest
    | RequestCancelWorkflowExecutionRequest
    | TerminateWorkflowExecutionRequest
)


class SignalRPCs:
    """The RPCs that reach a run from outside, as a part of the service."""

    node: Node

    async def signal_workflow_execution(
        self, request: SignalWorkflowExecutionRequest
    ) -> SignalWorkflowExecutionResponse:
        """Send a signal. The same request id again does nothing more.

        Raises:
            InvalidArgument: the request lacks something or is too large, or the run has had as
                many signals as it may.
            NotFound: no such run, or it is closed.
        """
        settings = self.node.settings
        self._check(request)
        validation.required(request.signal_name, "SignalName", settings)
        validation.bounded(request.request_id, "RequestId", settings)
        validation.payload(request.input, "input", settings)
        validation.payload(request.header, "header", settings)
        made = SignalWorkflowExecutionResponse()

        def signal(tx: Transition) -> None:
            lifecycle.signal(tx, request)
            if request.request_id:
                info = tx.run.info
                refer(made.link, request, info.workflow_id, info.run_id)

        await self._reach(request, signal)
        return made

    async def request_cancel_workflow_execution(
        self, request: RequestCancelWorkflowExecutionRequest
    ) -> RequestCancelWorkflowExecutionResponse:
        """Ask a run to cancel; its code decides what that means. A closed run is no error.

        Raises NotFound when there is no such run.
        """
        settings = self.node.settings
        self._check(request)
        validation.bounded(request.request_id, "RequestId", settings)
        first_run_id = request.first_execution_run_id

        def cancel(tx: Transition) -> None:
            if tx.run.is_open:
                _check_chain(tx, first_run_id)
            lifecycle.request_cancel(tx, request)

        with suppress(AlreadyClosed):
            await self._reach(request, cancel)
        return RequestCancelWorkflowExecutionResponse()

    async def terminate_workflow_execution(
        self, request: TerminateWorkflowExecutionRequest
    ) -> TerminateWorkflowExecutionResponse:
        """End a run at once. Raises NotFound when it is closed."""
        self._check(request)
        validation.payload(request.details, "details", self.node.settings)
        details: Payloads | None = request.details if request.HasField("details") else None
        first_run_id = request.first_execution_run_id
        reason = request.reason or "terminated by user via frontend"

        def terminate(tx: Transition) -> None:
            _check_chain(tx, first_run_id)
            lifecycle.terminate(tx, reason, details, request.identity)

        await self._reach(request, terminate)
        return TerminateWorkflowExecutionResponse()

    async def pause_workflow_execution(
        self, request: PauseWorkflowExecutionRequest
    ) -> PauseWorkflowExecutionResponse:
        """Hold a run: nothing of it is given to a worker until it is unpaused.

        Raises NotFound when it is closed, FailedPrecondition when it is held already.
        """
        await self._hold(request, partial(pausing.pause, request=request))
        return PauseWorkflowExecutionResponse()

    async def unpause_workflow_execution(
        self, request: UnpauseWorkflowExecutionRequest
    ) -> UnpauseWorkflowExecutionResponse:
        """Let a held run go on. Raises NotFound when closed, FailedPrecondition when not held."""
        await self._hold(request, partial(pausing.unpause, request=request))
        return UnpauseWorkflowExecutionResponse()

    async def _hold(
        self,
        request: PauseWorkflowExecutionRequest | UnpauseWorkflowExecutionRequest,
        operation: Callable[[Transition], None],
    ) -> None:
        node = self.node
        node.namespaces.get(request.namespace)
        if not request.workflow_id:
            raise InvalidArgument("Can't load workflow execution.  WorkflowId not set.")
        for name in ("identity", "reason", "request_id"):
            validation.bounded(getattr(request, name), name, node.settings)
        find = partial(
            node.executions.resolve, request.namespace, request.workflow_id, request.run_id
        )
        await node.executions.transact_found(find, operation)

    def _check(self, request: AnyRequest) -> None:
        self.node.namespaces.get(request.namespace)
        if not request.HasField("workflow_execution"):
            raise InvalidArgument("Execution is not set on request.")
        validation.execution(request.workflow_execution, self.node.settings)
        validation.bounded(request.identity, "Identity", self.node.settings)

    async def _reach(self, request: AnyRequest, operation: Callable[[Transition], None]) -> None:
        executions, named = self.node.executions, request.workflow_execution
        find = partial(executions.resolve, request.namespace, named.workflow_id, named.run_id)
        await executions.transact_found(find, operation)


def refer(
    link: Link,
    request: SignalWorkflowExecutionRequest | SignalWithStartWorkflowExecutionRequest,
    workflow_id: str,
    run_id: str,
) -> None:
    """Let a link lead to the event of a signal."""
    to = link.workflow_event
    to.namespace, to.workflow_id, to.run_id = request.namespace, workflow_id, run_id
    to.request_id_ref.request_id = request.request_id
    to.request_id_ref.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED


def _check_chain(tx: Transition, first_run_id: str) -> None:
    """Raise NotFound unless the run belongs to the chain that began with `first_run_id`."""
    if first_run_id and first_run_id != tx.run.info.first_run_id:
        raise NotFound("workflow execution not found")
