"""How long list and count take on a full PostgreSQL database, and the plans of those that are slow.

    uv run --group bench python benchmarks/lists.py postgresql://… [--plans]

The database is one that `fill.py` filled. Every filter is asked seven times through the service of
an embedded node, pages of 50: the first page, and one behind ten others. The table shows medians.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

import asyncpg
from rich.console import Console
from rich.table import Table
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    ListWorkflowExecutionsRequest,
)

import perdure

PAGE = 50
TIMES = 7
AIM_MS = 50

# What a list of runs is filtered by; {id}, {run}, {customer} and times are those of stored runs.
FILTERS = (
    "",
    "ORDER BY StartTime ASC",
    "ORDER BY CloseTime DESC",
    "ORDER BY CloseTime ASC",
    "ExecutionStatus = 'Running'",
    "ExecutionStatus = 'Completed'",
    "ExecutionStatus = 'Failed'",
    "ExecutionStatus = 'TimedOut'",
    "ExecutionStatus = 'Failed' ORDER BY CloseTime DESC",
    "ExecutionStatus IN ('Failed', 'TimedOut')",
    "ExecutionStatus != 'Completed'",
    "WorkflowType = 'order-3'",
    "WorkflowType = 'no-such-type'",
    "WorkflowType = 'order-3' AND ExecutionStatus = 'Failed'",
    "WorkflowType = 'order-3' ORDER BY CloseTime DESC",
    "WorkflowType STARTS_WITH 'order-5'",
    "WorkflowId = '{id}'",
    "WorkflowId STARTS_WITH '{prefix}'",
    "WorkflowId STARTS_WITH 'template'",
    "RunId = '{run}'",
    "TaskQueue = 'queue-2'",
    "TaskQueue = 'no-such-queue'",
    "StartTime > '{late}'",
    "StartTime BETWEEN '{early}' AND '{late}'",
    "StartTime < '{early}' AND ExecutionStatus = 'Failed'",
    "CloseTime > '{late}'",
    "CloseTime BETWEEN '{early}' AND '{late}' ORDER BY CloseTime DESC",
    "CloseTime IS NULL",
    "CloseTime < '{early}' AND WorkflowType = 'order-3' ORDER BY CloseTime DESC",
    "Customer = '{customer}'",
    "Customer = 'no-such-customer'",
    "Customer IN ('{customer}', 'customer-00007')",
    "Customer = '{customer}' AND ExecutionStatus = 'Completed' ORDER BY CloseTime DESC",
    "Customer STARTS_WITH 'customer-0000'",
    "Customer STARTS_WITH 'customer-00'",
    "Customer STARTS_WITH 'customer-'",
    "Customer STARTS_WITH 'customer-0000' AND ExecutionStatus = 'Failed'",
    "Customer STARTS_WITH 'customer-000' AND StartTime < '{early}' ORDER BY CloseTime DESC",
    "Customer STARTS_WITH 'no-such-customer'",
    "NOT Customer STARTS_WITH 'customer-'",
    "Customer > 'customer-19999'",
    "Customer != '{customer}'",
    "Customer IS NOT NULL",
    "Customer IS NULL",
    "ORDER BY Customer ASC",
    "ORDER BY Customer DESC",
    "Region = 'asia'",
    "Region = 'asia' AND ExecutionStatus = 'Running'",
    "Tags = 'tag-3'",
    "Tags = 'no-such-tag'",
    "Amount = 54321",
    "Amount > 99990",
    "Amount > 99000",
    "Amount > 98000",
    "Amount > 50000",
    "Amount BETWEEN 20000 AND 20010",
    "Amount > 99990 OR Amount < 10010",
    "Amount > 99900 AND ExecutionStatus = 'Failed'",
    "Amount > 99000 AND ExecutionStatus = 'Completed' AND StartTime < '{early}'",
    "Amount > 50000 AND WorkflowType = 'order-3' AND ExecutionStatus = 'TimedOut'",
    "Amount > 99000 ORDER BY CloseTime DESC",
    "Amount > 99000 AND WorkflowType = 'order-3' ORDER BY CloseTime DESC",
    "Amount > 1000000",
    "Amount != 54321",
    "ORDER BY Amount ASC",
    "ORDER BY Amount DESC",
    "ExecutionStatus = 'Failed' ORDER BY Amount DESC",
    "Region != 'asia'",
    "Region IN ('asia', 'europe') AND Amount > 99990",
    "ORDER BY Region DESC",
    "Due > '{late}'",
    "Due BETWEEN '{early}' AND '{after_early}'",
    "Due BETWEEN '{early}' AND '{day_after_early}'",
    "Due < '{early}'",
    "Due < '{early}' AND ExecutionStatus = 'Running'",
    "Ticket = 'ticket-00007'",
    "Ticket != 'ticket-00007'",
    "Ticket STARTS_WITH 'ticket-00'",
    "Ticket STARTS_WITH 'ticket-'",
    "Ticket IS NULL",
    "Ticket IS NOT NULL",
    "Ticket IS NOT NULL AND ExecutionStatus = 'Failed'",
    "ORDER BY Ticket ASC",
    "ORDER BY Ticket DESC",
    "Score > 0.75",
    "Score > 0.75 AND ExecutionStatus = 'Failed'",
    "Score != 0.5",
    "Score IS NOT NULL",
    "ORDER BY Score DESC",
    "Tags != 'all'",
    "Tags IS NOT NULL",
    "Tags STARTS_WITH 'no-such-tag'",
    "ExecutionTime > '{late}'",
    "ExecutionDuration > '59m59s'",
    "ExecutionDuration > '59m30s'",
    "ExecutionDuration > '30m'",
    "ExecutionDuration < '1s' AND ExecutionStatus = 'Failed'",
    "ExecutionDuration IS NULL",
    "ORDER BY ExecutionDuration DESC",
    "ORDER BY ExecutionDuration ASC",
    "HistoryLength > 1000",
    "HistoryLength > 60",
    "HistoryLength < 17",
    "HistoryLength != 23",
    "HistoryLength > 60 ORDER BY CloseTime DESC",
    "ORDER BY HistoryLength DESC",
    "HistorySizeBytes > 1000000",
    "HistorySizeBytes > 1000",
    "StateTransitionCount > 1000",
    "RootWorkflowId = '{id}'",
    "RootWorkflowId = 'no-such-root'",
    "RootRunId = 'no-such-root'",
    "ParentWorkflowId = 'no-such-parent'",
    "ParentRunId = 'no-such-parent'",
)
COUNTS = (
    "",
    "ExecutionStatus = 'Running'",
    "ExecutionStatus = 'Failed'",
    "WorkflowType = 'order-3' AND ExecutionStatus = 'Running'",
    "StartTime > '{late}'",
    "Customer = '{customer}'",
    "GROUP BY ExecutionStatus",
)


async def stored(connection: Any) -> dict[str, str]:
    """Values that stored runs have."""
    row = await connection.fetchrow(
        "SELECT workflow_id AS id, run_id AS run, search_attributes ->> 'Customer' AS customer, "
        "to_char(to_timestamp(min_ns / 1e9 + 86400 * 10), '{0}') AS early, "
        "to_char(to_timestamp(min_ns / 1e9 + 86400 * 10 + 3600), '{0}') AS after_early, "
        "to_char(to_timestamp(min_ns / 1e9 + 86400 * 11), '{0}') AS day_after_early, "
        "to_char(to_timestamp(min_ns / 1e9 + 86400 * 20), '{0}') AS late "
        "FROM perdure.runs, (SELECT min(start_ns) AS min_ns FROM perdure.runs) AS m "
        "WHERE close_ns > 0 AND search_attributes <> '{{}}' AND workflow_id NOT LIKE 'template%' "
        "OFFSET 5000 LIMIT 1".format('YYYY-MM-DD"T"HH24:MI:SS"Z"')
    )
    return dict(row) | {"prefix": row["id"][:-1]}


Statement = tuple[str, tuple[Any, ...]]


class Asked:
    """A node's service, and the statements that it made for the last question."""

    def __init__(self, client: Any) -> None:
        self.service = client.service
        self.statements: list[Statement] = []
        store = client.service.node.store
        read = store._read_planned

        async def noting(statement: str, *parameters: Any) -> Any:
            self.statements.append((statement, parameters))
            return await read(statement, *parameters)

        store._read_planned = noting

    async def page_ms(self, text: str, token: bytes) -> tuple[float, bytes]:
        """How long one page takes, and the token of the next."""
        request = ListWorkflowExecutionsRequest(
            namespace="default", query=text, page_size=PAGE, next_page_token=token
        )
        self.statements = []
        begin = time.perf_counter()
        answer = await self.service.list_workflow_executions(request)
        return (time.perf_counter() - begin) * 1e3, answer.next_page_token

    async def count_ms(self, text: str) -> float:
        """How long a count takes."""
        request = CountWorkflowExecutionsRequest(namespace="default", query=text)
        self.statements = []
        begin = time.perf_counter()
        await self.service.count_workflow_executions(request)
        return (time.perf_counter() - begin) * 1e3


