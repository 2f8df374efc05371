"""A worker's answer to a workflow task, whichever way it came: by RPC or fused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from temporalio.api.common.v1 import SearchAttributes
from temporalio.api.enums.v1 import CommandType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflowservice.v1 import (
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
)

from perdure.api.errors import RPCError
from perdure.engine import commands, workflow_tasks
from perdure.engine.commands import CompletedTask
from perdure.engine.transition import Transition
from perdure.service.namespaces import Namespaces

if TYPE_CHECKING:
    from perdure.service.entries import Companion

_UPSERT = CommandType.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES
_CONTINUE = CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION


def apply(
    tx: Transition,
    request: RespondWorkflowTaskCompletedRequest | RespondWorkflowTaskFailedRequest,
    namespaces: Namespaces,
    companion: Companion | None,
) -> CompletedTask:
    """Apply an answer to the started workflow task. Raises NotFound when no task is started."""
    if isinstance(request, RespondWorkflowTaskFailedRequest):
        failure = request.failure if request.HasField("failure") else None
        workflow_tasks.fail(tx, request.cause, failure, request.identity)
        return CompletedTask(failed=True, cause=request.cause, message=request.failure.message)
    refused = _admit_attributes(tx.run.info.namespace, request, namespaces)
    if refused is not None:
        workflow_tasks.fail(tx, refused.cause, _failure(refused.message), request.identity)
        return refused
    admitted = companion.admitted if companion is not None else None
    outcome = commands.complete(tx, request, admitted=admitted)
    if companion is not None and not outcome.failed:
        companion.on_task_applied(request)
    return outcome


def _admit_attributes(
    namespace: str, request: RespondWorkflowTaskCompletedRequest, namespaces: Namespaces
) -> CompletedTask | None:
    """Check the search attributes that commands set; what became of the answer if they are bad."""
    for attributes in attributes_set_by(request):
        try:
            namespaces.admit(namespace, attributes)
        except RPCError as error:
            cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SEARCH_ATTRIBUTES
            return CompletedTask(
                failed=True, cause=cause, message=f"BadSearchAttributes: {error.message}"
            )
    return None


def attributes_set_by(request: RespondWorkflowTaskCompletedRequest) -> Iterator[SearchAttributes]:
    """The search attributes that the commands of an answer set."""
    for command in request.commands[:]:  # a list: protobuf's own sequence is slow to go through
        kind = command.command_type
        if kind == _UPSERT:
            upsert = command.upsert_workflow_search_attributes_command_attributes
            yield upsert.search_attributes
        elif kind == _CONTINUE:
            again = command.continue_as_new_workflow_execution_command_attributes
            yield again.search_attributes


def _failure(message: str) -> Failure:
    failure = Failure(message=message)
    failure.server_failure_info.SetInParent()
    return failure
