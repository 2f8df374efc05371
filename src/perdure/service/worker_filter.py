"""The filter of worker lists: the grammar of the run filter, over what heartbeats say."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from temporalio.api.enums.v1 import IndexedValueType, WorkerStatus
from temporalio.api.worker.v1 import WorkerHeartbeat

from perdure.api.errors import InvalidArgument
from perdure.api.times import timestamp_ns
from perdure.service.filter_grammar import translate
from perdure.store.query import (
    And,
    Column,
    Compare,
    Condition,
    Custom,
    Field,
    In,
    IsNull,
    Not,
    Or,
    Scalar,
    StartsWith,
)

_KEYWORD: Final = int(IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
_DATETIME: Final = int(IndexedValueType.INDEXED_VALUE_TYPE_DATETIME)
_OPERATORS: Final[Mapping[str, Callable[[Scalar, Scalar], bool]]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def _status(beat: WorkerHeartbeat) -> str:
    known = WorkerStatus.DESCRIPTOR.values_by_number.get(beat.status)
    return known.name if known is not None else ""


_ATTRIBUTES: Final[Mapping[str, Callable[[WorkerHeartbeat], Scalar]]] = {
    "WorkerInstanceKey": lambda beat: beat.worker_instance_key,
    "WorkerIdentity": lambda beat: beat.worker_identity,
    "HostName": lambda beat: beat.host_info.host_name,
    "TaskQueue": lambda beat: beat.task_queue,
    "DeploymentName": lambda beat: beat.deployment_version.deployment_name,
    "BuildId": lambda beat: beat.deployment_version.build_id,
    "SdkName": lambda beat: beat.sdk_name,
    "SdkVersion": lambda beat: beat.sdk_version,
    "StartTime": lambda beat: timestamp_ns(beat.start_time),
    "HeartbeatTime": lambda beat: timestamp_ns(beat.heartbeat_time),
    "WorkerStatus": _status,
    "Status": _status,
}
_BUILT_IN: Final = {Column.TASK_QUEUE: "TaskQueue", Column.START: "StartTime"}
_TYPES: Final = {
    name: _DATETIME if name == "HeartbeatTime" else _KEYWORD
    for name in _ATTRIBUTES
    if name not in _BUILT_IN.values()
}

Test = Callable[[WorkerHeartbeat], bool]


def parsed(text: str, now_ns: int) -> Test:
    """What a filter lets pass.

    Raises:
        InvalidArgument: it cannot be understood, or names something that workers do not have.
    """
    where, order, groups = translate(text, _TYPES, now_ns)
    if order or groups or where is None:
        raise InvalidArgument("invalid filter: workers can be filtered, not ordered or grouped")
    for name in _named(where):
        if name not in _ATTRIBUTES:
            known = ", ".join(_ATTRIBUTES)
            raise InvalidArgument(f"invalid filter: workers have no {name}, but {known}")
    return partial(_holds, where)


def _named(condition: Condition) -> list[str]:
    """The attributes that a condition names."""
    if isinstance(condition, And | Or):
        return [name for term in condition.terms for name in _named(term)]
    if isinstance(condition, Not):
        return _named(condition.term)
    return [_name(condition.field)]


def _name(field: Field) -> str:
    return field.name if isinstance(field, Custom) else _BUILT_IN.get(field, str(field.name))


def _holds(condition: Condition, beat: WorkerHeartbeat) -> bool:
    if isinstance(condition, And):
        return all(_holds(term, beat) for term in condition.terms)
    if isinstance(condition, Or):
        return any(_holds(term, beat) for term in condition.terms)
    if isinstance(condition, Not):
        return not _holds(condition.term, beat)
    value = _ATTRIBUTES[_name(condition.field)](beat)
    if isinstance(condition, IsNull):
        return not value
    if isinstance(condition, StartsWith):
        return str(value).startswith(condition.prefix)
    if isinstance(condition, In):
        return value in condition.values
    assert isinstance(condition, Compare)
    return _OPERATORS[condition.op](value, condition.value)
