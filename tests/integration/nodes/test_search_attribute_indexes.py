"""Search attributes that are registered are indexed by PostgreSQL, whichever node hears of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from temporalio.api.common.v1 import SearchAttributes
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    DeleteNamespaceRequest,
    RemoveSearchAttributesRequest,
)
from temporalio.api.workflowservice.v1 import (
    ListWorkflowExecutionsRequest,
    RegisterNamespaceRequest,
    StartWorkflowExecutionRequest,
)

from perdure.service.node import Node
from perdure.service.settings import Settings
from perdure.store.postgres import PostgresStore, indexes
from perdure.store.postgres.indexes import BUILT_IN, PREFIX, name_of
from perdure.store.query import Custom, Kind

CITY, COUNT = Custom("City"), Custom("Count", Kind.NUMBER)
KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
WITHIN_S = 30


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "PAUSE_S", 0.05)
    monkeypatch.setattr(indexes, "SMALL_BYTES", 0)


@asynccontextmanager
async def opened(dsn: str, settings: Settings | None = None) -> AsyncIterator[Node]:
    node = await Node.open(PostgresStore(dsn), settings=settings)
    try:
        yield node
    finally:
        await node.close()


@pytest.fixture
async def node(postgres_dsn: str) -> AsyncIterator[Node]:
    async with opened(postgres_dsn) as node:
        yield node


async def until_indexed(dsn: str, *attributes: Custom) -> None:
    """Wait until these and the built-in ones have an index, and no others."""
    connection = await asyncpg.connect(dsn)
    query = "SELECT indexname FROM pg_indexes WHERE starts_with(indexname, $1) ORDER BY 1"
    wanted = sorted(map(name_of, (*BUILT_IN, *attributes)))
    try:
        async with asyncio.timeout(WITHIN_S):
            while [row[0] for row in await connection.fetch(query, PREFIX)] != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def add(node: Node, namespace: str = "default") -> None:
    request = AddSearchAttributesRequest(namespace=namespace, search_attributes={"City": KEYWORD})
    await node.service.add_search_attributes(request)


async def start(node: Node, workflow_id: str, **attributes: str | int) -> None:
    request = StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, request_id=workflow_id
    )
    request.workflow_type.name = "order"
    request.task_queue.name = "orders"
    fields = SearchAttributes()
    for name, value in attributes.items():
        fields.indexed_fields[name].data = json.dumps(value).encode()
        fields.indexed_fields[name].metadata["encoding"] = b"json/plain"
    request.search_attributes.CopyFrom(fields)
    await node.service.start_workflow_execution(request)


async def test_one_that_is_registered(node: Node, postgres_dsn: str) -> None:
    await add(node)
    await until_indexed(postgres_dsn, CITY)


async def test_one_that_is_registered_by_its_use(node: Node, postgres_dsn: str) -> None:
    await start(node, "ulm", City="Ulm", Count=3)
    await start(node, "bonn", City="Bonn", Count=5)
    await until_indexed(postgres_dsn, CITY, COUNT)
    request = ListWorkflowExecutionsRequest(
        namespace="default", query="City STARTS_WITH 'U' AND Count < 4 ORDER BY Count"
    )
    answer = await node.service.list_workflow_executions(request)
    assert [found.execution.workflow_id for found in answer.executions] == ["ulm"]


async def test_one_that_an_earlier_version_registered(postgres_dsn: str) -> None:
    async with opened(postgres_dsn, Settings(indexed_search_attributes_max=0)) as node:
        await start(node, "ulm", City="Ulm")
    async with opened(postgres_dsn):
        await until_indexed(postgres_dsn, CITY)


async def test_one_that_is_removed_goes_and_may_come_again(node: Node, postgres_dsn: str) -> None:
    await add(node)
    await until_indexed(postgres_dsn, CITY)
    await node.service.remove_search_attributes(
        RemoveSearchAttributesRequest(namespace="default", search_attributes=["City"])
    )
    await until_indexed(postgres_dsn)
    await add(node)
    await until_indexed(postgres_dsn, CITY)


async def test_one_of_several_namespaces_stays_until_the_last_is_gone(
    node: Node, postgres_dsn: str
) -> None:
    for namespace in ("north", "south"):
        request = RegisterNamespaceRequest(namespace=namespace)
        request.workflow_execution_retention_period.FromSeconds(24 * 3600)
        await node.service.register_namespace(request)
        await add(node, namespace)
    await until_indexed(postgres_dsn, CITY)
    await node.service.delete_namespace(DeleteNamespaceRequest(namespace="north"))
    await start(node, "one", Count=1)
    await until_indexed(postgres_dsn, CITY, COUNT)
    await node.service.delete_namespace(DeleteNamespaceRequest(namespace="south"))
    await until_indexed(postgres_dsn, COUNT)


async def test_every_node_knows_of_it(node: Node, postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as other:
        await add(node)
        await until_indexed(postgres_dsn, CITY)
        store = other.store
        assert isinstance(store, PostgresStore)
        async with asyncio.timeout(WITHIN_S):
            while store._indexes.ready != {CITY, *BUILT_IN}:  # noqa: ASYNC110, it rings no bell
                await asyncio.sleep(0.02)
