"""Every RPC that the door serves, read from the descriptors of Temporal's services."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from temporalio.api.operatorservice.v1 import service_pb2 as operator_service
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

SERVICES: Final[tuple[ServiceDescriptor, ...]] = (
    workflow_service.DESCRIPTOR.services_by_name["WorkflowService"],
    operator_service.DESCRIPTOR.services_by_name["OperatorService"],
)

_WAITING: Final = frozenset(
    {
        "get_workflow_execution_history",
        "update_workflow_execution",
        "poll_workflow_execution_update",
        "execute_multi_operation",
        "query_workflow",
    }
)


@dataclass(frozen=True, slots=True)
class RPC:
    """One RPC.

    Attributes:
        service: the service's full name.
        name: as in the descriptor, ``StartWorkflowExecution``.
        method: of the service object, ``start_workflow_execution``.
        parse: a request from its bytes; raises DecodeError.
        waits: it may wait for something that others do; polls for tasks are not counted, because
            they have an empty answer.
    """

    service: str
    name: str
    method: str
    parse: Callable[[bytes], Any]
    waits: bool


def snake_case(name: str) -> str:
    """``GetSystemInfo`` is ``get_system_info``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@cache
def rpcs() -> tuple[RPC, ...]:
    """All RPCs of all services."""
    return tuple(_rpc(service, method) for service in SERVICES for method in service.methods)


def _rpc(service: ServiceDescriptor, method: MethodDescriptor) -> RPC:
    streaming = method.client_streaming or method.server_streaming
    assert not streaming, method.full_name
    request = message_factory.GetMessageClass(method.input_type)
    name = snake_case(method.name)
    return RPC(service.full_name, method.name, name, request.FromString, name in _WAITING)
