"""A node on virtual time and the RPC calls of a client and a worker, in few words."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from skipping_loop import SkippingLoop
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import CommandType, EventType, QueryResultType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.protocol.v1 import Message as ProtocolMessage
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.update.v1 import Acceptance, Rejection, Request, Response
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryRequest,
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure.service.clock import Alarm
from perdure.service.node import Node
from perdure.store.contract import Store
from perdure.store.sqlite import SqliteStore
from perdure.testing import virtual_loop
from perdure.testing.virtual_loop import VirtualLoop

QUEUE = "queue"
ACCEPTED, COMPLETED = 2, 3  # UpdateWorkflowExecutionLifecycleStage


class LoopClock:
    """The clock of a loop that skips time."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop | SkippingLoop)
        self._loop = loop

    def now_ns(self) -> int:
        return self._loop.now_ns()

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> Alarm:
        return self._loop.call_later(max(0, time_ns - self.now_ns()) / 1e9, callback)


Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]


class Ground:
    """What a test stands on: what keeps the data of its nodes, and how it is run."""

    def __init__(
        self,
        new_store: Callable[[], Store] = lambda: SqliteStore(":memory:"),
        run: Run = virtual_loop.run,
    ) -> None:
        self.new_store = new_store
        self.run = run


_ground = Ground()


def stand_on(ground: Ground) -> None:
    """From now on tests have their data, and run, there."""
    global _ground
    _ground = ground


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test with skipped time: waiting costs nothing."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        _ground.run(test(*args, **kwargs))

    run.is_virtual = True  # type: ignore[attr-defined]
    return run


def execution(workflow_id: str, run_id: str = "") -> WorkflowExecution:
    return WorkflowExecution(workflow_id=workflow_id, run_id=run_id)


def text(value: str) -> Payloads:
    return Payloads(payloads=[Payload(data=value.encode())])


def names(events: list[HistoryEvent]) -> list[str]:
    """EVENT_TYPE_TIMER_STARTED → TimerStarted."""
    shown = []
    for event in events:
        words = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_").lower().split("_")
        shown.append("".join(word.capitalize() for word in words))
    return shown


# -- commands and messages -------------------------------------------------------------------------


def finish(result: str = "") -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    attributes = made.complete_workflow_execution_command_attributes
    attributes.result.CopyFrom(text(result))
    return made


def timer(timer_id: str, seconds: int = 3600) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_START_TIMER)
    made.start_timer_command_attributes.timer_id = timer_id
    made.start_timer_command_attributes.start_to_fire_timeout.FromSeconds(seconds)
    return made


def activity(activity_id: str, seconds: int = 60) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    attributes = made.schedule_activity_task_command_attributes
    attributes.activity_id = activity_id
    attributes.activity_type.name = "work"
    attributes.task_queue.name = QUEUE
    attributes.start_to_close_timeout.FromSeconds(seconds)
    return made


def child(workflow_id: str) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION)
    attributes = made.start_child_workflow_execution_command_attributes
    attributes.workflow_id = workflow_id
    attributes.workflow_type.name = "flow"
    attributes.task_queue.name = QUEUE
    return made


def continue_as_new() -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
    attributes = made.continue_as_new_workflow_execution_command_attributes
    attributes.workflow_type.name = "flow"
    attributes.task_queue.name = QUEUE
    return made


def upsert(**fields: Payload) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
    attributes = made.upsert_workflow_search_attributes_command_attributes.search_attributes
    for name, value in fields.items():
        attributes.indexed_fields[name].CopyFrom(value)
    return made


def _named(message_id: str) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE)
    made.protocol_message_command_attributes.message_id = message_id
    return made


class Answers:
    """A worker's answers to the updates that came with a task."""

    def __init__(self) -> None:
        self.messages: list[ProtocolMessage] = []
        self.commands: list[Command] = []

    def accept(self, asked: ProtocolMessage) -> Answers:
        request = Request.FromString(asked.body.value)
        body = Acceptance(
            accepted_request_message_id=asked.id,
            accepted_request_sequencing_event_id=asked.event_id,
            accepted_request=request,
        )
        return self._add(asked.protocol_instance_id, "accept", body)

    def complete(self, update_id: str, result: str = "done") -> Answers:
        body = Response()
        body.meta.update_id = update_id
        body.outcome.success.CopyFrom(text(result))
        return self._add(update_id, "complete", body)

    def reject(self, asked: ProtocolMessage, why: str) -> Answers:
        body = Rejection(
            rejected_request_message_id=asked.id,
            rejected_request_sequencing_event_id=asked.event_id,
            rejected_request=Request.FromString(asked.body.value),
        )
        body.failure.message = why
        message = ProtocolMessage(
            id=f"{asked.protocol_instance_id}/reject",
            protocol_instance_id=asked.protocol_instance_id,
        )
        message.body.Pack(body)
        self.messages.append(message)
        return self

    def _add(self, update_id: str, kind: str, body: Any) -> Answers:
        message = ProtocolMessage(id=f"{update_id}/{kind}", protocol_instance_id=update_id)
        message.body.Pack(body)
        self.messages.append(message)
        self.commands.append(_named(message.id))
        return self


# -- the stage -------------------------------------------------------------------------------------


