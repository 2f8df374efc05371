"""Interceptors: code of yours around calls on a client, in a workflow, and of an activity.

Each method takes the call and `next`, does what it wants before and after, and returns what `next`
returned. A call is a small dataclass; to change it, pass on ``dataclasses.replace(call, …)``.
Headers travel with the call: what a client interceptor puts in, workflow and activity interceptors
find. One class may inherit from several of the three.

    class Tracing(ClientInterceptor, ActivityInterceptor):
        async def start_workflow(self, call, next):
            headers = {**call.headers, "trace": payload_of(current_trace())}
            return await next(replace(call, headers=headers))

        async def execute_activity(self, call, next):
            with trace(call.headers.get("trace")):
                return await next(call)

    client = Client(service, interceptors=[Tracing()])

The first interceptor in the list is the outermost. A worker uses its client's, then its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from temporalio.api.common.v1 import Payload

if TYPE_CHECKING:
    from perdure.sdk.activity import Activity
    from perdure.sdk.options import ActivityOptions

__all__ = [
    "ActivityInterceptor",
    "Call",
    "CancelWorkflow",
    "ClientInterceptor",
    "ContinueAsNewCall",
    "ExecuteActivity",
    "ExecuteWorkflow",
    "HandleQuery",
    "HandleSignal",
    "HandleUpdate",
    "Headers",
    "HeartbeatActivity",
    "Interceptor",
    "QueryWorkflow",
    "ScheduleActivity",
    "SignalExternalWorkflow",
    "SignalWorkflow",
    "StartChildWorkflow",
    "StartUpdate",
    "StartWorkflow",
    "TerminateWorkflow",
    "WorkflowInterceptor",
    "chain",
]

Headers = Mapping[str, Payload]
"""Values that travel beside the arguments, by name."""

Next = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """What all calls with arguments have: these, and the headers that travel beside them."""

    args: Sequence[Any]
    headers: Headers = field(default_factory=dict)


# --- client -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StartWorkflow(Call):
    """A start, with or without a first signal; `options` are those of `Client.start`."""

    workflow: str
    id: str
    task_queue: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SignalWorkflow(Call):
    """A signal from a client."""

    workflow_id: str
    run_id: str
    signal: str


@dataclass(frozen=True, kw_only=True)
class QueryWorkflow(Call):
    """A query from a client."""

    workflow_id: str
    run_id: str
    query: str


@dataclass(frozen=True, kw_only=True)
class StartUpdate(Call):
    """An update from a client."""

    workflow_id: str
    run_id: str
    update: str
    update_id: str


@dataclass(frozen=True, kw_only=True)
class CancelWorkflow:
    """A request to cancel, from a client."""

    workflow_id: str
    run_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TerminateWorkflow:
    """A termination by a client."""

    workflow_id: str
    run_id: str
    reason: str
    details: Sequence[Any]


class ClientInterceptor:
    """Around what a client asks of the service. Override what you need."""

    async def start_workflow(
        self, call: StartWorkflow, next: Callable[[StartWorkflow], Awaitable[Any]]
    ) -> Any:
        """Around a start; returns the handle."""
        return await next(call)

    async def signal_workflow(
        self, call: SignalWorkflow, next: Callable[[SignalWorkflow], Awaitable[None]]
    ) -> None:
        """Around a signal."""
        await next(call)

    async def query_workflow(
        self, call: QueryWorkflow, next: Callable[[QueryWorkflow], Awaitable[Any]]
    ) -> Any:
        """Around a query; returns its answer."""
        return await next(call)

    async def start_update(
        self, call: StartUpdate, next: Callable[[StartUpdate], Awaitable[Any]]
    ) -> Any:
        """Around an update; returns the update's handle."""
        return await next(call)

    async def cancel_workflow(
        self, call: CancelWorkflow, next: Callable[[CancelWorkflow], Awaitable[None]]
    ) -> None:
        """Around a request to cancel."""
        await next(call)

    async def terminate_workflow(
        self, call: TerminateWorkflow, next: Callable[[TerminateWorkflow], Awaitable[None]]
    ) -> None:
        """Around a termination."""
        await next(call)


# --- activity ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ExecuteActivity(Call):
    """One attempt of an activity."""

    activity: Activity[..., Any]


@dataclass(frozen=True, kw_only=True)
class HeartbeatActivity:
    """A heartbeat of a running activity."""

    details: Sequence[Any]


