"""Task tokens: what a worker hands back to say which task it has done.

A token names the run by its key and by half of its random run id, so a token for another database
or a made-up one is refused; a checksum finds damaged ones. Whether the task is still the present
one is the engine's to say.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from perdure.api.errors import InvalidArgument, NotFound
from perdure.engine.state import RunInfo

WORKFLOW = 1
ACTIVITY = 2
QUERY = 3

_VERSION = 1
_BODY = struct.Struct(">BBQ8sQQII")
_CHECK = struct.Struct(">I")
_SIZE = _BODY.size + _CHECK.size


class TaskToken(NamedTuple):
    """A task of a run. `stamp` tells apart what ids alone do not: see the engine's items."""

    kind: int
    key: int
    run_tag: bytes
    scheduled_event_id: int
    started_event_id: int
    attempt: int
    stamp: int


@lru_cache(maxsize=16_384)
def run_tag(run_id: str) -> bytes:
    """The eight bytes of a run id that go into its tokens."""
    return bytes.fromhex(run_id.replace("-", "")[:16]).ljust(8, b"\0")


def encode(
    kind: int,
    key: int,
    tag: bytes,
    scheduled_event_id: int,
    started_event_id: int = 0,
    attempt: int = 1,
    stamp: int = 0,
) -> bytes:
    """The token of a task."""
    body = _BODY.pack(
        _VERSION, kind, key, tag, scheduled_event_id, started_event_id, attempt, stamp
    )
    return body + crc32(body).to_bytes(4, "big")


def decode(token: bytes, kind: int) -> TaskToken:
    """Read a token of that kind. Raises InvalidArgument for one that was not made here."""
    if not token:
        raise InvalidArgument("Task token not set on request.")
    if len(token) != _SIZE:
        raise InvalidArgument("Error deserializing task token.")
    body = token[: _BODY.size]
    if _CHECK.unpack_from(token, _BODY.size)[0] != crc32(body):
        raise InvalidArgument("Error deserializing task token.")
    fields = _BODY.unpack(body)
    if fields[0] != _VERSION or fields[1] != kind:
        raise InvalidArgument("Invalid TaskToken: it was made for another kind of task.")
    return TaskToken._make(fields[1:])


def check_run(token: TaskToken, info: RunInfo, namespace: str) -> None:
    """Raise unless the token was made for that run, and for that namespace if one is named."""
    if token.run_tag != run_tag(info.run_id):
        raise NotFound("workflow execution not found: the task token belongs to another run")
    if namespace and namespace != info.namespace:
        raise InvalidArgument("Operation requested with a token from a different namespace.")
