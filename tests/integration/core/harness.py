"""A node under test: RPCs over a store of the test's choice, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import Callable
from typing import Any

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payloads, WorkflowExecution
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.history.v1 import History
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    RespondActivityTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    StartWorkflowExecutionRequest,
)

from perdure.service.node import Node
from perdure.service.settings import Settings
from perdure.store.contract import Store

QUEUE = "work"
SECOND_NS = 1_000_000_000
EPOCH_NS = 1_700_000_000 * SECOND_NS


class _Alarm:
    def __init__(self, clock: ManualClock, time_ns: int, callback: Callable[[], None]) -> None:
        self.clock = clock
        self.time_ns = time_ns
        self.callback = callback

    def cancel(self) -> None:
        if self in self.clock.alarms:
            self.clock.alarms.remove(self)


class ManualClock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.time_ns = EPOCH_NS
        self.alarms: list[_Alarm] = []

    def now_ns(self) -> int:
        return self.time_ns

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> _Alarm:
        alarm = _Alarm(self, time_ns, callback)
        if time_ns <= self.time_ns:
            asyncio.get_running_loop().call_soon(callback)
        else:
            self.alarms.append(alarm)
        return alarm

    async def advance(self, seconds: float) -> None:
        """Move on, stopping at every alarm on the way, and let its work settle."""
        end_ns = self.time_ns + round(seconds * SECOND_NS)
        while True:
            due = [alarm for alarm in self.alarms if alarm.time_ns <= end_ns]
            if not due:
                break
            first = min(due, key=lambda alarm: alarm.time_ns)
            self.alarms.remove(first)
            self.time_ns = max(self.time_ns, first.time_ns)
            first.callback()
            await settle()
        self.time_ns = end_ns
        await settle()


_nodes: weakref.WeakSet[Node] = weakref.WeakSet()


async def settle() -> None:
    """Let everything that is under way, commits on other threads too, come to rest."""
    for turn in range(300):
        await asyncio.sleep(0.001)
        if turn >= 15 and not any(_is_at_work(node) for node in _nodes):
            return  # else a busy machine, or work that waits for the clock


def _is_at_work(node: Node) -> bool:
    committing = not node.executions.committer.is_idle
    return committing or node.courier.is_busy or node.alarms.is_ringing


class Harness:
    """A node and short words for its RPCs.

    Args:
        make_store: makes a store; every call over the same data.
        settings: of the node.
    """

    def __init__(self, make_store: Callable[[], Store], settings: Settings | None = None) -> None:
        self.make_store = make_store
        self.settings = settings
        self.clock = ManualClock()
        self.rng = random.Random(7)
        self.node: Node
        self.store: Store

    async def open(self) -> Harness:
        self.store = self.make_store()
        self.node = await Node.open(
            self.store, clock=self.clock, rng=self.rng, settings=self.settings
        )
        _nodes.add(self.node)
        return self

    async def close(self) -> None:
        _nodes.discard(self.node)
        await self.node.close()

    async def reopen(self) -> None:
        """A restart that was announced."""
        await self.close()
        await self.open()

    @property
    def service(self) -> Any:
        return self.node.service

    # -- words -------------------------------------------------------------------------------------

    async def start(self, workflow_id: str = "wf", **fields: Any) -> Any:
        return await self.service.start_workflow_execution(start_request(workflow_id, **fields))

    def poll(self, **options: Any) -> asyncio.Task[PollWorkflowTaskQueueResponse]:
        """Park a workflow poll."""
        queue = options.pop("queue", QUEUE)
        request = PollWorkflowTaskQueueRequest(namespace="default", identity="worker")
        request.task_queue.name = queue
        return asyncio.ensure_future(self.service.poll_workflow_task_queue(request, **options))

    async def take(self, **options: Any) -> PollWorkflowTaskQueueResponse:
        """A workflow task that is ready."""
        return await asyncio.wait_for(self.poll(**options), 5)

    def poll_activity(self, **options: Any) -> asyncio.Task[PollActivityTaskQueueResponse]:
        request = PollActivityTaskQueueRequest(namespace="default", identity="worker")
        request.task_queue.name = QUEUE
        return asyncio.ensure_future(self.service.poll_activity_task_queue(request, **options))

    async def take_activity(self, **options: Any) -> PollActivityTaskQueueResponse:
        return await asyncio.wait_for(self.poll_activity(**options), 5)

    async def complete(
        self, task: PollWorkflowTaskQueueResponse, *commands: Command, **fields: Any
    ) -> RespondWorkflowTaskCompletedResponse:
        request = completion(task.task_token, *commands, **fields)
        answer = await self.service.respond_workflow_task_completed(request)
        assert isinstance(answer, RespondWorkflowTaskCompletedResponse)
        return answer

    async def finish_activity(
        self, task: PollActivityTaskQueueResponse, result: str = "done"
    ) -> None:
        request = RespondActivityTaskCompletedRequest(
            namespace="default", task_token=task.task_token, identity="worker"
        )
        request.result.CopyFrom(payloads(result))
        await self.service.respond_activity_task_completed(request)

    async def events(self, workflow_id: str = "wf", run_id: str = "") -> list[str]:
        """The committed history as event names; checks that the ids count up from 1."""
        history = await self.history(workflow_id, run_id)
        return [event_name(event.event_type) for event in history.events]

    async def history(self, workflow_id: str = "wf", run_id: str = "") -> History:
        key = await self.node.executions.resolve("default", workflow_id, run_id)
        await self.node.executions.read(key)
        batches = await self.store.history(key, 1, 1 << 60, limit=10_000)
        history = History.FromString(b"".join(batch.events for batch in batches))
        ids = [event.event_id for event in history.events]
        assert ids == list(range(1, len(ids) + 1))
        return history


def event_name(number: int) -> str:
    words = EventType.Name(number).removeprefix("EVENT_TYPE_").lower().split("_")  # type: ignore[arg-type]
    return "".join(word.capitalize() for word in words)


def payloads(text: str) -> Payloads:
    made = Payloads()
    payload = made.payloads.add()
    payload.metadata["encoding"] = b"json/plain"
    payload.data = f'"{text}"'.encode()
    return made


def execution(workflow_id: str = "wf", run_id: str = "") -> WorkflowExecution:
    return WorkflowExecution(workflow_id=workflow_id, run_id=run_id)


def start_request(workflow_id: str = "wf", **fields: Any) -> StartWorkflowExecutionRequest:
    request = StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, request_id=fields.pop("request_id", ""),
        identity="client", **fields,
    )  # fmt: skip
    request.workflow_type.name = request.workflow_type.name or "flow"
    request.task_queue.name = request.task_queue.name or QUEUE
    return request


def completion(token: bytes, *commands: Command, **fields: Any) -> Any:
    sticky = fields.pop("sticky", "")
    request = RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=token, identity="worker", commands=commands, **fields
    )
    if sticky:
        request.sticky_attributes.worker_task_queue.name = sticky
        request.sticky_attributes.schedule_to_start_timeout.FromSeconds(10)
    return request


def activity_command(activity_id: str, **fields: Any) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    attributes = made.schedule_activity_task_command_attributes
    attributes.activity_id = activity_id
    attributes.activity_type.name = "act"
    attributes.task_queue.name = QUEUE
    attributes.input.CopyFrom(payloads(activity_id))
    attributes.start_to_close_timeout.FromSeconds(fields.pop("start_to_close_s", 30))
    attributes.heartbeat_timeout.FromSeconds(fields.pop("heartbeat_s", 0))
    attributes.retry_policy.initial_interval.FromSeconds(1)
    attributes.retry_policy.maximum_attempts = fields.pop("attempts", 3)
    attributes.request_eager_execution = fields.pop("eager", False)
    if "priority" in fields:
        attributes.priority.CopyFrom(fields.pop("priority"))
    assert not fields, fields
    return made


def timer_command(timer_id: str, seconds: int) -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_START_TIMER)
    made.start_timer_command_attributes.timer_id = timer_id
    made.start_timer_command_attributes.start_to_fire_timeout.FromSeconds(seconds)
    return made


def complete_command(result: str = "ok") -> Command:
    made = Command(command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    made.complete_workflow_execution_command_attributes.result.CopyFrom(payloads(result))
    return made