class ActivityInterceptor:
    """Around what a worker does for activities. Override what you need."""

    async def execute_activity(
        self, call: ExecuteActivity, next: Callable[[ExecuteActivity], Awaitable[Any]]
    ) -> Any:
        """Around one attempt; returns its result. Runs in the event loop for every activity."""
        return await next(call)

    def heartbeat(self, call: HeartbeatActivity, next: Callable[[HeartbeatActivity], None]) -> None:
        """Around a heartbeat, in the thread of the activity. Not called in child processes."""
        next(call)


# --- workflow ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ExecuteWorkflow(Call):
    """A run of a workflow, from its first line to its end."""

    workflow: str


@dataclass(frozen=True, kw_only=True)
class HandleSignal(Call):
    """A signal that has arrived."""

    signal: str


@dataclass(frozen=True, kw_only=True)
class HandleQuery(Call):
    """A query that has arrived."""

    query: str


@dataclass(frozen=True, kw_only=True)
class HandleUpdate(Call):
    """An update that has arrived: for its validator, then for its handler."""

    update: str
    update_id: str


@dataclass(frozen=True, kw_only=True)
class ScheduleActivity(Call):
    """A call of an activity by a workflow."""

    activity: str
    options: ActivityOptions


@dataclass(frozen=True, kw_only=True)
class StartChildWorkflow(Call):
    """A start of a child by a workflow."""

    workflow: str
    id: str
    options: Any


@dataclass(frozen=True, kw_only=True)
class SignalExternalWorkflow(Call):
    """A signal from a workflow to another one."""

    workflow_id: str
    run_id: str
    signal: str


@dataclass(frozen=True, kw_only=True)
class ContinueAsNewCall(Call):
    """The start of the next run by this one."""

    workflow: str
    options: Mapping[str, Any]


class WorkflowInterceptor:
    """Around what happens in workflow code. Override what you need.

    The methods run inside the workflow: what they do must be deterministic, and they must keep no
    state, since one interceptor serves all runs.
    """

    async def execute_workflow(
        self, call: ExecuteWorkflow, next: Callable[[ExecuteWorkflow], Awaitable[Any]]
    ) -> Any:
        """Around the whole run; returns its result."""
        return await next(call)

    async def handle_signal(
        self, call: HandleSignal, next: Callable[[HandleSignal], Awaitable[None]]
    ) -> None:
        """Around a signal handler."""
        await next(call)

    def handle_query(self, call: HandleQuery, next: Callable[[HandleQuery], Any]) -> Any:
        """Around a query handler; returns its answer."""
        return next(call)

    def validate_update(self, call: HandleUpdate, next: Callable[[HandleUpdate], None]) -> None:
        """Around an update's validator."""
        next(call)

    async def handle_update(
        self, call: HandleUpdate, next: Callable[[HandleUpdate], Awaitable[Any]]
    ) -> Any:
        """Around an update handler; returns its result."""
        return await next(call)

    async def schedule_activity(
        self, call: ScheduleActivity, next: Callable[[ScheduleActivity], Awaitable[Any]]
    ) -> Any:
        """Around a call of an activity, local or not; returns its result."""
        return await next(call)

    async def start_child_workflow(
        self, call: StartChildWorkflow, next: Callable[[StartChildWorkflow], Awaitable[Any]]
    ) -> Any:
        """Around the start of a child; returns its handle."""
        return await next(call)

    async def signal_external_workflow(
        self,
        call: SignalExternalWorkflow,
        next: Callable[[SignalExternalWorkflow], Awaitable[None]],
    ) -> None:
        """Around a signal to another workflow."""
        await next(call)

    def continue_as_new(
        self, call: ContinueAsNewCall, next: Callable[[ContinueAsNewCall], Any]
    ) -> Any:
        """Around the end of this run by starting the next; `next` does not return."""
        return next(call)


Interceptor = ClientInterceptor | ActivityInterceptor | WorkflowInterceptor

_C = TypeVar("_C", bound=Next)


def chain(interceptors: Sequence[Any], kind: type, method: str, innermost: _C) -> _C:
    """What to call in place of `innermost` so that every interceptor has its say.

    Those that are not of the kind, or do not override the method, cost nothing.
    """
    call: Any = innermost
    for interceptor in reversed(interceptors):
        if not isinstance(interceptor, kind):
            continue
        if getattr(type(interceptor), method) is getattr(kind, method):
            continue
        call = _around(getattr(interceptor, method), call)
    result: _C = call
    return result


def _around(method: Callable[[Any, Next], Any], inner: Next) -> Next:
    return lambda call: method(call, inner)
