"""Namespaces: registered, described, updated, deprecated, deleted.

All are held in memory, read once at open. A change is written to the store before it is seen by
anybody, except a search attribute that a start or an upsert registers by its first use: that one is
noted at once and written by ``flush`` before the run that uses it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import SearchAttributes
from temporalio.api.enums.v1 import ArchivalState, NamespaceState
from temporalio.api.errordetails.v1 import NamespaceInvalidStateFailure
from temporalio.api.namespace.v1 import NamespaceConfig, NamespaceInfo
from temporalio.api.taskqueue.v1 import TaskQueueConfig
from temporalio.api.workflowservice.v1 import (
    DeprecateNamespaceRequest,
    DeprecateNamespaceResponse,
    DescribeNamespaceRequest,
    DescribeNamespaceResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    RegisterNamespaceRequest,
    RegisterNamespaceResponse,
    UpdateNamespaceRequest,
    UpdateNamespaceResponse,
)

from perdure.api.errors import (
    FailedPrecondition,
    InvalidArgument,
    NamespaceAlreadyExists,
    NamespaceNotFound,
    ResourceExhausted,
    RPCError,
    Unavailable,
)
from perdure.api.times import SECOND_NS, duration, duration_ns
from perdure.service import pages, search_attributes, validation
from perdure.service.relay import RELAYED
from perdure.service.settings import Settings
from perdure.store.contract import NamespaceRow, Store, StoreError
from perdure.store.query import Custom

if TYPE_CHECKING:
    from perdure.service.node import Node

log = logging.getLogger("perdure.service")

REGISTERED = NamespaceState.NAMESPACE_STATE_REGISTERED
DEPRECATED = NamespaceState.NAMESPACE_STATE_DEPRECATED
DELETED = NamespaceState.NAMESPACE_STATE_DELETED
CLUSTER = "active"


class Namespace(msgspec.Struct):
    """What a namespace is; stored as MessagePack.

    ``retention_ns``: how long closed runs are kept; 0 keeps them until somebody deletes them.
    """

    name: str
    id: str
    description: str = ""
    owner_email: str = ""
    data: dict[str, str] = {}
    retention_ns: int = 0
    state: int = int(REGISTERED)
    search_attributes: dict[str, int] = {}  # custom name → IndexedValueType
    task_queues: dict[str, bytes] = {}  # see queue_configs

    def row(self) -> NamespaceRow:
        """The namespace as the store keeps it."""
        return NamespaceRow(name=self.name, id=self.id, body=_encode(self))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Namespace).decode


async def _alone() -> None:
    """There are no other nodes."""


class Namespaces:
    """All namespaces of a store.

    A change is answered when the other nodes know it, too: the next call may go to any of them.

    Args:
        store: where they are kept.
        new_id: gives a fresh UUID.
        settings: the limits on search attributes, and whether their first use registers them.
    """

    def __init__(
        self,
        store: Store,
        *,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        settings: Settings | None = None,
    ) -> None:
        self._store = store
        self._new_id = new_id
        self._settings = settings or Settings()
        self._all: dict[str, Namespace] = {}
        self._stored: dict[str, bytes] = {}  # as they were read or written
        self._noted: dict[str, dict[str, int]] = {}  # by namespace: attributes not yet written
        self._indexed: list[Custom] | None = None
        self._writing = asyncio.Lock()  # a change is based on all that were made before
        self._spreading: set[asyncio.Task[None]] = set()
        self.changed: Callable[[], None] = lambda: None  # by another node
        self.spread: Callable[[], Awaitable[None]] = _alone  # what changed here, to other nodes

    async def open(self) -> None:
        """Read them all; make ``default`` on a fresh store."""
        await self._read()
        if "default" not in self._all:
            made = Namespace("default", self._new_id(), "The default namespace.")
            if not await self._put(made):  # another node was faster
                await self._read()
        self._index()

    async def reread(self) -> None:
        """Another node changed one: read them all again. Raises Unavailable."""
        async with self._writing:
            try:
                await self._read()
            except StoreError as error:
                raise Unavailable(f"The database cannot be read: {error}") from error
        self._index()
        self.changed()

    async def _read(self) -> None:
        for row in await self._store.namespaces():
            read = _decode(row.body)
            noted = self._noted.get(read.name)
            if noted:
                read.search_attributes = noted | read.search_attributes
            self._all[read.name] = read
            self._stored[read.name] = row.body

    # -- look-up -----------------------------------------------------------------------------------

    def get(self, name: str) -> Namespace:
        """The namespace of that name.

        Raises:
            InvalidArgument: the name is empty.
            NamespaceNotFound: there is none, or it was deleted.
        """
        found = self._all.get(name)
        if found is None or found.state == DELETED:
            if not name:
                raise InvalidArgument("Namespace is empty.")
            raise NamespaceNotFound(name)
        return found

    def get_for_start(self, name: str) -> Namespace:
        """The namespace, if new runs may start in it; FailedPrecondition once it is deprecated."""
        found = self.get(name)
        if found.state != REGISTERED:
            detail = NamespaceInvalidStateFailure(
                namespace=name,
                state=found.state,  # type: ignore[arg-type]
                allowed_states=[REGISTERED],
            )
            raise FailedPrecondition(
                f"Namespace {name} has invalid state: Deprecated. Must be Registered.", [detail]
            )
        return found

    def find(self, name: str, namespace_id: str) -> Namespace:
        """By name, or by id where no name is given."""
        if name:
            return self.get(name)
        if not namespace_id:
            raise InvalidArgument("Namespace not set on request.")
        for namespace in self._all.values():
            if namespace.id == namespace_id and namespace.state != DELETED:
                return namespace
        raise NamespaceNotFound(namespace_id)

    def all(self) -> list[Namespace]:
        """Those that are not deleted, by name."""
        return sorted(
            (n for n in self._all.values() if n.state != DELETED), key=lambda found: found.name
        )

    def deleted(self) -> list[Namespace]:
        """Those that are marked as deleted: their runs are being removed, or are gone."""
        return [n for n in self._all.values() if n.state == DELETED]

    def find_deleted(self, name: str) -> Namespace | None:
        """The namespace that had a name, if it was deleted and no other has the name by now."""
        found = self._all.get(name)
        return found if found is not None and found.state == DELETED else None

    async def still_deleted(self, namespace: Namespace) -> bool:
        """Whether nobody, at any node, has registered the name of a deleted one again.

        Then every run that was read under that name before is the deleted one's. Raises
        StoreError.
        """
        row = await self._store.namespace(namespace.name)
        return row is not None and row.id == namespace.id and _decode(row.body).state == DELETED

    # -- change ------------------------------------------------------------------------------------

    async def change(self, name: str, edit: Callable[[Namespace], Namespace]) -> Namespace:
        """Replace a namespace by what `edit` makes of it, once all earlier changes are made.

        Raises what `edit` raises, NamespaceNotFound, and Unavailable: it may be written then.
        """
        async with self._writing:
            while True:
                changed = edit(self.get(name))
                if await self._put(changed):
                    break
        self._index()
        await self.spread()
        return changed

    async def _put(self, namespace: Namespace) -> bool:
        """Write a namespace, then let it be seen; False when it was another's turn: look again.

        Raises Unavailable; it may be written then.
        """
        try:
            written = await self._write(namespace)
            if not written:
                await self._read()
        except StoreError as error:
            raise Unavailable(f"The database cannot be written: {error}") from error
        if written:
            noted = self._noted.get(namespace.name)
            if noted:  # while the write was under way
                namespace.search_attributes = namespace.search_attributes | noted
            self._all[namespace.name] = namespace
        return written

    async def _write(self, namespace: Namespace) -> bool:
        """Write a namespace over the one that was read; False when that is no longer there."""
        row = namespace.row()
        written = await self._store.put_namespace(row, self._stored.get(row.name))
        if written:
            self._stored[row.name] = row.body
        return written

    async def register(self, namespace: Namespace, emptied: Namespace | None = None) -> bool:
        """Add a namespace; NamespaceAlreadyExists when the name is taken.

        A deleted one of that name makes way if it is the one that was `emptied`. False, with
        nothing done, if it is not: its runs are to be removed first.
        """
        async with self._writing:
            while True:
                taken = self._all.get(namespace.name)
                if taken is not None and taken.state != DELETED:
                    raise NamespaceAlreadyExists(f'Namespace "{namespace.name}" already exists')
                if taken is not None and (emptied is None or taken.id != emptied.id):
                    return False
                if await self._put(namespace):
                    break
        await self.spread()
        return True

    # -- search attributes -------------------------------------------------------------------------

    def admit(self, name: str, attributes: SearchAttributes) -> None:
        """Check attributes that a run sets, and note new ones for ``flush``.

        Raises:
            InvalidArgument: unknown (where use does not register), reserved, of a wrong type, or
                over a limit. Nothing was noted.
        """
        if not attributes.indexed_fields:
            return
        namespace = self.get(name)
        unknown = search_attributes.check(
            attributes, namespace.search_attributes, name, self._settings
        )
        if unknown:
            namespace.search_attributes = namespace.search_attributes | unknown
            self._noted.setdefault(name, {}).update(unknown)

    def values(self, name: str, attributes: SearchAttributes) -> dict[str, search_attributes.Value]:
        """The plain values, as a store's Record holds them, of attributes that were admitted."""
        found = self._all.get(name)
        return search_attributes.values(attributes, found.search_attributes if found else {})

    def _index(self) -> None:
        """Let the store prepare for the attributes that are registered."""
        wanted = search_attributes.by_use(found.search_attributes for found in self.all())
        if wanted != self._indexed:
            self._indexed = wanted
            limit = self._settings.indexed_search_attributes_max
            self._store.index_attributes(wanted, limit)

    async def forget_search_attributes(self, name: str, attributes: list[str]) -> None:
        """Remove custom attributes; a later use registers them anew."""

        def forgotten(found: Namespace) -> Namespace:
            for noted in attributes:
                self._noted.get(name, {}).pop(noted, None)
            known = found.search_attributes.items()
            kept = {key: kind for key, kind in known if key not in attributes}
            return msgspec.structs.replace(found, search_attributes=kept)

        await self.change(name, forgotten)

    # -- task queues -------------------------------------------------------------------------------

    async def configure(
        self, name: str, queue: str, change: Callable[[TaskQueueConfig], TaskQueueConfig]
    ) -> TaskQueueConfig:
        """Change what is set for a task queue. Raises what `change` raises, and ResourceExhausted,
        Unavailable."""

        def configured(found: Namespace) -> Namespace:
            kept = {key: body for key, body in found.task_queues.items() if key != queue}
            changed = change(TaskQueueConfig.FromString(found.task_queues.get(queue, b"")))
            if len(kept) >= self._settings.configured_task_queues_max:
                raise ResourceExhausted(
                    f"Namespace {name} has {len(kept)} task queues with a configuration, the limit "
                    "(configured_task_queues_max)."
                )
            body = changed.SerializeToString()
            return msgspec.structs.replace(found, task_queues=kept | {queue: body})

        written = await self.change(name, configured)
        return TaskQueueConfig.FromString(written.task_queues[queue])

    def task_queue(self, name: str, queue: str) -> TaskQueueConfig:
        """What is set for a task queue."""
        found = self._all.get(name)
        return TaskQueueConfig.FromString(found.task_queues.get(queue, b"") if found else b"")

    @property
    def dirty(self) -> bool:
        """Whether ``flush`` has something to write. Do so before committing a run that uses it."""
        return bool(self._noted)

    async def flush(self) -> None:
        """Write what ``admit`` noted, and begin to spread it; on failure it stays noted.

        Commits wait for this, and must not wait for other nodes: see ``are_known``.
        """
        async with self._writing:
            for name in sorted(self._noted):
                written = dict(self._noted[name])
                while not await self._write(self._all[name]):
                    await self._read()
                left = self._noted.get(name, {})
                left = {key: kind for key, kind in left.items() if written.get(key) != kind}
                if left:
                    self._noted[name] = left
                else:
                    self._noted.pop(name, None)
        self._index()
        task = asyncio.get_running_loop().create_task(self._spread())
        self._spreading.add(task)
        task.add_done_callback(self._spreading.discard)

    async def _spread(self) -> None:
        try:
            await self.spread()
        except (RPCError, StoreError) as error:  # their next beat tells them
            log.warning("other nodes could not be told of search attributes: %s", error)

    async def are_known(self, used: Iterable[SearchAttributes]) -> None:
        """Wait until other nodes know attributes that were written by ``flush``."""
        if self._spreading and any(attributes.indexed_fields for attributes in used):
            await asyncio.wait(list(self._spreading))

    async def close(self) -> None:
        """Other nodes learn by themselves what was not spread."""
        tasks = list(self._spreading)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


