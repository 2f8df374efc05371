"""The client's calls as requests, innermost of the interceptors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from temporalio.api.common.v1 import WorkflowExecution as WorkflowExecutionMessage
from temporalio.api.enums.v1 import (
    QueryRejectCondition as QueryRejectConditionMessage,
)
from temporalio.api.enums.v1 import (
    UpdateWorkflowExecutionLifecycleStage,
    WorkflowExecutionStatus,
)
from temporalio.api.errordetails.v1 import QueryFailedFailure
from temporalio.api.workflowservice.v1 import (
    QueryWorkflowRequest,
    RequestCancelWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
)

from perdure.api import errors as rpc
from perdure.sdk import errors
from perdure.sdk.failures import error_from
from perdure.sdk.interceptors import (
    CancelWorkflow,
    ClientInterceptor,
    QueryWorkflow,
    SignalWorkflow,
    StartUpdate,
    StartWorkflow,
    TerminateWorkflow,
    chain,
)
from perdure.sdk.options import QueryRejectCondition
from perdure.sdk.signature import Signature
from perdure.sdk.starting import fill, fill_headers, new_id, start_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perdure.sdk.client import Client

__all__ = ["Outbound", "execution", "not_found"]


def execution(workflow_id: str, run_id: str = "") -> WorkflowExecutionMessage:
    """The message that names a run; the latest one if no run id is given."""
    message = WorkflowExecutionMessage()
    message.workflow_id = workflow_id
    message.run_id = run_id
    return message


@contextmanager
def not_found(workflow_id: str, run_id: str = "") -> Iterator[None]:
    """Tell that a workflow is not there in the SDK's own terms.

    Raises:
        WorkflowNotFoundError: in place of the RPC's `NotFound`.
    """
    try:
        yield
    except rpc.NamespaceNotFound:
        raise
    except rpc.NotFound as error:
        raise errors.WorkflowNotFoundError(
            f"{workflow_id}: {error.message}", workflow_id=workflow_id, run_id=run_id
        ) from error


class Outbound:
    """What a client asks of workflows, through its interceptors.

    What a call needs beyond its interceptable facts (types, conditions) goes with `call` as it is
    handed in, so that interceptors see only what they may change.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._interceptors = client.interceptors

    def _chained(self, method: str, innermost: Callable[[Any], Awaitable[Any]]) -> Any:
        return chain(self._interceptors, ClientInterceptor, method, innermost)

    # --- start --------------------------------------------------------------------------------

    async def start(self, call: StartWorkflow, signature: Signature | None) -> str:
        """Start a workflow; returns the run id.

        Raises:
            WorkflowAlreadyStartedError: the id is taken.
        """

        async def innermost(call: StartWorkflow) -> str:
            client = self._client
            request = start_request(
                call,
                signature,
                client.converter,
                namespace=client.namespace,
                identity=client.identity,
            )
            signalled = call.options.get("start_signal") is not None
            method = "signal_with_start" if signalled else "start"
            try:
                response = await client.calls(f"{method}_workflow_execution", request)
            except rpc.WorkflowAlreadyStarted as error:
                raise errors.WorkflowAlreadyStartedError(
                    call.id, call.workflow, error.run_id
                ) from error
            run_id: str = response.run_id
            return run_id

        run_id: str = await self._chained("start_workflow", innermost)(call)
        return run_id

    # --- signal, cancel, terminate ------------------------------------------------------------

    async def signal(self, call: SignalWorkflow, signature: Signature | None) -> None:
        """Deliver a signal."""

        async def innermost(call: SignalWorkflow) -> None:
            client = self._client
            request = SignalWorkflowExecutionRequest(
                namespace=client.namespace,
                workflow_execution=execution(call.workflow_id, call.run_id),
                signal_name=call.signal,
                identity=client.identity,
                request_id=new_id(),
            )
            fill(request.input, call.args, signature, client.converter)
            fill_headers(request.header, call.headers)
            with not_found(call.workflow_id, call.run_id):
                await client.calls("signal_workflow_execution", request)

        await self._chained("signal_workflow", innermost)(call)

    async def cancel(self, call: CancelWorkflow, first_run_id: str) -> None:
        """Request a cancellation. Doing so twice is no error."""

        async def innermost(call: CancelWorkflow) -> None:
            client = self._client
            request = RequestCancelWorkflowExecutionRequest(
                namespace=client.namespace,
                workflow_execution=execution(call.workflow_id, call.run_id),
                identity=client.identity,
                request_id=new_id(),
                first_execution_run_id=first_run_id,
                reason=call.reason,
            )
            try:
                with not_found(call.workflow_id, call.run_id):
                    await client.calls("request_cancel_workflow_execution", request)
            except rpc.CancellationAlreadyRequested:
                return

        await self._chained("cancel_workflow", innermost)(call)

    async def terminate(self, call: TerminateWorkflow, first_run_id: str) -> None:
        """End a run at once."""

        async def innermost(call: TerminateWorkflow) -> None:
            client = self._client
            request = TerminateWorkflowExecutionRequest(
                namespace=client.namespace,
                workflow_execution=execution(call.workflow_id, call.run_id),
                identity=client.identity,
                first_execution_run_id=first_run_id,
                reason=call.reason,
            )
            if call.details:
                client.converter.fill(request.details, call.details)
            with not_found(call.workflow_id, call.run_id):
                await client.calls("terminate_workflow_execution", request)

        await self._chained("terminate_workflow", innermost)(call)

    # --- query --------------------------------------------------------------------------------

    async def query(
        self,
        call: QueryWorkflow,
        signature: Signature | None,
        result_type: Any,
        reject: QueryRejectCondition,
    ) -> Any:
        """Ask a workflow; returns its answer."""

        async def innermost(call: QueryWorkflow) -> Any:
            client = self._client
            request = QueryWorkflowRequest(
                namespace=client.namespace,
                execution=execution(call.workflow_id, call.run_id),
                query_reject_condition=QueryRejectConditionMessage.ValueType(int(reject)),
            )
            request.query.query_type = call.query
            fill(request.query.query_args, call.args, signature, client.converter)
            fill_headers(request.query.header, call.headers)
            try:
                with not_found(call.workflow_id, call.run_id):
                    response = await client.calls("query_workflow", request)
            except rpc.QueryFailed as error:
                raise self._query_failed(error) from self._query_cause(error.details)
            except rpc.InvalidArgument as error:
                raise self._query_failed(error) from error
            if response.HasField("query_rejected"):
                name = WorkflowExecutionStatus.Name(response.query_rejected.status)
                raise errors.QueryRejectedError(name.removeprefix("WORKFLOW_EXECUTION_STATUS_"))
            return client.converter.result(response.query_result, result_type)

        return await self._chained("query_workflow", innermost)(call)

    def _query_failed(self, error: rpc.RPCError) -> errors.QueryFailedError:
        return errors.QueryFailedError(error.message)

    def _query_cause(self, details: Sequence[Any]) -> BaseException | None:
        for detail in details:
            if isinstance(detail, QueryFailedFailure) and detail.HasField("failure"):
                return error_from(detail.failure, self._client.converter)
        return None

    # --- update -------------------------------------------------------------------------------

    async def update(
        self,
        call: StartUpdate,
        signature: Signature | None,
        first_run_id: str,
        deliver: Callable[[UpdateWorkflowExecutionRequest], Awaitable[Any]],
    ) -> Any:
        """Send an update by `deliver`; returns what that returns."""

        async def innermost(call: StartUpdate) -> Any:
            client = self._client
            request = UpdateWorkflowExecutionRequest(
                namespace=client.namespace,
                workflow_execution=execution(call.workflow_id, call.run_id),
                first_execution_run_id=first_run_id,
            )
            stage = UpdateWorkflowExecutionLifecycleStage
            request.wait_policy.lifecycle_stage = (
                stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
            )
            request.request.meta.update_id = call.update_id
            request.request.meta.identity = client.identity
            request.request.input.name = call.update
            fill(request.request.input.args, call.args, signature, client.converter)
            fill_headers(request.request.input.header, call.headers)
            with not_found(call.workflow_id, call.run_id):
                return await deliver(request)

        return await self._chained("start_update", innermost)(call)