async def measured(asked: Asked, text: str) -> tuple[float, float | None, list[Statement]]:
    """Milliseconds of the first page and of the eleventh, and the slower one's statements."""
    first = [(await asked.page_ms(text, b""))[0] for _ in range(TIMES)]
    made, token, worst = asked.statements, b"", statistics.median(first)
    for _ in range(10):
        _, token = await asked.page_ms(text, token)
        if not token:
            return worst, None, made
    later = statistics.median([(await asked.page_ms(text, token))[0] for _ in range(TIMES)])
    return worst, later, asked.statements if later > worst else made


async def explain(connection: Any, statements: list[Statement]) -> str:
    """The plans of statements, as they ran."""
    lines = []
    for text, parameters in statements:
        rows = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {text}", *parameters)
        lines += [text, *(row[0] for row in rows)]
    return "\n".join(lines)


def shown(taken_ms: float | None) -> str:
    if taken_ms is None:
        return ""
    return f"{taken_ms:,.1f}" + (" !" if taken_ms > AIM_MS else "")


async def ask_all(dsn: str, *, plans: bool) -> None:
    console = Console(width=130)
    connection = await asyncpg.connect(dsn)
    values = await stored(connection)
    table = Table("list", "first page, ms", "eleventh page, ms")
    counts = Table("count", "ms")
    async with perdure.connect(dsn) as client:
        asked = Asked(client)
        for text in FILTERS:
            first, later, made = await measured(asked, text.format(**values))
            table.add_row(text or "(all)", shown(first), shown(later))
            if plans and max(first, later or 0) > AIM_MS:
                console.print(text, await explain(connection, made), markup=False)
        for text in COUNTS:
            taken = [await asked.count_ms(text.format(**values)) for _ in range(TIMES)]
            counts.add_row(text or "(all)", shown(statistics.median(taken)))
            if plans and statistics.median(taken) > AIM_MS:
                plan = await explain(connection, asked.statements)
                console.print(text, plan, markup=False)
    await connection.close()
    console.print(table)
    console.print(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dsn", help="postgresql://…")
    parser.add_argument("--plans", action="store_true", help=f"of all over {AIM_MS} ms")
    arguments = parser.parse_args()
    asyncio.run(ask_all(arguments.dsn, plans=arguments.plans))


if __name__ == "__main__":
    main()
