"""``perdure worker``, ``perdure replay``, ``perdure lint``."""

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli.command import Address, ConfigFile, Db, Json, Namespace, TaskQueue, run_loop
from perdure.cli.failing import Failed, Misused
from perdure.cli.output import Output
from perdure.cli.place import Place, chosen, connected

ModuleSpec = Annotated[
    str, typer.Argument(metavar="MODULE[:ATTR]", help="What to import and run.", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("worker")(worker)
    app.command("replay")(replay)
    app.command("lint")(lint)


def worker(
    module: ModuleSpec,
    db: Db = "sqlite:///perdure.db",
    address: Address = None,
    namespace: Namespace = "default",
    task_queue: TaskQueue = None,
    config: ConfigFile = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Import a module and run its workflows and activities, until told to stop (Ctrl-C)."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    place = Place(db, address, namespace, task_queue, config=config)
    run_loop(_work(place, chosen(module), module))


async def _work(place: Place, lists: tuple[list[Any], list[Any]] | None, module: str) -> None:
    given: dict[str, Any] = {}
    if lists is not None:
        given = {"workflows": lists[0], "activities": lists[1]}
    _ = place.parsed  # a target that makes no sense is told first
    async with connected(place) as client, client.worker(**given):
        told = told_to_stop()
        queue = place.task_queue or "default"
        print(f"{module}: working on {place.shown}, task queue {queue}", file=sys.stderr)
        await told
        print("stopping: what runs may finish", file=sys.stderr)


def told_to_stop() -> asyncio.Future[None]:
    """Done at the first SIGINT or SIGTERM; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[None] = loop.create_future()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def tell() -> None:
        told.set_result(None)
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, tell)
    return told


def replay(
    histories: Annotated[list[Path], typer.Argument(metavar="HISTORY… MODULE", show_default=False)],
    as_json: Json = False,
) -> None:
    """Would the code of MODULE still take the same way as these recorded histories (JSON)?"""
    if len(histories) < 2:
        raise Misused("MODULE: name histories first, then the module with the workflows")
    from perdure.testing import Replayer

    module = str(histories.pop())
    lists = chosen(module)
    workflows = _defined() if lists is None else lists[0]
    replayer = Replayer(workflows)
    rows = []
    for path in histories:
        wrong = ""
        try:
            replayer.replay(path.read_bytes())
        except OSError as error:
            raise Misused(f"{path}: {error.strerror}") from None
        except Exception as error:
            wrong = str(error) or type(error).__name__
        rows.append({"history": str(path), "replays": not wrong, "error": wrong or None})
    if as_json:
        Output(as_json=True).json(rows)
    else:
        for row in rows:
            print(f"{row['history']}: {'replays' if row['replays'] else row['error']}")
    failed = sum(not row["replays"] for row in rows)
    if failed:
        raise Failed(f"{failed} of {len(rows)} histories do not replay")


def _defined() -> list[Any]:
    from perdure.sdk.registry import WORKFLOWS

    return list(WORKFLOWS)


def lint(
    paths: Annotated[list[Path], typer.Argument(metavar="PATHS", show_default=False)],
    as_json: Json = False,
) -> None:
    """Find what in workflow code will not replay, without running it."""
    from perdure.sdk.lint import lint_paths

    for path in paths:
        if not path.exists():
            raise Misused(f"{path}: no such file or directory")
    findings = lint_paths(paths)
    if as_json:
        Output(as_json=True).json(findings)
    else:
        for finding in findings:
            print(finding)
    if findings:
        raise Failed(f"{len(findings)} finding{'s' if len(findings) > 1 else ''}")
