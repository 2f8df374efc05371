"""List, scan and count: what they select, how they page, and that they lag behind nothing."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from api_stage import Stage, finish, staged, upsert, virtual
from temporalio.api.common.v1 import Payload, SearchAttributes
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    GetSearchAttributesRequest,
    ListClosedWorkflowExecutionsRequest,
    ListOpenWorkflowExecutionsRequest,
    ListWorkflowExecutionsRequest,
    ScanWorkflowExecutionsRequest,
)

from perdure.api.errors import InvalidArgument, NamespaceNotFound
from perdure.service import search_attributes


def attribute(value: object, kind: str = "") -> Payload:
    made = Payload(data=json.dumps(value).encode(), metadata={"encoding": b"json/plain"})
    if kind:
        made.metadata["type"] = kind.encode()
    return made


def attributes(**fields: Payload) -> SearchAttributes:
    return SearchAttributes(indexed_fields=fields)


async def listed(stage: Stage, query: str = "", size: int = 0) -> list[str]:
    """The ids of all runs that a query selects, page by page."""
    found: list[str] = []
    request = ListWorkflowExecutionsRequest(namespace="default", query=query, page_size=size)
    while True:
        page = await stage.api.list_workflow_executions(request)
        found += [info.execution.workflow_id for info in page.executions]
        if not page.next_page_token:
            return found
        request.next_page_token = page.next_page_token


async def count(stage: Stage, query: str = "") -> int:
    answer = await stage.api.count_workflow_executions(
        CountWorkflowExecutionsRequest(namespace="default", query=query)
    )
    return answer.count


@virtual
async def test_a_run_is_listed_the_moment_its_start_returns_and_so_is_its_end() -> None:
    async with staged() as stage:
        await stage.start("a")
        assert await listed(stage, "ExecutionStatus = 'Running'") == ["a"]
        await stage.step(finish())
        assert await listed(stage, "ExecutionStatus = 'Running'") == []
        assert await listed(stage, "ExecutionStatus = 'Completed'") == ["a"]


@virtual
async def test_pages_are_newest_first_and_never_overlap() -> None:
    async with staged() as stage:
        for n in range(7):
            await stage.start(f"run-{n}")
        expected = [f"run-{n}" for n in range(6, -1, -1)]
        for size in (0, 1, 3, 7):
            assert await listed(stage, size=size) == expected
        assert await listed(stage, "ORDER BY WorkflowId", size=2) == expected[::-1]


@virtual
async def test_a_page_token_belongs_to_its_query() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.start("b")
        request = ListWorkflowExecutionsRequest(namespace="default", page_size=1)
        token = (await stage.api.list_workflow_executions(request)).next_page_token
        assert token
        request.next_page_token = token
        request.query = "WorkflowType = 'flow'"
        with pytest.raises(InvalidArgument, match="made for another query"):
            await stage.api.list_workflow_executions(request)
        request.next_page_token = b"junk"
        with pytest.raises(InvalidArgument, match="Invalid NextPageToken"):
            await stage.api.list_workflow_executions(request)


@virtual
async def test_custom_attributes_select_and_are_shown() -> None:
    async with staged() as stage:
        await stage.start(
            "a",
            search_attributes=attributes(
                Customer=attribute("kim", "Keyword"),
                Amount=attribute(7, "Int"),
                Tags=attribute(["x", "y"], "KeywordList"),
                Due=attribute("2024-01-01T00:00:00Z", "Datetime"),
            ),
        )
        await stage.start("b", search_attributes=attributes(Customer=attribute("lee")))
        for query in (
            "Customer = 'kim'",
            "Amount > 6",
            "Tags = 'y'",
            "Due < '2025-01-01T00:00:00Z'",
        ):
            assert await listed(stage, query) == ["a"], query
        request = ListWorkflowExecutionsRequest(namespace="default", query="Amount = 7")
        [info] = (await stage.api.list_workflow_executions(request)).executions
        assert json.loads(info.search_attributes.indexed_fields["Customer"].data) == "kim"


@virtual
async def test_attributes_that_the_workflow_sets_select_too() -> None:
    async with staged() as stage:
        await stage.start("a")
        await stage.step(upsert(Stage=attribute("paid", "Keyword")))
        assert await listed(stage, "Stage = 'paid'") == ["a"]


@virtual
async def test_a_wrong_attribute_is_refused_and_nothing_starts() -> None:
    async with staged() as stage:
        await stage.start("a", search_attributes=attributes(Amount=attribute(7, "Int")))
        wrong = attributes(Amount=attribute("x", "Keyword"))
        with pytest.raises(InvalidArgument, match=r"attribute Amount of type Int.*Keyword"):
            await stage.start("b", search_attributes=wrong)
        assert await listed(stage) == ["a"]


@virtual
async def test_a_wrong_attribute_fails_the_workflow_task() -> None:
    async with staged() as stage:
        await stage.start("a", search_attributes=attributes(Amount=attribute(7, "Int")))
        task = await stage.poll()
        with pytest.raises(InvalidArgument, match="Amount of type Int"):
            await stage.complete(task, upsert(Amount=attribute("x")))
        assert (await stage.poll()).attempt == 2


@virtual
async def test_a_number_that_is_not_finite_is_refused_and_breaks_no_list() -> None:
    async with staged() as stage:
        for number in (math.nan, math.inf, 10**400):
            wrong = attributes(Price=attribute(number, "Double"))
            with pytest.raises(InvalidArgument, match="attribute Price of type Double"):
                await stage.start("a", search_attributes=wrong)
        await stage.start("b")
        task = await stage.poll()
        with pytest.raises(InvalidArgument, match="attribute Price of type Double: NaN"):
            await stage.complete(task, upsert(Price=attribute(math.nan, "Double")))
        assert (await stage.poll()).attempt == 2
        assert await listed(stage) == ["b"]


@virtual
async def test_count_by_group() -> None:
    async with staged() as stage:
        for n in range(3):
            await stage.start(f"run-{n}")
        await stage.step(finish())
        assert await count(stage) == 3
        assert await count(stage, "ExecutionStatus = 'Running'") == 2
        answer = await stage.api.count_workflow_executions(
            CountWorkflowExecutionsRequest(namespace="default", query="GROUP BY ExecutionStatus")
        )
        assert answer.count == 3
        groups = [(json.loads(g.group_values[0].data), g.count) for g in answer.groups]
        assert groups == [("Running", 2), ("Completed", 1)]
        assert answer.groups[0].group_values[0].metadata["type"] == b"Keyword"


@virtual
async def test_scan_open_and_closed() -> None:
    async with staged() as stage:
        await stage.start("a")
        await asyncio.sleep(1)
        await stage.start("b", workflow_type="other")
        await stage.step(finish())  # the older one
        api, namespace = stage.api, "default"
        scanned = await api.scan_workflow_executions(
            ScanWorkflowExecutionsRequest(namespace=namespace, page_size=1)
        )
        assert len(scanned.executions) == 1
        assert scanned.next_page_token
        open_ones = ListOpenWorkflowExecutionsRequest(namespace=namespace)
        [info] = (await api.list_open_workflow_executions(open_ones)).executions
        assert info.execution.workflow_id == "b"
        open_ones.type_filter.name = "flow"
        assert not (await api.list_open_workflow_executions(open_ones)).executions
        closed = ListClosedWorkflowExecutionsRequest(namespace=namespace)
        [info] = (await api.list_closed_workflow_executions(closed)).executions
        assert info.execution.workflow_id == "a"
        assert info.history_length == 5
        closed.status_filter.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_FAILED
        assert not (await api.list_closed_workflow_executions(closed)).executions
        closed.ClearField("status_filter")
        closed.execution_filter.workflow_id = "b"
        assert not (await api.list_closed_workflow_executions(closed)).executions
        window = ListOpenWorkflowExecutionsRequest(namespace=namespace)
        window.start_time_filter.latest_time.FromNanoseconds(1)
        assert not (await api.list_open_workflow_executions(window)).executions


@virtual
async def test_bad_queries_say_what_is_wrong() -> None:
    async with staged() as stage:
        for query in ("Foo = 'x'", "WorkflowId =", "StartTime > 'soon'"):
            with pytest.raises(InvalidArgument):
                await listed(stage, query)
        with pytest.raises(InvalidArgument, match="GROUP BY"):
            await listed(stage, "GROUP BY ExecutionStatus")
        with pytest.raises(NamespaceNotFound):
            await stage.api.list_workflow_executions(ListWorkflowExecutionsRequest(namespace="n"))


@virtual
async def test_the_attributes_that_filters_may_name() -> None:
    async with staged() as stage:
        await stage.start("a", search_attributes=attributes(Amount=attribute(7)))
        keys = (await stage.api.get_search_attributes(GetSearchAttributesRequest())).keys
        assert keys["Amount"] == search_attributes.INT
        assert keys["WorkflowType"] == search_attributes.KEYWORD
        assert keys["TemporalChangeVersion"] == search_attributes.KEYWORD_LIST


@virtual
async def test_every_attribute_that_is_advertised_can_be_used() -> None:
    """What get_search_attributes tells, the filter must understand."""
    async with staged() as stage:
        keys = (await stage.api.get_search_attributes(GetSearchAttributesRequest())).keys
        for name in keys:
            assert await listed(stage, f"{name} IS NULL") == []
