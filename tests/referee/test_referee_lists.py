"""Lists, scans and counts with filters; search attributes and memo; namespaces; task queues."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
)

from referee.env import Env
from referee.program import program
from referee.raw import complete_workflow, payloads
from referee.servers import SEARCH_ATTRIBUTES

KEYWORD = SearchAttributeKey.for_keyword("RefKeyword")
KEYWORDS = SearchAttributeKey.for_keyword_list("RefKeywords")
TEXT = SearchAttributeKey.for_text("RefText")
INT = SearchAttributeKey.for_int("RefInt")
DOUBLE = SearchAttributeKey.for_float("RefDouble")
BOOL = SearchAttributeKey.for_bool("RefBool")
TIME = SearchAttributeKey.for_datetime("RefTime")


@workflow.defn
class Listed:
    @workflow.run
    async def run(self, waits: bool) -> str:
        await workflow.wait_condition(lambda: not waits)
        return "done"


async def _five(env: Env) -> None:
    """Five runs; the odd ones are open. All have the id's prefix in common."""
    for number in range(5):
        attributes = TypedSearchAttributes(
            [
                SearchAttributePair(KEYWORD, f"key {number % 2}"),
                SearchAttributePair(KEYWORDS, [f"a{number}", "all"]),
                SearchAttributePair(TEXT, f"the number {number} of five"),
                SearchAttributePair(INT, number),
                SearchAttributePair(DOUBLE, number / 2),
                SearchAttributePair(BOOL, number > 2),
                SearchAttributePair(TIME, datetime(2025, 1, 1 + number, tzinfo=UTC)),
            ]
        )
        handle = await env.start(
            Listed.run,
            number % 2 == 1,
            id=env.id(str(number)),
            search_attributes=attributes,
            memo={"number": number},
        )
        if number % 2 == 0:
            await handle.result()
        else:
            await env.until_event(handle, "WORKFLOW_TASK_COMPLETED")
    mine = f"WorkflowId STARTS_WITH '{env.id()}'"
    for query, count in (("", 5), (" AND ExecutionStatus = 'Completed'", 3)):

        async def visible(query: str = query, count: int = count) -> bool:
            return (await env.client.count_workflows(mine + query)).count == count

        await env.until(visible)


async def _find(env: Env, queries: Sequence[str]) -> None:
    """The numbers of the runs that each query finds."""
    for query in queries:
        mine = f"WorkflowId STARTS_WITH '{env.id()}' AND ({query})"
        found = [each.id[-1] async for each in env.client.list_workflows(mine)]
        env.note(query, sorted(found))
        counted = await env.client.count_workflows(mine)
        env.note(f"count {query}", counted.count)


@program
async def test_list_by_equality_and_order(env: Env) -> None:
    await _five(env)
    await _find(
        env,
        [
            "RefInt = 3",
            "RefInt != 3",
            "RefInt > 2",
            "RefInt >= 2 AND RefInt < 4",
            "RefInt BETWEEN 1 AND 3",
            "RefInt NOT BETWEEN 1 AND 3",
            "RefInt IN (0, 4, 9)",
            "RefInt NOT IN (0, 4)",
            "RefDouble <= 0.5",
            "RefBool = true",
            "RefBool = false",
            "RefTime > '2025-01-03T01:00:00Z'",
            "RefTime BETWEEN '2025-01-02T00:00:00Z' AND '2025-01-03T12:00:00Z'",
        ],
    )


@program
async def test_list_by_exact_time(env: Env) -> None:
    await _five(env)
    await _find(env, ["RefTime = '2025-01-02T00:00:00Z'", "RefTime > '2025-01-03T00:00:00Z'"])


@program
async def test_list_by_words(env: Env) -> None:
    await _five(env)
    await _find(
        env,
        [
            "RefKeyword = 'key 1'",
            "RefKeyword != 'key 1'",
            "RefKeyword STARTS_WITH 'key'",
            "RefKeyword NOT STARTS_WITH 'key'",
            "RefKeyword IN ('key 0', 'other')",
            "RefKeyword > 'key 0'",
            "RefKeywords = 'a2'",
            "RefKeywords = 'all'",
            "RefKeywords IN ('a1', 'a3')",
            "RefKeywords != 'a2'",
            "RefText = 'number'",
            "RefText = 'Number 3'",
            "RefText != 'three'",
        ],
    )


@program
async def test_list_by_what_the_system_knows(env: Env) -> None:
    await _five(env)
    await _find(
        env,
        [
            "ExecutionStatus = 'Running'",
            "ExecutionStatus = 'Completed'",
            "ExecutionStatus != 'Running'",
            "ExecutionStatus IN ('Running', 'Failed')",
            "WorkflowType = 'Listed'",
            "WorkflowType = 'Other'",
            "TaskQueue = 'lists'",
            "CloseTime IS NULL",
            "CloseTime IS NOT NULL",
            "StartTime > '2020-01-01T00:00:00Z'",
            "HistoryLength > 4",
            "HistoryLength < 4",
            "HistoryLength IS NULL",
            "HistorySizeBytes IS NOT NULL",
            "StateTransitionCount IS NULL",
            "ExecutionDuration IS NULL",
            "ParentWorkflowId IS NULL",
            "ExecutionDuration < '1h'",
        ],
    )


