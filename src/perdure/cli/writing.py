"""``perdure workflow …``: the commands that change something. They need the file to be free."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perdure.cli.command import Input, Reason, RunId, Work, WorkflowId, command, parsed
from perdure.cli.failing import Misused
from perdure.cli.output import Output

if TYPE_CHECKING:
    from perdure.sdk.client import Client

Type = Annotated[str, typer.Argument(metavar="TYPE", help="The workflow's name.")]
Id = Annotated[str | None, typer.Option("--workflow-id", "-w", help="Default: a random one.")]
Conflict = Annotated[
    str, typer.Option("--id-conflict-policy", help="fail, use_existing or terminate_existing.")
]
Reuse = Annotated[
    str,
    typer.Option(
        "--id-reuse-policy",
        help="allow_duplicate, allow_duplicate_failed_only or reject_duplicate.",
    ),
]
Handler = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "start", "write", queue=True)(start)
    command(app, "execute", "write", queue=True, worker=True)(execute)
    command(app, "query", "write", queue=True, worker=True)(query)
    command(app, "update", "write", queue=True, worker=True)(update)
    command(app, "signal", "write")(signal)
    command(app, "cancel", "write")(cancel)
    command(app, "terminate", "write")(terminate)
    command(app, "pause", "write")(pause)
    command(app, "unpause", "write")(unpause)
    command(app, "reset", "write")(reset)
    command(app, "delete", "write")(delete)


async def start(
    client: "Client",
    output: Output,
    type: Type,
    input: Input = None,
    workflow_id: Id = None,
    id_conflict_policy: Conflict = "fail",
    id_reuse_policy: Reuse = "allow_duplicate",
    memo: Annotated[
        list[str] | None, typer.Option("--memo", metavar="KEY=JSON", help="Shown, not searched.")
    ] = None,
) -> None:
    """Start a workflow and do not wait for it."""
    options = _start_options(workflow_id, id_conflict_policy, id_reuse_policy, memo)
    handle = await client.start(type, *parsed(input), **options)
    output.done(
        f"started {handle.id}, run {handle.first_run_id}",
        workflow_id=handle.id,
        run_id=handle.first_run_id,
    )


async def execute(
    client: "Client",
    output: Output,
    type: Type,
    input: Input = None,
    workflow_id: Id = None,
    id_conflict_policy: Conflict = "fail",
    id_reuse_policy: Reuse = "allow_duplicate",
) -> None:
    """Start a workflow, wait for it, and print its result. On a file this needs --module."""
    options = _start_options(workflow_id, id_conflict_policy, id_reuse_policy, None)
    handle = await client.start(type, *parsed(input), **options)
    print(f"started {handle.id}, run {handle.first_run_id}", file=sys.stderr)
    output.value(await handle.result())


async def signal(
    client: "Client",
    output: Output,
    workflow_id: WorkflowId,
    name: Handler,
    input: Input = None,
    run_id: RunId = None,
) -> None:
    """Send a signal."""
    await client.handle(workflow_id, run_id=run_id).signal(name, *parsed(input))
    output.done(f"signalled {workflow_id}", workflow_id=workflow_id, signal=name)


async def query(
    client: "Client",
    output: Output,
    workflow_id: WorkflowId,
    name: Handler,
    input: Input = None,
    run_id: RunId = None,
) -> None:
    """Ask a workflow. On a file this needs --module, because the workflow's code answers."""
    output.value(await client.handle(workflow_id, run_id=run_id).query(name, *parsed(input)))


async def update(
    client: "Client",
    output: Output,
    workflow_id: WorkflowId,
    name: Handler,
    input: Input = None,
    run_id: RunId = None,
    update_id: Annotated[
        str | None, typer.Option("--update-id", help="Sent twice, it is done once.")
    ] = None,
) -> None:
    """Send an update and print its result. On a file this needs --module."""
    handle = client.handle(workflow_id, run_id=run_id)
    output.value(await handle.update(name, *parsed(input), id=update_id))


def _with_reason(method: str, what: str, done: str) -> Work:
    """A command that calls one method of a handle, with a reason that is recorded."""

    async def work(
        client: "Client",
        output: Output,
        workflow_id: WorkflowId,
        run_id: RunId = None,
        reason: Reason = "",
    ) -> None:
        await getattr(client.handle(workflow_id, run_id=run_id), method)(reason=reason)
        output.done(done.format(workflow_id), workflow_id=workflow_id)

    work.__doc__ = what
    return work


cancel = _with_reason("cancel", "Ask a workflow to cancel.", "asked {} to cancel")
terminate = _with_reason("terminate", "End a workflow at once.", "terminated {}")
pause = _with_reason(
    "pause", "Hold a workflow: no worker gets a task of it until it is unpaused.", "paused {}"
)
unpause = _with_reason("unpause", "Let a paused workflow go on.", "unpaused {}")


async def reset(
    client: "Client",
    output: Output,
    workflow_id: WorkflowId,
    to: Annotated[
        str, typer.Option("--to", help="An event id, or first or last: a completed workflow task.")
    ],
    run_id: RunId = None,
    reason: Reason = "",
) -> None:
    """Start again from an earlier point of the history."""
    point: Any = int(to) if to.isdecimal() else to
    if point not in ("first", "last") and not isinstance(point, int):
        raise Misused(f"--to: an event id, first or last, not {to!r}")
    handle = client.handle(workflow_id, run_id=run_id)
    made = await handle.reset(to=point, reason=reason)
    output.done(
        f"reset {workflow_id}: it goes on as run {made.run_id}",
        workflow_id=workflow_id,
        run_id=made.run_id,
    )


async def delete(
    client: "Client", output: Output, workflow_id: WorkflowId, run_id: RunId = None
) -> None:
    """Delete a run with its history."""
    await client.handle(workflow_id, run_id=run_id).delete()
    output.done(f"deleted {workflow_id}", workflow_id=workflow_id)


def _start_options(
    workflow_id: str | None, conflict: str, reuse: str, memo: list[str] | None
) -> dict[str, Any]:
    from perdure.sdk.options import WorkflowIDConflictPolicy, WorkflowIDReusePolicy

    options: dict[str, Any] = {
        "id_conflict_policy": _named(WorkflowIDConflictPolicy, "--id-conflict-policy", conflict),
        "id_reuse_policy": _named(WorkflowIDReusePolicy, "--id-reuse-policy", reuse),
    }
    if workflow_id is not None:
        options["id"] = workflow_id
    if memo:
        pairs = [pair.partition("=") for pair in memo]
        if not all(separator for _, separator, _ in pairs):
            raise Misused("--memo: write KEY=JSON")
        values = parsed([text for _, _, text in pairs])
        options["memo"] = {key: value for (key, _, _), value in zip(pairs, values, strict=True)}
    return options


def _named(kind: Any, argument: str, word: str) -> Any:
    try:
        return kind[word.upper().replace("-", "_")]
    except KeyError:
        words = ", ".join(name.lower() for name in kind.__members__ if name != "UNSPECIFIED")
        raise Misused(f"{argument}: one of {words}, not {word!r}") from None