# -- messages --------------------------------------------------------------------------------------


def describe(namespace: Namespace, settings: Settings) -> DescribeNamespaceResponse:
    """A namespace as the API shows it; capabilities are what this version passes tests for."""
    answer = DescribeNamespaceResponse()
    _fill_info(answer.namespace_info, namespace, settings)
    _fill_config(answer.config, namespace)
    answer.replication_config.active_cluster_name = CLUSTER
    answer.replication_config.clusters.add().cluster_name = CLUSTER
    return answer


def _fill_info(info: NamespaceInfo, namespace: Namespace, settings: Settings) -> None:
    info.name = namespace.name
    info.id = namespace.id
    info.state = namespace.state  # type: ignore[assignment]
    info.description = namespace.description
    info.owner_email = namespace.owner_email
    for key, value in namespace.data.items():
        info.data[key] = value
    info.capabilities.eager_workflow_start = True
    info.capabilities.sync_update = True
    info.capabilities.async_update = True
    info.capabilities.worker_heartbeats = True
    info.capabilities.workflow_pause = True
    info.capabilities.worker_poll_complete_on_shutdown = True
    info.capabilities.poller_autoscaling = True
    info.limits.blob_size_limit_error = settings.payload_bytes_max
    info.limits.memo_size_limit_error = settings.payload_bytes_max


