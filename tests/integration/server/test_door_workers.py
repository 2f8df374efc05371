"""Workers as the server sees them: heartbeats, lists, shutdown, hints for autoscaling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.worker.v1 import WorkerHeartbeat, WorkerHostInfo
from temporalio.api.workflowservice.v1 import (
    CountWorkersRequest,
    DescribeNamespaceRequest,
    DescribeWorkerRequest,
    ListWorkersRequest,
    PollActivityTaskQueueRequest,
    PollWorkflowTaskQueueRequest,
    RecordWorkerHeartbeatRequest,
    ShutdownWorkerRequest,
    StartWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError
from temporalio.worker import (
    PollerBehaviorAutoscaling,
    UnsandboxedWorkflowRunner,
    Worker,
)

from perdure.serve import Plan, Server, serving
from perdure.server.config import Config
from perdure.service.settings import Settings

RUNNING, SHUTDOWN = 1, 3


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    settings = Settings(workers_max=5)
    plan = Plan(db="memory://", port=0, config=Config(settings=settings, grace_s=3))
    async with serving(plan) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> Client:
    runtime = Runtime(telemetry=TelemetryConfig(), worker_heartbeat_interval=timedelta(seconds=1))
    return await Client.connect(server.address, runtime=runtime)


@activity.defn
async def nap() -> None:
    await asyncio.sleep(0.01)


@workflow.defn
class Napping:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(nap, start_to_close_timeout=timedelta(seconds=10))


def worker(client: Client, **options: Any) -> Worker:
    return Worker(
        client,
        task_queue="queue",
        workflows=[Napping],
        activities=[nap],
        workflow_runner=UnsandboxedWorkflowRunner(),
        **options,
    )


async def listed(client: Client, query: str = "") -> list[Any]:
    request = ListWorkersRequest(namespace="default", query=query)
    return list((await client.workflow_service.list_workers(request)).workers)


async def test_an_official_worker_is_listed_until_it_stops(client: Client) -> None:
    async with worker(client, identity="me"):
        found: list[Any] = []
        for _ in range(100):
            found = [w for w in await listed(client) if w.task_queue == "queue"]
            if found:
                break
            await asyncio.sleep(0.1)
        assert (found[0].worker_identity, found[0].status) == ("me", RUNNING)
        assert found[0].sdk_name == "temporal-python"
        key = found[0].worker_instance_key
    request = DescribeWorkerRequest(namespace="default", worker_instance_key=key)
    described = (await client.workflow_service.describe_worker(request)).worker_info
    assert described.worker_heartbeat.status == SHUTDOWN
    assert described.worker_heartbeat.task_queue == "queue"


async def test_an_official_worker_stops_at_once(server: Server, client: Client) -> None:
    """The polls that it left at the server are answered, not waited out."""
    stopping = worker(client)
    running = asyncio.create_task(stopping.run())
    await client.execute_workflow(Napping.run, id="nap", task_queue="queue")
    started_s = time.monotonic()
    await stopping.shutdown()
    await running
    assert time.monotonic() - started_s < 20  # a poll that is waited out lasts a minute
    queue = server.node.matching.known("default", "queue", 2)
    assert queue is not None
    assert not queue.polls


async def test_an_official_worker_that_scales_its_pollers(client: Client) -> None:
    behaviour = PollerBehaviorAutoscaling(minimum=1, maximum=20, initial=2)
    options: dict[str, Any] = {
        "workflow_task_poller_behavior": behaviour,
        "activity_task_poller_behavior": behaviour,
    }
    async with worker(client, **options):
        runs = [
            client.execute_workflow(Napping.run, id=f"nap-{n}", task_queue="queue")
            for n in range(30)
        ]
        await asyncio.gather(*runs)


# -- the RPCs --------------------------------------------------------------------------------------


async def record(client: Client, *keys: str, **fields: Any) -> None:
    beats = [
        WorkerHeartbeat(
            worker_instance_key=key, worker_identity=f"id-{key}", task_queue=f"queue-{key}",
            status=RUNNING, host_info=WorkerHostInfo(host_name="host"), **fields,
        )
        for key in keys
    ]  # fmt: skip
    await client.workflow_service.record_worker_heartbeat(
        RecordWorkerHeartbeatRequest(namespace="default", worker_heartbeat=beats)
    )


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("", "abc"),
        ("TaskQueue = 'queue-b'", "b"),
        ("TaskQueue != 'queue-b' AND HostName = 'host'", "ac"),
        ("WorkerIdentity STARTS_WITH 'id-' AND NOT WorkerInstanceKey IN ('a', 'c')", "b"),
        ("WorkerStatus = 'WORKER_STATUS_RUNNING' OR SdkName = 'x'", "abc"),
        ("Status = 'WORKER_STATUS_SHUTDOWN'", ""),
        ("HeartbeatTime > '2020-01-01T00:00:00Z'", ""),
        ("HeartbeatTime IS NULL AND StartTime IS NULL", "abc"),
        ("SdkVersion IS NOT NULL", ""),
    ],
)
async def test_workers_are_filtered(client: Client, query: str, keys: str) -> None:
    await record(client, "a", "b", "c")
    assert [w.worker_instance_key for w in await listed(client, query)] == list(keys)
    request = CountWorkersRequest(namespace="default", query=query)
    assert (await client.workflow_service.count_workers(request)).count == len(keys)


@pytest.mark.parametrize(
    "query", ["what is this", "WorkflowId = 'x'", "TaskQueue = 'a' ORDER BY TaskQueue"]
)
async def test_a_filter_that_makes_no_sense(client: Client, query: str) -> None:
    with pytest.raises(RPCError, match="invalid filter"):
        await listed(client, query)


async def test_workers_come_in_pages(client: Client) -> None:
    await record(client, *"abcde")
    request = ListWorkersRequest(namespace="default", page_size=2)
    keys = []
    for _ in range(3):
        page = await client.workflow_service.list_workers(request)
        keys.append([w.worker_instance_key for w in page.workers])
        request.next_page_token = page.next_page_token
    assert keys == [["a", "b"], ["c", "d"], ["e"]]
    assert not page.next_page_token


async def test_the_oldest_worker_is_forgotten_first(client: Client) -> None:
    await record(client, *"abcde")
    await record(client, "a")
    await record(client, "f")
    assert [w.worker_instance_key for w in await listed(client)] == list("acdef")
    with pytest.raises(RPCError, match="Worker b not found"):
        await client.workflow_service.describe_worker(
            DescribeWorkerRequest(namespace="default", worker_instance_key="b")
        )


async def test_a_worker_that_shuts_down_gets_its_own_polls_back(client: Client) -> None:
    service = client.workflow_service
    queue = TaskQueue(name="queue")
    polls = {
        key: asyncio.ensure_future(
            service.poll_activity_task_queue(
                PollActivityTaskQueueRequest(
                    namespace="default", task_queue=queue, worker_instance_key=key
                )
            )
        )
        for key in "ab"
    }
    await asyncio.sleep(0.2)
    await service.shutdown_worker(
        ShutdownWorkerRequest(namespace="default", worker_instance_key="a", task_queue="queue")
    )
    assert not (await polls["a"]).task_token
    assert not polls["b"].done()
    polls["b"].cancel()


async def test_a_poll_hears_whether_more_or_fewer_are_needed(client: Client) -> None:
    service = client.workflow_service
    poll = PollWorkflowTaskQueueRequest(namespace="default", task_queue=TaskQueue(name="queue"))
    idle = asyncio.ensure_future(service.poll_workflow_task_queue(poll))
    await asyncio.sleep(1.1)
    for number in range(4):
        await service.start_workflow_execution(
            StartWorkflowExecutionRequest(
                namespace="default", workflow_id=f"wf-{number}", request_id=f"r-{number}",
                workflow_type=WorkflowType(name="Any"), task_queue=TaskQueue(name="queue"),
            )
        )  # fmt: skip
    assert (await idle).poller_scaling_decision.poll_request_delta_suggestion == -1
    first = await service.poll_workflow_task_queue(poll)
    assert not first.HasField("poller_scaling_decision")  # nothing has waited long
    await asyncio.sleep(0.25)
    second = await service.poll_workflow_task_queue(poll)
    assert second.poller_scaling_decision.poll_request_delta_suggestion == 1
    third = await service.poll_workflow_task_queue(poll)
    assert not third.HasField("poller_scaling_decision")


async def test_what_is_advertised(client: Client) -> None:
    request = DescribeNamespaceRequest(namespace="default")
    info = (await client.workflow_service.describe_namespace(request)).namespace_info
    able = info.capabilities
    assert able.worker_heartbeats
    assert able.poller_autoscaling
    assert not able.standalone_activities
    assert able.workflow_pause
