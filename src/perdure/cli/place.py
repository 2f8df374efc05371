"""Where a command finds its runs: a database file, or a server; and who else has the file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perdure.cli.failing import Failed, Misused

if TYPE_CHECKING:
    from types import ModuleType

    from perdure.sdk.client import Client

Access = Literal["read", "write"]


@dataclass(frozen=True)
class Place:
    """The target of a command, as the command line gives it.

    Attributes:
        db: a target as `perdure.connect` takes it, or the path of a SQLite file.
        address: ``host:port`` of a server; goes before `db`.
        module: a module whose workflows and activities this very process is to run meanwhile.
    """

    db: str
    address: str | None
    namespace: str
    task_queue: str | None = None
    module: str | None = None

    @property
    def target(self) -> str:
        """The target for `perdure.connect`."""
        if self.address:
            return self.address
        return self.db if "://" in self.db else f"sqlite:///{self.db}"

    @property
    def file(self) -> Path | None:
        """The database file; None for a server."""
        from perdure.targets import parse_target

        try:
            parsed = parse_target(self.target)
        except ValueError as error:
            raise Misused(str(error)) from None
        if parsed.kind == "memory":
            raise Misused("--db: memory:// ends with the process; name a file")
        return Path(parsed.address) if parsed.kind == "sqlite" else None

    @property
    def has_worker(self) -> bool:
        """Can anything be expected to work on tasks while the command waits?"""
        return self.file is None or self.module is not None


@asynccontextmanager
async def opened(place: Place, access: Access) -> AsyncIterator[Client]:
    """A client for a place: to read only, beside whoever has the file, or with the file held.

    Raises:
        StoreHeld: the file is to be written, and another process has it; says which.
        Failed: the file is to be read, and there is none.
    """
    import perdure

    file = place.file
    if file is None or (access == "write" or place.module):
        if file is not None and not file.parent.is_dir():
            raise Failed(f"--db: there is no directory {file.parent}")
        if place.module:
            imported(place.module)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                perdure.connect(
                    place.target, namespace=place.namespace, task_queue=place.task_queue
                )
            )
            if place.module:
                await stack.enter_async_context(client.worker())
            yield client
        return
    if not file.exists():
        raise Failed(f"--db: there is no file {file}")
    async with reader(file, place.namespace) as client:
        yield client


@asynccontextmanager
async def reader(file: Path, namespace: str) -> AsyncIterator[Client]:
    """A client that can only look into a file, whoever holds it: a node that was never started."""
    from perdure.sdk.client import Client
    from perdure.service.node import Node
    from perdure.store.sqlite import open_read_only

    store = open_read_only(file)
    node = Node(store)
    await store.open()
    try:
        await node.namespaces.open()
        yield Client(node.service, namespace=namespace)
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
