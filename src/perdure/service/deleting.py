"""Delete: a run, all runs of a namespace, or those closed for longer than its retention.

An open run is terminated first, and what that tells others (its parent, its children) is delivered
before its rows go. If the process dies in between, the run is closed and the call is made again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    DeleteWorkflowExecutionResponse,
)

from perdure.api.errors import InvalidArgument, NotFound, RPCError, Unavailable
from perdure.api.times import MILLISECOND_NS
from perdure.engine import lifecycle
from perdure.engine.transition import Transition
from perdure.service.clock import Alarm, sleep_until
from perdure.service.reading import reading
from perdure.store.contract import StoreError, StoreUndelivered
from perdure.store.query import And, Column, Compare, Order, Query

if TYPE_CHECKING:
    from perdure.service.node import Node

log = logging.getLogger("perdure.service")

REASON = "Delete workflow execution"
IDENTITY = "history-service"
_PAGE = 200
_LOOKS: Final = 20
_LOOK_EVERY_NS: Final = 250 * MILLISECOND_NS


def _terminate(tx: Transition) -> None:
    lifecycle.terminate(tx, REASON, None, IDENTITY)


class Undelivered(Unavailable):
    """What a run told others is not delivered yet; it can be deleted afterwards."""


async def delete_run(node: Node, key: int) -> bool:
    """Remove a run; False when it is gone already. Raises Unavailable, Undelivered."""
    executions = node.executions
    try:
        entry = await executions.read(key)
        if entry.run.is_open:
            await executions.transact(key, _terminate)
    except NotFound:
        pass  # it closed by itself, or somebody else deletes it
    for _ in range(_LOOKS):
        await node.courier.delivered(key)
        try:
            return await _remove(node, key)
        except StoreUndelivered:  # by another node, or one that died with them
            await sleep_until(node.clock, node.clock.now_ns() + _LOOK_EVERY_NS)
            await _reread(node)
    raise Undelivered("What the run told others is not delivered yet; try again.")


async def _reread(node: Node) -> None:
    try:
        await node.courier.reread()
    except StoreError as error:
        raise Unavailable(f"The database cannot be read: {error}") from error


async def _remove(node: Node, key: int) -> bool:
    """Remove a closed run. Raises Unavailable, and StoreUndelivered."""
    executions = node.executions
    try:
        entry = await executions.read(key)
    except NotFound:
        return False
    executions.drop(entry)
    try:
        found = await node.store.delete(key)
    except StoreUndelivered:
        raise
    except StoreError as error:
        raise Unavailable(f"The database cannot be written: {error}") from error
    cached = executions.cached(key)
    if cached is not None:  # loaded again while the store worked
        executions.drop(cached)
    return found


class Purger:
    """Removes runs beside the calls: of deleted namespaces, and what retention lets go."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sweep: asyncio.Task[None] | None = None
        self._alarm: Alarm | None = None

    def open(self) -> None:
        """Go on with what an earlier process did not finish."""
        for namespace in self._node.namespaces.deleted():
            self.start(namespace.name)
        self.watch_retention()

    def start(self, namespace: str) -> asyncio.Task[None]:
        """Remove a deleted namespace's runs; the task that does."""
        task = self._tasks.get(namespace)
        if task is None or task.done():
            work = self._purge(Query(namespace, limit=_PAGE))
            task = self._tasks[namespace] = asyncio.get_running_loop().create_task(work)
        return task

    async def close(self) -> None:
        """Stop; the next open goes on."""
        if self._alarm is not None:
            self._alarm.cancel()
        running = [*self._tasks.values(), *([self._sweep] if self._sweep else [])]
        tasks = [task for task in running if not task.done()]
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
        self._alarm = None
        self._sweep = asyncio.get_running_loop().create_task(self._sweep_all())

    async def _sweep_all(self) -> None:
        node = self._node
        for namespace in node.namespaces.all():
            if namespace.retention_ns:
                before_ns = node.clock.now_ns() - namespace.retention_ns
                closed = And((Compare(Column.CLOSE, ">", 0), Compare(Column.CLOSE, "<", before_ns)))
                oldest = (Order(Column.CLOSE),)  # an index has them side by side
                await self._purge(Query(namespace.name, closed, oldest, limit=_PAGE))
        self.watch_retention()

    async def _purge(self, query: Query) -> None:
        """Remove all runs that a query selects."""
        node = self._node
        while True:
            try:
                if not await self._purge_page(query):
                    return
            except RPCError as error:
                log.warning("runs of %s cannot be removed now: %s", query.namespace, error.message)
                await sleep_until(node.clock, node.clock.now_ns() + node.settings.retry_ns)

    async def _purge_page(self, query: Query) -> bool:
        """Remove the first runs that a query selects; False when there are none.

        Raises Unavailable; Undelivered when all others were removed.
        """
        node = self._node
        with reading():
            found = await node.store.list_runs(query)
        kept: Undelivered | None = None
        for record in found:
            try:
                await delete_run(node, record.key)
            except Undelivered as error:
                kept = error
        if kept is not None:
            raise kept
        return bool(found)


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
