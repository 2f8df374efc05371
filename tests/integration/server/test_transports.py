"""The contract of a transport: every one passes the same tests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from door_stage import SECRET, WORKFLOW_SERVICE, Stage, details_of, error_of, opened, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    GetSystemInfoRequest,
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    QueryWorkflowRequest,
    RegisterNamespaceRequest,
)

from perdure.api.errors import Unavailable
from perdure.server.transports import NAMES, Options, transport

Code = grpc.StatusCode
SYSTEM_INFO = GetSystemInfoRequest()
POLL = PollActivityTaskQueueRequest()


@pytest.fixture(params=NAMES)
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with opened(request.param) as made:
        yield made


# -- answers and errors ----------------------------------------------------------------------------


async def test_a_call_is_answered(stage: Stage) -> None:
    await stage.alive()


async def test_a_compressed_request_with_metadata_is_answered(stage: Stage) -> None:
    answer = await stage.call(
        "GetSystemInfo",
        SYSTEM_INFO,
        compression=grpc.Compression.Gzip,
        metadata=(("client-name", "test"), ("trace-bin", b"\x00\xff"), ("twice", "a")),
    )
    assert answer.server_version == "1"


async def test_an_error_has_its_code_message_and_typed_details(stage: Stage) -> None:
    request = DescribeNamespaceRequest(namespace="größe\n%41 'x'")
    error = await error_of(stage.call("DescribeNamespace", request))
    assert error.code() is Code.NOT_FOUND
    assert error.details() == "Namespace größe\n%41 'x' is not found."
    status = details_of(error)
    assert status is not None
    assert (status.code, status.message) == (5, error.details())
    found = NamespaceNotFoundFailure()
    assert status.details[0].Unpack(found)
    assert found.namespace == request.namespace


async def test_an_error_too_large_for_headers_keeps_its_code(stage: Stage) -> None:
    for name in ("wordy", "weighty"):
        request = DescribeNamespaceRequest(namespace=name)
        error = await error_of(stage.call("DescribeNamespace", request))
        assert error.code() is Code.NOT_FOUND
        assert 1_000 < len(error.details() or "") <= 2_000
        status = details_of(error)
        assert status is None or status.ByteSize() <= 4_000


async def test_a_defect_is_logged_and_not_told(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "perdure.server"):
        request = DescribeNamespaceRequest(namespace="defect")
        error = await error_of(stage.call("DescribeNamespace", request))
    assert error.code() is Code.INTERNAL
    message = error.details() or ""
    assert SECRET not in message
    assert "DescribeNamespace failed inside perdure" in message
    reference = message.rstrip(".").rpartition(" ")[2]
    assert reference in caplog.text
    assert SECRET in caplog.text


async def test_bytes_that_are_no_request(stage: Stage) -> None:
    for body in (b"\xff\xff\xff", b"\x0a\x05abc", b"\x0a\x02\xff\xfe"):
        error = await error_of(stage.call_raw("DescribeNamespace", body))
        assert error.code() is Code.INVALID_ARGUMENT
        assert "no DescribeNamespaceRequest" in (error.details() or "")


@pytest.mark.parametrize(
    "path", [f"{WORKFLOW_SERVICE}Nothing", "/no.such.Service/Method", "/x", "/", "//", "/a/b/c"]
)
async def test_an_unknown_method(stage: Stage, path: str) -> None:
    assert (await error_of(stage.call_raw(path, b""))).code() is Code.UNIMPLEMENTED


async def test_an_rpc_that_the_service_lacks(stage: Stage) -> None:
    error = await error_of(stage.call_raw("CreateSchedule", b""))
    assert error.code() is Code.UNIMPLEMENTED
    assert error.details() == "perdure does not offer CreateSchedule."


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_requests_up_to_the_limit(name: str, compression: grpc.Compression) -> None:
    async with opened(name, message_bytes_max=100_000) as stage:
        fitting = DescribeNamespaceRequest(id="i" * 99_990)
        assert len(fitting.SerializeToString()) <= 100_000
        error = await error_of(stage.call("DescribeNamespace", fitting, compression=compression))
        assert error.code() is Code.NOT_FOUND
        over = DescribeNamespaceRequest(id="i" * 100_001)
        error = await error_of(stage.call("DescribeNamespace", over, compression=compression))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        await stage.alive()


async def test_a_large_answer(stage: Stage) -> None:
    answer = await stage.call("DescribeNamespace", DescribeNamespaceRequest(namespace="large"))
    assert len(answer.namespace_info.description) == 10_000_000


@pytest.mark.parametrize("name", NAMES)
async def test_metadata_over_the_limit(name: str) -> None:
    async with opened(name, metadata_bytes_max=8_192) as stage:
        call = stage.call("GetSystemInfo", SYSTEM_INFO, metadata=(("big", "x" * 20_000),))
        refusals = {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.UNKNOWN}  # HTTP's status 431
        assert (await error_of(call)).code() in refusals
        await stage.alive()


# -- deadlines, and callers that leave -------------------------------------------------------------


async def test_the_service_knows_how_long_its_caller_waits(stage: Stage) -> None:
    await stage.call("GetSystemInfo", SYSTEM_INFO, timeout=40)
    await stage.call("GetSystemInfo", SYSTEM_INFO)
    limited, unlimited = stage.service.callers
    assert not limited.in_process
    assert not unlimited.in_process
    assert 20 < (limited.deadline_ns - time.time_ns()) / 1e9 < 40.1
    assert unlimited.deadline_ns == 0


async def test_a_call_ends_with_its_deadline(stage: Stage) -> None:
    error = await error_of(stage.call("PollActivityTaskQueue", POLL, timeout=0.3))
    assert error.code() is Code.DEADLINE_EXCEEDED
    await stage.lost(1)


async def test_a_cancelled_call_is_given_up(stage: Stage) -> None:
    call = stage.call("PollActivityTaskQueue", POLL)
    await stage.parked(1)
    call.cancel()
    await stage.lost(1)
    await stage.alive()


async def test_calls_of_a_connection_that_is_gone_are_given_up(stage: Stage) -> None:
    calls = [asyncio.ensure_future(_ended(stage)) for _ in range(50)]
    await stage.parked(50)
    await stage.channel.close()
    await asyncio.gather(*calls)
    await stage.lost(50)


async def _ended(stage: Stage) -> None:
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await stage.call("PollActivityTaskQueue", POLL)


async def test_thousands_of_parked_polls_on_one_connection(stage: Stage) -> None:
    calls = [stage.call("PollActivityTaskQueue", POLL) for _ in range(2_000)]
    await stage.parked(2_000)
    await stage.alive()
    for number, future in enumerate(stage.service.parked):
        future.set_result(PollActivityTaskQueueResponse(activity_id=str(number)))
        if number % 500 == 0:
            await asyncio.sleep(0.01)
    answers = await asyncio.gather(*calls)
    assert {answer.activity_id for answer in answers} == {str(n) for n in range(2_000)}


# -- the end ---------------------------------------------------------------------------------------


async def test_a_door_that_closes(stage: Stage) -> None:
    writing = stage.call("RegisterNamespace", RegisterNamespaceRequest())
    waiting = stage.call("QueryWorkflow", QueryWorkflowRequest())
    await until(lambda: bool(stage.service.callers and stage.door._waiting))
    stage.door.refuse()
    for call in (waiting, stage.call("GetSystemInfo", SYSTEM_INFO)):
        error = await error_of(call)
        assert error.code() is Code.UNAVAILABLE
        assert error.details() == "The server is shutting down."
    assert not await stage.door.idle(0.05)
    stage.service.go_on.set()
    assert await stage.door.idle(10)
    await writing


async def test_calls_that_do_not_end_are_cut_off(stage: Stage) -> None:
    call = asyncio.ensure_future(error_of(stage.call("PollActivityTaskQueue", POLL)))
    await stage.parked(1)
    await stage.transport.stop(0.05)
    assert (await call).code() in {Code.UNAVAILABLE, Code.CANCELLED}
    assert stage.service.cancelled == 1


async def test_a_port_that_is_taken(stage: Stage) -> None:
    other = transport(stage.name, [], [], Options())
    with pytest.raises(OSError, match=f"cannot listen on {stage.address}"):
        other.bind(stage.address)


def test_an_unknown_transport() -> None:
    with pytest.raises(ValueError, match="'carrier pigeon' is none of grpcio, native"):
        transport("carrier pigeon", [], [], Options())


def test_shutting_down_is_worth_a_retry() -> None:
    assert Unavailable.code == 14


# -- health and reflection -------------------------------------------------------------------------


async def test_health(stage: Stage) -> None:
    health = health_pb2_grpc.HealthStub(stage.channel)
    names = ("", "temporal.api.workflowservice.v1.WorkflowService")
    for name in names:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    error = await error_of(health.Check(health_pb2.HealthCheckRequest(service="nothing")))
    assert error.code() is Code.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service=names[1]))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await stage.health.drain()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


async def test_reflection(stage: Stage) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(stage.channel)
    symbol = "temporal.api.workflowservice.v1.WorkflowService"
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert {symbol, "temporal.api.operatorservice.v1.OperatorService"} <= listed
    assert {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= listed
    assert answers[1].file_descriptor_response.file_descriptor_proto
