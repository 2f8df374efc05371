"""The client: starting workflows and finding them.

async with perdure.connect("sqlite:///orders.db") as client, client.worker():
    receipt = await client.execute(checkout, order, id="order-42")
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    TypeVar,
    TypeVarTuple,
    Unpack,
    overload,
)

from google.protobuf.message import Message
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    ListWorkflowExecutionsRequest,
)

from perdure.api import errors as rpc
from perdure.sdk.async_activity import AsyncActivityHandle
from perdure.sdk.calls import DEFAULT_RETRY_FOR, Calls
from perdure.sdk.converter import Converter
from perdure.sdk.handle import WorkflowHandle
from perdure.sdk.interceptors import Interceptor
from perdure.sdk.options import check_name
from perdure.sdk.outbound import Outbound
from perdure.sdk.records import WorkflowCount, WorkflowExecution
from perdure.sdk.starting import StartFields, start_call, target_of
from perdure.sdk.update_handle import UpdateHandle
from perdure.sdk.update_with_start import update_with_start

if TYPE_CHECKING:
    from perdure.sdk.worker import Worker
    from perdure.sdk.worker_options import WorkerFields

__all__ = ["Client", "UpdateHandle", "WorkflowHandle"]

Ts = TypeVarTuple("Ts")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_DEFAULT_PAGE_SIZE = 1000


class WorkflowClass(Protocol[*Ts, T_co]):
    """A workflow that is a class: its `run` method has the arguments and the result."""

    @property
    def run(self) -> Callable[[Unpack[Ts]], Coroutine[Any, Any, T_co]]: ...


class Client:
    """Starts workflows, talks with them, finds them. Cheap; safe to share within one event loop.

    Args:
        service: an object with one ``async`` method per RPC; see `perdure.connect`.
        namespace: where the workflows are.
        task_queue: where starts and workers go that name none; default: "default".
        converter: how values become payloads.
        interceptors: code around the calls; workers made from this client use them too.
        identity: who asks, for histories; default: ``process@host``.
        retry_for: how long calls are tried again after transient errors.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """

    def __init__(
        self,
        service: Any,
        *,
        namespace: str = "default",
        task_queue: str | None = None,
        converter: Converter | None = None,
        interceptors: Sequence[Interceptor] = (),
        identity: str | None = None,
        retry_for: timedelta = DEFAULT_RETRY_FOR,
    ) -> None:
        check_name("namespace", namespace, required=True)
        check_name("task_queue", task_queue)
        check_name("identity", identity)
        self.service = service
        self.namespace = namespace
        self.task_queue = task_queue
        self.converter = converter or Converter()
        self.interceptors: Sequence[Interceptor] = tuple(interceptors)
        self.identity = identity or f"{os.getpid()}@{socket.gethostname()}"
        self.calls = Calls(service, self.converter, retry_for)
        self.outbound = Outbound(self)

    def __repr__(self) -> str:
        return f"<Client of namespace {self.namespace!r}>"

    # --- starting -----------------------------------------------------------------------------

    @overload
    async def start(
        self, workflow: type[WorkflowClass[*Ts, T]], *args: *Ts, **options: Unpack[StartFields]
    ) -> WorkflowHandle[T]: ...

    @overload
    async def start(
        self,
        workflow: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        *args: *Ts,
        **options: Unpack[StartFields],
    ) -> WorkflowHandle[T]: ...

    @overload
    async def start(
        self, workflow: str, *args: Any, result_type: Any = ..., **options: Unpack[StartFields]
    ) -> WorkflowHandle[Any]: ...

    async def start(  # type: ignore[misc]  # *Ts of the overloads
        self, workflow: Any, *args: Any, result_type: Any = None, **options: Any
    ) -> WorkflowHandle[Any]:
        """Start a workflow and return its handle.

        Args:
            workflow: a function or class with ``@workflow``, or a type name.
            args: its arguments, by position.
            result_type: what the result of a workflow given by name is made into.
            options: as of `StartOptions`: `id`, `task_queue`, `retry`, …

        Raises:
            WorkflowAlreadyStartedError: the policies forbid another run of this id.
            ConversionError: an argument does not convert; nothing was sent.
            TypeError, ValueError: naming the argument that is wrong.

        Example:
            >>> handle = await client.start(checkout, order, id="order-42")
        """
        target = target_of(workflow)
        call = start_call(target, args, options, self.task_queue)
        run_id = await self.outbound.start(call, target.signature)
        return WorkflowHandle(
            self,
            call.id,
            result_run_id=run_id,
            first_run_id=run_id,
            result_type=target.result_type if result_type is None else result_type,
        )

    @overload
    async def execute(
        self, workflow: type[WorkflowClass[*Ts, T]], *args: *Ts, **options: Unpack[StartFields]
    ) -> T: ...

    @overload
    async def execute(
        self,
        workflow: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        *args: *Ts,
        **options: Unpack[StartFields],
    ) -> T: ...

    @overload
    async def execute(
        self, workflow: str, *args: Any, result_type: Any = ..., **options: Unpack[StartFields]
    ) -> Any: ...

    async def execute(  # type: ignore[misc]  # *Ts of the overloads
        self, workflow: Any, *args: Any, **options: Any
    ) -> Any:
        """Start a workflow and wait for its result: `start`, then `WorkflowHandle.result`.

        Raises:
            WorkflowFailedError: the workflow ended without a result; see `cause`.
            WorkflowAlreadyStartedError, ConversionError, TypeError, ValueError: as of `start`.
        """
        handle: WorkflowHandle[Any] = await self.start(workflow, *args, **options)
        return await handle.result()

    async def update_with_start(
        self,
        workflow: Any,
        *args: Any,
        update: Any,
        update_args: Sequence[Any] = (),
        update_id: str | None = None,
        **options: Unpack[StartFields],
    ) -> UpdateHandle[Any]:
        """Start a workflow, unless it runs already, and send it an update, in one step.

        Args:
            update: the handler's method, or its name.
            update_args: the update's arguments.
            update_id: names the update: sending it twice does it once.
            options: as of `start`. `id_conflict_policy` must be given: `USE_EXISTING` to update
                the open run, `FAIL` to refuse if there is one.

        Raises:
            WorkflowAlreadyStartedError, ConversionError, TypeError, ValueError: as of `start`.
        """
        return await update_with_start(
            self, workflow, args, update, update_args, update_id, options
        )

    # --- finding ------------------------------------------------------------------------------

    @overload
    def handle(
        self, id: str, *, run_id: str | None = ..., result_type: type[T]
    ) -> WorkflowHandle[T]: ...

    @overload
    def handle(
        self, id: str, *, run_id: str | None = ..., result_type: Any = ...
    ) -> WorkflowHandle[Any]: ...

    def handle(
        self, id: str, *, run_id: str | None = None, result_type: Any = Any
    ) -> WorkflowHandle[Any]:
        """A handle of a workflow that was started elsewhere; nothing is asked of the service.

        Args:
            run_id: a certain run; default: the latest.
            result_type: what the result is made into.
        """
        return WorkflowHandle(self, id, run_id=run_id, result_type=result_type)

    @overload
    def handle_of(
        self, workflow: type[WorkflowClass[*Ts, T]], id: str, *, run_id: str | None = ...
    ) -> WorkflowHandle[T]: ...

    @overload
    def handle_of(
        self,
        workflow: Callable[..., Coroutine[Any, Any, T]],
        id: str,
        *,
        run_id: str | None = ...,
    ) -> WorkflowHandle[T]: ...

    def handle_of(self, workflow: Any, id: str, *, run_id: str | None = None) -> Any:
        """A handle of a workflow that was started elsewhere, with the result type of its function.

        Raises:
            TypeError: `workflow` is no workflow.
        """
        target = target_of(workflow)
        return WorkflowHandle(self, id, run_id=run_id, result_type=target.result_type)

    async def list(
        self, filter: str = "", *, limit: int | None = None, page_size: int = _DEFAULT_PAGE_SIZE
    ) -> AsyncIterator[WorkflowExecution]:
        """Runs that a filter finds, the latest started first unless it says ``ORDER BY``.

        Args:
            filter: e.g. ``WorkflowType = 'checkout' AND ExecutionStatus = 'Running'``; "" for all.
            limit: stop after so many.
            page_size: how many to ask for at once.

        Raises:
            RPCError: `InvalidArgument` if the filter cannot be parsed, saying where.

        Example:
            >>> async for run in client.list("CustomerId = 'c-7'"):
            ...     print(run.id, run.status.name)
        """
        if limit is not None and limit <= 0:
            raise ValueError(f"limit: more than 0, got {limit}")
        left = limit
        request = ListWorkflowExecutionsRequest(namespace=self.namespace, query=filter)
        while True:
            request.page_size = page_size if left is None else min(page_size, left)
            response = await self.calls("list_workflow_executions", request)
            for info in response.executions:
                yield WorkflowExecution.from_message(info, self.converter)
            if left is not None:
                left -= len(response.executions)
            if not response.next_page_token or (left is not None and left <= 0):
                return
            request.next_page_token = response.next_page_token

    async def count(self, filter: str = "") -> WorkflowCount:
        """How many runs a filter finds; by group with ``GROUP BY ExecutionStatus``.

        Raises:
            RPCError: as of `list`.
        """
        request = CountWorkflowExecutionsRequest(namespace=self.namespace, query=filter)
        response = await self.calls("count_workflow_executions", request)
        return WorkflowCount.from_response(response, self.converter)

    # --- activities and workers ---------------------------------------------------------------

    def activity_handle(
        self,
        *,
        task_token: bytes | None = None,
        workflow_id: str | None = None,
        run_id: str | None = None,
        activity_id: str | None = None,
    ) -> AsyncActivityHandle:
        """A handle of an activity that ended its function with `activity.raise_complete_async`.

        Give the task token, or the workflow id (with or without the run id) and the activity id.

        Raises:
            ValueError: neither or both are given.
        """
        return AsyncActivityHandle(
            self,
            task_token=task_token,
            workflow_id=workflow_id,
            run_id=run_id,
            activity_id=activity_id,
        )

    def worker(self, task_queue: str | None = None, **options: Unpack[WorkerFields]) -> Worker:
        """A worker for this client's namespace; see `WorkerOptions`.

        Without lists it runs every workflow and activity that was defined so far.

        Example:
            >>> async with client.worker():
            ...     await client.execute(checkout, order)
        """
        from perdure.sdk.worker import Worker

        return Worker(self, task_queue, **options)

    # --- for the other parts of the SDK -------------------------------------------------------

    async def long_poll(self, method: str, request: Message) -> Any:
        """Call an RPC that waits; None if it waited in vain and is to be called again."""
        try:
            return await self.calls(method, request)
        except rpc.DeadlineExceeded:
            return None
