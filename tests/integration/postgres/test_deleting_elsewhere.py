"""A run is deleted at one node while another has yet to deliver what it told others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pg_stage import until
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest

import perdure
from perdure import Client, workflow
from perdure.api.errors import NotFound, Unavailable
from perdure.engine.outbox import ChildClosed
from perdure.service import deleting
from perdure.service.node import Node


@workflow
async def child() -> int:
    return 7


@workflow
async def parent() -> int:
    return await child.options(id="child")()


@dataclass
class Stage:
    """A node with a worker, another one, and what the first has yet to tell parents."""

    client: Client
    slow: Node
    other: Node
    untold: list[Any] = field(default_factory=list)

    async def untold_child(self) -> Any:
        """A parent that waits for its child, which is closed; the parent's handle."""
        handle = await self.client.start(parent, id="parent")
        await until(lambda: bool(self.untold))
        return handle

    def tell(self) -> None:
        self.slow.courier.deliver(self.untold)


@pytest.fixture
async def stage(postgres_dsn: str) -> AsyncIterator[Stage]:
    async with (
        perdure.connect(postgres_dsn) as client,
        perdure.connect(postgres_dsn) as another,
        client.worker(workflows=[child, parent], activities=[]),
    ):
        made = Stage(client, client.calls.service.node, another.calls.service.node)

        def deliver(messages: list[Any]) -> None:
            late = [message for message in messages if isinstance(message[2], ChildClosed)]
            made.untold += late
            made.slow.courier.deliver([message for message in messages if message not in late])

        made.slow.dispatcher._deliver = deliver
        yield made


async def delete_child(node: Node) -> None:
    request = DeleteWorkflowExecutionRequest(namespace="default")
    request.workflow_execution.workflow_id = "child"
    await node.service.delete_workflow_execution(request)


async def test_a_run_is_deleted_when_its_parent_was_told(stage: Stage) -> None:
    handle = await stage.untold_child()
    deleted = asyncio.create_task(delete_child(stage.other))
    await asyncio.sleep(0.3)
    assert not deleted.done()
    stage.tell()
    await deleted
    assert await handle.result() == 7
    with pytest.raises(NotFound):
        await delete_child(stage.other)


async def test_who_deletes_does_not_wait_for_ever(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "_LOOKS", 2)
    handle = await stage.untold_child()
    with pytest.raises(Unavailable, match="not delivered yet; try again"):
        await delete_child(stage.other)
    stage.tell()
    assert await handle.result() == 7
    await delete_child(stage.other)
