"""From the arguments of a start to its request."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, TypedDict

from temporalio.api.common.v1 import Header, Payloads
from temporalio.api.common.v1 import Priority as PriorityMessage
from temporalio.api.workflowservice.v1 import (
    SignalWithStartWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
)

from perdure.api.times import duration, timedelta_ns
from perdure.sdk import search_attributes as attributes
from perdure.sdk.converter import Converter
from perdure.sdk.interceptors import Headers, StartWorkflow
from perdure.sdk.options import (
    DEFAULT_TASK_QUEUE,
    Priority,
    RetryPolicy,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
    check_duration,
    check_name,
)
from perdure.sdk.search_attributes import AnyAttributes
from perdure.sdk.signature import Signature
from perdure.sdk.workflow.definition import definition_of, handler_name

__all__ = ["StartFields", "StartOptions", "Target", "new_id", "target_of"]

_Request = StartWorkflowExecutionRequest | SignalWithStartWorkflowExecutionRequest


class StartFields(TypedDict, total=False):
    """The fields of `StartOptions` as keyword arguments."""

    id: str | None
    task_queue: str | None
    id_reuse_policy: WorkflowIDReusePolicy
    id_conflict_policy: WorkflowIDConflictPolicy
    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    retry: RetryPolicy | None
    cron: str
    start_delay: timedelta | None
    memo: Mapping[str, Any] | None
    search_attributes: AnyAttributes | None
    request_id: str | None
    start_signal: Any
    start_signal_args: Sequence[Any]
    priority: Priority | None
    summary: str | None
    details: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """How a workflow is started.

    Args:
        id: the workflow id; default: a random one.
        task_queue: where workers look for it; default: "default".
        id_reuse_policy: may the id of a closed run be used again?
        id_conflict_policy: what to do when a run of this id is open.
        execution_timeout: limit of the whole chain of runs: retries, cron, continue-as-new.
        run_timeout: limit of one run.
        task_timeout: limit of one workflow task; default: 10 s.
        retry: start a failed run again; default: do not.
        cron: start again and again, e.g. ``"0 3 * * *"``.
        start_delay: wait before the first workflow task.
        memo: values to show, not to search.
        search_attributes: values to search, by key or by name.
        request_id: names this start: a second one with the same gets the same run.
        start_signal: name or handler of a signal to deliver with the start, or to the open run.
        start_signal_args: its arguments.
        priority: order among the queue's tasks.
        summary, details: what tools show of this run: one line; several.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """

    id: str | None = None
    task_queue: str | None = None
    id_reuse_policy: WorkflowIDReusePolicy = WorkflowIDReusePolicy.ALLOW_DUPLICATE
    id_conflict_policy: WorkflowIDConflictPolicy = WorkflowIDConflictPolicy.UNSPECIFIED
    execution_timeout: timedelta | None = None
    run_timeout: timedelta | None = None
    task_timeout: timedelta | None = None
    retry: RetryPolicy | None = None
    cron: str = ""
    start_delay: timedelta | None = None
    memo: Mapping[str, Any] | None = None
    search_attributes: AnyAttributes | None = None
    request_id: str | None = None
    start_signal: Any = None
    start_signal_args: Sequence[Any] = ()
    priority: Priority | None = None
    summary: str | None = None
    details: str | None = None

    def __post_init__(self) -> None:
        check_name("id", self.id)
        check_name("task_queue", self.task_queue)
        for name in _DURATIONS:
            check_duration(name, getattr(self, name))
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise TypeError(f"retry: a RetryPolicy, got {self.retry!r}")
        if self.cron and self.start_delay:
            raise ValueError("start_delay: not together with cron")
        if self.start_signal_args and self.start_signal is None:
            raise ValueError("start_signal_args: given without start_signal")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> StartOptions:
        """The options for keyword arguments.

        Raises:
            TypeError: naming a keyword that is no option.
        """
        unknown = given.keys() - _NAMES
        if unknown:
            raise TypeError(
                f"{', '.join(sorted(unknown))}: no option of a start; there are: "
                f"{', '.join(sorted(_NAMES))} (arguments of the workflow go by position)"
            )
        return cls(**given) if given else _DEFAULTS


_DURATIONS = ("execution_timeout", "run_timeout", "task_timeout", "start_delay")
_NAMES = frozenset(field.name for field in fields(StartOptions))
_DEFAULTS = StartOptions()


def new_id() -> str:
    """A random id."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class Target:
    """A workflow to start or to talk with: its type name, and its types where they are known."""

    name: str
    signature: Signature | None

    @property
    def result_type(self) -> Any:
        """Declared type of the result; `Any` for a workflow known by name only."""
        return Any if self.signature is None else self.signature.return_type


