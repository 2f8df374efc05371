"""Where a command finds its runs: a database, or a server; and who else has a file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perdure.cli.failing import Failed, Misused

if TYPE_CHECKING:
    from types import ModuleType

    from perdure.sdk.client import Client
    from perdure.server.config import Config
    from perdure.targets import Target

Access = Literal["read", "write"]


@dataclass(frozen=True)
class Place:
    """The target of a command, as the command line gives it.

    Attributes:
        db: a target as `perdure.connect` takes it, or the path of a SQLite file.
        address: ``host:port`` of a server; goes before `db`.
        module: a module whose workflows and activities this very process is to run meanwhile.
        config: a file with the settings of a node that this process opens.
    """

    db: str
    address: str | None
    namespace: str
    task_queue: str | None = None
    module: str | None = None
    config: Path | None = None

    @property
    def target(self) -> str:
        """The target for `perdure.connect`."""
        return self.address or database(self.db)

    @property
    def shown(self) -> str:
        """The target as messages show it."""
        from perdure.store.redacting import redacted

        return redacted(self.target)

    @property
    def parsed(self) -> Target:
        """The target, taken apart. Raises Misused."""
        from perdure.targets import parse_target

        try:
            parsed = parse_target(self.target)
        except ValueError as error:
            raise Misused(str(error)) from None
        if parsed.kind == "memory":
            raise Misused("--db: memory:// ends with the process; name a file")
        if parsed.kind == "grpc" and self.config is not None:
            raise Misused(f"--config: {self.shown} is a server, and has settings of its own")
        return parsed

    @property
    def file(self) -> Path | None:
        """The database file; None for a database that many share, and for a server."""
        parsed = self.parsed
        return Path(parsed.address) if parsed.kind == "sqlite" else None

    @property
    def has_worker(self) -> bool:
        """Can anything be expected to work on tasks while the command waits?"""
        return self.file is None or self.module is not None


def database(db: str) -> str:
    """What ``--db`` names, as a target."""
    from perdure.targets import postgres_mistake

    return db if "://" in db or postgres_mistake(db) else f"sqlite:///{db}"


def settings_of(config: Path | None) -> Config:
    """What ``--config`` says. Raises Misused."""
    from perdure.server.config import Config, ConfigError, read

    try:
        return read(config) if config is not None else Config()
    except ConfigError as error:
        raise Misused(f"--config: {error}") from None


@asynccontextmanager
async def opened(place: Place, access: Access) -> AsyncIterator[Client]:
    """A client for a place: to read only, beside whoever has the database, or with a node on it.

    Raises:
        StoreHeld: a file is to be written, and another process has it; says which.
        Failed: a file is to be read, and there is none.
    """
    target, file = place.parsed, place.file
    if access == "read" and target.kind != "grpc" and not place.module:
        if file is not None and not file.exists():
            raise Failed(f"--db: there is no file {file}")
        async with reader(place) as client:
            yield client
        return
    if file is not None and not file.parent.is_dir():
        raise Failed(f"--db: there is no directory {file.parent}")
    if place.module:
        imported(place.module)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(place))
        if place.module:
            await stack.enter_async_context(client.worker())
        yield client


def connected(place: Place) -> AbstractAsyncContextManager[Client]:
    """A client that can do everything; see `perdure.connect`. Raises Misused, too."""
    import perdure
    from perdure.server.config import ConfigError

    try:
        return perdure.connect(
            place.target,
            namespace=place.namespace,
            task_queue=place.task_queue,
            config=place.config,
        )
    except ConfigError as error:
        raise Misused(f"--config: {error}") from None


@asynccontextmanager
async def reader(place: Place) -> AsyncIterator[Client]:
    """A client that can only look into a database: a node that was never started."""
    from perdure.sdk.client import Client
    from perdure.service.node import Node
    from perdure.targets import store_of

    store = store_of(place.parsed, read_only=True)
    node = Node(store, settings=settings_of(place.config).settings)
    await store.open()
    try:
        await node.namespaces.open()
        yield Client(node.service, namespace=place.namespace)
    finally:
        await store.close()


def imported(name: str) -> ModuleType:
    """Import a module by name, or a file by its path, as if from the current directory.

    Raises:
        Misused: there is none, or it fails while it is imported.
    """
    path = Path(name)
    if name.endswith(".py") or path.is_file():
        folder, name = str(path.resolve().parent), path.stem
    else:
        folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise Misused(f"module {name!r}: {type(error).__name__}: {error}") from error


def chosen(spec: str) -> tuple[list[Any], list[Any]] | None:
    """Import ``MODULE`` or ``MODULE:ATTR``; the workflows and activities of the attribute.

    None without an attribute: everything that the import has defined. The attribute is a workflow,
    an activity, an object with activity methods, or a list of such.

    Raises:
        Misused: there is no such module or attribute, or it is none of these.
    """
    name, _, attribute = spec.partition(":")
    module = imported(name)
    if not attribute:
        return None
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise Misused(f"module {name!r} has no {attribute!r}") from None
    return sorted_out(found if isinstance(found, list | tuple | set) else [found], spec)


def sorted_out(found: Any, spec: str) -> tuple[list[Any], list[Any]]:
    """Workflows and activities, each by themselves."""
    from perdure.sdk.activity import Activity
    from perdure.sdk.workflow.definition import definition_of

    workflows, activities = [], []
    for item in found:
        if definition_of(item) is not None:
            workflows.append(item)
        elif isinstance(item, Activity) or _has_activities(item):
            activities.append(item)
        else:
            raise Misused(f"{spec}: {item!r} is neither a workflow nor an activity")
    return workflows, activities


def _has_activities(item: Any) -> bool:
    from perdure.sdk.activity import Activity

    return any(isinstance(getattr(type(item), name, None), Activity) for name in dir(type(item)))
