"""From an error of the service to a gRPC status with the details that Temporal's SDKs read."""

from __future__ import annotations

from typing import Final, NamedTuple

from google.protobuf.message import Message
from temporalio.api.common.v1.grpc_status_pb2 import GrpcStatus

from perdure.api.errors import RPCError

DETAILS_KEY: Final = "grpc-status-details-bin"

_MESSAGE_CHARACTERS_MAX: Final = 2_000
_DETAILS_BYTES_MAX: Final = 4_000
"""A status travels in HTTP headers, of which clients take 8 KiB, the message percent-encoded and
the details in base 64."""


class Status(NamedTuple):
    """A call's end: ``details`` is a serialised google.rpc.Status, empty without typed details."""

    code: int
    message: str
    details: bytes


def status_of(error: RPCError) -> Status:
    """The status of an error. What headers cannot carry is cut off; the code never is."""
    message = shortened(error.message)
    return Status(int(error.code), message, _details(int(error.code), message, error.details))


def shortened(text: str) -> str:
    """A message that fits in a header."""
    if len(text) <= _MESSAGE_CHARACTERS_MAX:
        return text
    return text[: _MESSAGE_CHARACTERS_MAX - 1] + "…"


def _details(code: int, message: str, details: tuple[Message, ...]) -> bytes:
    if not details:
        return b""
    made = GrpcStatus(code=code, message=message)
    for detail in details:
        made.details.add().Pack(detail)
    if made.ByteSize() > _DETAILS_BYTES_MAX:
        return b""
    return made.SerializeToString()
