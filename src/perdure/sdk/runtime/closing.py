"""How a run begins and ends: the main coroutine, its result, its failure, its successor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes

from perdure.api.times import duration, timedelta_ns
from perdure.sdk import search_attributes
from perdure.sdk.converter import RawValue
from perdure.sdk.errors import ContinueAsNew, FailureError
from perdure.sdk.failures import failure_from
from perdure.sdk.interceptors import (
    ContinueAsNewCall,
    ExecuteWorkflow,
    ScheduleActivity,
    SignalExternalWorkflow,
    StartChildWorkflow,
    WorkflowInterceptor,
    chain,
)
from perdure.sdk.options import RetryPolicy
from perdure.sdk.runtime.activities import is_cancellation
from perdure.sdk.runtime.children import ChildHandle, ChildOptions
from perdure.sdk.runtime.commands import Record, user_place

if TYPE_CHECKING:
    from perdure.sdk.options import ActivityOptions
    from perdure.sdk.runtime.run import Run
    from perdure.sdk.signature import Signature

_COMPLETE: Final = CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION
_COMPLETED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED
_FAILED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED
_CANCELED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED
_CONTINUED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW


# --- beginning ----------------------------------------------------------------------------------


def prepare(run: Run, attributes: WorkflowExecutionStartedEventAttributes) -> None:
    """Convert the arguments, make the workflow object, and have the main coroutine wait.

    Raises:
        ConversionError: an argument does not fit. Fails the workflow task, since either the code
            or the caller is wrong, and only people can tell.
    """
    definition = run.definition
    if definition.dynamic:
        raw = [RawValue(payload) for payload in attributes.input.payloads]
        run.input = (run.type_name, raw)
    else:
        run.input = run.converter.arguments(attributes.input, definition.signature)
    if definition.cls is not None:
        positional, named = definition.signature.unbind(run.input)
        try:
            if definition.init_takes_arguments:
                run.instance = definition.cls(*positional, **named)
            else:
                run.instance = definition.cls()
        except Exception as error:
            run.code_failed(error)
            return
    run.starting = lambda: _main(run, attributes)


async def _main(run: Run, attributes: WorkflowExecutionStartedEventAttributes) -> None:
    try:
        if run.settings.interceptors:
            result = await _intercepted_main(run, attributes)
        else:
            result = await _call(run, run.input)
        complete(run, result)
    except BaseException as error:
        run.code_failed(error)
        if isinstance(error, KeyboardInterrupt):
            raise


def _call(run: Run, args: Sequence[Any]) -> Any:
    definition = run.definition
    positional, named = definition.signature.unbind(args)
    if definition.cls is None:
        return definition.function(*positional, **named)
    return definition.function(run.instance, *positional, **named)


async def _intercepted_main(run: Run, attributes: WorkflowExecutionStartedEventAttributes) -> Any:
    async def innermost(call: ExecuteWorkflow) -> Any:
        return await _call(run, call.args)

    call = ExecuteWorkflow(
        workflow=run.type_name, args=run.input, headers=dict(attributes.header.fields)
    )
    interceptors = run.settings.interceptors
    return await chain(interceptors, WorkflowInterceptor, "execute_workflow", innermost)(call)


# --- ending -------------------------------------------------------------------------------------


def _close(run: Run, event_type: int, key: tuple[object, ...], command: Command | None) -> None:
    if run.closing is not None:
        return
    where = user_place() if run.replaying else None
    run.closing = Record(event_type, key, command, None, run.batch, where)
    unfinished = [h for h in run.handlers.running.values() if h.unfinished == "warn"]
    if unfinished:
        names = ", ".join(sorted(f"{h.kind} {h.name or '(dynamic)'}" for h in unfinished))
        run.warn(
            f"the run ends while handlers are not finished: {names}; await "
            "workflow.wait_condition(workflow.all_handlers_finished) before it returns"
        )


def complete(run: Run, result: Any) -> None:
    """The main coroutine has returned."""
    command = None
    if not run.replaying:
        command = Command()
        command.command_type = _COMPLETE
        attributes = command.complete_workflow_execution_command_attributes
        run.converter.fill_result(attributes.result, result, run.definition.signature)
    _close(run, _COMPLETED, (), command)


def close_with_error(run: Run, error: BaseException) -> bool:
    """Close the run for an exception of its code. False if that is no matter of the run."""
    if isinstance(error, ContinueAsNew):
        _continue_as_new(run, error)
        return True
    cancelled = isinstance(error, asyncio.CancelledError)
    if cancelled or (
        run.cancel_requested and isinstance(error, FailureError) and is_cancellation(error)
    ):
        command = Command()
        command.command_type = CommandType.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION
        command.cancel_workflow_execution_command_attributes.SetInParent()
        _close(run, _CANCELED, (), command)
        return True
    if not run.is_failure(error):
        return False
    command = Command()
    command.command_type = CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION
    attributes = command.fail_workflow_execution_command_attributes
    if not run.replaying:
        attributes.failure.CopyFrom(failure_from(error, run.converter))
    _close(run, _FAILED, (), command)
    return True


def _continue_as_new(run: Run, request: ContinueAsNew) -> None:
    from perdure.sdk.workflow.definition import definition_of

    definition = definition_of(request.workflow) if request.workflow is not None else None
    if definition is not None:
        name, signature = definition.name, definition.signature
    elif isinstance(request.workflow, str):
        name, signature = request.workflow, None
    else:
        name = run.type_name
        signature = None if run.definition.dynamic else run.definition.signature

    def innermost(call: ContinueAsNewCall) -> None:
        command = None if run.replaying else _continue_command(run, call, signature)
        _close(run, _CONTINUED, (call.workflow,), command)

    call = ContinueAsNewCall(workflow=name, args=request.arguments, options=request.options)
    interceptors = run.settings.interceptors
    chain(interceptors, WorkflowInterceptor, "continue_as_new", innermost)(call)


def _continue_command(run: Run, call: ContinueAsNewCall, signature: Signature | None) -> Command:
    """What is not given is taken from this run, as people expect of "the same, but new"."""
    command = Command()
    command.command_type = CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION
    attributes = command.continue_as_new_workflow_execution_command_attributes
    attributes.workflow_type.name = call.workflow
    options = call.options
    attributes.task_queue.name = options.get("task_queue") or run.task_queue
    run.fill_arguments(attributes.input, call.args, signature)
    for label, option in (
        ("workflow_run_timeout", "run_timeout"),
        ("workflow_task_timeout", "task_timeout"),
    ):
        length: timedelta | None = options.get(option)
        if length is not None:
            getattr(attributes, label).CopyFrom(duration(timedelta_ns(length)))
    assert run.info is not None
    retry: RetryPolicy | None = options.get("retry") or run.info.retry
    if retry is not None:
        attributes.retry_policy.CopyFrom(retry.to_message())
    memo = options.get("memo")
    if memo is None:
        for name, payload in run.memo_payloads.items():
            attributes.memo.fields[name].CopyFrom(payload)
    else:
        for name, value in memo.items():
            attributes.memo.fields[name].CopyFrom(run.converter.encode(value))
    searchable = options.get("search_attributes")
    if searchable is None:
        searchable = run.search_attributes
    search_attributes.of(searchable).fill(attributes.search_attributes)
    for name, payload in call.headers.items():
        attributes.header.fields[name].CopyFrom(payload)
    return command


# --- interceptors -------------------------------------------------------------------------------


def intercepted_activity(
    run: Run,
    name: str,
    args: Sequence[Any],
    signature: Signature | None,
    options: ActivityOptions,
    local: bool,
    result_type: Any,
) -> asyncio.Future[Any]:
    """Schedule an activity through the worker's interceptors."""

    async def innermost(call: ScheduleActivity) -> Any:
        place = run.locals if options.local or local else run.activities
        return await place.schedule(
            call.activity, call.args, signature, call.options, result_type, dict(call.headers)
        )

    run.check_writable(f"activity {name!r}")
    call = ScheduleActivity(
        activity=name, args=args, options=replace(options, local=local or options.local)
    )
    chained = chain(run.settings.interceptors, WorkflowInterceptor, "schedule_activity", innermost)
    return run.loop.create_task(chained(call))