class Stage:
    """A node, its service, and shorthands for what clients and workers call."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.api = node.service

    async def start(self, workflow_id: str, **fields: Any) -> str:
        request = StartWorkflowExecutionRequest(namespace="default", workflow_id=workflow_id)
        request.request_id = fields.pop("request_id", f"start-{random.getrandbits(64)}")
        request.workflow_type.name = fields.pop("workflow_type", "flow")
        request.task_queue.name = fields.pop("queue", QUEUE)
        request.MergeFrom(StartWorkflowExecutionRequest(**fields))
        return (await self.api.start_workflow_execution(request)).run_id

    async def signal(self, workflow_id: str, name: str = "poke", run_id: str = "") -> None:
        await self.api.signal_workflow_execution(
            SignalWorkflowExecutionRequest(
                namespace="default",
                workflow_execution=execution(workflow_id, run_id),
                signal_name=name,
            )
        )

    async def terminate(self, workflow_id: str) -> None:
        await self.api.terminate_workflow_execution(
            TerminateWorkflowExecutionRequest(
                namespace="default", workflow_execution=execution(workflow_id)
            )
        )

    async def history(self, workflow_id: str, run_id: str = "") -> list[HistoryEvent]:
        request = GetWorkflowExecutionHistoryRequest(
            namespace="default", execution=execution(workflow_id, run_id)
        )
        answer = await self.api.get_workflow_execution_history(request)
        assert not answer.next_page_token
        return list(answer.history.events)

    async def describe(
        self, workflow_id: str, run_id: str = ""
    ) -> DescribeWorkflowExecutionResponse:
        return await self.api.describe_workflow_execution(
            DescribeWorkflowExecutionRequest(
                namespace="default", execution=execution(workflow_id, run_id)
            )
        )

    # -- a worker ----------------------------------------------------------------------------------

    async def poll(self, queue: str = QUEUE, normal: str = "") -> PollWorkflowTaskQueueResponse:
        """The next workflow task; `normal` for a sticky queue."""
        request = PollWorkflowTaskQueueRequest(namespace="default", identity="worker")
        request.task_queue.name = queue
        if normal:
            request.task_queue.normal_name = normal
        return await self.api.poll_workflow_task_queue(request)

    async def poll_activity(self) -> PollActivityTaskQueueResponse:
        request = PollActivityTaskQueueRequest(namespace="default", identity="worker")
        request.task_queue.name = QUEUE
        return await self.api.poll_activity_task_queue(request)

    async def complete(
        self,
        task: PollWorkflowTaskQueueResponse,
        *commands: Command,
        updates: Answers | None = None,
        queries: dict[str, str] | None = None,
        sticky: str = "",
        **fields: Any,
    ) -> RespondWorkflowTaskCompletedResponse:
        request = RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token, identity="worker", **fields
        )
        request.capabilities.discard_speculative_workflow_task_with_events = True
        if updates is not None:
            request.messages.extend(updates.messages)
            request.commands.extend(updates.commands)
        request.commands.extend(commands)
        for query_id, result in (queries or {}).items():
            answer = request.query_results[query_id]
            answer.result_type = QueryResultType.QUERY_RESULT_TYPE_ANSWERED
            answer.answer.CopyFrom(text(result))
        if sticky:
            request.sticky_attributes.worker_task_queue.name = sticky
            request.sticky_attributes.schedule_to_start_timeout.FromSeconds(5)
        return await self.api.respond_workflow_task_completed(request)

    async def step(self, *commands: Command, sticky: str = "") -> PollWorkflowTaskQueueResponse:
        """Take the next workflow task and complete it."""
        task = await self.poll()
        await self.complete(task, *commands, sticky=sticky)
        return task

    async def fail(self, task: PollWorkflowTaskQueueResponse) -> None:
        await self.api.respond_workflow_task_failed(
            RespondWorkflowTaskFailedRequest(namespace="default", task_token=task.task_token)
        )

    async def answer_query(self, task: PollWorkflowTaskQueueResponse, result: str) -> None:
        await self.api.respond_query_task_completed(
            RespondQueryTaskCompletedRequest(
                namespace="default",
                task_token=task.task_token,
                completed_type=QueryResultType.QUERY_RESULT_TYPE_ANSWERED,
                query_result=text(result),
            )
        )

    # -- calls that wait ---------------------------------------------------------------------------

    async def query(
        self, workflow_id: str, run_id: str = "", **fields: Any
    ) -> QueryWorkflowResponse:
        return await self.api.query_workflow(
            QueryWorkflowRequest(
                namespace="default",
                execution=execution(workflow_id, run_id),
                query=WorkflowQuery(query_type="state"),
                **fields,
            )
        )

    async def update(
        self,
        workflow_id: str,
        update_id: str = "u",
        *,
        stage: int = COMPLETED,
        run_id: str = "",
        **fields: Any,
    ) -> UpdateWorkflowExecutionResponse:
        request = UpdateWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution(workflow_id, run_id), **fields
        )
        request.wait_policy.lifecycle_stage = stage  # type: ignore[assignment]
        request.request.meta.update_id = update_id
        request.request.input.name = "change"
        return await self.api.update_workflow_execution(request)


@asynccontextmanager
async def staged(store: Store | None = None, **options: Any) -> AsyncIterator[Stage]:
    """A node over a store (by default an empty one of the test's ground), on the running loop."""
    node = await Node.open(store or _ground.new_store(), clock=LoopClock(), **options)
    try:
        yield Stage(node)
    finally:
        await node.close()


def soon(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Let a call run beside the test."""
    return asyncio.get_running_loop().create_task(work)
