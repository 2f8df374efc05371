"""Services beside Temporal's: gRPC's health protocol and server reflection."""

from __future__ import annotations

from typing import Any, Final

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from perdure.server.rpcs import SERVICES

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NAMES: Final = tuple(service.full_name for service in SERVICES)


class Health:
    """``grpc.health.v1.Health``: serving, for the server and each service, until it drains."""

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()

    def add_to(self, server: Any) -> None:
        """Add it to a ``grpc.aio`` server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def serve(self) -> None:
        """Say that all services are there."""
        for name in ("", *NAMES):
            await self._servicer.set(name, _SERVING)

    async def drain(self) -> None:
        """Say from now on that no service is."""
        await self._servicer.enter_graceful_shutdown()


def add_reflection(server: Any) -> None:
    """Add server reflection, so that grpcurl and its like know what they may call."""
    names = (*NAMES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
