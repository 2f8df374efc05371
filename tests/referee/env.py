"""What a referee program is handed: a client of one of the servers, and a notebook."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message
from temporalio.api import operatorservice, workflowservice
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from referee.raw import RawWorker
from referee.record import Names, error_lines, history_lines, message_lines

T = TypeVar("T")

CALL_TIMEOUT = timedelta(seconds=20)
WAIT_S = 20.0
RUNS_MAX = 40


class Env:
    """One program on one server.

    Attributes:
        client: the official client.
        server: "temporal" or "perdure", for the log; a program must not ask.
        queue: the task queue of the file's own worker.
        lines: what is compared.
    """

    def __init__(self, client: Client, server: str, subject: str, name: str) -> None:
        self.client = client
        self.server = server
        self.queue = subject
        self.name = f"{subject}-{name}"
        self.lines: list[str] = []
        self.names = Names()
        self._watched: list[tuple[str, str]] = []
        self._open: list[tuple[str, str]] = []
        self._background: set[asyncio.Task[Any]] = set()

    def id(self, suffix: str = "") -> str:
        """A workflow id, or another name, that no other program uses."""
        return f"{self.name}-{suffix}" if suffix else self.name

    def raw_worker(self, suffix: str = "raw", **options: Any) -> RawWorker:
        """A worker by hand, on a task queue of its own."""
        return RawWorker(self, self.id(suffix), **options)

    # --- notes --------------------------------------------------------------------------------

    def note(self, label: str, value: object = None) -> None:
        """Write down what must be equal: text, numbers, a message."""
        if isinstance(value, Message):
            lines = list(message_lines(value, self.names))
            self.lines += [f"{label}:", *(f"  {line}" for line in lines)]
        else:
            self.lines.append(f"{label}: {self.names.mask(repr(value), label)}")

    async def error(self, label: str, work: Awaitable[object]) -> None:
        """Write down the error that a call ends with."""
        try:
            async with asyncio.timeout(WAIT_S):
                result = await work
        except TimeoutError:
            raise
        except Exception as error:
            lines = list(error_lines(error, self.names))
            self.lines += [f"{label}: {lines[0]}", *(f"  {line}" for line in lines[1:])]
        else:
            self.note(f"{label}: no error", type(result).__name__)

    def background(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Let a call wait beside the program; how it ends does not matter."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(lambda _: task.cancelled() or task.exception())
        return task

    # --- calls --------------------------------------------------------------------------------

    async def start(self, workflow: Any, *args: Any, **options: Any) -> WorkflowHandle[Any, Any]:
        """Start a workflow on the file's worker (or on ``task_queue``); its history is compared."""
        options.setdefault("id", self.id())
        options.setdefault("task_queue", self.queue)
        handle = await self.client.start_workflow(workflow, args=args, **options)
        self.watch(handle.id, handle.result_run_id or handle.first_execution_run_id or "")
        return handle

    async def call(self, rpc: str, **fields: Any) -> Any:
        """One RPC, by its name in CamelCase, without the SDK's retries.

        ``namespace`` and ``identity`` are filled in; a start is watched.
        """
        operator = hasattr(operatorservice.v1, f"{rpc}Request")
        kind = getattr(operatorservice.v1 if operator else workflowservice.v1, f"{rpc}Request")
        known = kind.DESCRIPTOR.fields_by_name
        for name, value in (("namespace", "default"), ("identity", "referee")):
            if name in known:
                fields.setdefault(name, value)
        service = self.client.operator_service if operator else self.client.workflow_service
        method = getattr(service, _snake_case(rpc))
        response = await method(kind(**fields), timeout=CALL_TIMEOUT)
        if "workflow_id" in fields and getattr(response, "run_id", ""):
            self.watch(fields["workflow_id"], response.run_id)
        return response

    async def until(self, check: Callable[[], Awaitable[T]]) -> T:
        """Ask again until the answer is true. For what a server does in the background."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = await check()
                if found:
                    return found
                await asyncio.sleep(0.05)

    async def until_event(self, handle: Any, kind: str, count: int = 1) -> None:
        """Wait until the latest run of a handle's workflow has so many events of a type."""

        async def check() -> bool:
            events = await self.events(handle.id, handle.run_id or "")
            return [_kind(event) for event in events].count(kind) >= count

        await self.until(check)

    async def events(self, workflow_id: str, run_id: str = "") -> list[HistoryEvent]:
        """The history of a run."""
        found: list[HistoryEvent] = []
        token = b""
        while True:
            response = await self.call(
                "GetWorkflowExecutionHistory",
                execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
                next_page_token=token,
            )
            found += response.history.events
            token = response.next_page_token
            if not token:
                return found

    # --- the end ------------------------------------------------------------------------------

    def watch(self, workflow_id: str, run_id: str) -> None:
        """Compare the history of this run, and of what comes from it."""
        if (workflow_id, run_id) not in self._watched:
            self._watched.append((workflow_id, run_id))

    async def finish(self) -> None:
        """Write down the histories, and end what is still open."""
        for task in self._background:
            task.cancel()
        done = 0
        while done < len(self._watched):
            assert done < RUNS_MAX, "the program has too many runs"
            await self._write_down(*self._watched[done])
            done += 1
        for workflow_id, run_id in self._open:
            with suppress(RPCError):
                await self.client.get_workflow_handle(workflow_id, run_id=run_id).terminate()

    async def _write_down(self, workflow_id: str, run_id: str) -> None:
        shown = self.names.mask(run_id, "run_id")
        self.lines.append(f"history of {self.names.mask(workflow_id, 'workflow_id')} {shown}")
        try:
            events = await self.events(workflow_id, run_id)
        except RPCError as error:
            self.lines += [f"  {line}" for line in error_lines(error, self.names)]
            return
        self.lines += history_lines(_written(events), self.names)
        for event in events:
            self._follow(workflow_id, event)
        if not _is_close(events[-1]):
            self._open.append((workflow_id, run_id))

    def _follow(self, workflow_id: str, event: HistoryEvent) -> None:
        attributes = getattr(event, event.WhichOneof("attributes") or "", None)
        successor = getattr(attributes, "new_execution_run_id", "")
        if successor and _is_close(event):
            self.watch(workflow_id, successor)
        if event.HasField("child_workflow_execution_started_event_attributes"):
            child = event.child_workflow_execution_started_event_attributes.workflow_execution
            self.watch(child.workflow_id, child.run_id)


_CLOSING = {
    f"WORKFLOW_EXECUTION_{end}"
    for end in ("COMPLETED", "FAILED", "TIMED_OUT", "CANCELED", "TERMINATED", "CONTINUED_AS_NEW")
}


def _written(events: list[HistoryEvent]) -> list[HistoryEvent]:
    """Without the task that is shown after the last event while it is tried again.

    It is not in history, and what is shown of it depends on when one looks.
    """
    for index, event in enumerate(events[-2:], len(events) - len(events[-2:])):
        if event.workflow_task_scheduled_event_attributes.attempt > 1:
            return events[:index]
    return events


def _kind(event: HistoryEvent) -> str:
    return EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")


def _is_close(event: HistoryEvent) -> bool:
    return _kind(event) in _CLOSING


def _snake_case(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


NOT_FOUND = RPCStatusCode.NOT_FOUND
