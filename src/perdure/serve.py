"""A node with its doors: what ``perdure server`` runs.

The second place, beside `perdure.connect`, that puts the parts together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from perdure.server.config import Config
from perdure.service.node import Node
from perdure.targets import Target, parse_target, store_of

if TYPE_CHECKING:
    from perdure.server.door import Door
    from perdure.server.transports import Transport

__all__ = ["Plan", "Server", "serving"]

_FLUSH_S: Final = 5.0
"""How long the last answers may take to leave."""

log = logging.getLogger("perdure.server")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to serve, and where.

    Attributes:
        db: the database: a target of ``perdure.targets`` that is no server.
        bind, port: where to listen; port 0 takes any.
        namespaces: registered if they are not there yet.
        transport: a name of ``perdure.server.transports``; "" for the default.
        config: settings and limits.
    """

    db: str
    bind: str = "127.0.0.1"
    port: int = 7233
    namespaces: Sequence[str] = ()
    transport: str = ""
    config: Config = field(default_factory=Config)


class Server:
    """A node that serves.

    Attributes:
        address: ``host:port`` where it listens.
        data: where its data is.
        node: what it serves.
    """

    def __init__(self, plan: Plan, node: Node, door: Door, transport: Transport, health: Any):
        self.node = node
        self.data = node.store.name
        self._plan = plan
        self._door = door
        self._transport = transport
        self._health = health
        port = transport.bind(address_of(plan.bind, plan.port))
        self.address = address_of(plan.bind, port)

    async def start(self) -> None:
        """Let callers in."""
        await self._transport.start()
        await self._health.serve()

    async def drain(self) -> None:
        """Take no new calls, release those that wait, and let the others finish."""
        await self._health.drain()
        self._door.refuse()
        await self.node.matching.release()
        grace_s = self._plan.config.grace_s
        if not await self._door.idle(grace_s):
            log.warning("calls are still running after %s s: cut off", grace_s)
        await self._transport.stop(_FLUSH_S)


def _check_directory(target: Target) -> None:
    directory = Path(target.address).resolve().parent
    if target.kind == "sqlite" and not directory.is_dir():
        raise FileNotFoundError(2, "no such directory", str(directory))


def address_of(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


@asynccontextmanager
async def serving(plan: Plan) -> AsyncIterator[Server]:
    """A server that runs as long as the block does, and drains at its end.

    Raises:
        ValueError: the target of the plan is none.
        ImportError: the extra ``perdure[server]`` is not installed, or ``perdure[postgres]``.
        perdure.store.contract.StoreUnavailable: the database cannot be reached.
        OSError: the address cannot be taken.
        perdure.store.contract.StoreHeld: another process has the file open; says which.
        perdure.store.contract.StoreTooNew: the file was written by a newer perdure.

    Example:
        >>> async with serving(Plan(db="sqlite:///perdure.db", port=0)) as server:
        ...     print(server.address)
    """
    door, extras, transports = _doors()
    target = parse_target(plan.db)
    _check_directory(target)
    config = plan.config
    node = await Node.open(store_of(target), settings=config.settings)
    try:
        await _register(node, plan.namespaces)
        entrance = door.Door(node.service, node.clock.now_ns)
        health = extras.Health()
        transport = transports.transport(
            plan.transport or transports.DEFAULT,
            entrance.handlers(),
            [health.add_to, extras.add_reflection],
            transports.Options(**config.transport),
        )
        server = Server(plan, node, entrance, transport, health)
        await server.start()
        try:
            yield server
        finally:
            await asyncio.shield(server.drain())
    finally:
        await node.close()


def _doors() -> tuple[Any, Any, Any]:
    try:
        from perdure.server import door, extras, transports
    except ImportError as error:
        raise ImportError(
            f"a server needs more than is installed ({error.name or error} is missing): "
            "pip install 'perdure[server]'"
        ) from error
    return door, extras, transports


async def _register(node: Node, names: Sequence[str]) -> None:
    """Make the namespaces that are not there yet."""
    from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest

    known = {namespace.name for namespace in node.namespaces.all()}
    for name in names:
        if name not in known:
            request = RegisterNamespaceRequest(namespace=name)
            request.workflow_execution_retention_period.FromSeconds(72 * 3600)
            await node.service.register_namespace(request)
