"""Start and update in one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from temporalio.api.errordetails.v1 import (
    MultiOperationExecutionFailure,
    WorkflowExecutionAlreadyStartedFailure,
)
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    StartWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure.api import errors as rpc
from perdure.sdk import errors
from perdure.sdk.handle import accepted
from perdure.sdk.interceptors import StartUpdate, StartWorkflow
from perdure.sdk.options import WorkflowIDConflictPolicy, check_name
from perdure.sdk.starting import new_id, start_call, start_request, target_of
from perdure.sdk.update_handle import UpdateHandle
from perdure.sdk.workflow.definition import handler_name

if TYPE_CHECKING:
    from perdure.sdk.client import Client


async def update_with_start(
    client: Client,
    workflow: Any,
    args: Sequence[Any],
    update: Any,
    update_args: Sequence[Any],
    update_id: str | None,
    options: Mapping[str, Any],
) -> UpdateHandle[Any]:
    """What `Client.update_with_start` does; see there."""
    check_name("update_id", update_id)
    policy = options.get("id_conflict_policy", WorkflowIDConflictPolicy.UNSPECIFIED)
    if policy == WorkflowIDConflictPolicy.UNSPECIFIED:
        raise ValueError("id_conflict_policy: must be given, e.g. USE_EXISTING")
    if options.get("start_signal") is not None:
        raise ValueError("start_signal: not together with an update")
    target = target_of(workflow)
    start = start_call(target, args, options, client.task_queue)
    name, signature = handler_name("update", update)
    call = StartUpdate(
        workflow_id=start.id,
        run_id="",
        update=name,
        update_id=update_id or new_id(),
        args=update_args if signature is None else signature.bind(tuple(update_args), {}),
    )
    request = start_request(
        start,
        target.signature,
        client.converter,
        namespace=client.namespace,
        identity=client.identity,
    )
    assert isinstance(request, StartWorkflowExecutionRequest)

    async def deliver(update_request: UpdateWorkflowExecutionRequest) -> Any:
        return await _both(client, start, request, update_request)

    response = await client.outbound.update(call, signature, "", deliver)
    return UpdateHandle(
        client,
        call.update_id,
        workflow_id=start.id,
        run_id=response.update_ref.workflow_execution.run_id or None,
        outcome=response.outcome if response.HasField("outcome") else None,
        result_type=Any if signature is None else signature.return_type,
    )


async def _both(
    client: Client,
    start: StartWorkflow,
    start_request: StartWorkflowExecutionRequest,
    update_request: UpdateWorkflowExecutionRequest,
) -> UpdateWorkflowExecutionResponse:
    """Send both until the update is at least accepted."""
    request = ExecuteMultiOperationRequest(namespace=client.namespace)
    request.operations.add().start_workflow.CopyFrom(start_request)
    request.operations.add().update_workflow.CopyFrom(update_request)
    while True:
        try:
            response = await client.long_poll("execute_multi_operation", request)
        except rpc.RPCError as error:
            raise _translated(error, start) from error
        if response is None:
            continue
        update: UpdateWorkflowExecutionResponse = response.responses[1].update_workflow
        if accepted(update):
            return update


def _translated(error: rpc.RPCError, start: StartWorkflow) -> Exception:
    """The error of the part that failed, in place of the error of both."""
    if isinstance(error, rpc.WorkflowAlreadyStarted):
        return errors.WorkflowAlreadyStartedError(start.id, start.workflow, error.run_id)
    for detail in error.details:
        if not isinstance(detail, MultiOperationExecutionFailure):
            continue
        for status in detail.statuses:
            for inner in status.details:
                started = WorkflowExecutionAlreadyStartedFailure()
                if inner.Unpack(started):
                    return errors.WorkflowAlreadyStartedError(
                        start.id, start.workflow, started.run_id
                    )
        for status in detail.statuses:
            if status.code and "aborted" not in status.message.lower():
                return rpc.RPCError.of(status.code, status.message)
    return error
