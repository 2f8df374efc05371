"""Delete: a run, or all runs of a namespace, with everything they left.

An open run is terminated first, and what that tells others (its parent, its children) is delivered
before its rows go. If the process dies in between, the run is closed and the call is made again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    DeleteWorkflowExecutionResponse,
)

from perdure.api.errors import InvalidArgument, NotFound, RPCError, Unavailable
from perdure.engine import lifecycle
from perdure.engine.transition import Transition
from perdure.service.clock import sleep_until
from perdure.service.reading import reading
from perdure.store.contract import StoreError
from perdure.store.query import Query

if TYPE_CHECKING:
    from perdure.service.node import Node

log = logging.getLogger("perdure.service")

REASON = "Delete workflow execution"
IDENTITY = "history-service"
_PAGE = 200


def _terminate(tx: Transition) -> None:
    lifecycle.terminate(tx, REASON, None, IDENTITY)


async def delete_run(node: Node, key: int) -> bool:
    """Remove a run; False when it is gone already. Raises Unavailable."""
    executions = node.executions
    try:
        entry = await executions.read(key)
        if entry.run.is_open:
            await executions.transact(key, _terminate)
    except NotFound:
        pass  # it closed by itself, or somebody else deletes it
    await node.courier.delivered(key)
    try:
        entry = await executions.read(key)
    except NotFound:
        return False
    executions.drop(entry)
    try:
        found = await node.store.delete(key)
    except StoreError as error:
        raise Unavailable(f"The database cannot be written: {error}") from error
    cached = executions.cached(key)
    if cached is not None:  # loaded again while the store worked
        executions.drop(cached)
    return found


class Purger:
    """Removes the runs of deleted namespaces, beside the calls and across restarts."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def open(self) -> None:
        """Go on with what an earlier process did not finish."""
        for namespace in self._node.namespaces.deleted():
            self.start(namespace.name)

    def start(self, namespace: str) -> asyncio.Task[None]:
        """Remove a namespace's runs; the task that does."""
        task = self._tasks.get(namespace)
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(self._purge(namespace))
            self._tasks[namespace] = task
        return task

    async def close(self) -> None:
        """Stop; the next open goes on."""
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _purge(self, namespace: str) -> None:
        node = self._node
        while True:
            try:
                with reading():
                    found = await node.store.list_runs(Query(namespace, limit=_PAGE))
                if not found:
                    return
                for record in found:
                    await delete_run(node, record.key)
            except RPCError as error:
                log.warning("namespace %s cannot be emptied now: %s", namespace, error.message)
                await sleep_until(node.clock, node.clock.now_ns() + node.settings.retry_ns)


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
