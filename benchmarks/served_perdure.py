"""The served cases with the perdure SDK over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import perdure
from perdure import activity, workflow

QUEUE = "bench"
marks: list[float] = []


@activity(start_to_close_timeout=timedelta(minutes=5))
async def nothing(n: int) -> int:
    marks.append(time.perf_counter())
    return n


@workflow
async def sequential(steps: int) -> int:
    return sum([await nothing(n) for n in range(steps)])


@workflow
async def parallel(steps: int) -> int:
    return sum(await asyncio.gather(*(nothing(n) for n in range(steps))))


@workflow
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


class Perdure:
    """A client and a worker on one server."""

    def __init__(self, client: perdure.Client) -> None:
        self.client = client

    async def start(self, kind: Any, argument: int, id: str) -> Any:
        return await self.client.start(kind, argument, id=id, task_queue=QUEUE)

    def handle(self, id: str) -> Any:
        return self.client.handle(id)

    async def signal(self, handle: Any) -> None:
        await handle.signal(Listener.hear)

    async def update(self, handle: Any) -> None:
        await handle.update(Listener.touch)

    sequential, parallel, listener = sequential, parallel, Listener


@asynccontextmanager
async def opened(address: str, pollers: int) -> AsyncIterator[Perdure]:
    """Connect, and run a worker."""
    async with perdure.connect(f"grpc://{address}") as client:
        worker = client.worker(
            QUEUE,
            workflows=[sequential, parallel, Listener],
            activities=[nothing],
            max_cached_runs=20_000,
            max_concurrent_workflow_tasks=500,
            max_concurrent_activities=1_000,
            pollers=pollers,
        )
        async with worker:
            yield Perdure(client)