@program
async def test_list_by_logic(env: Env) -> None:
    await _five(env)
    await _find(
        env,
        [
            "RefInt = 1 OR RefInt = 2",
            "RefInt = 1 OR RefInt = 2 AND RefBool = true",
            "(RefInt = 1 OR RefInt = 3) AND RefBool = true",
            "NOT RefInt = 1",
            "RefKeyword IS NOT NULL AND RefInt IS NULL",
        ],
    )


@program
async def test_list_queries_that_are_wrong(env: Env) -> None:
    for query in (
        "nonsense",
        "RefInt =",
        "RefUnknown = 1",
        "RefInt = 'three'",
        "RefBool = 3",
        "RefTime = 'yesterday'",
        "ExecutionStatus = 'Sleeping'",
        "RefKeywords > 'x'",
        "RefInt LIKE 'x'",
        "SELECT * FROM executions",
        "WorkflowId = 'x'; DROP TABLE executions",
    ):
        await env.error(query, env.call("ListWorkflowExecutions", query=query))
        await env.error(f"count {query}", env.call("CountWorkflowExecutions", query=query))


@program
async def test_list_what_temporal_refuses(env: Env) -> None:
    for query in ("RefText STARTS_WITH 'x'", "WorkflowId = 'x' ORDER BY StartTime"):
        await env.error(query, env.call("ListWorkflowExecutions", query=query))


@program
async def test_count_by_group(env: Env) -> None:
    await _five(env)
    mine = f"WorkflowId STARTS_WITH '{env.id()}'"
    grouped = await env.call("CountWorkflowExecutions", query=f"{mine} GROUP BY ExecutionStatus")
    env.note("count", grouped.count)
    found = sorted((g.group_values[0].data.decode(), g.count) for g in grouped.groups)
    env.note("groups", found)


@program
async def test_count_by_other_groups(env: Env) -> None:
    for by in ("WorkflowType", "RefInt", "ExecutionStatus, WorkflowType"):
        count = env.call("CountWorkflowExecutions", query=f"WorkflowId = 'x' GROUP BY {by}")
        await env.error(f"by {by}", count)


@program
async def test_list_by_pages(env: Env) -> None:
    await _five(env)
    mine = f"WorkflowId STARTS_WITH '{env.id()}'"
    for rpc in ("ListWorkflowExecutions", "ScanWorkflowExecutions"):
        seen: list[str] = []
        sizes = []
        token = b""
        while True:
            page = await env.call(rpc, query=mine, page_size=2, next_page_token=token)
            seen += [each.execution.workflow_id[-1] for each in page.executions]
            sizes.append(len(page.executions))
            token = page.next_page_token
            if not token:
                break
        env.note(f"{rpc} found", sorted(seen))
        env.note(f"{rpc} pages", [size for size in sizes if size])


@program
async def test_list_bad_page_token(env: Env) -> None:
    await env.error("bad", env.call("ListWorkflowExecutions", next_page_token=b"garbage"))


@program
async def test_list_shows_each_run(env: Env) -> None:
    await _five(env)
    query = f"WorkflowId = '{env.id('2')}'"
    listed = await env.call("ListWorkflowExecutions", query=query)
    [info] = listed.executions
    info.ClearField("history_size_bytes")
    info.ClearField("state_transition_count")
    info.ClearField("execution_duration")
    env.note("listed", info)


@program
async def test_list_open_and_closed(env: Env) -> None:
    await _five(env)
    for rpc, number in (("ListOpenWorkflowExecutions", 1), ("ListClosedWorkflowExecutions", 2)):
        found = await env.call(
            rpc,
            start_time_filter={"earliest_time": datetime(2020, 1, 1, tzinfo=UTC)},
            execution_filter={"workflow_id": env.id(str(number))},
        )
        env.note(rpc, [each.execution.workflow_id[-1] for each in found.executions])


@program
async def test_search_attributes_that_are_wrong(env: Env) -> None:
    raw = env.raw_worker()
    for name, value in (
        ("RefInt", "text"),
        ("RefBool", "text"),
        ("RefTime", "text"),
        ("ExecutionStatus", "Running"),
        ("RefKeyword", "k" * 3000),
    ):
        fields = {"indexed_fields": {name: payloads(value).payloads[0]}}
        await env.error(f"{name}={value[:9]}", raw.start(search_attributes=fields))


@program
async def test_search_attribute_unknown(env: Env) -> None:
    fields = {"indexed_fields": {"RefNobody": payloads("x").payloads[0]}}
    await env.error("start", env.raw_worker().start(search_attributes=fields))


