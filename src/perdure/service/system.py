"""The RPCs about the node itself."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from temporalio.api.workflowservice.v1 import (
    GetClusterInfoRequest,
    GetClusterInfoResponse,
    GetSystemInfoRequest,
    GetSystemInfoResponse,
)

if TYPE_CHECKING:
    from perdure.service.node import Node


@cache
def server_version() -> str:
    """The installed version of perdure."""
    try:
        return version("perdure")
    except PackageNotFoundError:
        return "0.0.0"


class SystemRPCs:
    """The RPCs about the node itself, as a part of the service."""

    node: Node

    async def get_system_info(self, request: GetSystemInfoRequest) -> GetSystemInfoResponse:
        """The version, and which abilities that clients ask about are there."""
        made = GetSystemInfoResponse(server_version=server_version())
        able = made.capabilities
        able.signal_and_query_header = True
        able.internal_error_differentiation = True
        able.activity_failure_include_heartbeat = True
        able.encoded_failure_attributes = True
        able.upsert_memo = True
        able.eager_workflow_start = True
        able.sdk_metadata = True
        able.count_group_by_execution_status = True
        return made

    async def get_cluster_info(self, request: GetClusterInfoRequest) -> GetClusterInfoResponse:
        """What a cluster would be: this node and its database."""
        return GetClusterInfoResponse(
            server_version=server_version(),
            cluster_name="active",
            history_shard_count=1,
            persistence_store=self.node.store_name,
            visibility_store=self.node.store_name,
        )
