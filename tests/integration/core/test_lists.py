"""Lists page by page, over every store: a list that takes its time, and values at the far ends."""

from __future__ import annotations

import pytest
from harness import Harness
from temporalio.api.common.v1 import Memo, Payload, SearchAttributes
from temporalio.api.workflowservice.v1 import ListWorkflowExecutionsRequest

from perdure.store.contract import Record
from perdure.store.query import Query

FAR = b'"9999-12-31T00:00:00Z"'


def attribute(kind: str, data: bytes) -> SearchAttributes:
    metadata = {"encoding": b"json/plain", "type": kind.encode()}
    return SearchAttributes(indexed_fields={"A": Payload(metadata=metadata, data=data)})


async def listed(node: Harness, query: str, *, pause_s: float = 0) -> list[str]:
    """The ids of all runs that a query selects, each on a page of its own."""
    found: list[str] = []
    request = ListWorkflowExecutionsRequest(namespace="default", query=query, page_size=1)
    while True:
        page = await node.service.list_workflow_executions(request)
        found += [info.execution.workflow_id for info in page.executions]
        request.next_page_token = page.next_page_token
        if not page.next_page_token:
            return found
        await node.clock.advance(pause_s)


async def start_three(node: Harness, **fields: SearchAttributes) -> None:
    for workflow_id in ("a", "b", "c"):
        await node.start(workflow_id, **fields)


@pytest.mark.parametrize("now", ["now() - 1m", "'now-1m'"])
async def test_now_is_that_of_the_first_page(node: Harness, now: str) -> None:
    await start_three(node)
    await node.clock.advance(50)
    query = f"StartTime > {now} ORDER BY WorkflowId"
    assert await listed(node, query, pause_s=20) == ["a", "b", "c"]


@pytest.mark.parametrize("order", ["ASC", "DESC"])
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("Datetime", FAR),
        ("Datetime", b'"0001-01-01T00:00:00Z"'),
        ("Double", b"1e22"),
        ("Double", b"-1e300"),
        ("Int", b"9223372036854775807"),
    ],
)
async def test_pages_in_the_order_of_far_values(
    node: Harness, kind: str, data: bytes, order: str
) -> None:
    await start_three(node, search_attributes=attribute(kind, data))
    expected = ["a", "b", "c"] if order == "ASC" else ["c", "b", "a"]
    assert await listed(node, f"A IS NOT NULL ORDER BY A {order}") == expected


async def test_far_times_are_found(node: Harness) -> None:
    await node.start("never", search_attributes=attribute("Datetime", FAR))
    soon = attribute("Datetime", b'"2026-01-01T00:00:00Z"')
    await node.start("soon", search_attributes=soon)
    assert await listed(node, "A = '9999-12-31T00:00:00Z'") == ["never"]
    assert await listed(node, "A < '9999-12-31T00:00:00Z'") == ["soon"]
    assert await listed(node, "StartTime < '9999-12-31T00:00:00Z'") == ["soon", "never"]


async def test_large_runs_make_small_pages_and_few_are_read_ahead(
    node: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    list_runs = node.store.list_runs

    async def watched(query: Query) -> list[Record]:
        read.append(query.limit)
        return await list_runs(query)

    monkeypatch.setattr(node.store, "list_runs", watched)
    memo = Memo(fields={"notes": Payload(data=bytes(1 << 20))})
    for n in range(9):
        await node.start(f"run-{n}", memo=memo if n < 6 else Memo())
    pages: list[str] = []
    request = ListWorkflowExecutionsRequest(namespace="default", page_size=8)
    while request.next_page_token or not pages:
        page = await node.service.list_workflow_executions(request)
        assert page.ByteSize() < 4 << 20
        pages.append("".join(info.execution.workflow_id[-1] for info in page.executions))
        request.next_page_token = page.next_page_token
    assert pages == ["87654", "32", "10"]
    assert read == [9, 9, 5]
