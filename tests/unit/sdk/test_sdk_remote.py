"""A service behind gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from temporalio.api.common.v1.grpc_status_pb2 import GrpcStatus
from temporalio.api.errordetails.v1 import WorkflowExecutionAlreadyStartedFailure
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import (
    GetSystemInfoRequest,
    GetSystemInfoResponse,
    GetWorkflowExecutionHistoryRequest,
    PollActivityTaskQueueRequest,
    StartWorkflowExecutionRequest,
)

from perdure.api import errors as rpc
from perdure.sdk import remote
from perdure.sdk.remote import RemoteService, TLSConfig, snake_case

Handler = Any


class Door(grpc.GenericRpcHandler):
    """Answers every method with one function of its name, request bytes and context."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    def service(self, details: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            data: bytes = await self.handler(details.method, request, context)
            return data

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def served(handler: Handler, **options: Any) -> AsyncIterator[RemoteService]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Door(handler),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    service = RemoteService(f"127.0.0.1:{port}", **options)
    try:
        yield service
    finally:
        await service.close()
        await server.stop(0)


async def test_methods_are_called_by_their_names() -> None:
    seen: list[Any] = []

    async def handler(method: str, request: bytes, context: Any) -> bytes:
        seen.append((method, dict(context.invocation_metadata())))
        return GetSystemInfoResponse(server_version="1").SerializeToString()

    async with served(handler, api_key="secret", tls=False, metadata={"x": "y"}) as service:
        answer = await service.get_system_info(GetSystemInfoRequest())
        assert answer.server_version == "1"
        await service.list_search_attributes(ListSearchAttributesRequest())
    methods = [method for method, _ in seen]
    assert methods == [
        "/temporal.api.workflowservice.v1.WorkflowService/GetSystemInfo",
        "/temporal.api.operatorservice.v1.OperatorService/ListSearchAttributes",
    ]
    metadata = seen[0][1]
    assert metadata["authorization"] == "Bearer secret"
    assert (metadata["x"], metadata["client-name"]) == ("y", "perdure")


async def test_a_status_becomes_its_error_with_its_details() -> None:
    detail = WorkflowExecutionAlreadyStartedFailure(run_id="r", start_request_id="s")

    async def handler(method: str, request: bytes, context: Any) -> bytes:
        status = GrpcStatus(code=6, message="taken")
        status.details.add().Pack(detail)
        trailers = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "taken", trailers)
        raise AssertionError

    async with served(handler) as service:
        with pytest.raises(rpc.WorkflowAlreadyStarted) as caught:
            await service.start_workflow_execution(StartWorkflowExecutionRequest())
    assert (caught.value.run_id, caught.value.message) == ("r", "taken")
    assert caught.value.details == (detail,)


@pytest.mark.parametrize("kind", list(rpc.RPCError.by_code.values()))
async def test_every_status_has_its_error(kind: type[rpc.RPCError]) -> None:
    async def handler(method: str, request: bytes, context: Any) -> bytes:
        codes = {code.value[0]: code for code in grpc.StatusCode}
        await context.abort(codes[int(kind.code)], "why")
        raise AssertionError

    async with served(handler) as service:
        with pytest.raises(kind, match="why") as caught:
            await service.get_system_info(GetSystemInfoRequest())
    assert type(caught.value) is kind


async def test_calls_end_in_time_and_polls_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LONG_POLL_TIMEOUT_S", 100.0)
    left: dict[str, float] = {}

    async def handler(method: str, request: bytes, context: Any) -> bytes:
        left[method.rpartition("/")[2]] = context.time_remaining()
        return b""

    async with served(handler, timeout_s=5.0) as service:
        await service.get_system_info(GetSystemInfoRequest())
        await service.poll_activity_task_queue(PollActivityTaskQueueRequest())
        await service.get_workflow_execution_history(GetWorkflowExecutionHistoryRequest())
        short = left["GetWorkflowExecutionHistory"]
        waiting = GetWorkflowExecutionHistoryRequest(wait_new_event=True)
        await service.get_workflow_execution_history(waiting)
    assert left["GetSystemInfo"] < 10 < left["PollActivityTaskQueue"]
    assert short < 10 < left["GetWorkflowExecutionHistory"]


async def test_a_call_that_takes_too_long_is_given_up() -> None:
    async def handler(method: str, request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async with served(handler, timeout_s=0.05) as service:
        with pytest.raises(rpc.DeadlineExceeded):
            await service.get_system_info(GetSystemInfoRequest())


async def test_a_server_that_is_not_there() -> None:
    service = RemoteService("127.0.0.1:1", timeout_s=5.0)
    with pytest.raises(rpc.Unavailable):
        await service.get_system_info(GetSystemInfoRequest())
    await service.close()


async def test_only_rpcs_are_methods() -> None:
    service = RemoteService("127.0.0.1:1")
    with pytest.raises(AttributeError, match="no RPC"):
        _ = service.launch_rocket
    assert not hasattr(service, "advances_in_process")
    await service.close()


def test_names() -> None:
    assert snake_case("GetSystemInfo") == "get_system_info"
    with pytest.raises(ValueError, match="both or none"):
        TLSConfig(client_cert=b"x")
