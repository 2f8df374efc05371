"""Search attributes: which exist, what type each has, and what a payload holds.

A namespace knows its custom attributes by name and type. What a start or an upsert sets is checked
here, before anything is stored, and turned into the plain values that the store's filters compare.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from temporalio.api.common.v1 import Payload, SearchAttributes
from temporalio.api.enums.v1 import IndexedValueType

from perdure.api.errors import InvalidArgument
from perdure.api.times import timedelta_ns, within_64_bits
from perdure.service.settings import Settings
from perdure.store.query import Custom, Kind

Value = str | int | float | bool | list[str]

TEXT = IndexedValueType.INDEXED_VALUE_TYPE_TEXT
KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
INT = IndexedValueType.INDEXED_VALUE_TYPE_INT
DOUBLE = IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE
BOOL = IndexedValueType.INDEXED_VALUE_TYPE_BOOL
DATETIME = IndexedValueType.INDEXED_VALUE_TYPE_DATETIME
KEYWORD_LIST = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST

NAMES: dict[int, str] = {
    TEXT: "Text",
    KEYWORD: "Keyword",
    INT: "Int",
    DOUBLE: "Double",
    BOOL: "Bool",
    DATETIME: "Datetime",
    KEYWORD_LIST: "KeywordList",
}
_BY_NAME = {name: number for number, name in NAMES.items()} | {
    IndexedValueType.Name(number): number  # type: ignore[arg-type]
    for number in NAMES
}

BUILT_IN: dict[str, int] = {
    "WorkflowId": KEYWORD,
    "RunId": KEYWORD,
    "WorkflowType": KEYWORD,
    "TaskQueue": KEYWORD,
    "ExecutionStatus": KEYWORD,
    "StartTime": DATETIME,
    "ExecutionTime": DATETIME,
    "CloseTime": DATETIME,
    "ExecutionDuration": INT,
    "HistoryLength": INT,
    "HistorySizeBytes": INT,
    "StateTransitionCount": INT,
    "ParentWorkflowId": KEYWORD,
    "ParentRunId": KEYWORD,
    "RootWorkflowId": KEYWORD,
    "RootRunId": KEYWORD,
}
"""Kept by the system from the run itself; nobody may set them."""

PAUSE_INFO: Final = "TemporalPauseInfo"

PREDEFINED: dict[str, int] = {
    "BatcherUser": KEYWORD,
    "BuildIds": KEYWORD_LIST,
    "TemporalChangeVersion": KEYWORD_LIST,
    "TemporalNamespaceDivision": KEYWORD,
    PAUSE_INFO: KEYWORD_LIST,
    "TemporalReportedProblems": KEYWORD_LIST,
    "TemporalSchedulePaused": BOOL,
    "TemporalScheduledById": KEYWORD,
    "TemporalScheduledStartTime": DATETIME,
    "TemporalUsedWorkerDeploymentVersions": KEYWORD_LIST,
    "TemporalWorkerDeployment": KEYWORD,
    "TemporalWorkerDeploymentVersion": KEYWORD,
    "TemporalWorkflowVersioningBehavior": KEYWORD,
}
"""Defined in every namespace; SDKs and the system set them."""

_INT64 = 1 << 63


_KINDS: Final[dict[int, Kind]] = {TEXT: Kind.LIST, KEYWORD_LIST: Kind.LIST, KEYWORD: Kind.TEXT}


def kind_of(number: int) -> Kind:
    """What the plain values of a type are; a text is its words."""
    return _KINDS.get(number, Kind.NUMBER)


def by_use(registered: Iterable[Mapping[str, int]]) -> list[Custom]:
    """The custom attributes of some namespaces; first those that most of them have."""
    uses = Counter(
        Custom(name, kind_of(number)) for types in registered for name, number in types.items()
    )
    return sorted(uses, key=lambda found: (-uses[found], found.name, found.kind))


def type_name(number: int) -> str:
    """The type as metadata and messages spell it: Keyword, Text, Int, …"""
    return NAMES.get(number, "Unspecified")


def declared_type(payload: Payload) -> int:
    """The type that a payload's metadata declares; 0 when it declares none."""
    return _BY_NAME.get(payload.metadata.get("type", b"").decode("utf-8", "replace"), 0)


