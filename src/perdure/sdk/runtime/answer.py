"""From a workflow task to its answer, without I/O."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import QueryResultType, WorkflowTaskFailedCause
from temporalio.api.query.v1 import WorkflowQuery, WorkflowQueryResult
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
)

from perdure.sdk.codecs import codec_error
from perdure.sdk.converter import Converter
from perdure.sdk.errors import NonDeterminismError
from perdure.sdk.failures import failure_from
from perdure.sdk.runtime.context import state

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run

_log = logging.getLogger("perdure.worker")

STACK_TRACE_QUERY: Final = "__stack_trace"
METADATA_QUERY: Final = "__temporal_workflow_metadata"
SDK_NAME: Final = "perdure-python"


def completion(
    run: Run, task: PollWorkflowTaskQueueResponse
) -> RespondWorkflowTaskCompletedRequest:
    """The answer to a task that the run has taken in, with the answers to its queries."""
    request = run.take()
    request.task_token = task.task_token
    if task.queries:
        for key, query in task.queries.items():
            request.query_results[key].CopyFrom(answer_query(run, query))
    return request


def failure(
    error: BaseException, task: PollWorkflowTaskQueueResponse, converter: Converter
) -> RespondWorkflowTaskFailedRequest:
    """The answer to a task whose code failed in a way that is no failure of the run."""
    request = _failure(error, task, converter)
    _log.warning(
        "workflow task of %r (id %r, run %r) failed, attempt %d: %s",
        task.workflow_type.name,
        task.workflow_execution.workflow_id,
        task.workflow_execution.run_id,
        task.attempt,
        error,
        exc_info=error if task.attempt <= 1 else None,
    )
    return request


def codec_failure(
    error: Exception, task: PollWorkflowTaskQueueResponse
) -> RespondWorkflowTaskFailedRequest:
    """The answer to a task whose true answer could not be encoded."""
    return _failure(codec_error(error), task, Converter())


def _failure(
    error: BaseException, task: PollWorkflowTaskQueueResponse, converter: Converter
) -> RespondWorkflowTaskFailedRequest:
    request = RespondWorkflowTaskFailedRequest()
    request.task_token = task.task_token
    request.cause = (
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
        if isinstance(error, NonDeterminismError)
        else WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE
    )
    request.failure.CopyFrom(failure_from(error, converter))
    return request


# --- queries ------------------------------------------------------------------------------------


def answer_query(run: Run, query: WorkflowQuery) -> WorkflowQueryResult:
    """Run a query handler; what it raises is the answer."""
    result = WorkflowQueryResult()
    run.read_only = f"the handler of query {query.query_type!r}"
    try:
        run.inside(_fill_answer, run, query, result.answer)
        result.result_type = QueryResultType.QUERY_RESULT_TYPE_ANSWERED
    except Exception as error:
        result.ClearField("answer")
        result.result_type = QueryResultType.QUERY_RESULT_TYPE_FAILED
        result.error_message = str(error)
        result.failure.CopyFrom(failure_from(error, run.converter))
    finally:
        run.read_only = ""
    return result


def _fill_answer(run: Run, query: WorkflowQuery, payloads: Payloads) -> None:
    if query.query_type == STACK_TRACE_QUERY:
        run.converter.fill(payloads, [stack_trace(run)])
        return
    if query.query_type == METADATA_QUERY:
        run.converter.fill(payloads, [metadata(run)])
        return
    run.replaying, replaying = True, run.replaying  # queries must not log what happened long ago
    try:
        value = run.handlers.query(query.query_type, query.query_args, query.header.fields)
    finally:
        run.replaying = replaying
        moved = bool(run.loop.ready)
        run.loop.ready.clear()
    if moved:
        raise NonDeterminismError(
            f"the handler of query {query.query_type!r} has set something in motion (a task, an "
            "event, a lock), and must not change the workflow"
        )
    run.converter.fill(payloads, [value])


def query_completion(
    run: Run, task: PollWorkflowTaskQueueResponse, namespace: str
) -> RespondQueryTaskCompletedRequest:
    """The answer to a task that is nothing but one query."""
    result = answer_query(run, task.query)
    return query_reply(result, task, namespace)


def query_failure(
    error: BaseException, task: PollWorkflowTaskQueueResponse, namespace: str, converter: Converter
) -> RespondQueryTaskCompletedRequest:
    """The answer to a query of a run that cannot be brought to its state."""
    result = WorkflowQueryResult()
    result.result_type = QueryResultType.QUERY_RESULT_TYPE_FAILED
    result.error_message = str(error)
    result.failure.CopyFrom(failure_from(error, converter))
    return query_reply(result, task, namespace)


def query_reply(
    result: WorkflowQueryResult, task: PollWorkflowTaskQueueResponse, namespace: str
) -> RespondQueryTaskCompletedRequest:
    """A query's result as the answer to its own task."""
    request = RespondQueryTaskCompletedRequest()
    request.task_token = task.task_token
    request.namespace = namespace
    request.completed_type = result.result_type
    request.error_message = result.error_message
    if result.HasField("answer"):
        request.query_result.CopyFrom(result.answer)
    if result.HasField("failure"):
        request.failure.CopyFrom(result.failure)
    return request


def stack_trace(run: Run) -> str:
    """Where each coroutine of the run waits."""
    guarded, state.guarded = state.guarded, None  # reading source lines opens files
    try:
        parts = []
        for ref in run.loop.tasks:
            task = ref()
            if task is None or task.done():
                continue
            frames = _waiting_frames(task.get_coro())
            lines = "".join(traceback.format_list(traceback.StackSummary.from_list(frames)))
            parts.append(f"{task.get_name()}:\n{lines}")
        return "\n".join(parts)
    finally:
        state.guarded = guarded


def _waiting_frames(awaited: Any) -> list[traceback.FrameSummary]:
    """The frames of a chain of coroutines, the outermost first, without the runtime's own."""
    frames = []
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            break
        if not frame.f_globals.get("__name__", "").startswith("perdure.sdk"):
            code = frame.f_code
            frames.append(
                traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_qualname)
            )
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return frames


def metadata(run: Run) -> Any:
    """What tools ask for: the workflow's type and handlers, as `temporal.api.sdk.v1` has it."""

    def entries(kind: Any) -> Sequence[dict[str, str]]:
        found = []
        for name in run.handlers.names(kind):
            handler = run.handlers.find(kind, name)
            description = handler.description if handler is not None else ""
            found.append({"name": name, "description": description})
        return found

    definition = {
        "type": run.type_name,
        "queryDefinitions": entries("query"),
        "signalDefinitions": entries("signal"),
        "updateDefinitions": entries("update"),
    }
    return msgspec.to_builtins({"definition": definition})
