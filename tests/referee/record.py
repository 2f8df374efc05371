"""What a program left behind, as lines of text that can be compared and read.

Ids, times and tokens differ from server to server: they are replaced by names that keep what is
equal equal. A UUID is called after the field in which it is first seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api import errordetails
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import FailureError
from temporalio.service import RPCError

_UUID = re.compile(r"\b([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|[0-9a-f]{16})\b")

_TIMES = re.compile(r'"(\w*time)":(\{[^}]*\}|"[^"]*")')
"""What the SDK notes in its markers."""

_DROPPED = frozenset(
    {"event_id", "event_time", "task_id", "version", "history_size_bytes"}
    | {"poller_scaling_decision", "execution_duration"}
)
"""Of no meaning to a client, or what depends on a server's encoding or on its load."""

_UNORDERED = frozenset({"core_used_flags", "lang_used_flags"})
"""Sets, which the SDK writes in any order."""

_MASKED = frozenset({"task_token", "stack_trace", "next_page_token"})
"""Present on both sides; the contents are the server's or Python's own."""


class Names:
    """Names for UUIDs: ``run_id#1`` is the first one that a field ``run_id`` showed."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._count: dict[str, int] = {}

    def mask(self, text: str, field: str) -> str:
        """The text with every UUID replaced by its name."""
        return _UUID.sub(lambda found: self._name(found[0], field), text)

    def _name(self, uuid: str, field: str) -> str:
        if uuid not in self._of:
            self._count[field] = self._count.get(field, 0) + 1
            self._of[uuid] = f"<{field}#{self._count[field]}>"
        return self._of[uuid]


def history_lines(events: list[HistoryEvent], names: Names) -> Iterator[str]:
    """Each event's type, and under it the attributes that are set."""
    for event in events:
        _drop_what_differs(event)
        kind = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
        yield f"  {event.event_id} {kind}"
        for field, value in event.ListFields():
            if field.name in ("event_id", "event_time", "event_type", "task_id", "version"):
                continue
            path = "" if field.name.endswith("_attributes") else field.name
            for line in field_lines(field, value, path, names):
                yield f"      {line}"


def _drop_what_differs(event: HistoryEvent) -> None:
    """Ids of polls, which the server alone knows; and what the time of day decides."""
    field = event.WhichOneof("attributes") or ""
    if field.endswith("_task_started_event_attributes"):
        getattr(event, field).ClearField("request_id")
    started = event.workflow_execution_started_event_attributes
    if started.cron_schedule:
        started.ClearField("first_workflow_task_backoff")


def message_lines(message: Message, names: Names, path: str = "") -> Iterator[str]:
    """One line per leaf of a message: its path and its value."""
    for field, value in message.ListFields():
        if field.name in _DROPPED:
            continue
        inner = f"{path}.{field.name}" if path else field.name
        yield from field_lines(field, value, inner, names)


def field_lines(field: FieldDescriptor, value: Any, path: str, names: Names) -> Iterator[str]:
    """The lines of one field, which may be repeated or a map."""
    if field.name in _MASKED:
        yield f"{path}: <{field.name}>"
    elif _is_map(field):
        for key in sorted(value):
            yield from value_lines(field, value[key], f"{path}[{key}]", names)
    elif field.is_repeated:
        ordered = sorted(value) if field.name in _UNORDERED else value
        for index, one in enumerate(ordered):
            yield from value_lines(field, one, f"{path}[{index}]", names)
    else:
        yield from value_lines(field, value, path, names)


def value_lines(field: FieldDescriptor, value: Any, path: str, names: Names) -> Iterator[str]:
    """The lines of one value."""
    if isinstance(value, Timestamp) and value.seconds <= 0:
        return  # none
    if isinstance(value, Timestamp):
        yield f"{path}: <time>"
    elif isinstance(value, Duration):
        yield f"{path}: {value.ToTimedelta().total_seconds():g}s"
    elif isinstance(value, Payload):
        yield f"{path}: {payload_text(value, names)}"
    elif isinstance(value, Message):
        yield from message_lines(value, names, path)  # nothing set: as good as absent
    elif field.enum_type is not None and field.message_type is None:
        found = field.enum_type.values_by_number.get(value)
        yield f"{path}: {found.name if found else value}"
    elif isinstance(value, str):
        text = json.dumps(names.mask(value, field.name), ensure_ascii=False)
        yield f"{path}: {text}"
    else:
        yield f"{path}: {value!r}"


def payload_text(payload: Payload, names: Names) -> str:
    """A payload's encoding and its content, other metadata behind."""
    metadata = {key: bytes(value).decode() for key, value in payload.metadata.items()}
    encoding = metadata.pop("encoding", "")
    data = names.mask(payload.data.decode(errors="replace"), "payload")
    data = _TIMES.sub(r'"\1":<time>', data)
    if len(data) > 200:
        data = f"{data[:40]}… {len(data)} characters"
    rest = "".join(f" {key}={value}" for key, value in sorted(metadata.items()))
    return f"{encoding} {data}{rest}"


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


# --- errors -------------------------------------------------------------------------------------


def error_lines(error: BaseException, names: Names) -> Iterator[str]:
    """An error as a client sees it, with its causes."""
    seen: BaseException | None = error
    indent = ""
    while seen is not None:
        yield f"{indent}{names.mask(_headline(seen), 'id')}"
        if isinstance(seen, RPCError):
            for line in _detail_lines(seen, names):
                yield f"{indent}  {line}"
        seen = seen.__cause__ if isinstance(seen, FailureError | WorkflowFailureError) else None
        indent += "  "


def _headline(error: BaseException) -> str:
    if isinstance(error, RPCError):
        return f"RPCError {error.status.name}: {error.message}"
    words = [type(error).__name__, repr(str(error))]
    for name in ("type", "non_retryable", "details", "retry_state", "activity_type", "activity_id",
                 "workflow_type", "workflow_id", "last_heartbeat_details", "reason"):  # fmt: skip
        value = getattr(error, name, None)
        if value not in (None, (), [], False):
            words.append(f"{name}={value!r}")
    return " ".join(words)


def _detail_lines(error: RPCError, names: Names) -> Iterator[str]:
    for packed in error.grpc_status.details:
        name = packed.type_url.rpartition("/")[2]
        kind = getattr(errordetails.v1, name.rpartition(".")[2], None)
        if not name.startswith("temporal.api.errordetails.v1.") or kind is None:
            yield f"detail {name}"
            continue
        detail = kind()
        packed.Unpack(detail)
        yield f"detail {name.rpartition('.')[2]}"
        for line in message_lines(detail, names):
            yield f"  {line}"
