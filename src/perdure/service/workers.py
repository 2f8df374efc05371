"""Workers that are there: what their heartbeats say, listed, filtered and described.

Heartbeats are held in memory only: after a restart, workers are back with their next one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from temporalio.api.enums.v1 import WorkerStatus
from temporalio.api.worker.v1 import WorkerHeartbeat, WorkerInfo, WorkerListInfo
from temporalio.api.workflowservice.v1 import (
    CountWorkersRequest,
    CountWorkersResponse,
    DescribeWorkerRequest,
    DescribeWorkerResponse,
    ListWorkersRequest,
    ListWorkersResponse,
    RecordWorkerHeartbeatRequest,
    RecordWorkerHeartbeatResponse,
)

from perdure.api.errors import InvalidArgument, NotFound
from perdure.service import pages
from perdure.service.clock import Clock
from perdure.service.relay import RELAYED
from perdure.service.settings import Settings

if TYPE_CHECKING:
    from perdure.service.node import Node

_SHUTDOWN = WorkerStatus.WORKER_STATUS_SHUTDOWN


class Workers:
    """The last heartbeat of each worker of a node, for as long as it counts."""

    def __init__(self, clock: Clock, settings: Settings) -> None:
        self._clock = clock
        self._settings = settings
        self._beats: OrderedDict[tuple[str, str], tuple[int, WorkerHeartbeat]] = OrderedDict()

    def note(self, namespace: str, beat: WorkerHeartbeat) -> None:
        """A worker is alive, or says that it stops."""
        key = (namespace, beat.worker_instance_key)
        if not beat.worker_instance_key:
            return
        self._beats[key] = (self._clock.now_ns(), beat)
        self._beats.move_to_end(key)
        self._forget_old()
        while len(self._beats) > self._settings.workers_max:
            self._beats.popitem(last=False)

    def stop(self, namespace: str, instance_key: str) -> None:
        """A worker stopped without a last heartbeat."""
        found = self._beats.get((namespace, instance_key))
        if found is not None:
            found[1].status = _SHUTDOWN

    def of(self, namespace: str) -> list[WorkerHeartbeat]:
        """The workers of a namespace that this node heard of."""
        self._forget_old()
        return [beat for (name, _), (_, beat) in self._beats.items() if name == namespace]

    def _forget_old(self) -> None:
        before_ns = self._clock.now_ns() - self._settings.worker_seen_ns
        while self._beats:
            key, (seen_ns, _) = next(iter(self._beats.items()))
            if seen_ns >= before_ns:
                return
            del self._beats[key]


class WorkerRPCs:
    """The RPCs about workers, as a part of the service."""

    node: Node

    async def record_worker_heartbeat(
        self, request: RecordWorkerHeartbeatRequest
    ) -> RecordWorkerHeartbeatResponse:
        """Workers of a process are alive."""
        self.node.namespaces.get(request.namespace)
        for beat in request.worker_heartbeat:
            self.node.workers.note(request.namespace, beat)
        return RecordWorkerHeartbeatResponse()

    async def list_workers(self, request: ListWorkersRequest) -> ListWorkersResponse:
        """A page of workers that pass a filter, by their instance keys.

        Raises:
            InvalidArgument: the filter or the page token makes no sense.
        """
        try:
            after = request.next_page_token.decode()
        except UnicodeDecodeError:
            raise InvalidArgument("Invalid NextPageToken.") from None
        size = pages.size(request.page_size, self.node.settings.list_page_max, usual=100)
        if RELAYED.get():  # another node makes the pages
            size = self.node.settings.workers_max
        found = [w for w in await self._passing(request) if w.worker_instance_key > after]
        made = ListWorkersResponse()
        for beat in found[:size]:
            made.workers_info.append(WorkerInfo(worker_heartbeat=beat))
            made.workers.append(_listed(beat))
        if len(found) > size:
            made.next_page_token = found[size - 1].worker_instance_key.encode()
        return made

    async def count_workers(self, request: CountWorkersRequest) -> CountWorkersResponse:
        """How many workers pass a filter."""
        return CountWorkersResponse(count=len(await self._passing(request)))

    async def _passing(self, request: Any) -> list[WorkerHeartbeat]:
        beats = [beat for _, beat in sorted((await self._known(request.namespace)).items())]
        if not request.query.strip():
            return beats
        # Loading the grammar takes half a second, which most nodes never need.
        from perdure.service.worker_filter import parsed

        passes = parsed(request.query, self.node.clock.now_ns())
        return [beat for beat in beats if passes(beat)]

    async def _known(self, namespace: str) -> dict[str, WorkerHeartbeat]:
        """The last heartbeat of each worker of a namespace, whichever node it came to."""
        self.node.namespaces.get(namespace)
        found = {beat.worker_instance_key: beat for beat in self.node.workers.of(namespace)}
        if self.node.neighbours is not None:
            request = ListWorkersRequest(namespace=namespace)
            for answer in await self.node.neighbours.ask_others("list_workers", request):
                for info in answer.workers_info:
                    beat = info.worker_heartbeat
                    known = found.get(beat.worker_instance_key)
                    if known is None or _when(known) < _when(beat):
                        found[beat.worker_instance_key] = beat
        return found

    async def describe_worker(self, request: DescribeWorkerRequest) -> DescribeWorkerResponse:
        """All that a worker's last heartbeat said. Raises NotFound."""
        beat = (await self._known(request.namespace)).get(request.worker_instance_key)
        if beat is None:
            raise NotFound(f"Worker {request.worker_instance_key} not found")
        return DescribeWorkerResponse(worker_info=WorkerInfo(worker_heartbeat=beat))


def _when(beat: WorkerHeartbeat) -> int:
    return beat.heartbeat_time.ToNanoseconds()


def _listed(beat: WorkerHeartbeat) -> WorkerListInfo:
    made = WorkerListInfo(
        worker_instance_key=beat.worker_instance_key,
        worker_identity=beat.worker_identity,
        task_queue=beat.task_queue,
        sdk_name=beat.sdk_name,
        sdk_version=beat.sdk_version,
        status=beat.status,
        host_name=beat.host_info.host_name,
        worker_grouping_key=beat.host_info.worker_grouping_key,
        process_id=beat.host_info.process_id,
        plugins=beat.plugins,
        drivers=beat.drivers,
    )
    if beat.HasField("deployment_version"):
        made.deployment_version.CopyFrom(beat.deployment_version)
    if beat.HasField("start_time"):
        made.start_time.CopyFrom(beat.start_time)
    return made