def _fill_config(config: NamespaceConfig, namespace: Namespace) -> None:
    config.workflow_execution_retention_ttl.CopyFrom(duration(namespace.retention_ns))
    config.history_archival_state = ArchivalState.ARCHIVAL_STATE_DISABLED
    config.visibility_archival_state = ArchivalState.ARCHIVAL_STATE_DISABLED


def _retention_ns(value: Duration) -> int:
    retention_ns = duration_ns(value)
    if retention_ns < 3600 * SECOND_NS:
        raise InvalidArgument(
            "A valid retention period is not set on request: workflow_execution_retention_period "
            "must be one hour or more."
        )
    return retention_ns


def _check_name(name: str, settings: Settings) -> None:
    if not name:
        raise InvalidArgument("Namespace not set on request.")
    if len(name.encode()) > settings.id_bytes_max:
        raise InvalidArgument("Namespace length exceeds limit.")
    validation.whole(name, "Namespace")


class NamespaceRPCs:
    """The RPCs about namespaces, as a part of the service."""

    node: Node

    async def register_namespace(
        self, request: RegisterNamespaceRequest
    ) -> RegisterNamespaceResponse:
        """Add a namespace. A name that was deleted may be used again once its runs are gone."""
        _check_name(request.namespace, self.node.settings)
        made = Namespace(
            name=request.namespace,
            id=str(uuid.uuid4()),
            description=request.description,
            owner_email=request.owner_email,
            data=dict(request.data),
            retention_ns=_retention_ns(request.workflow_execution_retention_period),
        )
        deleted = self.node.namespaces.find_deleted(made.name)
        while not await self._register(made, deleted):
            deleted = self.node.namespaces.find_deleted(made.name)
        self.node.purger.watch_retention()
        return RegisterNamespaceResponse()

    async def _register(self, made: Namespace, deleted: Namespace | None) -> bool:
        """Remove the runs of a deleted namespace, then give its name to another one; False when it
        turns out that the name was yet another's, which is deleted as well."""
        if deleted is not None:
            await asyncio.shield(self.node.purger.start(deleted))
        return await self.node.namespaces.register(made, deleted)

    async def describe_namespace(
        self, request: DescribeNamespaceRequest
    ) -> DescribeNamespaceResponse:
        """A namespace by name or id, with the capabilities and limits that it really has."""
        found = self.node.namespaces.find(request.namespace, request.id)
        return describe(found, self.node.settings)

    async def list_namespaces(self, request: ListNamespacesRequest) -> ListNamespacesResponse:
        """All namespaces by name, paged; the token is the last name of the former page."""
        size = pages.size(request.page_size, self.node.settings.list_page_max, usual=100)
        try:
            after = request.next_page_token.decode()
        except UnicodeDecodeError:
            raise InvalidArgument("Invalid NextPageToken.") from None
        if RELAYED.get():  # another node says that there is news
            await self.node.namespaces.reread()
        rest = [found for found in self.node.namespaces.all() if found.name > after]
        answer = ListNamespacesResponse(
            namespaces=[describe(found, self.node.settings) for found in rest[:size]]
        )
        if len(rest) > size:
            answer.next_page_token = rest[size - 1].name.encode()
        return answer

    async def update_namespace(self, request: UpdateNamespaceRequest) -> UpdateNamespaceResponse:
        """Change what the request sets; the rest stays. `data` is merged."""
        changed = await self.node.namespaces.change(
            request.namespace, lambda found: _updated(found, request)
        )
        self.node.purger.watch_retention()
        described = describe(changed, self.node.settings)
        return UpdateNamespaceResponse(
            namespace_info=described.namespace_info,
            config=described.config,
            replication_config=described.replication_config,
        )

    async def deprecate_namespace(
        self, request: DeprecateNamespaceRequest
    ) -> DeprecateNamespaceResponse:
        """No more starts in this namespace; what runs goes on."""
        await self.node.namespaces.change(
            request.namespace, lambda found: msgspec.structs.replace(found, state=int(DEPRECATED))
        )
        return DeprecateNamespaceResponse()


def _updated(found: Namespace, request: UpdateNamespaceRequest) -> Namespace:
    """What a request makes of a namespace. Raises InvalidArgument."""
    changed = msgspec.structs.replace(found)
    info = request.update_info
    changed.description = info.description or found.description
    changed.owner_email = info.owner_email or found.owner_email
    changed.data = found.data | dict(info.data)
    if info.state:
        if info.state not in {REGISTERED, DEPRECATED}:
            raise InvalidArgument("A namespace's state can be set to Registered or Deprecated.")
        changed.state = int(info.state)
    if request.config.HasField("workflow_execution_retention_ttl"):
        changed.retention_ns = _retention_ns(request.config.workflow_execution_retention_ttl)
    return changed
