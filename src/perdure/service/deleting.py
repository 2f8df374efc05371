"""Delete: a run, all runs of a namespace, or those closed for longer than its retention.

An open run is terminated first, and what that tells others (its parent, its children) is delivered
before its rows go. If the process dies in between, the run is closed and the call is made again.

Others' commits wait while something is removed, so it is never much at once: short runs go some at
a time, the history of a long one goes piece by piece, from its beginning, before the run. One that
is left half-way is still in lists and can be described and deleted, and who reads its history is
told that it is being deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    DeleteWorkflowExecutionResponse,
)

from perdure.api.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from perdure.api.times import MILLISECOND_NS
from perdure.engine import lifecycle
from perdure.engine.transition import Transition
from perdure.service.clock import Alarm, sleep_until
from perdure.service.reading import reading
from perdure.store.contract import Record, StoreError, StoreUndelivered
from perdure.store.paging import position
from perdure.store.query import And, Column, Compare, Order, Query

if TYPE_CHECKING:
    from perdure.service.namespaces import Namespace
    from perdure.service.node import Node

log = logging.getLogger("perdure.service")

REASON = "Delete workflow execution"
IDENTITY = "history-service"
_PAGE = 200
_RUNS_AT_ONCE: Final = 50  # removed in one transaction
_WEIGHT_AT_ONCE: Final = 2_000  # … if they have no more events, or kilobytes of them, together
_WEIGHT_MIN: Final = 50  # where the database is so slow that it cannot remove as much
_LOOKS: Final = 20
_LOOK_EVERY_NS: Final = 250 * MILLISECOND_NS


def _terminate(tx: Transition) -> None:
    lifecycle.terminate(tx, REASON, None, IDENTITY)


class Undelivered(Unavailable):
    """What a run told others is not delivered yet; it can be deleted afterwards."""


async def delete_run(node: Node, key: int, at_once: int = _WEIGHT_AT_ONCE) -> bool:
    """Remove a run, so many events `at_once`; False when it is gone already.

    Raises Unavailable, Undelivered.
    """
    executions = node.executions
    remove = _delete_stored
    try:
        entry = await executions.read(key)
        if entry.run.is_open:
            await executions.transact(key, _terminate)
    except NotFound:
        pass  # it closed by itself, or somebody else deletes it
    except DataLoss as error:
        log.warning("a run that cannot be read is removed: %s", error.message)
        remove = _delete_long
    for _ in range(_LOOKS):
        await node.courier.delivered(key)
        try:
            return await remove(node, key, at_once) > 0
        except StoreUndelivered:  # by another node, or one that died with them
            await sleep_until(node.clock, node.clock.now_ns() + _LOOK_EVERY_NS)
            await _reread(node)
    raise Undelivered("What the run told others is not delivered yet; try again.")


async def _reread(node: Node) -> None:
    try:
        await node.courier.reread()
    except StoreError as error:
        raise Unavailable(f"The database cannot be read: {error}") from error


async def _delete(node: Node, *keys: int) -> int:
    """Remove closed runs; how many there were. Raises Unavailable, and StoreUndelivered."""
    _forget(node, keys)
    with _removing():
        found = await node.store.delete(*keys)
    _forget(node, keys)  # loaded again while the store worked
    return found


async def _delete_long(node: Node, key: int, at_once: int) -> int:
    """The same for a run whose history may be long."""
    with _removing():
        while await node.store.shorten(key, at_once):
            pass
    return await _delete(node, key)


async def _delete_stored(node: Node, key: int, at_once: int) -> int:
    """The same for a run whose last changes may be on their way."""
    try:
        entry = await node.executions.read(key)
    except NotFound:
        return 0
    events, size_bytes = entry.run.state.next_event_id - 1, entry.run.state.history_size_bytes
    weight = _weight(events, size_bytes)
    if weight > at_once:
        return await _delete_long(node, key, max(events * at_once // weight, 1))
    return await _delete(node, key)


@contextmanager
def _removing() -> Iterator[None]:
    """Turn a StoreError into Unavailable, but for StoreUndelivered."""
    try:
        yield
    except StoreUndelivered:
        raise
    except StoreError as error:
        raise Unavailable(f"The database cannot be written: {error}") from error


def _weight(events: int, size_bytes: int) -> int:
    """What it costs to remove a run with a history like that."""
    return max(events, size_bytes // 1_000)


def _forget(node: Node, keys: Iterable[int]) -> None:
    for key in keys:
        cached = node.executions.cached(key)
        if cached is not None:
            node.executions.drop(cached)


def _groups(records: Iterable[Record], at_once: int) -> Iterator[list[int]]:
    """The keys of runs that are removed together, of no more than a weight."""
    group: list[int] = []
    weight = 0
    for record in records:
        own = _weight(record.history_length, record.history_size_bytes)
        if group and (len(group) == _RUNS_AT_ONCE or weight + own > at_once):
            yield group
            group, weight = [], 0
        group.append(record.key)
        weight += own
    if group:
        yield group


class Purger:
    """Removes runs beside the calls: of deleted namespaces, and what retention lets go."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._emptied: set[str] = set()  # ids of deleted namespaces
        self._round: asyncio.Task[None] | None = None
        self._closed = False
        self._sweep: asyncio.Task[None] | None = None
        self._at_once = _WEIGHT_AT_ONCE
        self._alarm: Alarm | None = None  # of the next sweep, until that is over

    def open(self) -> None:
        """Go on with what an earlier process did not finish."""
        self.go_on()
        self.watch_retention()

    def go_on(self) -> None:
        """Remove the runs of all deleted namespaces, one after the other: nobody else may be about
        to."""
        if not self._closed and (self._round is None or self._round.done()):
            self._round = asyncio.get_running_loop().create_task(self._empty_all())

    async def _empty_all(self) -> None:
        for namespace in self._node.namespaces.deleted():
            if namespace.id not in self._emptied:
                await asyncio.wait([self.start(namespace)])

    def start(self, namespace: Namespace) -> asyncio.Task[None]:
        """Remove a deleted namespace's runs; the task that does."""
        task = self._tasks.get(namespace.id)
        if task is None or task.done():
            work = self._purge(Query(namespace.name, limit=_PAGE), namespace)
            task = self._tasks[namespace.id] = asyncio.get_running_loop().create_task(work)
        return task

    async def close(self) -> None:
        """Stop; the next open goes on."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        running = [self._round, *self._tasks.values(), self._sweep]
        tasks = [task for task in running if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- retention ---------------------------------------------------------------------------------

    def watch_retention(self) -> None:
        """Look now and then for runs to let go; not at all while every namespace keeps its runs."""
        node = self._node
        if self._alarm is None and any(found.retention_ns for found in node.namespaces.all()):
            due_ns = node.clock.now_ns() + node.settings.retention_sweep_ns
            self._alarm = node.clock.call_at(due_ns, self._start_sweep)

    def _start_sweep(self) -> None:
        neighbours = self._node.neighbours
        if neighbours is None or neighbours.is_eldest:  # of several nodes one is enough
            self._sweep = asyncio.get_running_loop().create_task(self._sweep_all())
        else:
            self._await_next()

    def _await_next(self) -> None:
        self._alarm = None
        self.watch_retention()

    async def _sweep_all(self) -> None:
        node = self._node
        for namespace in node.namespaces.all():
            if namespace.retention_ns:
                before_ns = node.clock.now_ns() - namespace.retention_ns
                closed = And((Compare(Column.CLOSE, ">", 0), Compare(Column.CLOSE, "<", before_ns)))
                oldest = (Order(Column.CLOSE),)  # an index has them side by side
                try:
                    over = Query(namespace.name, closed, oldest, limit=_PAGE)
                    await self._purge(over)
                except Exception:  # the other namespaces', and the next sweep, are none the worse
                    log.exception("runs of %s cannot be let go", namespace.name)
        self._await_next()

    # -- removing ----------------------------------------------------------------------------------

    async def _purge(self, query: Query, deleted: Namespace | None = None) -> None:
        """Remove all runs that a query selects, but those that never can be. Those that have yet to
        tell others something are left for the next time, unless they are of a `deleted` namespace:
        that is emptied, or until another is registered by its name."""
        removed = undelivered = 1
        while removed or (undelivered and deleted):
            removed, undelivered = await self._purge_once(query, deleted)
            if undelivered and deleted:
                await self._pause()
        if deleted:
            self._emptied.add(deleted.id)

    async def _purge_once(self, query: Query, deleted: Namespace | None) -> tuple[int, int]:
        """Page by page, and past runs that cannot be removed; how many were, and how many are not
        yet, as what they told others is not delivered."""
        node, removed, undelivered = self._node, 0, 0
        while True:
            try:
                with reading():
                    found = await node.store.list_runs(query)
                    if deleted and found and not await node.namespaces.still_deleted(deleted):
                        found = []  # the new namespace's may be among them
                if not found:
                    return removed, undelivered
                counts = await self._remove(found)
                removed, undelivered = removed + counts[0], undelivered + counts[1]
                query = msgspec.structs.replace(query, after=position(query, found[-1]))
                self._at_once = min(2 * self._at_once, _WEIGHT_AT_ONCE)
            except (Unavailable, ResourceExhausted) as error:
                self._at_once = max(self._at_once // 2, _WEIGHT_MIN)  # it may have been too much
                log.warning("runs of %s cannot be removed now: %s", query.namespace, error.message)
                await self._pause()

    async def _pause(self) -> None:
        clock = self._node.clock
        await sleep_until(clock, clock.now_ns() + self._node.settings.retry_ns)

    async def _remove(self, found: list[Record]) -> tuple[int, int]:
        """Remove a page of runs: short ones that are closed together, some at a time."""
        at_once = self._at_once
        done: list[Record] = []
        others: list[int] = []
        for record in found:
            is_short = _weight(record.history_length, record.history_size_bytes) <= at_once
            if record.close_ns and is_short and not self._is_at_work(record.key):
                done.append(record)
            else:
                others.append(record.key)
        removed = undelivered = 0
        for together in _groups(done, at_once):
            try:
                removed += await _delete(self._node, *together)
            except StoreUndelivered:
                others += together
        for key in others:
            try:
                removed += await self._remove_one(key)
            except Undelivered:
                undelivered += 1
        return removed, undelivered

    def _is_at_work(self, key: int) -> bool:
        """Whether a closed run's last words are on their way from this node."""
        cached = self._node.executions.cached(key)
        return self._node.courier.holds(key) or (cached is not None and cached.unit is not None)

    async def _remove_one(self, key: int) -> bool:
        try:
            return await delete_run(self._node, key, self._at_once)
        except Unavailable:
            raise
        except Exception:
            log.exception("run %d cannot be removed", key)
            return False


class DeleteRPCs:
    """Delete, as a part of the service."""

    node: Node

    async def delete_workflow_execution(
        self, request: DeleteWorkflowExecutionRequest
    ) -> DeleteWorkflowExecutionResponse:
        """Remove a run and its history; an open one is terminated first.

        Raises:
            InvalidArgument: no execution is named.
            NotFound: no such run.
            Unavailable: the store failed; repeat the call.
        """
        node = self.node
        node.namespaces.get(request.namespace)
        if not request.HasField("workflow_execution"):
            raise InvalidArgument("Execution is not set on request.")
        named = request.workflow_execution
        key = await node.executions.resolve(request.namespace, named.workflow_id, named.run_id)
        if not await delete_run(node, key):
            raise NotFound(f"workflow not found for ID: {named.workflow_id}")
        return DeleteWorkflowExecutionResponse()
