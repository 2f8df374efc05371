"""Task tokens: what a worker hands back to say which task it has done.

A token names the run by its key and by half of its random run id, so a token for another database
or a made-up one is refused; a checksum finds damaged ones. Whether the task is still the present
one is the engine's to say.

A few tasks have something that only the memory of the node knows that handed them out: a query, an
update. Their tokens name that node, for the answer is of use nowhere else.
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

_PLAIN, _WITH_NODE = 1, 2
_BODY = struct.Struct(">BBQ8sQQII")
_NODE = struct.Struct(">Q")
_CHECK = struct.Struct(">I")
_SIZES = {_PLAIN: _BODY.size + _CHECK.size, _WITH_NODE: _BODY.size + _NODE.size + _CHECK.size}


class TaskToken(NamedTuple):
    """A task of a run.

    Attributes:
        stamp: tells apart what ids alone do not: see the engine's items.
        node: the node that waits for something in the answer; 0 for any.
    """

    kind: int
    key: int
    run_tag: bytes
    scheduled_event_id: int
    started_event_id: int
    attempt: int
    stamp: int
    node: int = 0


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
    node: int = 0,
) -> bytes:
    """The token of a task."""
    version = _WITH_NODE if node else _PLAIN
    body = _BODY.pack(version, kind, key, tag, scheduled_event_id, started_event_id, attempt, stamp)
    if node:
        body += _NODE.pack(node)
    return body + crc32(body).to_bytes(4, "big")


def decode(token: bytes, kind: int) -> TaskToken:
    """Read a token of that kind. Raises InvalidArgument for one that was not made here."""
    if not token:
        raise InvalidArgument("Task token not set on request.")
    body = token[: -_CHECK.size]
    if len(token) != _SIZES.get(token[0]) or token[len(body) :] != _CHECK.pack(crc32(body)):
        raise InvalidArgument("Error deserializing task token.")
    version, *fields = _BODY.unpack_from(body)
    if fields[0] != kind:
        raise InvalidArgument("Invalid TaskToken: it was made for another kind of task.")
    node = _NODE.unpack_from(body, _BODY.size)[0] if version == _WITH_NODE else 0
    return TaskToken._make((*fields, node))


def for_node(token: bytes, node: int) -> bytes:
    """The same token, naming the node that waits for the answer."""
    read = decode(token, token[1])
    return encode(*read._replace(node=node))


def check_run(token: TaskToken, info: RunInfo, namespace: str) -> None:
    """Raise unless the token was made for that run, and for that namespace if one is named."""
    if token.run_tag != run_tag(info.run_id):
        raise NotFound("workflow execution not found: the task token belongs to another run")
    if namespace and namespace != info.namespace:
        raise InvalidArgument("Operation requested with a token from a different namespace.")
