"""``perdure workflow …``: the commands that only look. They work while a worker holds the file."""

import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perdure.cli.command import RunId, WorkflowId, command
from perdure.cli.failing import Failed, Misused, chain_of
from perdure.cli.output import Output, cell

if TYPE_CHECKING:
    from temporalio.api.history.v1 import HistoryEvent

    from perdure.sdk.client import Client

POLL_S = 0.3

Query = Annotated[
    str, typer.Option("--query", help="e.g. \"WorkflowType = 'checkout' AND CloseTime IS NULL\"")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "list", "read")(list_)
    command(app, "count", "read")(count)
    command(app, "describe", "read")(describe)
    command(app, "show", "read")(show)
    command(app, "result", "read")(result)


async def list_(
    client: "Client",
    output: Output,
    query: Query = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
) -> None:
    """Show runs, the latest started first."""
    rows = [vars(run) async for run in client.list(query, limit=limit)]
    output.rows(
        rows,
        {
            "status": "STATUS",
            "id": "WORKFLOW ID",
            "workflow_type": "TYPE",
            "start_time": "STARTED (UTC)",
            "close_time": "CLOSED (UTC)",
            "history_length": "EVENTS",
        },
    )
    if len(rows) == limit and not output.as_json:
        print(f"the first {limit}; there may be more: --limit", file=sys.stderr)


async def count(client: "Client", output: Output, query: Query = "") -> None:
    """Count runs; in groups with GROUP BY in the query."""
    counted = await client.count(query)
    if output.as_json:
        groups = [{"values": list(group.values), "count": group.count} for group in counted.groups]
        output.json({"count": counted.count, "groups": groups})
        return
    for group in counted.groups:
        print(f"{group.count:>8}  {', '.join(cell(value) for value in group.values)}")
    print(f"{counted.count:>8}  in all" if counted.groups else counted.count)


async def describe(
    client: "Client", output: Output, workflow_id: WorkflowId, run_id: RunId = None
) -> None:
    """Show what a run is, and what it waits for."""
    found = await client.handle(workflow_id, run_id=run_id).describe()
    facts = {key: value for key, value in vars(found).items() if key != "raw"}
    facts["pending_activities"] = [vars(activity) for activity in found.pending_activities]
    facts["pending_children"] = [vars(child) for child in found.pending_children]
    if output.as_json:
        output.json(facts)
        return
    activities, children = facts.pop("pending_activities"), facts.pop("pending_children")
    attributes = facts.pop("search_attributes")
    facts["search_attributes"] = cell(attributes) if attributes else None
    output.record(facts)
    if activities:
        print()
        output.rows([_pending(activity) for activity in activities], _PENDING)
    if children:
        print()
        output.rows(children, {"workflow_type": "CHILD", "workflow_id": "WORKFLOW ID"})


_PENDING = {
    "activity_type": "PENDING ACTIVITY",
    "activity_id": "ID",
    "state": "STATE",
    "attempt": "ATTEMPT",
    "next_attempt_time": "NEXT (UTC)",
    "last_failure": "LAST FAILURE",
}


def _pending(activity: Mapping[str, Any]) -> dict[str, Any]:
    failure = activity["last_failure"]
    return {**activity, "last_failure": None if failure is None else chain_of(failure)}


async def show(
    client: "Client",
    output: Output,
    workflow_id: WorkflowId,
    run_id: RunId = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The newest event first.")] = False,
) -> None:
    """Show the history of a run. With --json as `perdure replay` and Temporal's tools read it."""
    handle = client.handle(workflow_id, run_id=run_id)
    history = await handle.fetch_history()
    if output.as_json:
        print(history.to_json())
        return
    rows = [
        {"id": event.event_id, "time": event.event_time.ToDatetime(), "event": _kind(event),
         "details": _details(event)}
        for event in history.events
    ]  # fmt: skip
    columns = {"id": "EVENT", "time": "TIME (UTC)", "event": "TYPE", "details": "DETAILS"}
    output.rows(rows[::-1] if reverse else rows, columns)


def _kind(event: "HistoryEvent") -> str:
    from temporalio.api.enums.v1 import EventType

    words = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_").split("_")
    return "".join(word.capitalize() for word in words)


def _details(event: "HistoryEvent") -> str:
    """The few facts of an event that tell it from others of its kind."""
    attributes = getattr(event, event.WhichOneof("attributes") or "", None)
    facts = []
    for field in ("activity_id", "timer_id", "signal_name", "workflow_id", "scheduled_event_id"):
        value = getattr(attributes, field, None)
        if value:
            facts.append(str(value) if field != "scheduled_event_id" else f"of event {value}")
            break
    for field in ("workflow_type", "activity_type"):
        value = getattr(getattr(attributes, field, None), "name", "")
        if value:
            facts.insert(0, value)
    failure = getattr(attributes, "failure", None)
    if failure is not None and failure.message:
        facts.append(failure.message)
    return " ".join(facts)


async def result(
    client: "Client",
    output: Output,
    workflow_id: WorkflowId,
    run_id: RunId = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for it if it still runs.")] = False,
) -> None:
    """Print the result of a workflow that has ended; fail as it failed."""
    waits = False
    while True:
        while (found := await _fresh(client, workflow_id, run_id)).close_time is None:
            if not wait:
                raise Failed(f"{workflow_id} is still running; --wait waits for its end")
            if not waits:  # whoever has no worker there would wait for ever
                waits = True
                note = f"{workflow_id} is still running, on task queue {found.task_queue}"
                print(note, file=sys.stderr)
            await asyncio.sleep(POLL_S)
        run_id = await _following(client, workflow_id, found.run_id)
        if not run_id:
            break
    output.value(await client.handle(workflow_id, run_id=found.run_id).result())


async def _following(client: "Client", workflow_id: str, run_id: str) -> str:
    """The run that began when this one, which has ended, did; or ""."""
    from temporalio.api.common.v1 import WorkflowExecution
    from temporalio.api.enums.v1 import HistoryEventFilterType
    from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest

    from perdure.sdk.results import close_event

    request = GetWorkflowExecutionHistoryRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
        history_event_filter_type=HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT,
    )
    answer = await client.service.get_workflow_execution_history(request)
    return close_event(answer.history.events[-1]).next_run_id


async def _fresh(client: "Client", workflow_id: str, run_id: str | None) -> Any:
    """The run as it is now: a client that only reads is not told when something changes."""
    if run_id is None and "'" in workflow_id and '"' in workflow_id:
        raise Misused("WORKFLOW_ID: give --run-id for an id with both kinds of quotes")
    quoted = f"'{workflow_id}'" if "'" not in workflow_id else f'"{workflow_id}"'
    filter = f"RunId = '{run_id}'" if run_id else f"WorkflowId = {quoted}"
    async for found in client.list(filter, limit=1):
        return found
    raise Failed(f"workflow {workflow_id!r}: not found")
