"""A node for tests: in memory, and with a clock that skips the time in which nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final

from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
)

from perdure.api.times import datetime_of, timedelta_ns
from perdure.sdk.client import Client
from perdure.sdk.converter import Converter
from perdure.sdk.interceptors import Interceptor
from perdure.service.clock import sleep_until
from perdure.service.node import Node
from perdure.store.sqlite import SqliteStore
from perdure.testing.skipping import SkippingClock

__all__ = ["Environment", "environment"]

_LOOK_EVERY_S: Final = 0.001
_GRACE_S: Final = 0.1
"""How long a task waits in real time for a queue's first worker, before time is skipped."""

_Queue = tuple[str, str, int]


class Environment:
    """A client, the node behind it, and its time.

    Time is skipped only while somebody waits: for the result of a workflow, or in `sleep`. And only
    while nothing is done: activities run in real time, and it stands still for them.

    Attributes:
        client: connected to the node.
    """

    def __init__(self, client: Client, node: Node, clock: SkippingClock) -> None:
        self.client = client
        self._node = node
        self._clock = clock
        self._waiting = 0
        self._wake_at_ns: list[int] = []
        self._grace_until_s: dict[_Queue, float] = {}
        self._skipper: asyncio.Task[None] | None = None

    def now(self) -> datetime:
        """The environment's time, in UTC."""
        return datetime_of(self._clock.now_ns())

    async def sleep(self, length: timedelta) -> None:
        """Let time pass; what is due on the way happens in order.

        Raises ValueError for a negative length.
        """
        if length < timedelta(0):
            raise ValueError(f"length: {length} is negative")
        until_ns = self._clock.now_ns() + timedelta_ns(length)
        self._wake_at_ns.append(until_ns)
        try:
            await self.while_waiting(sleep_until(self._clock, until_ns))
        finally:
            self._wake_at_ns.remove(until_ns)

    async def while_waiting(self, work: Awaitable[Any]) -> Any:
        """Await something, and skip time until it is there."""
        self._waiting += 1
        if self._skipper is None:
            self._skipper = asyncio.create_task(self._skip(), name="perdure-time-skipping")
        try:
            return await work
        finally:
            self._waiting -= 1

    async def _skip(self) -> None:
        """Move the clock on whenever nothing is done, for as long as somebody waits."""
        idle = 0
        while self._waiting:
            await asyncio.sleep(_LOOK_EVERY_S)
            idle = 0 if is_busy(self._node) or self._may_get_a_worker() else idle + 1
            if idle >= 2:  # not between two steps of something
                idle = 0
                next_ns = await self._node.store.next_alarm()
                times = [*self._wake_at_ns, *([next_ns] if next_ns else [])]
                if times and self._waiting and not is_busy(self._node):
                    self._clock.skip_to(min(times))
        self._skipper = None

    def _may_get_a_worker(self) -> bool:
        """Whether a task waits for a worker that may only just be starting; not so for ever."""
        now_s = asyncio.get_running_loop().time()
        waiting = [queue for run in self._node.executions.cached_runs() for queue in _ready(run)]
        return any(
            now_s < self._grace_until_s.setdefault(queue, now_s + _GRACE_S) for queue in waiting
        )

    async def close(self) -> None:
        """Stop skipping."""
        if self._skipper is not None:
            self._skipper.cancel()
            await asyncio.gather(self._skipper, return_exceptions=True)


def is_busy(node: Node) -> bool:
    """Whether the node or one of its workers has something to do now."""
    if not node.executions.committer.is_idle or node.alarms.is_ringing or node.courier.is_busy:
        return True
    return any(_is_worked_on(node, run) for run in node.executions.cached_runs())


def _is_worked_on(node: Node, run: Any) -> bool:
    if not run.is_open:
        return False
    task = run.state.workflow_task
    if task is not None and task.started_ns:
        return True
    if any(activity.started_ns for activity in run.activities.values()):
        return True
    return any(_has_poller(node, queue) for queue in _ready(run))


def _ready(run: Any) -> list[_Queue]:
    """The queues on which tasks of a run wait to be taken."""
    if not run.is_open:
        return []
    task, namespace = run.state.workflow_task, run.info.namespace
    found = [
        (namespace, activity.queue, 2)
        for activity in run.activities.values()
        if not activity.started_ns and not activity.waiting
    ]
    if task is not None and not task.due_ns and not task.started_ns:
        found.append((namespace, task.queue, 1))
    return found


def _has_poller(node: Node, queue: _Queue) -> bool:
    known = node.matching.known(*queue)
    return known is not None and bool(known.polls)


class _WaitingService:
    """The node's service; a call that waits for a run's end lets time be skipped meanwhile."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self.wait: Callable[[Awaitable[Any]], Awaitable[Any]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    async def get_workflow_execution_history(
        self, request: GetWorkflowExecutionHistoryRequest
    ) -> GetWorkflowExecutionHistoryResponse:
        call = self._service.get_workflow_execution_history(request)
        answer = await (self.wait(call) if request.wait_new_event else call)
        assert isinstance(answer, GetWorkflowExecutionHistoryResponse)
        return answer


@asynccontextmanager
async def environment(
    *,
    namespace: str = "default",
    task_queue: str | None = None,
    converter: Converter | None = None,
    interceptors: Sequence[Interceptor] = (),
) -> AsyncIterator[Environment]:
    """An empty node in memory, whose time is skipped while nothing happens.

    Args:
        namespace, task_queue, converter, interceptors: of the client; see `Client`.

    Example:
        >>> async with environment() as env, env.client.worker():
        ...     await env.client.execute(checkout, order)  # sleeps a fortnight, takes milliseconds
    """
    clock = SkippingClock()
    node = await Node.open(SqliteStore(":memory:"), clock=clock)
    service = _WaitingService(node.service)
    client = Client(
        service,
        namespace=namespace,
        task_queue=task_queue,
        converter=converter,
        interceptors=interceptors,
    )
    env = Environment(client, node, clock)
    service.wait = env.while_waiting
    try:
        yield env
    finally:
        await env.close()
        await node.close()
        clock.close()
