"""A service behind gRPC: a perdure server, or a Temporal server.

`RemoteService` has the same ``async`` methods as a service in this process: one per RPC, in snake
case, that takes the request and returns the response or raises an `RPCError`. They are made from
the protocol's descriptors. Needs the extra ``perdure[grpc]``.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message
from temporalio.api.common.v1.grpc_status_pb2 import GrpcStatus
from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.operatorservice.v1 import request_response_pb2 as operator_service
from temporalio.api.workflowservice.v1 import request_response_pb2 as workflow_service

from perdure.api.errors import RPCError

__all__ = ["RemoteService", "TLSConfig", "snake_case"]

RPC = Callable[[Any], Awaitable[Any]]

DEFAULT_TIMEOUT_S: Final = 30.0
LONG_POLL_TIMEOUT_S: Final = 70.0
"""A little more than the minute after which servers answer a poll with nothing."""

MAXIMUM_MESSAGE_SIZE_BYTES: Final = 128 * 1024 * 1024

_LONG_POLLS: Final = frozenset(
    {
        "poll_activity_task_queue",
        "poll_nexus_task_queue",
        "poll_workflow_execution_update",
        "poll_workflow_task_queue",
        "update_workflow_execution",
        "execute_multi_operation",
    }
)

_SERVICES: Final[Mapping[str, FileDescriptor]] = {
    "temporal.api.workflowservice.v1.WorkflowService": workflow_service.DESCRIPTOR,
    "temporal.api.operatorservice.v1.OperatorService": operator_service.DESCRIPTOR,
}
"""Services by full name, with the file of their messages: an RPC is a request and a response of
one name. (The files of the services themselves import Google's annotations, which are a
dependency of their own.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """Certificates, as the bytes of PEM files. Without any, the system's roots are trusted.

    Args:
        server_root_ca_cert: whom to trust in place of the system's roots.
        client_cert, client_private_key: who we are; both or none.
        domain: the name that the server's certificate has, if it is not the host's.

    Raises:
        ValueError: only one of the two for the client is given.
    """

    server_root_ca_cert: bytes | None = None
    client_cert: bytes | None = None
    client_private_key: bytes | None = None
    domain: str | None = None

    def __post_init__(self) -> None:
        if (self.client_cert is None) != (self.client_private_key is None):
            raise ValueError("client_cert, client_private_key: give both or none")


class RemoteService:
    """One connection to a server, opened when it is first needed.

    Args:
        target: ``host:port``.
        tls: a configuration, True for the default one, False for none; default: True with an API
            key, else False.
        api_key: sent as a bearer token.
        metadata: sent with every call.
        timeout_s: limit of calls that do not wait for anything.

    Raises:
        ImportError: the extra ``perdure[grpc]`` is not installed.
    """

    is_remote = True

    def __init__(
        self,
        target: str,
        *,
        tls: bool | TLSConfig | None = None,
        api_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._grpc = _grpc()
        self.target = target
        self.timeout_s = timeout_s
        self._metadata = [("client-name", "perdure"), *(metadata or {}).items()]
        if api_key is not None:
            self._metadata.append(("authorization", f"Bearer {api_key}"))
        secure = api_key is not None if tls is None else bool(tls)
        self._channel = self._open(tls if isinstance(tls, TLSConfig) else TLSConfig(), secure)
        self._methods = self._make_methods()

    def __repr__(self) -> str:
        return f"<RemoteService {self.target}>"

    def __getattr__(self, name: str) -> RPC:
        methods: dict[str, RPC] = self.__dict__.get("_methods", {})
        try:
            return methods[name]
        except KeyError:
            raise AttributeError(f"{name}: no RPC of the workflow or operator service") from None

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._channel.close()

    # --- the channel --------------------------------------------------------------------------

    def _open(self, tls: TLSConfig, secure: bool) -> Any:
        options: list[tuple[str, Any]] = [
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 15_000),
            ("grpc.max_receive_message_length", MAXIMUM_MESSAGE_SIZE_BYTES),
            ("grpc.max_send_message_length", MAXIMUM_MESSAGE_SIZE_BYTES),
        ]
        aio = self._grpc.aio
        if not secure:
            return aio.insecure_channel(self.target, options=options)
        if tls.domain is not None:
            options.append(("grpc.ssl_target_name_override", tls.domain))
        credentials = self._grpc.ssl_channel_credentials(
            root_certificates=tls.server_root_ca_cert,
            private_key=tls.client_private_key,
            certificate_chain=tls.client_cert,
        )
        return aio.secure_channel(self.target, credentials, options=options)

    def _make_methods(self) -> dict[str, RPC]:
        return {
            snake_case(name): self._make_method(service, name, response)
            for service, file in _SERVICES.items()
            for name, response in _rpcs(file)
        }

    def _make_method(self, service: str, rpc: str, response: Descriptor) -> RPC:
        invoke = self._channel.unary_unary(
            f"/{service}/{rpc}",
            request_serializer=_serialize,
            response_deserializer=message_factory.GetMessageClass(response).FromString,
        )
        name = snake_case(rpc)

        async def call(request: Message) -> Any:
            timeout_s = LONG_POLL_TIMEOUT_S if _waits(name, request) else self.timeout_s
            try:
                return await invoke(request, timeout=timeout_s, metadata=self._metadata)
            except self._grpc.aio.AioRpcError as error:
                _raise(error)

        call.__name__ = name
        return call


def _rpcs(file: FileDescriptor) -> Iterator[tuple[str, Descriptor]]:
    """Names of the RPCs of a service, each with its response."""
    messages = file.message_types_by_name
    for name in messages:
        response = messages.get(f"{name.removesuffix('Request')}Response")
        if name.endswith("Request") and response is not None:
            yield name.removesuffix("Request"), response


def _grpc() -> Any:
    try:
        import grpc
        import grpc.aio
    except ImportError as error:
        raise ImportError(
            "a remote server needs gRPC: pip install 'perdure[grpc]' "
            "(or use an embedded target such as sqlite:///orders.db)"
        ) from error
    return grpc


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _waits(name: str, request: Any) -> bool:
    """Does the server keep the call until there is something to tell?"""
    if name == "get_workflow_execution_history":
        return bool(request.wait_new_event)
    return name in _LONG_POLLS


def snake_case(name: str) -> str:
    """The method name of an RPC: ``GetSystemInfo`` is ``get_system_info``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# --- errors -------------------------------------------------------------------------------------

_DETAILS: Final[dict[str, type[Message]]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in vars(errordetails).values()
    if isinstance(kind, type) and issubclass(kind, Message)
}


def _raise(error: Any) -> NoReturn:
    """Raise the `RPCError` for what a call ended with."""
    code = error.code().value[0]
    raise RPCError.of(code, error.details() or "", _details(error)) from error


def _details(error: Any) -> list[Message]:
    """The typed details of a status, as far as they are known here."""
    trailers = dict(error.trailing_metadata() or ())
    status = GrpcStatus()
    try:
        status.ParseFromString(trailers.get("grpc-status-details-bin", b""))
    except DecodeError:
        return []
    found = []
    for packed in status.details:
        kind = _DETAILS.get(packed.type_url.rpartition("/")[2])
        if kind is not None:
            detail = kind()
            packed.Unpack(detail)
            found.append(detail)
    return found
