"""A new search attribute: who used it first waits until other nodes know it, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest
from harness import Harness, complete_command, settle, start_request
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload, SearchAttributes
from temporalio.api.enums.v1 import CommandType

CITY = SearchAttributes(
    indexed_fields={
        "City": Payload(metadata={"encoding": b"json/plain", "type": b"Keyword"}, data=b'"Rome"')
    }
)


class Others:
    """Nodes that take their time."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.know = asyncio.Event()

    async def spread(self) -> None:
        self.asked.set()
        await self.know.wait()


@pytest.fixture
def others(node: Harness, monkeypatch: pytest.MonkeyPatch) -> Others:
    made = Others()
    monkeypatch.setattr(node.node.namespaces, "spread", made.spread)
    return made


async def waits_alone(node: Harness, others: Others, first: asyncio.Future[object]) -> None:
    await asyncio.wait_for(others.asked.wait(), 5)
    await asyncio.wait_for(node.start("another"), 5)
    await settle()
    assert not first.done()
    others.know.set()
    await asyncio.wait_for(first, 5)


async def test_a_start(node: Harness, others: Others) -> None:
    request = start_request()
    request.search_attributes.CopyFrom(CITY)
    first = asyncio.ensure_future(node.service.start_workflow_execution(request))
    await waits_alone(node, others, first)


async def test_an_answer_of_a_worker(node: Harness, others: Others) -> None:
    await node.start()
    upsert = Command(command_type=CommandType.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
    attributes = upsert.upsert_workflow_search_attributes_command_attributes
    attributes.search_attributes.CopyFrom(CITY)
    answer: Awaitable[object] = node.complete(await node.take(), upsert, complete_command())
    await waits_alone(node, others, asyncio.ensure_future(answer))


async def test_a_node_that_leaves_waits_for_nobody(node: Harness, others: Others) -> None:
    request = start_request()
    request.search_attributes.CopyFrom(CITY)
    first = asyncio.ensure_future(node.service.start_workflow_execution(request))
    await asyncio.wait_for(others.asked.wait(), 5)
    await asyncio.wait_for(node.node.close(), 20)
    await asyncio.wait_for(first, 5)
