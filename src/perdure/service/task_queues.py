"""The RPCs that look at task queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import DescribeTaskQueueMode, TaskQueueType
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueuePartitionMetadata, TaskQueueStats
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListTaskQueuePartitionsRequest,
    ListTaskQueuePartitionsResponse,
)

from perdure.api.errors import Unavailable
from perdure.api.times import duration, timestamp
from perdure.service import validation
from perdure.service.matching import ACTIVITY, WORKFLOW, TaskQueue
from perdure.store.contract import StoreError

if TYPE_CHECKING:
    from perdure.service.node import Node

"""For how long a poller that is gone is still shown."""


_DEFAULT_PRIORITY = 3


class TaskQueueRPCs:
    """The RPCs about task queues, as a part of the service."""

    node: Node

    async def describe_task_queue(
        self, request: DescribeTaskQueueRequest
    ) -> DescribeTaskQueueResponse:
        """Who polls a queue, and how much waits there.

        The enhanced mode shows several types of one queue at once; there is one version, "".
        """
        node = self.node
        node.namespaces.get(request.namespace)
        name = request.task_queue.name
        validation.task_queue(request, node.settings)
        if request.api_mode == DescribeTaskQueueMode.DESCRIBE_TASK_QUEUE_MODE_ENHANCED:
            return await self._enhanced(request)
        kind = int(request.task_queue_type or TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
        queue = node.matching.known(request.namespace, name, kind)
        made = DescribeTaskQueueResponse()
        if queue is not None:
            made.pollers.extend(self._pollers(queue))
        stats = await self._stats(request.namespace, name, kind)
        if request.include_task_queue_status:
            made.task_queue_status.backlog_count_hint = stats.approximate_backlog_count
        if request.report_stats:
            made.stats.CopyFrom(stats)
            made.stats_by_priority_key[_DEFAULT_PRIORITY].CopyFrom(stats)
        return made

    async def _enhanced(self, request: DescribeTaskQueueRequest) -> DescribeTaskQueueResponse:
        made = DescribeTaskQueueResponse()
        types = made.versions_info[""].types_info
        for kind in dict.fromkeys(request.task_queue_types or (WORKFLOW, ACTIVITY)):
            if kind not in (WORKFLOW, ACTIVITY):
                continue
            name = request.task_queue.name
            queue = self.node.matching.known(request.namespace, name, kind)
            if queue is not None:
                types[kind].pollers.extend(self._pollers(queue))
            types[kind].stats.CopyFrom(await self._stats(request.namespace, name, kind))
        return made

    async def _stats(self, namespace: str, name: str, kind: int) -> TaskQueueStats:
        """How many tasks wait, and the oldest for how long."""
        made = TaskQueueStats(approximate_backlog_count=await self._waiting(namespace, name, kind))
        queue = self.node.matching.known(namespace, name, kind)
        age_ns = 0
        if queue is not None and queue.rows:
            age_ns = max(0, self.node.clock.now_ns() - queue.rows[0].created_ns)
        made.approximate_backlog_age.CopyFrom(duration(age_ns))
        return made

    def _pollers(self, queue: TaskQueue) -> list[PollerInfo]:
        now_ns = self.node.clock.now_ns()
        parked = {poll.identity for poll in queue.polls}
        found = []
        for identity, seen_ns in reversed(queue.pollers.items()):
            if identity in parked or now_ns - seen_ns <= self.node.settings.poller_seen_ns:
                info = PollerInfo(identity=identity, rate_per_second=100_000)
                info.last_access_time.CopyFrom(timestamp(seen_ns))
                found.append(info)
        return found

    async def _waiting(self, namespace: str, name: str, kind: int) -> int:
        queue = self.node.matching.known(namespace, name, kind)
        if queue is not None and not queue.more:
            return len(queue.rows)
        try:
            counts = await self.node.store.task_queues()
        except StoreError as error:
            raise Unavailable(f"The database cannot be read: {error}") from error
        return next((n for ns, q, k, n in counts if (ns, q, k) == (namespace, name, kind)), 0)

    async def list_task_queue_partitions(
        self, request: ListTaskQueuePartitionsRequest
    ) -> ListTaskQueuePartitionsResponse:
        """A queue is never cut in parts here: one partition of each kind."""
        self.node.namespaces.get(request.namespace)
        validation.task_queue(request, self.node.settings)
        part = TaskQueuePartitionMetadata(key=request.task_queue.name, owner_host_name="perdure")
        return ListTaskQueuePartitionsResponse(
            activity_task_queue_partitions=[part], workflow_task_queue_partitions=[part]
        )
