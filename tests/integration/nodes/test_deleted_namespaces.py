"""A namespace is deleted at one node, and its name registered again at another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from temporalio.api.operatorservice.v1 import DeleteNamespaceRequest
from temporalio.api.workflowservice.v1 import (
    RegisterNamespaceRequest,
    StartWorkflowExecutionRequest,
)

from perdure.service.node import Node
from perdure.store.contract import Record
from perdure.store.postgres import PostgresStore
from perdure.store.query import Query

WITHIN_S = 60


@dataclass
class Two:
    """Two nodes; the first one's lists wait, from the second on, until `go_on` is set.

    The first page of a purge is not held up, so that it is under way.
    """

    first: Node
    second: Node
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    lists: int = 0

    def hold_up(self) -> None:
        list_runs = self.first.store.list_runs

        async def held(query: Query) -> list[Record]:
            self.lists += 1
            if self.lists > 1:
                await self.go_on.wait()
            return await list_runs(query)

        self.first.store.list_runs = held  # type: ignore[method-assign]

    async def purged(self) -> None:
        """Wait until the first node has nothing more to remove."""
        self.go_on.set()
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*self.first.purger._tasks.values())


@pytest.fixture
async def two(postgres_dsn: str) -> AsyncIterator[Two]:
    first = await Node.open(PostgresStore(postgres_dsn))
    second = await Node.open(PostgresStore(postgres_dsn))
    yield Two(first, second)
    await second.close()
    await first.close()


async def register(node: Node) -> None:
    request = RegisterNamespaceRequest(namespace="n")
    request.workflow_execution_retention_period.FromSeconds(86_400)
    await node.service.register_namespace(request)


async def delete(node: Node) -> None:
    await node.service.delete_namespace(DeleteNamespaceRequest(namespace="n"))


async def start(node: Node, *workflow_ids: str) -> None:
    for workflow_id in workflow_ids:
        request = StartWorkflowExecutionRequest(
            namespace="n", workflow_id=workflow_id, request_id=workflow_id
        )
        request.workflow_type.name = "flow"
        request.task_queue.name = "queue"
        await node.service.start_workflow_execution(request)


async def runs(node: Node) -> list[str]:
    return sorted(record.workflow_id for record in await node.store.list_runs(Query("n")))


async def test_what_starts_after_a_name_is_registered_again_is_not_removed(two: Two) -> None:
    await register(two.first)
    await start(two.first, "old-1", "old-2")
    two.hold_up()
    await delete(two.first)
    await register(two.second)  # removes what the first node has not yet
    new = [f"new-{number}" for number in range(5)]
    await start(two.second, *new)
    await two.purged()
    assert await runs(two.second) == new


async def test_a_name_is_deleted_again_before_the_first_removal_is_over(two: Two) -> None:
    await register(two.first)
    await start(two.first, "old")
    two.hold_up()
    await delete(two.first)
    await register(two.second)
    await start(two.second, "new")
    await delete(two.first)
    await two.purged()
    assert await runs(two.second) == []


async def test_another_node_goes_on_when_the_one_that_removes_runs_is_gone(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(two.first)
    await start(two.first, "a")

    def stall(*_: Any) -> None:
        """It goes before it has removed anything."""

    monkeypatch.setattr(two.first.purger, "start", stall)
    await delete(two.first)
    assert await runs(two.second) == ["a"]
    await two.first.close()
    for _ in range(10 * WITHIN_S):
        if not await runs(two.second):
            break
        await asyncio.sleep(0.1)
    assert await runs(two.second) == []