async def intercepted_child(
    run: Run,
    name: str,
    args: Sequence[Any],
    signature: Signature | None,
    options: ChildOptions,
    result_type: Any,
) -> ChildHandle:
    """Start a child through the worker's interceptors."""

    async def innermost(call: StartChildWorkflow) -> ChildHandle:
        started = run.children.start(
            call.workflow, call.args, signature, call.options, result_type, call.headers
        )
        await started.started
        return ChildHandle(run, started)

    call = StartChildWorkflow(workflow=name, args=args, id=options.id or "", options=options)
    interceptors = run.settings.interceptors
    chained = chain(interceptors, WorkflowInterceptor, "start_child_workflow", innermost)
    return await chained(call)


def intercepted_signal(
    run: Run, workflow_id: str, run_id: str, signal: Any, args: Sequence[Any]
) -> asyncio.Future[None]:
    """Signal another workflow through the worker's interceptors."""
    from perdure.sdk.workflow.definition import handler_name

    name, _ = handler_name("signal", signal)

    async def innermost(call: SignalExternalWorkflow) -> None:
        target = signal if call.signal == name else call.signal
        await run.externals.signal(
            call.workflow_id, call.run_id, target, call.args, headers=call.headers
        )

    call = SignalExternalWorkflow(workflow_id=workflow_id, run_id=run_id, signal=name, args=args)
    interceptors = run.settings.interceptors
    chained = chain(interceptors, WorkflowInterceptor, "signal_external_workflow", innermost)
    return run.loop.create_task(chained(call))
