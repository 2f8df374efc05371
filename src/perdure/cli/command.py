"""How a command becomes one of typer's: common options added, the loop run, results printed."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli.failing import Misused
from perdure.cli.output import Output
from perdure.cli.place import Access, Place, opened

Db = Annotated[
    str,
    typer.Option(
        "--db",
        envvar="PERDURE_DB",
        help="A SQLite file, as a path or sqlite:///path, or postgresql://user@host/database.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="PERDURE_ADDRESS", help="host:port of a server, not --db."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Settings as TOML, as of perdure server; docs/settings.md."),
]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", envvar="PERDURE_NAMESPACE", help="Whose runs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
TaskQueue = Annotated[
    str | None, typer.Option("--task-queue", "-q", help="The task queue; without it, default.")
]
Module = Annotated[
    str | None,
    typer.Option("--module", "-m", help="Run this module's workflows and activities meanwhile."),
]
RunId = Annotated[str | None, typer.Option("--run-id", "-r", help="Default: the latest run.")]
WorkflowId = Annotated[str, typer.Argument(metavar="WORKFLOW_ID", show_default=False)]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="JSON", help="An argument; once for each, in order."),
]
Reason = Annotated[str, typer.Option("--reason", help="Recorded in the history.")]

_COMMON: dict[str, tuple[Any, Any]] = {
    "db": (Db, "sqlite:///perdure.db"),
    "address": (Address, None),
    "namespace": (Namespace, "default"),
    "config": (ConfigFile, None),
    "as_json": (Json, False),
}
_QUEUE: dict[str, tuple[Any, Any]] = {"task_queue": (TaskQueue, None)}
_WORKER: dict[str, tuple[Any, Any]] = {"module": (Module, None)}

Work = Callable[..., Coroutine[Any, Any, None]]


def command(
    app: typer.Typer, name: str, access: Access, *, queue: bool = False, worker: bool = False
) -> Any:
    """Make a command of an async function whose first two parameters are a client and an `Output`.

    It gets ``--db``, ``--address``, ``--namespace``, ``--config`` and ``--json``.

    Args:
        access: does it only read, so that somebody else may hold a file, and no node is needed?
        queue: give it ``--task-queue``.
        worker: give it ``--module``. Workflow code has to run for it, and on a file nobody else can
            run any while the command has the file.
    """

    def decorate(work: Work) -> Work:
        own = list(inspect.signature(work).parameters.values())[2:]
        added = _COMMON | (_QUEUE if queue else {}) | (_WORKER if worker else {})
        parameters = own + [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for key, (annotation, default) in added.items()
        ]

        @functools.wraps(work)
        def run(**given: Any) -> None:
            output = Output(as_json=given.pop("as_json"))
            place = Place(
                given.pop("db"),
                given.pop("address"),
                given.pop("namespace"),
                given.pop("task_queue", None),
                given.pop("module", None),
                given.pop("config"),
            )
            if worker and not place.has_worker:
                raise Misused(
                    f"{name}: no worker can run on {place.file} while this command has it; name "
                    "the module of the workflow with --module"
                )
            run_loop(_within(place, access, work, output, given))

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name)(run)
        return work

    return decorate


async def _within(
    place: Place, access: Access, work: Work, output: Output, given: dict[str, Any]
) -> None:
    async with opened(place, access) as client:
        await work(client, output, **given)


def run_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run one coroutine to its end, on the fastest loop there is."""
    from perdure.connecting import loop_factory

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work)


def parsed(inputs: Sequence[str] | None) -> list[Any]:
    """The values of ``--input``.

    Raises:
        Misused: naming the one that is no JSON.
    """
    values = []
    for number, text in enumerate(inputs or (), start=1):
        try:
            values.append(json.loads(text))
        except ValueError as error:
            hint = f"; a string needs quotes: '\"{text}\"'" if text.isidentifier() else ""
            raise Misused(f"--input {number}: {text!r} is not JSON: {error}{hint}") from None
    return values