def type_of(payload: Payload) -> int:
    """The type under which an unknown attribute is registered: the declared one, else the value's.

    0 when the value is null or of no indexable kind.
    """
    declared = declared_type(payload)
    if declared:
        return declared
    match _json(payload):
        case bool():
            return BOOL
        case int():
            return INT
        case float():
            return DOUBLE
        case str():
            return KEYWORD
        case [*items] if items and all(isinstance(item, str) for item in items):
            return KEYWORD_LIST
        case _:
            return 0


def decode(name: str, payload: Payload, wanted: int) -> Value | None:
    """The plain value in a payload; None for null or an empty list, which unset the attribute.

    Raises:
        InvalidArgument: the value is not of the attribute's type.
    """
    try:
        value = _json(payload)
    except ValueError:
        raise _wrong(name, payload, wanted) from None
    if value is None or value == []:
        return None
    if wanted != KEYWORD_LIST and isinstance(value, list) and len(value) == 1:
        value = value[0]  # older SDKs wrap every value in a list
    plain = _convert(value, wanted)
    if plain is None:
        raise _wrong(name, payload, wanted)
    return plain


_BROKEN: Final = re.compile("[\0\ud800-\udfff]")


def _json(payload: Payload) -> object:
    encoding = payload.metadata.get("encoding", b"json/plain")
    if encoding == b"binary/null" or not payload.data:
        return None
    if encoding != b"json/plain":
        raise ValueError(encoding)
    return json.loads(payload.data)


def _convert(value: object, wanted: int) -> Value | None:
    match value:
        case bool():
            return value if wanted == BOOL else None
        case int() if wanted == INT:
            return value if -_INT64 <= value < _INT64 else None
        case int() | float() if wanted == DOUBLE:
            return _finite(value)
        case str() if wanted == KEYWORD:
            return value if _is_whole(value) else None
        case str() if wanted == TEXT:
            return words(value)
        case str() if wanted == KEYWORD_LIST:
            return [value] if _is_whole(value) else None
        case str() if wanted == DATETIME:
            return _datetime_ns(value)
        case [*items] if wanted == KEYWORD_LIST and all(map(_is_whole, items)):
            return [str(item) for item in items]
        case _:
            return None


