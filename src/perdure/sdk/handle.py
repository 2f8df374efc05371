"""The handle of a workflow: talking with it from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, TypeVarTuple, overload

from temporalio.api.enums.v1 import (
    EventType,
    HistoryEventFilterType,
    UpdateWorkflowExecutionLifecycleStage,
)
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    PauseWorkflowExecutionRequest,
    ResetWorkflowExecutionRequest,
    UnpauseWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure.sdk.interceptors import (
    CancelWorkflow,
    QueryWorkflow,
    SignalWorkflow,
    StartUpdate,
    TerminateWorkflow,
)
from perdure.sdk.options import QueryRejectCondition, ResetReapply, UpdateWaitStage, check_name
from perdure.sdk.outbound import execution, not_found
from perdure.sdk.records import WorkflowDescription, WorkflowHistory
from perdure.sdk.results import close_event
from perdure.sdk.starting import new_id
from perdure.sdk.update_handle import UpdateHandle
from perdure.sdk.workflow.definition import handler_name

if TYPE_CHECKING:
    from perdure.sdk.client import Client

__all__ = ["UpdateHandle", "WorkflowHandle"]

Ts = TypeVarTuple("Ts")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

_CLOSE_EVENT = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT
_ALL_EVENTS = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT
_STAGE = UpdateWorkflowExecutionLifecycleStage


class WorkflowHandle(Generic[R_co]):
    """One workflow, seen from outside. Made by `Client.start` and `Client.handle`.

    Attributes:
        id: the workflow id.
        run_id: the run that calls go to; None for whichever is the latest.
        first_run_id: if known, the run that `start` made: `cancel`, `terminate` and `result` then
            reach its chain of runs and not a later workflow of the same id.
        result_type: what the result is made into.
    """

    def __init__(
        self,
        client: Client,
        id: str,
        *,
        run_id: str | None = None,
        result_run_id: str | None = None,
        first_run_id: str | None = None,
        result_type: Any = Any,
    ) -> None:
        check_name("id", id, required=True)
        self._client = client
        self.id = id
        self.run_id = run_id
        self.first_run_id = first_run_id
        self._result_run_id = result_run_id or run_id
        self.result_type = result_type

    def __repr__(self) -> str:
        return f"<workflow {self.id}, run {self.run_id or self.first_run_id or 'latest'}>"

    # --- the result ---------------------------------------------------------------------------

    async def result(self, *, follow_runs: bool = True) -> R_co:
        """Wait until the workflow ends and return its result.

        Args:
            follow_runs: go on to the next run after a retry, a cron run or a continue-as-new.

        Raises:
            WorkflowFailedError: it failed, timed out, was cancelled or terminated; see `cause`.
            WorkflowContinuedAsNewError: it was not to be followed.
            WorkflowNotFoundError: there is no such workflow.
            ConversionError: the result is not of the expected type.
        """
        run_id = self._result_run_id or ""
        while True:
            event = close_event(await self._wait_for_close(run_id))
            if not (follow_runs and event.next_run_id):
                break
            run_id = event.next_run_id
        value: R_co = event.value(self._client.converter, self.result_type, self.id, run_id)
        return value

    async def _wait_for_close(self, run_id: str) -> HistoryEvent:
        request = GetWorkflowExecutionHistoryRequest(
            namespace=self._client.namespace,
            execution=execution(self.id, run_id),
            wait_new_event=True,
            history_event_filter_type=_CLOSE_EVENT,
            skip_archival=True,
        )
        while True:
            with not_found(self.id, run_id):
                response = await self._client.long_poll("get_workflow_execution_history", request)
            if response is None:
                continue
            if response.history.events:
                event: HistoryEvent = response.history.events[-1]
                return event
            request.next_page_token = response.next_page_token

    # --- signal, query ------------------------------------------------------------------------

    @overload
    async def signal(self, signal: str, *args: Any) -> None: ...

    @overload
    async def signal(self, signal: Callable[[Any, *Ts], Any], *args: *Ts) -> None: ...

    async def signal(  # type: ignore[misc]  # *Ts of the overloads
        self, signal: Any, *args: Any
    ) -> None:
        """Deliver a signal, given as the handler's method or by name.

        Raises:
            WorkflowNotFoundError: there is no such workflow, or it has ended.
            ConversionError: an argument does not convert; nothing was sent.
        """
        name, signature = handler_name("signal", signal)
        call = SignalWorkflow(
            workflow_id=self.id,
            run_id=self.run_id or "",
            signal=name,
            args=args if signature is None else signature.bind(args, {}),
        )
        await self._client.outbound.signal(call, signature)

    @overload
    async def query(
        self, query: str, *args: Any, reject: QueryRejectCondition = ..., result_type: Any = ...
    ) -> Any: ...

    @overload
    async def query(
        self,
        query: Callable[[Any, *Ts], T],
        *args: *Ts,
        reject: QueryRejectCondition = ...,
    ) -> T: ...

    async def query(  # type: ignore[misc]  # *Ts of the overloads
        self,
        query: Any,
        *args: Any,
        reject: QueryRejectCondition = QueryRejectCondition.UNSPECIFIED,
        result_type: Any = None,
    ) -> Any:
        """Ask the workflow, open or closed, through a handler given as its method or by name.

        Args:
            reject: refuse to ask a run in these states.
            result_type: what the answer to a query by name is made into.

        Raises:
            QueryFailedError: the handler failed, or there is none of that name.
            QueryRejectedError: the run's status is one that `reject` excludes.
            WorkflowNotFoundError: there is no such workflow.
        """
        name, signature = handler_name("query", query)
        call = QueryWorkflow(
            workflow_id=self.id,
            run_id=self.run_id or "",
            query=name,
            args=args if signature is None else signature.bind(args, {}),
        )
        kind = Any if signature is None else signature.return_type
        kind = kind if result_type is None else result_type
        return await self._client.outbound.query(call, signature, kind, reject)

    # --- update -------------------------------------------------------------------------------

    @overload
    async def update(self, update: str, *args: Any, id: str | None = ...) -> Any: ...

    @overload
    async def update(
        self,
        update: Callable[[Any, *Ts], Coroutine[Any, Any, T]],
        *args: *Ts,
        id: str | None = ...,
    ) -> T: ...

    @overload
    async def update(
        self, update: Callable[[Any, *Ts], T], *args: *Ts, id: str | None = ...
    ) -> T: ...

    async def update(  # type: ignore[misc]  # *Ts of the overloads
        self, update: Any, *args: Any, id: str | None = None
    ) -> Any:
        """Send an update and wait for its result.

        Args:
            id: names the update: sending it twice does it once; default: a random one.

        Raises:
            UpdateFailedError: it was rejected, or its handler failed; see `cause`.
            WorkflowNotFoundError: there is no such workflow, or it has ended.
            ConversionError: an argument does not convert; nothing was sent.
        """
        handle = await self.start_update(update, *args, id=id)
        return await handle.result()

    @overload
    async def start_update(
        self, update: str, *args: Any, id: str | None = ..., wait_stage: UpdateWaitStage = ...
    ) -> UpdateHandle[Any]: ...

    @overload
    async def start_update(
        self,
        update: Callable[[Any, *Ts], Coroutine[Any, Any, T]],
        *args: *Ts,
        id: str | None = ...,
        wait_stage: UpdateWaitStage = ...,
    ) -> UpdateHandle[T]: ...

    @overload
    async def start_update(
        self,
        update: Callable[[Any, *Ts], T],
        *args: *Ts,
        id: str | None = ...,
        wait_stage: UpdateWaitStage = ...,
    ) -> UpdateHandle[T]: ...

    async def start_update(  # type: ignore[misc]  # *Ts of the overloads
        self,
        update: Any,
        *args: Any,
        id: str | None = None,
        wait_stage: UpdateWaitStage = UpdateWaitStage.ACCEPTED,
    ) -> Any:
        """Send an update and wait until it is accepted or completed.

        Raises:
            ValueError: `wait_stage` is ADMITTED, which no service can wait for.
            WorkflowNotFoundError, ConversionError: as of `update`. A rejection is raised by the
                handle's `result`.
        """
        if wait_stage is UpdateWaitStage.ADMITTED:
            raise ValueError("wait_stage: ACCEPTED or COMPLETED")
        check_name("id", id)
        name, signature = handler_name("update", update)
        call = StartUpdate(
            workflow_id=self.id,
            run_id=self.run_id or "",
            update=name,
            update_id=id or new_id(),
            args=args if signature is None else signature.bind(args, {}),
        )

        async def deliver(
            request: UpdateWorkflowExecutionRequest,
        ) -> UpdateWorkflowExecutionResponse:
            return await _deliver_update(self._client, request)

        first_run_id = self.first_run_id or ""
        response = await self._client.outbound.update(call, signature, first_run_id, deliver)
        reference = response.update_ref
        handle: UpdateHandle[Any] = UpdateHandle(
            self._client,
            reference.update_id or call.update_id,
            workflow_id=self.id,
            run_id=reference.workflow_execution.run_id or None,
            outcome=response.outcome if response.HasField("outcome") else None,
            result_type=Any if signature is None else signature.return_type,
        )
        if wait_stage is UpdateWaitStage.COMPLETED:
            await handle.wait()
        return handle

    def update_handle(
        self, id: str, *, run_id: str | None = None, result_type: Any = Any
    ) -> UpdateHandle[Any]:
        """A handle of an update that was sent before."""
        return UpdateHandle(
            self._client,
            id,
            workflow_id=self.id,
            run_id=run_id or self.run_id,
            result_type=result_type,
        )

    # --- ending it ----------------------------------------------------------------------------

    async def cancel(self, *, reason: str = "") -> None:
        """Ask the workflow to cancel: its code sees `asyncio.CancelledError`.

        If it has ended, nothing happens.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
        """
        call = CancelWorkflow(workflow_id=self.id, run_id=self.run_id or "", reason=reason)
        await self._client.outbound.cancel(call, self.first_run_id or "")

    async def terminate(self, *details: Any, reason: str = "") -> None:
        """End the workflow at once; its code sees nothing.

        Raises:
            WorkflowNotFoundError: there is no such workflow, or it has ended.
        """
        call = TerminateWorkflow(
            workflow_id=self.id, run_id=self.run_id or "", reason=reason, details=details
        )
        await self._client.outbound.terminate(call, self.first_run_id or "")

    async def delete(self) -> None:
        """Delete the workflow with its history; an open one is terminated first."""
        request = DeleteWorkflowExecutionRequest(
            namespace=self._client.namespace,
            workflow_execution=execution(self.id, self.run_id or ""),
        )
        with not_found(self.id):
            await self._client.calls("delete_workflow_execution", request)

    async def pause(self, *, reason: str = "") -> None:
        """Hold the workflow: what comes is recorded, and no worker gets a task until `unpause`.

        Raises:
            WorkflowNotFoundError: no such workflow, or it has ended.
            RPCError: it is paused already (FailedPrecondition), or the server is one that does not
                offer it (Unimplemented).
        """
        request = PauseWorkflowExecutionRequest(reason=reason)
        await self._hold("pause_workflow_execution", request)

    async def unpause(self, *, reason: str = "") -> None:
        """Let a paused workflow go on.

        Raises:
            WorkflowNotFoundError: no such workflow, or it has ended.
            RPCError: it is not paused (FailedPrecondition).
        """
        request = UnpauseWorkflowExecutionRequest(reason=reason)
        await self._hold("unpause_workflow_execution", request)

    async def _hold(
        self, rpc: str, request: PauseWorkflowExecutionRequest | UnpauseWorkflowExecutionRequest
    ) -> None:
        request.namespace = self._client.namespace
        request.workflow_id = self.id
        request.run_id = self.run_id or ""
        request.identity = self._client.identity
        request.request_id = new_id()
        with not_found(self.id):
            await self._client.calls(rpc, request)

    async def reset(
        self,
        *,
        to: int | Literal["first", "last"],
        reason: str = "",
        reapply: ResetReapply = ResetReapply.ALL,
    ) -> WorkflowHandle[R_co]:
        """End the run and start another with its history up to a point; returns that one's handle.

        Args:
            to: id of the event that completed, failed or timed out a workflow task; or the first
                or last completed one.
            reason: recorded in both runs.
            reapply: what becomes of signals and updates that came after that point.

        Raises:
            ValueError: the run has completed no workflow task yet.
            WorkflowNotFoundError: there is no such run.
        """
        event_id = to if isinstance(to, int) else await self._completed_task(to)
        request = ResetWorkflowExecutionRequest(
            namespace=self._client.namespace,
            workflow_execution=execution(self.id, self.run_id or self._result_run_id or ""),
            reason=reason,
            workflow_task_finish_event_id=event_id,
            request_id=new_id(),
            identity=self._client.identity,
        )
        request.reset_reapply_type = int(reapply)  # type: ignore[assignment]
        with not_found(self.id):
            response = await self._client.calls("reset_workflow_execution", request)
        return WorkflowHandle(
            self._client, self.id, run_id=response.run_id, result_type=self.result_type
        )

    async def _completed_task(self, which: Literal["first", "last"]) -> int:
        found = 0
        async for event in self.history():
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                found = event.event_id
                if which == "first":
                    break
        if not found:
            raise ValueError(f"to: {self.id} has completed no workflow task yet")
        return found

    # --- looking at it ------------------------------------------------------------------------

    async def describe(self) -> WorkflowDescription:
        """What the service knows of the run.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
        """
        request = DescribeWorkflowExecutionRequest(
            namespace=self._client.namespace, execution=execution(self.id, self.run_id or "")
        )
        with not_found(self.id, self.run_id or ""):
            response = await self._client.calls("describe_workflow_execution", request)
        return WorkflowDescription.from_response(response, self._client.converter)

    async def history(self, *, wait: bool = False) -> AsyncIterator[HistoryEvent]:
        """The events of the run, from the first on.

        Args:
            wait: go on with new events as they come, until the run ends.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
        """
        request = GetWorkflowExecutionHistoryRequest(
            namespace=self._client.namespace,
            execution=execution(self.id, self.run_id or self._result_run_id or ""),
            wait_new_event=wait,
            history_event_filter_type=_ALL_EVENTS,
            skip_archival=True,
        )
        while True:
            with not_found(self.id, self.run_id or ""):
                response = await self._client.long_poll("get_workflow_execution_history", request)
            if response is None:
                continue
            for event in response.history.events:
                yield event
            if not response.next_page_token:
                return
            request.next_page_token = response.next_page_token

    async def fetch_history(self) -> WorkflowHistory:
        """All events of the run, at once."""
        return WorkflowHistory(self.id, [event async for event in self.history()])


async def _deliver_update(
    client: Client, request: UpdateWorkflowExecutionRequest
) -> UpdateWorkflowExecutionResponse:
    """Ask until the update is at least accepted: the service may answer before."""
    while True:
        response: UpdateWorkflowExecutionResponse | None = await client.long_poll(
            "update_workflow_execution", request
        )
        if response is None:
            continue
        if accepted(response):
            return response


def accepted(response: UpdateWorkflowExecutionResponse) -> bool:
    """Is the update accepted, or over already?"""
    stage = _STAGE.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
    return response.stage >= stage or response.HasField("outcome")
