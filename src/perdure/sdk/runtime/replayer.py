"""Would this code still replay that history?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import History, HistoryEvent

from perdure.sdk.converter import Converter
from perdure.sdk.runtime import guards
from perdure.sdk.runtime.processor import make_settings
from perdure.sdk.runtime.run import Run

if TYPE_CHECKING:
    from perdure.sdk.interceptors import WorkflowInterceptor

_STARTED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED


def replay(
    history: History | str | bytes | Mapping[str, Any],
    workflows: Iterable[Any],
    *,
    converter: Converter | None = None,
    interceptors: Sequence[WorkflowInterceptor] = (),
    workflow_id: str = "",
    run_id: str = "",
) -> None:
    """Execute a workflow's code against a recorded history, and compare.

    Args:
        history: as messages, or the JSON that Temporal's tools export, as text or parsed.
        workflows: decorated functions and classes; the history's type must be among them.
        workflow_id, run_id: default: as the history's first event tells.

    Raises:
        NonDeterminismError: the code did not do what the history holds; the message shows both.
        UnknownTypeError: the workflow's type is not among `workflows`.
        ValueError: this is no history.
        Exception: what the code raised and would fail its workflow task.

    Example:
        >>> replay(Path("history.json").read_text(), [checkout])
    """
    guards.arm()
    parsed = history if isinstance(history, History) else parse_history(history)
    if not parsed.events or parsed.events[0].event_type != _STARTED:
        raise ValueError("history: the first event must be WorkflowExecutionStarted")
    started = parsed.events[0].workflow_execution_started_event_attributes
    settings = make_settings(
        workflows,
        converter=converter or Converter(),
        namespace="default",
        task_queue=started.task_queue.name,
        interceptors=interceptors,
    )
    run = Run(
        settings,
        started.workflow_type.name,
        workflow_id or started.workflow_id or "replayed",
        run_id or started.original_execution_run_id or "replayed",
    )
    try:
        run.advance(_contiguous(parsed.events), 0, ())
    finally:
        run.evict()


def _contiguous(events: Sequence[HistoryEvent]) -> Sequence[HistoryEvent]:
    for index, event in enumerate(events):
        if event.event_id != index + 1:
            raise ValueError(
                f"history: event {index + 1} is missing, after it comes event {event.event_id}"
            )
    return events


# --- JSON -----------------------------------------------------------------------------------------


def parse_history(source: str | bytes | Mapping[str, Any]) -> History:
    """A history from the JSON that ``temporal workflow show --output json`` and others write.

    Enum values may be written in either of the two forms that were in use
    (``EVENT_TYPE_TIMER_FIRED`` and ``TimerFired``).

    Raises:
        ValueError: this is no history; the message says where.
    """
    if isinstance(source, Mapping):
        data: Any = dict(source)
    else:
        try:
            data = json.loads(source)
        except ValueError as error:
            raise ValueError(f"history: not JSON: {error}") from error
    if isinstance(data, list):
        data = {"events": data}
    if isinstance(data, dict) and "events" not in data and "history" in data:
        data = data["history"]
    if not isinstance(data, dict) or not isinstance(data.get("events"), list):
        raise ValueError('history: an object with a list "events" is expected')
    mended = _mend(data, History.DESCRIPTOR)
    try:
        return json_format.ParseDict(mended, History(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(f"history: {error}") from error


def _mend(value: Any, kind: Descriptor) -> Any:
    """The JSON with every enum value in the form that protobuf knows."""
    if not isinstance(value, dict) or kind.full_name.startswith("google.protobuf."):
        return value
    by_name = {**kind.fields_by_camelcase_name, **kind.fields_by_name}
    mended = {}
    for name, inner in value.items():
        field = by_name.get(name)
        if field is not None and field.enum_type is not None:
            inner = _each(inner, lambda v, e=field.enum_type: _enum_value(v, e))
        elif field is not None and field.message_type is not None:
            inner = _mend_field(inner, field.message_type)
        mended[name] = inner
    return mended


def _mend_field(value: Any, kind: Descriptor) -> Any:
    if not kind.GetOptions().map_entry:
        return _each(value, lambda v: _mend(v, kind))
    element = kind.fields_by_name["value"].message_type
    if element is None or not isinstance(value, dict):
        return value
    return {key: _mend(inner, element) for key, inner in value.items()}


def _each(value: Any, function: Any) -> Any:
    return [function(item) for item in value] if isinstance(value, list) else function(value)


def _enum_value(value: Any, kind: EnumDescriptor) -> Any:
    """`TimerFired` as `EVENT_TYPE_TIMER_FIRED`; what is known already, and numbers, as they are."""
    if not isinstance(value, str) or value in kind.values_by_name:
        return value
    squeezed = value.replace("_", "").lower()
    for name in kind.values_by_name:
        if name.replace("_", "").lower().endswith(squeezed):
            full = name.replace("_", "").lower()
            if full == kind.name.lower() + squeezed or full == squeezed:
                return name
    return value


def to_json(history: History) -> str:
    """A history as Temporal's tools export it."""
    return json_format.MessageToJson(history, indent=2)