def _finite(value: float) -> float | None:
    """None for what is no number, or too large for one: JSON has neither, nor have databases."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_whole(value: object) -> bool:
    """Text that databases can keep: no NUL character, and no half of a pair of surrogates."""
    return isinstance(value, str) and not _BROKEN.search(value)


def words(text: str) -> list[str]:
    """What a text is found by: its words, whatever their case."""
    return re.findall(r"\w+", text.lower())


def _datetime_ns(text: str) -> int | None:
    """RFC 3339 to nanoseconds since the epoch, keeping up to nine decimals.

    Far times are cut to 64 bits, and so are those in filters, which find them by that.
    """
    head, dot, tail = text.partition(".")
    digits = tail[: len(tail) - len(tail.lstrip("0123456789"))] if dot else ""
    try:
        moment = datetime.fromisoformat(head + tail[len(digits) :] if dot else text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    since = moment - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return within_64_bits(timedelta_ns(since) + int(digits[:9].ljust(9, "0")))


def _wrong(name: str, payload: Payload, wanted: int) -> InvalidArgument:
    shown = payload.data.decode("utf-8", "replace")[:100]
    given = declared_type(payload)
    as_given = f" (given as {type_name(given)})" if given and given != wanted else ""
    return InvalidArgument(
        f"invalid value for search attribute {name} of type {type_name(wanted)}: {shown}{as_given}"
    )


def values(attributes: SearchAttributes, types: Mapping[str, int]) -> dict[str, Value]:
    """The plain values of checked attributes; unset and unknown ones are left out."""
    plain: dict[str, Value] = {}
    for name, payload in attributes.indexed_fields.items():
        wanted = types.get(name) or PREDEFINED.get(name)
        if not wanted:
            continue  # registered once, removed since
        try:
            value = decode(name, payload, wanted)
        except InvalidArgument:
            continue  # the attribute was removed and added again with another type
        if value is not None:
            plain[name] = value
    return plain


def check(
    attributes: SearchAttributes, types: Mapping[str, int], namespace: str, settings: Settings
) -> dict[str, int]:
    """Whether a run may have these attributes; each is marked with its type, for who reads them.

    Args:
        attributes: what a start or an upsert sets.
        types: the custom attributes of the namespace.
        namespace: its name, for messages.
        settings: the limits, and whether unknown attributes are welcome.

    Returns:
        The attributes to register first, by type.

    Raises:
        InvalidArgument: an unknown or reserved name, a wrong type, or a limit exceeded.
    """
    fields = attributes.indexed_fields
    if len(fields) > settings.search_attributes_max:
        raise InvalidArgument(
            f"number of search attributes {len(fields)} exceeds limit "
            f"{settings.search_attributes_max}"
        )
    unknown: dict[str, int] = {}
    total_size_bytes = 0
    for name, payload in fields.items():
        if name in BUILT_IN:
            raise InvalidArgument(f"{name} attribute can't be set in SearchAttributes")
        size_bytes = len(payload.data)
        if size_bytes > settings.search_attribute_bytes_max:
            raise InvalidArgument(
                f"search attribute {name} value size {size_bytes} exceeds size limit "
                f"{settings.search_attribute_bytes_max}"
            )
        total_size_bytes += len(name) + size_bytes
        wanted = types.get(name) or PREDEFINED.get(name)
        if not wanted:
            register = settings.auto_register_search_attributes
            wanted = _new_type(name, payload, namespace, register=register)
            if not wanted:
                continue
            unknown[name] = wanted
        decode(name, payload, wanted)
        payload.metadata["type"] = type_name(wanted).encode()
    if total_size_bytes > settings.search_attributes_bytes_max:
        raise InvalidArgument(
            f"total size of search attributes {total_size_bytes} exceeds size limit "
            f"{settings.search_attributes_bytes_max}"
        )
    check_room(types, unknown, settings)
    return unknown


def _new_type(name: str, payload: Payload, namespace: str, *, register: bool) -> int:
    if not register:
        raise InvalidArgument(
            f"Namespace {namespace} has no mapping defined for search attribute {name}"
        )
    check_name(name)
    try:
        wanted = type_of(payload)
    except ValueError:
        wanted = 0
    if not wanted and payload.data not in {b"", b"null", b"[]"}:
        raise InvalidArgument(
            f"search attribute {name} is not registered, and its value has no indexable type"
        )
    return wanted


def check_name(name: str) -> None:
    """Raises InvalidArgument for a name that a filter could not spell or that is reserved."""
    if name in BUILT_IN or name in PREDEFINED:
        raise InvalidArgument(f"Search attribute {name} is reserved by system.")
    if not name or len(name.encode()) > 255 or not name.isprintable() or "`" in name:
        raise InvalidArgument(
            f"search attribute name {name!r} must be 1 to 255 bytes of printable text "
            "without backticks"
        )


def check_room(types: Mapping[str, int], more: Iterable[str], settings: Settings) -> None:
    """Raises InvalidArgument when a namespace would have too many custom attributes."""
    count = len(types) + sum(name not in types for name in more)
    limit = settings.custom_search_attributes_max
    if count > limit:
        raise InvalidArgument(f"a namespace cannot have more than {limit} custom search attributes")
