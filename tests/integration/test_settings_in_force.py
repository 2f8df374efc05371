"""Settings are what a node goes by: each of these would fail with the default."""

from __future__ import annotations

import asyncio

import pytest
from api_stage import QUEUE, execution, staged, timer, virtual
from temporalio.api.common.v1 import Payload, Payloads, SearchAttributes
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryReverseRequest,
    ListNamespacesRequest,
    ListWorkflowExecutionsRequest,
    RegisterNamespaceRequest,
    UpdateWorkflowExecutionRequest,
)

from perdure.api.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from perdure.api.times import SECOND_NS, duration
from perdure.engine.limits import Limits
from perdure.service.settings import Settings


def asked(seconds: int, **more: int) -> Settings:
    return Settings(query_timeout_ns=seconds * SECOND_NS, **more)


@virtual
async def test_a_query_waits_as_long_as_is_set() -> None:
    async with staged(settings=asked(300, query_poller_ns=40 * SECOND_NS)) as stage:
        await stage.start("a")
        await stage.step(timer("t"))
        await asyncio.sleep(60)  # nobody polls
        before_ns = stage.node.clock.now_ns()
        with pytest.raises(FailedPrecondition, match=f"no poller seen for task queue '{QUEUE}'"):
            await stage.query("a")
        assert (stage.node.clock.now_ns() - before_ns) / SECOND_NS == pytest.approx(40, abs=0.5)

    async with staged(settings=asked(7)) as stage:
        await stage.start("b")
        before_ns = stage.node.clock.now_ns()
        with pytest.raises(DeadlineExceeded, match="within 7 s"):
            await stage.query("b")
        assert (stage.node.clock.now_ns() - before_ns) / SECOND_NS == pytest.approx(7, abs=0.5)


@virtual
async def test_pages_are_as_large_as_is_set() -> None:
    settings = Settings(list_page_max=2, history_page_events_max=3)
    async with staged(settings=settings) as stage:
        await stage.start("d")
        await stage.step(timer("t"))
        for name in "abc":
            await stage.start(name)
        listed = await stage.api.list_workflow_executions(
            ListWorkflowExecutionsRequest(namespace="default", page_size=500)
        )
        assert len(listed.executions) == 2
        assert listed.next_page_token
        history = await stage.api.get_workflow_execution_history(
            GetWorkflowExecutionHistoryRequest(namespace="default", execution=execution("d"))
        )
        assert [event.event_id for event in history.history.events] == [1, 2, 3]
        newest = await stage.api.get_workflow_execution_history_reverse(
            GetWorkflowExecutionHistoryReverseRequest(namespace="default", execution=execution("d"))
        )
        assert len(newest.history.events) == 3
        for name in ("one", "two"):
            await stage.api.register_namespace(_namespace(name))
        namespaces = await stage.api.list_namespaces(ListNamespacesRequest(page_size=500))
        assert len(namespaces.namespaces) == 2


@virtual
async def test_a_page_of_runs_has_as_many_bytes_as_is_set_but_at_least_one_run() -> None:
    async with staged(settings=Settings(list_page_bytes=1)) as stage:
        for name in "abc":
            await stage.start(name)
        request = ListWorkflowExecutionsRequest(namespace="default")
        for name in "cba":
            page = await stage.api.list_workflow_executions(request)
            assert [info.execution.workflow_id for info in page.executions] == [name]
            request.next_page_token = page.next_page_token
        assert not request.next_page_token


def _namespace(name: str) -> RegisterNamespaceRequest:
    request = RegisterNamespaceRequest(namespace=name)
    request.workflow_execution_retention_period.CopyFrom(duration(24 * 3_600 * SECOND_NS))
    return request


@virtual
async def test_names_and_payloads_are_as_large_as_is_set() -> None:
    settings = Settings(limits=Limits(id_bytes_max=10, payload_bytes_max=1_000))
    async with staged(settings=settings) as stage:
        described = await stage.api.describe_namespace(
            DescribeNamespaceRequest(namespace="default")
        )
        assert described.namespace_info.limits.blob_size_limit_error == 1_000
        assert described.namespace_info.limits.memo_size_limit_error == 1_000
        with pytest.raises(InvalidArgument, match="Namespace length exceeds limit"):
            await stage.api.register_namespace(_namespace("n" * 11))
        with pytest.raises(InvalidArgument, match="WorkflowId exceeds maximum"):
            await stage.start("w" * 11)
        request = UpdateWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution("a")
        )
        request.request.meta.update_id = "u" * 11
        request.request.input.name = "set"
        with pytest.raises(InvalidArgument, match="UpdateId length exceeds limit"):
            await stage.api.update_workflow_execution(request)
        large = Payloads(payloads=[Payload(data=b"x" * 1_000)])  # less than is noted in the log
        with pytest.raises(InvalidArgument, match=r"input has .* bytes, 1000 are allowed"):
            await stage.start("a", input=large, request_id="r")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Settings(search_attributes_max=1), "number of search attributes 2 exceeds limit 1"),
        (Settings(search_attribute_bytes_max=3), "value size 4 exceeds size limit 3"),
        (Settings(search_attributes_bytes_max=9), "attributes 10 exceeds size limit 9"),
        (Settings(custom_search_attributes_max=1), "more than 1 custom search attributes"),
    ],
)
@virtual
async def test_search_attributes_are_as_many_as_is_set(settings: Settings, why: str) -> None:
    async with staged(settings=settings) as stage:
        value = Payload(metadata={"encoding": b"json/plain"}, data=b'"xx"')
        attributes = SearchAttributes(indexed_fields={"A": value, "B": value})
        with pytest.raises(InvalidArgument, match=why):
            await stage.start("a", search_attributes=attributes)
        assert not (await stage.api.list_namespaces(ListNamespacesRequest())).next_page_token


@virtual
@pytest.mark.parametrize(
    "bound", [Settings(history_events_warn=5), Settings(history_bytes_warn=400)]
)
async def test_a_long_history_is_noted_once(
    bound: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(settings=bound) as stage:
        await stage.start("long")
        for _ in range(12):
            await stage.signal("long")
    noted = [text for text in caplog.messages if text.startswith("the history of workflow long")]
    assert len(noted) == 1
    assert "continue as new" in noted[0]
