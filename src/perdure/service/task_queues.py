"""The RPCs that look at task queues."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from temporalio.api.enums.v1 import DescribeTaskQueueMode, TaskQueueType
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueuePartitionMetadata, TaskQueueStats
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListTaskQueuePartitionsRequest,
    ListTaskQueuePartitionsResponse,
    UpdateTaskQueueConfigRequest,
    UpdateTaskQueueConfigResponse,
)

from perdure.api.errors import Unavailable
from perdure.api.times import duration, duration_ns, timestamp
from perdure.service import queue_configs, validation
from perdure.service.queue import ACTIVITY, WORKFLOW, QueueKey, TaskQueue
from perdure.service.ranking import DEFAULT_LEVEL
from perdure.store.contract import Backlog, StoreError

if TYPE_CHECKING:
    from perdure.service.node import Node


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
        validation.task_queue(request, node.settings)
        if request.api_mode == DescribeTaskQueueMode.DESCRIBE_TASK_QUEUE_MODE_ENHANCED:
            made = await self._enhanced(request)
        else:
            made = await self._plain(request)
        if node.neighbours is not None:
            for other in await node.neighbours.ask_others("describe_task_queue", request):
                _join(made, other)
        return made

    async def _plain(self, request: DescribeTaskQueueRequest) -> DescribeTaskQueueResponse:
        node, name = self.node, request.task_queue.name
        kind = int(request.task_queue_type or TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
        queue = node.matching.known(request.namespace, name, kind)
        made = DescribeTaskQueueResponse()
        if queue is not None:
            made.pollers.extend(self._pollers(queue))
        key = QueueKey(request.namespace, name, kind)
        by_level = await self._stats(key)
        total = _total(by_level)
        if request.include_task_queue_status:
            made.task_queue_status.backlog_count_hint = total.approximate_backlog_count
        if request.report_stats:
            made.stats.CopyFrom(total)
            for level, stats in by_level.items():
                made.stats_by_priority_key[level].CopyFrom(stats)
        if request.report_config:
            made.config.CopyFrom(
                node.namespaces.task_queue(request.namespace, queue_configs.name_of(key))
            )
            queue_configs.show_rate(made, queue)
        return made

    async def update_task_queue_config(
        self, request: UpdateTaskQueueConfigRequest
    ) -> UpdateTaskQueueConfigResponse:
        """Set how fast a queue's tasks are given out, and the weights of fairness keys."""
        node = self.node
        node.namespaces.get(request.namespace)
        validation.task_queue(request, node.settings)
        validation.bounded(request.identity, "Identity", node.settings)
        queue_configs.check(request)
        kind = int(request.task_queue_type or WORKFLOW)
        key = QueueKey(request.namespace, request.task_queue, kind)
        change = partial(queue_configs.applied, request=request, now_ns=node.clock.now_ns())
        config = await node.namespaces.configure(key.namespace, queue_configs.name_of(key), change)
        queue = node.matching.known(*key)
        if queue is not None:
            queue_configs.put_in_force(queue, config)
            node.matching.pump(queue)
        return UpdateTaskQueueConfigResponse(config=config)

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
            stats = await self._stats(QueueKey(request.namespace, name, kind))
            types[kind].stats.CopyFrom(_total(stats))
        return made

    async def _stats(self, key: QueueKey) -> dict[int, TaskQueueStats]:
        """By priority level: how many tasks wait, the oldest for how long, how fast they come and
        go. A queue that nobody uses shows the default level."""
        now_ns = self.node.clock.now_ns()
        made = {DEFAULT_LEVEL: _no_stats()}
        queue = self.node.matching.known(*key)
        for level, flow in queue.flows.items() if queue is not None else ():
            stats = made.setdefault(level, _no_stats())
            stats.tasks_add_rate = flow.added.per_second(now_ns)
            stats.tasks_dispatch_rate = flow.dispatched.per_second(now_ns)
        for backlog in await self._backlogs(key):
            stats = made.setdefault(backlog.level, _no_stats())
            stats.approximate_backlog_count += backlog.count
            age_ns = max(now_ns - backlog.oldest_ns, duration_ns(stats.approximate_backlog_age))
            stats.approximate_backlog_age.CopyFrom(duration(max(0, age_ns)))
        return made

    async def _backlogs(self, key: QueueKey) -> list[Backlog]:
        try:
            return await self.node.store.backlogs(*key)
        except StoreError as error:
            raise Unavailable(f"The database cannot be read: {error}") from error

    def _pollers(self, queue: TaskQueue) -> list[PollerInfo]:
        """Who polls now, or did a while ago; a poll that is open is an access now."""
        now_ns = self.node.clock.now_ns()
        parked = {poll.identity for poll in queue.polls}
        found = []
        for identity, seen_ns in reversed(queue.pollers.items()):
            last_ns = now_ns if identity in parked else seen_ns
            if now_ns - last_ns <= self.node.settings.poller_seen_ns:
                info = PollerInfo(identity=identity, rate_per_second=100_000)
                info.last_access_time.CopyFrom(timestamp(last_ns))
                found.append(info)
        return found

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


def _join(made: DescribeTaskQueueResponse, other: DescribeTaskQueueResponse) -> None:
    """Add what only another node knows: its polls, and how fast tasks come and go there."""
    _join_pollers(made.pollers, other.pollers)
    _add_rates(made.stats, other.stats)
    for level, stats in other.stats_by_priority_key.items():
        _add_rates(made.stats_by_priority_key[level], stats)
    for version, info in other.versions_info.items():
        for kind, of_type in info.types_info.items():
            mine = made.versions_info[version].types_info[kind]
            _join_pollers(mine.pollers, of_type.pollers)
            _add_rates(mine.stats, of_type.stats)


def _join_pollers(made: Any, other: Iterable[PollerInfo]) -> None:
    found = {info.identity: info for info in made}
    for info in other:
        known = found.get(info.identity)
        if known is None:
            made.append(info)
        elif _seen_ns(known) < _seen_ns(info):
            known.CopyFrom(info)
    made.sort(key=_seen_ns, reverse=True)


def _seen_ns(info: PollerInfo) -> int:
    return info.last_access_time.ToNanoseconds()


def _add_rates(made: TaskQueueStats, other: TaskQueueStats) -> None:
    if other.tasks_add_rate or other.tasks_dispatch_rate:
        made.tasks_add_rate += other.tasks_add_rate
        made.tasks_dispatch_rate += other.tasks_dispatch_rate


def _no_stats() -> TaskQueueStats:
    return TaskQueueStats(approximate_backlog_age=duration(0))


def _total(by_level: dict[int, TaskQueueStats]) -> TaskQueueStats:
    """All levels together."""
    made = _no_stats()
    age_ns = 0
    for stats in by_level.values():
        made.approximate_backlog_count += stats.approximate_backlog_count
        made.tasks_add_rate += stats.tasks_add_rate
        made.tasks_dispatch_rate += stats.tasks_dispatch_rate
        age_ns = max(age_ns, duration_ns(stats.approximate_backlog_age))
    made.approximate_backlog_age.CopyFrom(duration(age_ns))
    return made
