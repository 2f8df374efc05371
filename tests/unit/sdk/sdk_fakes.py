"""A service that hands out what a test prepared and remembers what it was told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceResponse,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
    RecordActivityTaskHeartbeatResponse,
)

from perdure.sdk.converter import Converter

Answer = Callable[[Any], Any]


class FakeService:
    """Activity tasks come from `offer`; every other request is answered by `answers`.

    Attributes:
        asked: method names and requests, in order, without polls.
        answers: by method name: a response, an exception, or a function of the request.
        remote: pretend to be behind a connection.
    """

    def __init__(self, *, remote: bool = False) -> None:
        self.is_remote = remote
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {
            "record_activity_task_heartbeat": RecordActivityTaskHeartbeatResponse(),
            "describe_namespace": DescribeNamespaceResponse(),
        }
        self.polls_open = 0
        self.most_polls_open = 0
        self._tasks: deque[PollActivityTaskQueueResponse] = deque()
        self._parked: deque[asyncio.Future[PollActivityTaskQueueResponse]] = deque()
        self._changed = asyncio.Condition()

    # --- for tests ----------------------------------------------------------------------------

    def offer(
        self, activity_type: str, *args: Any, token: bytes = b"", **fields: Any
    ) -> PollActivityTaskQueueResponse:
        """Put an activity task into the queue."""
        task = PollActivityTaskQueueResponse(
            task_token=token or activity_type.encode(),
            workflow_namespace="default",
            workflow_execution=WorkflowExecution(workflow_id="wf", run_id="run"),
            activity_id="1",
            attempt=1,
            **fields,
        )
        task.activity_type.name = activity_type
        task.workflow_type.name = "caller"
        Converter().fill(task.input, args)
        while self._parked:
            parked = self._parked.popleft()
            if not parked.done():
                parked.set_result(task)
                return task
        self._tasks.append(task)
        return task

    def requests(self, method: str) -> list[Any]:
        """What one method was asked."""
        return [request for name, request in self.asked if name == method]

    async def until(self, method: str, count: int = 1) -> list[Any]:
        """Wait until a method was asked so often."""
        async with asyncio.timeout(30):
            async with self._changed:
                await self._changed.wait_for(lambda: len(self.requests(method)) >= count)
        return self.requests(method)

    # --- the service --------------------------------------------------------------------------

    async def poll_activity_task_queue(self, request: Message) -> PollActivityTaskQueueResponse:
        if self._tasks:
            return self._tasks.popleft()
        future: asyncio.Future[PollActivityTaskQueueResponse]
        future = asyncio.get_running_loop().create_future()
        self._parked.append(future)
        self.polls_open += 1
        self.most_polls_open = max(self.most_polls_open, self.polls_open)
        try:
            return await future
        finally:
            self.polls_open -= 1

    async def poll_workflow_task_queue(self, request: Message) -> PollWorkflowTaskQueueResponse:
        await asyncio.Event().wait()
        raise AssertionError("never woken")

    def __getattr__(self, method: str) -> Callable[[Any], Any]:
        if method.startswith("_") or method == "advances_in_process":
            raise AttributeError(method)

        async def call(request: Any) -> Any:
            kept = type(request)()
            kept.CopyFrom(request)
            async with self._changed:
                self.asked.append((method, kept))
                self._changed.notify_all()
            answer = self.answers.get(method)
            if isinstance(answer, Exception):
                raise answer
            if callable(answer):
                answer = answer(request)
            return answer

        return call