def target_of(workflow: Any) -> Target:
    """The target for a decorated workflow or a type name.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(workflow, str):
        check_name("workflow", workflow, required=True)
        return Target(workflow, None)
    definition = definition_of(workflow)
    if definition is None:
        raise TypeError(
            f"workflow: a function or class with @workflow, or a name, got {workflow!r}"
        )
    return Target(definition.name, definition.signature)


def start_request(
    call: StartWorkflow,
    signature: Signature | None,
    converter: Converter,
    *,
    namespace: str,
    identity: str,
) -> _Request:
    """The request of a start; of a signal-with-start if the options name a signal."""
    options = StartOptions.of(call.options)
    request: _Request
    if options.start_signal is None:
        request = StartWorkflowExecutionRequest()
    else:
        request = SignalWithStartWorkflowExecutionRequest()
        name, types = handler_name("signal", options.start_signal)
        request.signal_name = name
        fill(request.signal_input, options.start_signal_args, types, converter)
    request.namespace = namespace
    request.identity = identity
    request.request_id = options.request_id or new_id()
    request.workflow_id = call.id
    request.workflow_type.name = call.workflow
    request.task_queue.name = call.task_queue
    fill(request.input, call.args, signature, converter)
    fill_headers(request.header, call.headers)
    _fill_policies(request, options)
    _fill_facts(request, options, converter)
    return request


def fill(
    payloads: Payloads, values: Sequence[Any], signature: Signature | None, converter: Converter
) -> None:
    """Append arguments to a message, checked where their types are known.

    Raises:
        ConversionError: naming the function and the argument.
    """
    if signature is None:
        converter.fill(payloads, values)
    else:
        converter.fill_arguments(payloads, values, signature)


def fill_headers(message: Header, headers: Headers) -> None:
    """Copy headers into a message."""
    for name, payload in headers.items():
        message.fields[name].CopyFrom(payload)


def _fill_policies(request: Any, options: StartOptions) -> None:
    request.workflow_id_reuse_policy = int(options.id_reuse_policy)
    request.workflow_id_conflict_policy = int(options.id_conflict_policy)
    for field, length in (
        ("workflow_execution_timeout", options.execution_timeout),
        ("workflow_run_timeout", options.run_timeout),
        ("workflow_task_timeout", options.task_timeout),
        ("workflow_start_delay", options.start_delay),
    ):
        if length is not None:
            getattr(request, field).CopyFrom(duration(timedelta_ns(length)))
    if options.retry is not None:
        request.retry_policy.CopyFrom(options.retry.to_message())
    if options.cron:
        request.cron_schedule = options.cron
    if options.priority is not None:
        fill_priority(request.priority, options.priority)


def _fill_facts(request: Any, options: StartOptions, converter: Converter) -> None:
    for name, value in (options.memo or {}).items():
        request.memo.fields[name].CopyFrom(converter.encode(value))
    if options.search_attributes:
        attributes.of(options.search_attributes).fill(request.search_attributes)
    if options.summary:
        request.user_metadata.summary.CopyFrom(converter.encode(options.summary))
    if options.details:
        request.user_metadata.details.CopyFrom(converter.encode(options.details))


def fill_priority(message: PriorityMessage, priority: Priority) -> None:
    """Copy a priority into a message."""
    message.priority_key = priority.key or 0
    message.fairness_key = priority.fairness_key
    message.fairness_weight = priority.fairness_weight or 0.0


def start_call(
    target: Target, args: Sequence[Any], given: Mapping[str, Any], default_queue: str | None
) -> StartWorkflow:
    """The start that keyword arguments describe, with its defaults filled in.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    options = StartOptions.of(given)
    return StartWorkflow(
        workflow=target.name,
        args=args if target.signature is None else target.signature.bind(tuple(args), {}),
        id=options.id or new_id(),
        task_queue=options.task_queue or default_queue or DEFAULT_TASK_QUEUE,
        options=given,
    )
