"""The service: Temporal's API, one async method per RPC, composed of one class per noun."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from temporalio.api.workflowservice.v1 import request_response_pb2

from perdure.api.errors import Unimplemented
from perdure.service.activity_control import ActivityControlRPCs
from perdure.service.activity_tasks import ActivityTaskRPCs
from perdure.service.deleting import DeleteRPCs
from perdure.service.describing import DescribeRPCs
from perdure.service.history import HistoryRPCs
from perdure.service.multi_operation import MultiOperationRPCs
from perdure.service.namespaces import NamespaceRPCs
from perdure.service.operator import OperatorRPCs
from perdure.service.queries import QueryRPCs
from perdure.service.resetting import ResetRPCs
from perdure.service.signalling import SignalRPCs
from perdure.service.starting import StartRPCs
from perdure.service.system import SystemRPCs
from perdure.service.task_queues import TaskQueueRPCs
from perdure.service.visibility import VisibilityRPCs
from perdure.service.workers import WorkerRPCs
from perdure.service.workflow_tasks import WorkflowTaskRPCs

if TYPE_CHECKING:
    from perdure.service.node import Node


def _rpc_names() -> frozenset[str]:
    """All RPCs of the API, in snake case: there is a request message for each."""
    found = set()
    for message in request_response_pb2.DESCRIPTOR.message_types_by_name:
        if message.endswith("Request"):
            words = "".join("_" + c.lower() if c.isupper() else c for c in message[:-7])
            found.add(words.lstrip("_"))
    return frozenset(found)


RPCS = _rpc_names()


class WorkflowService(
    StartRPCs, WorkflowTaskRPCs, ActivityTaskRPCs, ActivityControlRPCs, SignalRPCs,
    MultiOperationRPCs, QueryRPCs, HistoryRPCs, DescribeRPCs, VisibilityRPCs, ResetRPCs, DeleteRPCs,
    TaskQueueRPCs, WorkerRPCs, SystemRPCs, OperatorRPCs, NamespaceRPCs,
):  # fmt: skip
    """One async method per RPC: takes the request message, returns the response message.

    Raises ``perdure.api.errors.RPCError``; Unimplemented for an RPC of the API that is not there.

    Attributes:
        advances_in_process: polls for workflow tasks take an ``advance`` callback.
    """

    advances_in_process = True

    def __init__(self, node: Node) -> None:
        self.node = node
        self.namespaces = node.namespaces

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        if name not in RPCS:
            raise AttributeError(name)

        async def unimplemented(request: Any, **_: Any) -> Any:
            raise Unimplemented(f"perdure does not offer {type(request).__name__[:-7]}.")

        return unimplemented
