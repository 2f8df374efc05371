"""From a target to a client: the place of the library that puts the parts together.

The forms of a target are told in ``perdure.targets``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack, overload

from perdure.sdk.calls import DEFAULT_RETRY_FOR
from perdure.sdk.client import Client, WorkflowClass
from perdure.sdk.converter import Converter
from perdure.sdk.interceptors import Interceptor
from perdure.sdk.options import WorkflowIDConflictPolicy
from perdure.sdk.remote import RemoteService, TLSConfig
from perdure.sdk.starting import StartFields
from perdure.store.redacting import redacted
from perdure.targets import Target, parse_target, store_of

if TYPE_CHECKING:
    from perdure.service.settings import Settings

__all__ = ["connect", "execute"]

Ts = TypeVarTuple("Ts")
T = TypeVar("T")


def connect(
    target: str,
    *,
    namespace: str = "default",
    task_queue: str | None = None,
    converter: Converter | None = None,
    interceptors: Sequence[Interceptor] = (),
    identity: str | None = None,
    retry_for: timedelta = DEFAULT_RETRY_FOR,
    tls: bool | TLSConfig | None = None,
    api_key: str | None = None,
    metadata: Mapping[str, str] | None = None,
    config: str | os.PathLike[str] | None = None,
) -> AbstractAsyncContextManager[Client]:
    """A client for a target, as an async context manager.

    For an embedded target it opens a node in this process, and closes it at the end. Only one
    process at a time can have a file open; a PostgreSQL database serves any number of nodes.

    Args:
        target: ``memory://``, ``sqlite:///path``, ``postgresql://user@host/database``,
            ``host:port``, ``grpc://host:port``.
        namespace: where the workflows are.
        task_queue: where starts and workers go that name none; default: "default".
        converter, interceptors, identity, retry_for: as of `Client`.
        tls, api_key, metadata: as of `RemoteService`; only for servers.
        config: a file with settings and limits of the node, as ``perdure server --config`` takes
            it; only for embedded targets. Nodes on one database should have the same.

    Raises:
        ValueError: the target is none, an argument does not fit it, or the file of settings has one
            that cannot be.
        OSError: the file of settings cannot be read.
        ImportError: a server without the extra ``perdure[grpc]``, or PostgreSQL without
            ``perdure[postgres]``.
        perdure.store.contract.StoreUnavailable: the database cannot be reached or written.
        perdure.store.contract.StoreHeld: another process has the file open; says which.
        perdure.store.contract.StoreTooNew: the database was written by a newer perdure.
        perdure.store.contract.StoreMisnamed: the connection string makes no sense.
        perdure.store.contract.StoreError: the database refuses the user, or it is none that perdure
            can use.

    Example:
        >>> async with perdure.connect("sqlite:///orders.db") as client, client.worker():
        ...     receipt = await client.execute(checkout, order, id="order-42")
    """
    parsed = parse_target(target)
    if parsed.kind != "grpc" and (tls, api_key, metadata) != (None, None, None):
        raise ValueError(f"tls, api_key, metadata: only for servers, not for {redacted(target)!r}")

    def client(service: Any) -> Client:
        return Client(
            service,
            namespace=namespace,
            task_queue=task_queue,
            converter=converter,
            interceptors=interceptors,
            identity=identity,
            retry_for=retry_for,
        )

    if parsed.kind == "grpc":
        if config is not None:
            raise ValueError(
                f"config: only for a node in this process, not for {redacted(target)!r}"
            )
        secure = True if parsed.tls and tls is None else tls
        return _remote(parsed.address, client, tls=secure, api_key=api_key, metadata=metadata)
    settings = None if config is None else _settings(Path(config))
    return _embedded(parsed, client, settings)


def _settings(path: Path) -> Settings:
    from perdure.server.config import read

    return read(path).settings


@asynccontextmanager
async def _remote(
    address: str, client: Callable[[Any], Client], **options: Any
) -> AsyncIterator[Client]:
    service = RemoteService(address, **options)
    try:
        yield client(service)
    finally:
        await service.close()


@asynccontextmanager
async def _embedded(
    target: Target, client: Callable[[Any], Client], settings: Settings | None
) -> AsyncIterator[Client]:
    from perdure.service.node import Node

    node = await Node.open(store_of(target), settings=settings)
    try:
        yield client(node.service)
    finally:
        await node.close()


# --- scripts --------------------------------------------------------------------------------------


@overload
def execute(
    workflow: type[WorkflowClass[*Ts, T]],
    *args: *Ts,
    target: str = ...,
    config: str | os.PathLike[str] | None = ...,
    **options: Unpack[StartFields],
) -> T: ...


@overload
def execute(
    workflow: Callable[[*Ts], Coroutine[Any, Any, T]],
    *args: *Ts,
    target: str = ...,
    config: str | os.PathLike[str] | None = ...,
    **options: Unpack[StartFields],
) -> T: ...


def execute(  # type: ignore[misc]  # *Ts of the overloads
    workflow: Any,
    *args: Any,
    target: str = "sqlite:///perdure.db",
    config: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Any:
    """Run a workflow from a script that has no event loop, and return its result.

    It opens the target, runs a worker with everything that was defined so far, and starts the
    workflow. With an `id`, a run that an earlier, killed process left open is gone on with instead.

    Args:
        workflow: what ``@workflow`` made.
        args: its arguments.
        target, config: as of `connect`.
        options: as of `StartOptions`; `id_conflict_policy` is USE_EXISTING unless it is given.

    Raises:
        RuntimeError: an event loop is running: use `connect` and ``await client.execute``.
        WorkflowFailedError: the workflow ended without a result; see `cause`.

    Example:
        >>> total = perdure.execute(pipeline, "data/", id="pipeline-today")
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError(
            "perdure.execute() starts an event loop, and one is running already: "
            "use perdure.connect() and `await client.execute(...)`"
        )
    options.setdefault("id_conflict_policy", WorkflowIDConflictPolicy.USE_EXISTING)

    async def main() -> Any:
        async with (
            connect(target, config=config) as client,
            client.worker(options.get("task_queue")),
        ):
            return await client.execute(workflow, *args, **options)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's factory where it is installed, else None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
