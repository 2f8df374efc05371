"""``perdure server``."""

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perdure.cli.command import ConfigFile, run_loop
from perdure.cli.failing import Misused
from perdure.cli.place import database, settings_of
from perdure.cli.tools import told_to_stop

if TYPE_CHECKING:
    from perdure.serve import Plan


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("server")(server)


def server(
    db: Annotated[
        str,
        typer.Option(
            "--db",
            envvar="PERDURE_DB",
            help="sqlite:///path, a path, postgresql://…, or memory://.",
        ),
    ] = "sqlite:///perdure.db",
    bind: Annotated[str, typer.Option("--bind", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes any that is free.")] = 7233,
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", help="Register it if it is not there; once for each."),
    ] = None,
    config: ConfigFile = None,
    transport: Annotated[
        str, typer.Option("--transport", help="What carries gRPC: grpcio or native.")
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Serve Temporal's gRPC API from one database, until told to stop (Ctrl-C)."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if not 0 <= port < 65536:
        raise Misused(f"--port: {port} is not between 0 and 65535")
    from perdure.serve import Plan

    plan = Plan(
        db=target_of(db),
        bind=bind,
        port=port,
        namespaces=namespace or [],
        transport=transport,
        config=settings_of(config),
    )
    run_loop(_serve(plan))


async def _serve(plan: "Plan") -> None:
    from importlib.metadata import version

    from perdure.serve import serving

    told = told_to_stop()
    async with serving(plan) as running:
        number = running.node.holder
        data = f"{running.data}, node {number}" if number else running.data
        print(
            f"perdure {version('perdure')}: gRPC on {running.address}, data in {data}", flush=True
        )
        ended: asyncio.Future[Any] = asyncio.ensure_future(running.node.ended.wait())
        await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        print("stopping: polls are released, running calls may finish", file=sys.stderr)
    if running.node.ended_by is not None:
        raise running.node.ended_by


def target_of(db: str) -> str:
    """The database that ``--db`` names, as a target.

    Raises:
        Misused: it names none.
    """
    from perdure.store.redacting import redacted
    from perdure.targets import parse_target

    target = database(db)
    try:
        parsed = parse_target(target)
    except ValueError as error:
        raise Misused(f"--db: {error}") from None
    if parsed.kind == "grpc":
        raise Misused(f"--db: {redacted(db)} is a server; name a database: sqlite:///perdure.db")
    return target