@program
async def test_search_attributes_of_the_operator(env: Env) -> None:
    listed = await env.call("ListSearchAttributes", namespace="default")
    mine = {k: v for k, v in listed.custom_attributes.items() if k in SEARCH_ATTRIBUTES}
    env.note("custom", sorted(mine.items()))
    add = "AddSearchAttributes"
    same = env.call(add, namespace="default", search_attributes={"RefInt": 3})
    await env.error("again", same)
    system = env.call(add, namespace="default", search_attributes={"WorkflowId": 2})
    await env.error("system", system)
    await env.error("none", env.call(add, namespace="default"))
    remove = "RemoveSearchAttributes"
    unknown = env.call(remove, namespace="default", search_attributes=["RefNobody"])
    await env.error("remove unknown", unknown)
    system = env.call(remove, namespace="default", search_attributes=["WorkflowId"])
    await env.error("remove system", system)


# --- namespaces ---------------------------------------------------------------------------------


@program
async def test_namespace_life(env: Env) -> None:
    name = env.id()
    await env.call(
        "RegisterNamespace",
        namespace=name,
        description="for a test",
        owner_email="me@example.org",
        workflow_execution_retention_period=timedelta(days=3),
        data={"key": "value"},
    )
    again = env.call(
        "RegisterNamespace",
        namespace=name,
        workflow_execution_retention_period=timedelta(days=3),
    )
    await env.error("again", again)
    described = await env.call("DescribeNamespace", namespace=name)
    described.namespace_info.ClearField("capabilities")
    described.namespace_info.ClearField("limits")
    env.note("described", described)
    updated = await env.call(
        "UpdateNamespace",
        namespace=name,
        update_info={"description": "changed", "data": {"more": "data"}},
        config={"workflow_execution_retention_ttl": timedelta(days=5)},
    )
    env.note("description", updated.namespace_info.description)
    env.note("retention", updated.config.workflow_execution_retention_ttl.ToSeconds())
    env.note("data", sorted(updated.namespace_info.data.items()))
    by_id = await env.call("DescribeNamespace", namespace="", id=described.namespace_info.id)
    env.note("by id", by_id.namespace_info.name)


@program
async def test_namespace_bad_requests(env: Env) -> None:
    day = timedelta(days=1)
    register = "RegisterNamespace"

    def wrong(**fields: Any) -> Any:
        fields.setdefault("workflow_execution_retention_period", day)
        return env.call(register, **fields)

    await env.error("no name", wrong(namespace=""))
    await env.error("long name", wrong(namespace="n" * 1001))
    await env.error("spaces", wrong(namespace="has spaces"))
    await env.error("no retention", env.call(register, namespace=env.id("x")))
    short = wrong(namespace=env.id("y"), workflow_execution_retention_period=timedelta(seconds=-1))
    await env.error("negative retention", short)
    await env.error("describe nothing", env.call("DescribeNamespace", namespace=""))
    await env.error("describe nobody", env.call("DescribeNamespace", namespace="nope"))
    nobody = env.call("DescribeNamespace", namespace="", id="11111111-2222-4333-8444-555555555555")
    await env.error("describe nobody's id", nobody)
    await env.error("update nobody", env.call("UpdateNamespace", namespace="nope"))


@program
async def test_namespace_deprecated(env: Env) -> None:
    name = env.id()
    await env.call(
        "RegisterNamespace", namespace=name, workflow_execution_retention_period=timedelta(days=1)
    )
    await env.call("DeprecateNamespace", namespace=name)
    described = await env.call("DescribeNamespace", namespace=name)
    env.note("state", described.namespace_info.state)
    env.note("retention", described.config.workflow_execution_retention_ttl.ToSeconds())


@program
async def test_namespace_deleted(env: Env) -> None:
    name = env.id()
    await env.call(
        "RegisterNamespace", namespace=name, workflow_execution_retention_period=timedelta(days=1)
    )
    await env.call("DeleteNamespace", namespace=name)

    async def gone() -> bool:
        try:
            await env.call("DescribeNamespace", namespace=name)
        except Exception:
            return True
        return False

    await env.until(gone)
    await env.error("describe", env.call("DescribeNamespace", namespace=name))


# --- the rest -----------------------------------------------------------------------------------


@program
async def test_task_queue_described(env: Env) -> None:
    raw = env.raw_worker()
    await raw.start()
    await raw.step(complete_workflow())
    described = await env.call(
        "DescribeTaskQueue", task_queue={"name": raw.queue}, task_queue_type=1
    )
    env.note("pollers", [poller.identity for poller in described.pollers])
    await env.error("no queue", env.call("DescribeTaskQueue", task_queue_type=1))
    empty = env.call("DescribeTaskQueue", task_queue={"name": ""}, task_queue_type=1)
    await env.error("empty queue", empty)


@program
async def test_health_and_system_info(env: Env) -> None:
    env.note("healthy", await env.client.service_client.check_health())
    info = await env.call("GetSystemInfo")
    able = info.capabilities
    for name in (
        "signal_and_query_header",
        "internal_error_differentiation",
        "activity_failure_include_heartbeat",
        "encoded_failure_attributes",
        "upsert_memo",
        "eager_workflow_start",
        "sdk_metadata",
        "count_group_by_execution_status",
    ):
        env.note(name, getattr(able, name))
