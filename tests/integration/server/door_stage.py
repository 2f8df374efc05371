"""A door with a service made for the test, on any transport; and clients for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from temporalio.api.common.v1.grpc_status_pb2 import GrpcStatus
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeNamespaceResponse,
    GetSystemInfoRequest,
    GetSystemInfoResponse,
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RegisterNamespaceRequest,
    RegisterNamespaceResponse,
)

from perdure.api.caller import CALLER, Caller
from perdure.api.errors import NamespaceNotFound, NotFound
from perdure.server import extras, transports
from perdure.server.door import Door

WORKFLOW_SERVICE = "/temporal.api.workflowservice.v1.WorkflowService/"
ANSWERS = {
    "DescribeNamespace": DescribeNamespaceResponse,
    "GetSystemInfo": GetSystemInfoResponse,
    "PollActivityTaskQueue": PollActivityTaskQueueResponse,
    "QueryWorkflow": QueryWorkflowResponse,
    "RegisterNamespace": RegisterNamespaceResponse,
}
SECRET = "the password is 1234"


class Scripted:
    """A service of a few RPCs, each of which does something that a door has to bear."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self.parked: list[asyncio.Future[PollActivityTaskQueueResponse]] = []
        self.cancelled = 0
        self.go_on = asyncio.Event()

    async def get_system_info(self, request: GetSystemInfoRequest) -> GetSystemInfoResponse:
        self.callers.append(CALLER.get())
        return GetSystemInfoResponse(server_version="1")

    async def describe_namespace(
        self, request: DescribeNamespaceRequest
    ) -> DescribeNamespaceResponse:
        name = request.namespace
        if name == "defect":
            raise RuntimeError(SECRET)
        if name == "wordy":
            raise NotFound("x" * 100_000)
        if name == "weighty":
            raise NamespaceNotFound("y" * 50_000)
        if name == "large":
            made = DescribeNamespaceResponse()
            made.namespace_info.description = "z" * 10_000_000
            return made
        await asyncio.sleep(0)
        raise NamespaceNotFound(name)

    async def poll_activity_task_queue(
        self, request: PollActivityTaskQueueRequest
    ) -> PollActivityTaskQueueResponse:
        future: asyncio.Future[PollActivityTaskQueueResponse]
        future = asyncio.get_running_loop().create_future()
        self.parked.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def query_workflow(self, request: QueryWorkflowRequest) -> QueryWorkflowResponse:
        """Waits for others, so a door that closes may interrupt it."""
        await asyncio.Event().wait()
        raise AssertionError

    async def register_namespace(
        self, request: RegisterNamespaceRequest
    ) -> RegisterNamespaceResponse:
        """Takes its time, but must be done."""
        self.callers.append(CALLER.get())
        await self.go_on.wait()
        return RegisterNamespaceResponse()


class Stage:
    """A door that is open.

    Attributes:
        name: of its transport.
        service: what stands behind it.
        address: where it listens.
        channel: a connection to it.
    """

    def __init__(self, name: str, options: transports.Options) -> None:
        self.name = name
        self.service = Scripted()
        self.health = extras.Health()
        self.door = Door(self.service, time.time_ns)
        self.transport = transports.transport(
            name,
            self.door.handlers(),
            [self.health.add_to, extras.add_reflection],
            options,
        )
        self.address = ""
        self.channel: Any = None

    async def open(self) -> None:
        self.address = f"127.0.0.1:{self.transport.bind('127.0.0.1:0')}"
        await self.transport.start()
        await self.health.serve()
        self.channel = grpc.aio.insecure_channel(
            self.address, options=[("grpc.max_receive_message_length", -1)]
        )

    def call(self, name: str, request: Any, **options: Any) -> Any:
        """A call under way; await it for the response."""
        return self.call_raw(name, request.SerializeToString(), **options)

    def call_raw(self, name: str, body: bytes, **options: Any) -> Any:
        """The same with any bytes for a request."""
        answer = ANSWERS.get(name)
        method = self.channel.unary_unary(
            name if name.startswith("/") else WORKFLOW_SERVICE + name,
            response_deserializer=answer.FromString if answer else None,
        )
        return method(body, **options)

    async def alive(self) -> None:
        """Raise unless the door still serves."""
        answer = await self.call("GetSystemInfo", GetSystemInfoRequest(), timeout=10)
        assert answer.server_version == "1"

    async def parked(self, count: int) -> None:
        """Wait until so many polls are parked."""
        await until(lambda: len(self.service.parked) >= count)

    async def lost(self, count: int) -> None:
        """Wait until so many parked polls were cancelled."""
        await until(lambda: self.service.cancelled >= count)


@asynccontextmanager
async def opened(name: str, **options: Any) -> AsyncIterator[Stage]:
    """A stage on the transport of that name."""
    stage = Stage(name, transports.Options(**options))
    await stage.open()
    try:
        yield stage
    finally:
        await stage.channel.close()
        await stage.transport.stop(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes or threads bring about."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    """What a call that must fail failed with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call did not fail")


def details_of(error: grpc.aio.AioRpcError) -> GrpcStatus | None:
    """The google.rpc.Status that came with an error."""
    found = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    return GrpcStatus.FromString(found) if found is not None else None
