"""The served cases with Temporal's official SDK for Python: the same code for every server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

QUEUE = "bench"
PATIENCE_S = 30.0
marks: list[float] = []


@activity.defn
async def nothing(n: int) -> int:
    marks.append(time.perf_counter())
    return n


async def _step(n: int) -> int:
    return await workflow.execute_activity(nothing, n, start_to_close_timeout=timedelta(minutes=5))


@workflow.defn
class Sequential:
    @workflow.run
    async def run(self, steps: int) -> int:
        return sum([await _step(n) for n in range(steps)])


@workflow.defn
class Parallel:
    @workflow.run
    async def run(self, steps: int) -> int:
        return sum(await asyncio.gather(*(_step(n) for n in range(steps))))


@workflow.defn
class Listener:
    """Waits for so many signals; answers updates at once."""

    def __init__(self) -> None:
        self.heard = 0

    @workflow.run
    async def run(self, count: int) -> int:
        await workflow.wait_condition(lambda: self.heard >= count)
        return self.heard

    @workflow.signal
    def hear(self) -> None:
        self.heard += 1

    @workflow.update
    def touch(self) -> int:
        return self.heard


class Official:
    """A client and a worker on one server."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def start(self, kind: Any, argument: int, id: str) -> WorkflowHandle[Any, Any]:
        return await self.client.start_workflow(kind.run, argument, id=id, task_queue=QUEUE)

    def handle(self, id: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(id)

    async def signal(self, handle: WorkflowHandle[Any, Any]) -> None:
        await handle.signal(Listener.hear)

    async def update(self, handle: WorkflowHandle[Any, Any]) -> None:
        await handle.execute_update(Listener.touch)

    sequential, parallel, listener = Sequential, Parallel, Listener


@asynccontextmanager
async def opened(address: str, pollers: int) -> AsyncIterator[Official]:
    """Connect, and run a worker."""
    client = await _connected(address)
    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=[Sequential, Parallel, Listener],
        activities=[nothing],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=20_000,
        max_concurrent_workflow_tasks=500,
        max_concurrent_activities=1_000,
        max_concurrent_workflow_task_polls=pollers,
        max_concurrent_activity_task_polls=pollers,
    )
    async with worker:
        yield Official(client)


async def _connected(address: str) -> Client:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            client = await Client.connect(address)
            await client.count_workflows()
            return client
        except (RPCError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.01)
