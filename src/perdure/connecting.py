"""From a target to a client: the one place of the library that puts the parts together.

======================  ==========================================================================
``memory://``           a node in this process that forgets everything when it is closed
``sqlite:///path``      a node in this process on a file; four slashes for an absolute path
``host:port``           a server, perdure's or Temporal's; also ``grpc://`` and, with TLS,
                        ``grpcs://``
======================  ==========================================================================
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, TypeVarTuple, Unpack, overload

from perdure.sdk.calls import DEFAULT_RETRY_FOR
from perdure.sdk.client import Client, WorkflowClass
from perdure.sdk.converter import Converter
from perdure.sdk.interceptors import Interceptor
from perdure.sdk.options import WorkflowIDConflictPolicy
from perdure.sdk.remote import RemoteService, TLSConfig
from perdure.sdk.starting import StartFields

if TYPE_CHECKING:
    from perdure.store.contract import Store

__all__ = ["Target", "connect", "execute", "parse_target"]

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

DEFAULT_PORT: Final = 7233

_FORMS: Final = (
    "memory://, sqlite:///path/to/file.db, grpc://host:7233, grpcs://host:7233, host:7233"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A target, taken apart.

    Attributes:
        kind: what serves.
        address: ``host:port`` of a server; the file's path; "" for memory.
        tls: is it a server behind TLS?
    """

    kind: Literal["memory", "sqlite", "grpc"]
    address: str
    tls: bool = False


def parse_target(target: str) -> Target:
    """Take a target apart.

    Raises:
        ValueError, TypeError: it is none; the message shows the forms there are.
    """
    if not isinstance(target, str):
        raise TypeError(f"target: a string, got {target!r}")
    scheme, separator, rest = target.partition("://")
    if not separator:
        return Target("grpc", _host_and_port(target, target))
    if scheme == "memory" and not rest:
        return Target("memory", "")
    if scheme == "sqlite":
        return Target("sqlite", _path(rest, target))
    if scheme in ("grpc", "grpcs"):
        return Target("grpc", _host_and_port(rest.rstrip("/"), target), tls=scheme == "grpcs")
    raise ValueError(f"target: {target!r} is none of {_FORMS}")


def _path(rest: str, target: str) -> str:
    if not rest.startswith("/") or not rest.strip("/"):
        raise ValueError(
            f"target: {target!r} names no file; write sqlite:///orders.db for one in the current "
            "directory, sqlite:////var/lib/orders.db for an absolute path"
        )
    if rest == "/:memory:":
        raise ValueError(f"target: {target!r}; a node without a file is memory://")
    return rest[1:]


def _host_and_port(text: str, target: str) -> str:
    if re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[\w.-]+)(:\d{1,5})?", text) is None:
        raise ValueError(f"target: {target!r} is none of {_FORMS}")
    port = text.rpartition(":")[2] if re.search(r":\d+$", text) else None
    if port is None:
        if "://" not in target:  # a bare word is more likely a path or a mistake than a host
            raise ValueError(f"target: {target!r} has no port, and is none of {_FORMS}")
        return f"{text}:{DEFAULT_PORT}"
    if not 0 < int(port) < 65536:
        raise ValueError(f"target: {target!r} has the port {port}, which cannot be")
    return text


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
) -> AbstractAsyncContextManager[Client]:
    """A client for a target, as an async context manager.

    For an embedded target it opens a node in this process, and closes it at the end; only one
    process at a time can have a file open.

    Args:
        target: ``memory://``, ``sqlite:///path``, ``host:port``, ``grpc://host:port``.
        namespace: where the workflows are.
        task_queue: where starts and workers go that name none; default: "default".
        converter, interceptors, identity, retry_for: as of `Client`.
        tls, api_key, metadata: as of `RemoteService`; only for servers.

    Raises:
        ValueError: the target is none, or an argument does not fit it.
        ImportError: a server, and the extra ``perdure[grpc]`` is not installed.
        perdure.store.contract.StoreHeld: another process has the file open; says which.
        perdure.store.contract.StoreTooNew: the file was written by a newer perdure.

    Example:
        >>> async with perdure.connect("sqlite:///orders.db") as client, client.worker():
        ...     receipt = await client.execute(checkout, order, id="order-42")
    """
    parsed = parse_target(target)
    if parsed.kind != "grpc" and (tls, api_key, metadata) != (None, None, None):
        raise ValueError(f"tls, api_key, metadata: only for servers, not for {target!r}")

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
        secure = True if parsed.tls and tls is None else tls
        return _remote(parsed.address, client, tls=secure, api_key=api_key, metadata=metadata)
    return _embedded(parsed, client)


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
async def _embedded(target: Target, client: Callable[[Any], Client]) -> AsyncIterator[Client]:
    from perdure.service.node import Node

    node = await Node.open(_store(target))
    try:
        yield client(node.service)
    finally:
        await node.close()


def _store(target: Target) -> Store:
    from perdure.store.sqlite import SqliteStore

    return SqliteStore(":memory:" if target.kind == "memory" else Path(target.address))


# --- scripts --------------------------------------------------------------------------------------


@overload
def execute(
    workflow: type[WorkflowClass[*Ts, T]],
    *args: *Ts,
    target: str = ...,
    **options: Unpack[StartFields],
) -> T: ...


@overload
def execute(
    workflow: Callable[[*Ts], Coroutine[Any, Any, T]],
    *args: *Ts,
    target: str = ...,
    **options: Unpack[StartFields],
) -> T: ...


def execute(  # type: ignore[misc]  # *Ts of the overloads
    workflow: Any, *args: Any, target: str = "sqlite:///perdure.db", **options: Any
) -> Any:
    """Run a workflow from a script that has no event loop, and return its result.

    It opens the target, runs a worker with everything that was defined so far, and starts the
    workflow. With an `id`, a run that an earlier, killed process left open is gone on with instead.

    Args:
        workflow: what ``@workflow`` made.
        args: its arguments.
        target: as of `connect`.
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
        async with connect(target) as client, client.worker(options.get("task_queue")):
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
