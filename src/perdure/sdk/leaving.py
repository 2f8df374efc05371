"""How a worker leaves a service: it says so, and lets its open polls be answered."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Collection
from typing import Any, Final

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, ShutdownWorkerRequest

from perdure.api.errors import RPCError
from perdure.sdk.calls import is_remote

_log = logging.getLogger("perdure.worker")

_TOLD_WITHIN_S: Final = 5.0
_ANSWERED_WITHIN_S: Final = 5.0


class Leaving:
    """One worker's departure.

    A poll that is cancelled may just have been given a task, which then lies there until it times
    out. So the service is told first, while the polls are open: it answers them, and gives what
    waits on the sticky queue to others. It is told once, by whichever part of the worker stops
    first; by then all of them must have ceased to open polls.

    Attributes:
        instance_key: names the worker in its polls.
        sticky_queue: the queue of its cached runs; "" for none.
    """

    def __init__(self, service: Any, *, namespace: str, task_queue: str, identity: str) -> None:
        self.instance_key = str(uuid.uuid4())
        self.sticky_queue = ""
        self._service = service
        self._namespace = namespace
        self._task_queue = task_queue
        self._identity = identity
        self._told: asyncio.Task[bool] | None = None

    async def end(self, polls: Collection[asyncio.Task[Any]]) -> None:
        """Tell the service, and wait for the polls, if it answers them; those left may be
        cancelled. A service in this process takes back what a cancelled poll was given."""
        if not polls or not (self.sticky_queue or is_remote(self._service)):
            return
        if self._told is None:
            self._told = asyncio.create_task(self._tell())
        if await asyncio.shield(self._told):
            await asyncio.wait(polls, timeout=_ANSWERED_WITHIN_S)

    async def _tell(self) -> bool:
        """Whether the service answers the polls."""
        request = ShutdownWorkerRequest(
            namespace=self._namespace,
            sticky_task_queue=self.sticky_queue,
            identity=self._identity,
            reason="the worker shuts down",
            worker_instance_key=self.instance_key,
            task_queue=self._task_queue,
            task_queue_types=[
                TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
                TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
            ],
        )
        try:
            async with asyncio.timeout(_TOLD_WITHIN_S):
                answers = is_remote(self._service) and await self._answers_polls()
                await self._service.shutdown_worker(request)
        except (RPCError, TimeoutError) as error:
            _log.debug("the service was not told that the worker leaves: %s", error)
            return False
        return answers

    async def _answers_polls(self) -> bool:
        request = DescribeNamespaceRequest(namespace=self._namespace)
        found = await self._service.describe_namespace(request)
        return bool(found.namespace_info.capabilities.worker_poll_complete_on_shutdown)
