"""Requests that make no sense, to every RPC: a status each time, never a defect."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest

from perdure.serve import Plan, Server, serving
from perdure.server.config import Config
from perdure.server.rpcs import SERVICES, snake_case
from perdure.service.settings import Settings
from perdure.service.workflow_service import WorkflowService

ROUNDS = 12
TEXTS = [
    "", "default", "wf", "q", "Flow", "é", "x" * 999, "x" * 1_000, "x" * 1_001, "y" * 5_000, "\0",
    "00000000-0000-0000-0000-000000000000", "WorkflowId = 'wf'", "NOT (", "* * * * *", "@every 1s",
]  # fmt: skip
NUMBERS = [0, 1, 2, 3, -1, 7, 100, 2**31 - 1, -(2**31)]
DEFECTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
Field = FieldDescriptor


class Chooser:
    """Fills messages at random, from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        made = message_factory.GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self.random.random() < (0.75 if depth < 2 else 0.3) and depth < 6:
                self.fill(made, field, depth)
        return made

    def fill(self, made: Any, field: Any, depth: int) -> None:
        if field.name == "namespace" and self.random.random() < 0.8:
            made.namespace = "default"
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            self.entry(getattr(made, field.name), field, depth)
        elif field.is_repeated:
            for _ in range(self.random.randrange(3)):
                if field.message_type is not None:
                    getattr(made, field.name).add().CopyFrom(
                        self.message(field.message_type, depth + 1)
                    )
                else:
                    getattr(made, field.name).append(self.scalar(field))
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(self.message(field.message_type, depth + 1))
        else:
            setattr(made, field.name, self.scalar(field))

    def entry(self, entries: Any, field: Any, depth: int) -> None:
        kinds = field.message_type.fields_by_name
        key, value = self.scalar(kinds["key"]), kinds["value"]
        if value.message_type is not None:
            entries[key].CopyFrom(self.message(value.message_type, depth + 1))
        else:
            entries[key] = self.scalar(value)

    def scalar(self, field: Any) -> Any:
        kind = field.cpp_type
        if kind == Field.CPPTYPE_STRING:
            if field.type == Field.TYPE_BYTES:
                return self.random.randbytes(self.random.choice([0, 1, 8, 30, 100]))
            return self.random.choice(TEXTS)
        if kind == Field.CPPTYPE_BOOL:
            return self.random.random() < 0.5
        if kind == Field.CPPTYPE_ENUM:
            return self.random.choice([0, 1, 2, 3, 50])
        if kind in {Field.CPPTYPE_DOUBLE, Field.CPPTYPE_FLOAT}:
            return self.random.choice([0.0, 1.0, -1.0, 1e30, float("nan"), float("inf")])
        number = self.random.choice(NUMBERS)
        if kind == Field.CPPTYPE_INT64:
            return self.random.choice([number, 2**63 - 1, -(2**63), 10**10])
        return number if kind == Field.CPPTYPE_INT32 else abs(number) % 2**31


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    settings = Settings(long_poll_ns=50_000_000, history_poll_ns=50_000_000)
    async with serving(Plan(db="memory://", port=0, config=Config(settings=settings))) as running:
        yield running


async def test_random_requests_to_every_rpc(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        for service in SERVICES:
            for method in service.methods:
                chooser = Chooser(seed=len(method.name) * 1_000 + ord(method.name[0]))
                call = channel.unary_unary(f"/{service.full_name}/{method.name}")
                for number in range(ROUNDS):
                    request = chooser.message(method.input_type)
                    body = request.SerializeToString()
                    if number % 4 == 3:  # bytes that are almost a request
                        body = _damaged(chooser.random, body)
                    await _survives(call, body, f"{method.name}({request})"[:3_000])
        info = channel.unary_unary(f"/{SERVICES[0].full_name}/GetSystemInfo")
        assert await info(GetSystemInfoRequest().SerializeToString(), timeout=10)


def _damaged(choose: random.Random, body: bytes) -> bytes:
    damaged = bytearray(body or b"\0")
    for _ in range(choose.randint(1, 5)):
        damaged[choose.randrange(len(damaged))] = choose.randrange(256)
    return bytes(damaged[: choose.randint(1, len(damaged))])


async def _survives(call: Any, body: bytes, what: str) -> None:
    pending = call(body, timeout=1)
    code = await pending.code()
    assert code not in DEFECTS, f"{code} {await pending.details()}: {what}"


def test_every_rpc_is_offered_or_known_not_to_be() -> None:
    """The list of what is not there: when one of these comes, it is struck off."""
    missing = {
        method.name
        for service in SERVICES
        for method in service.methods
        if not hasattr(WorkflowService, snake_case(method.name))
    }
    assert sorted(missing) == sorted(NOT_OFFERED)


NOT_OFFERED = [
    "AddOrUpdateRemoteCluster",
    "CountActivityExecutions",
    "CountNexusOperationExecutions",
    "CountSchedules",
    "CreateNexusEndpoint",
    "CreateSchedule",
    "CreateWorkerDeployment",
    "CreateWorkerDeploymentVersion",
    "CreateWorkflowRule",
    "DeleteActivityExecution",
    "DeleteNexusEndpoint",
    "DeleteNexusOperationExecution",
    "DeleteSchedule",
    "DeleteWorkerDeployment",
    "DeleteWorkerDeploymentVersion",
    "DeleteWorkflowRule",
    "DescribeActivityExecution",
    "DescribeBatchOperation",
    "DescribeDeployment",
    "DescribeNexusOperationExecution",
    "DescribeSchedule",
    "DescribeWorkerDeployment",
    "DescribeWorkerDeploymentVersion",
    "DescribeWorkflowRule",
    "FetchWorkerConfig",
    "GetCurrentDeployment",
    "GetDeploymentReachability",
    "GetNexusEndpoint",
    "GetWorkerBuildIdCompatibility",
    "GetWorkerTaskReachability",
    "GetWorkerVersioningRules",
    "ListActivityExecutions",
    "ListArchivedWorkflowExecutions",
    "ListBatchOperations",
    "ListDeployments",
    "ListNexusEndpoints",
    "ListNexusOperationExecutions",
    "ListScheduleMatchingTimes",
    "ListSchedules",
    "ListWorkerDeployments",
    "ListWorkflowRules",
    "PatchSchedule",
    "PollActivityExecution",
    "PollNexusOperationExecution",
    "PollNexusTaskQueue",
    "PollWorkflowExecutionTimeSkipping",
    "RemoveRemoteCluster",
    "RequestCancelActivityExecution",
    "RequestCancelNexusOperationExecution",
    "RespondNexusTaskCompleted",
    "RespondNexusTaskFailed",
    "SetCurrentDeployment",
    "SetWorkerDeploymentCurrentVersion",
    "SetWorkerDeploymentManager",
    "SetWorkerDeploymentRampingVersion",
    "StartActivityExecution",
    "StartBatchOperation",
    "StartNexusOperationExecution",
    "StopBatchOperation",
    "TerminateActivityExecution",
    "TerminateNexusOperationExecution",
    "TriggerWorkflowRule",
    "UpdateNexusEndpoint",
    "UpdateSchedule",
    "UpdateWorkerBuildIdCompatibility",
    "UpdateWorkerConfig",
    "UpdateWorkerDeploymentVersionComputeConfig",
    "UpdateWorkerDeploymentVersionMetadata",
    "UpdateWorkerVersioningRules",
    "UpdateWorkflowExecutionOptions",
    "ValidateWorkerDeploymentVersionComputeConfig",
]
