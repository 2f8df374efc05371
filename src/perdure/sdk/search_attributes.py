"""Search attributes: typed values of a run that list filters can use.

    CUSTOMER = SearchAttributeKey.keyword("CustomerId")
    TOTAL = SearchAttributeKey.int("TotalCents")

    await client.start(checkout, order, search_attributes=SearchAttributes({CUSTOMER: "c-7"}))
    async for run in client.list("CustomerId = 'c-7'"):
        print(run.search_attributes.get(TOTAL))

Where search attributes are passed, a plain mapping from names to values serves too; the type is
then taken from the value.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Generic, TypeVar, overload

import msgspec
from temporalio.api.common.v1 import Payload
from temporalio.api.common.v1 import SearchAttributes as SearchAttributesMessage

from perdure.sdk.errors import ConversionError

__all__ = ["AnyAttributes", "SearchAttributeKey", "SearchAttributeType", "SearchAttributes"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")


class SearchAttributeType(IntEnum):
    """Kinds of search attributes, with the API's numbers."""

    TEXT = 1
    KEYWORD = 2
    INT = 3
    DOUBLE = 4
    BOOL = 5
    DATETIME = 6
    KEYWORD_LIST = 7

    @property
    def api_name(self) -> str:
        """The name in a payload's metadata."""
        return _API_NAMES[self]


_API_NAMES = {
    SearchAttributeType.TEXT: "Text",
    SearchAttributeType.KEYWORD: "Keyword",
    SearchAttributeType.INT: "Int",
    SearchAttributeType.DOUBLE: "Double",
    SearchAttributeType.BOOL: "Bool",
    SearchAttributeType.DATETIME: "Datetime",
    SearchAttributeType.KEYWORD_LIST: "KeywordList",
}
_BY_API_NAME = {name: kind for kind, name in _API_NAMES.items()}

_PYTHON_TYPES: dict[SearchAttributeType, Any] = {
    SearchAttributeType.TEXT: str,
    SearchAttributeType.KEYWORD: str,
    SearchAttributeType.INT: int,
    SearchAttributeType.DOUBLE: float,
    SearchAttributeType.BOOL: bool,
    SearchAttributeType.DATETIME: datetime,
    SearchAttributeType.KEYWORD_LIST: list[str],
}


@dataclass(frozen=True, slots=True)
class SearchAttributeKey(Generic[T_co]):
    """Name and type of a search attribute. Make one with a class method, once, and share it."""

    name: str
    type: SearchAttributeType

    @classmethod
    def text(cls, name: str) -> SearchAttributeKey[str]:
        """Words that are searched for one by one."""
        return SearchAttributeKey(name, SearchAttributeType.TEXT)

    @classmethod
    def keyword(cls, name: str) -> SearchAttributeKey[str]:
        """A string that is compared as a whole."""
        return SearchAttributeKey(name, SearchAttributeType.KEYWORD)

    @classmethod
    def keyword_list(cls, name: str) -> SearchAttributeKey[list[str]]:
        """Several strings, each compared as a whole."""
        return SearchAttributeKey(name, SearchAttributeType.KEYWORD_LIST)

    @classmethod
    def bool(cls, name: str) -> SearchAttributeKey[builtins.bool]:
        """True or false."""
        return SearchAttributeKey(name, SearchAttributeType.BOOL)

    @classmethod
    def datetime(cls, name: str) -> SearchAttributeKey[datetime]:
        """A moment; one without a time zone is refused."""
        return SearchAttributeKey(name, SearchAttributeType.DATETIME)

    @classmethod
    def float(cls, name: str) -> SearchAttributeKey[builtins.float]:
        """A floating-point number."""
        return SearchAttributeKey(name, SearchAttributeType.DOUBLE)

    @classmethod
    def int(cls, name: str) -> SearchAttributeKey[builtins.int]:
        """A whole number of 64 bits."""
        return SearchAttributeKey(name, SearchAttributeType.INT)


AnyAttributes = Mapping[SearchAttributeKey[Any], Any] | Mapping[str, Any]


class SearchAttributes(Mapping[SearchAttributeKey[Any], Any]):
    """Search attributes by their keys. Immutable.

    Args:
        values: by key, or by name with the type taken from the value; None values stand for
            "remove this attribute" in an upsert and are left out otherwise.

    Raises:
        ConversionError: naming the attribute whose value does not fit its type.
    """

    def __init__(self, values: AnyAttributes | None = None) -> None:
        self._values: dict[SearchAttributeKey[Any], Any] = {}
        for key, value in (values or {}).items():
            typed = key if isinstance(key, SearchAttributeKey) else _guessed(key, value)
            _check(typed, value)
            self._values[typed] = value

    @overload
    def __getitem__(self, key: SearchAttributeKey[T]) -> T: ...

    @overload
    def __getitem__(self, key: str) -> Any: ...

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return next(v for k, v in self._values.items() if k.name == key)
        return self._values[key]

    @overload
    def get(self, key: SearchAttributeKey[T], default: None = None) -> T | None: ...

    @overload
    def get(self, key: SearchAttributeKey[T], default: D) -> T | D: ...

    @overload
    def get(self, key: str, default: Any = None) -> Any: ...

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key or a name, else the default."""
        if isinstance(key, str):
            return next((v for k, v in self._values.items() if k.name == key), default)
        return self._values.get(key, default)

    def __iter__(self) -> Iterator[SearchAttributeKey[Any]]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"SearchAttributes({self.by_name()!r})"

    def by_name(self) -> dict[str, Any]:
        """Values by the attributes' names."""
        return {key.name: value for key, value in self._values.items()}

    # --- messages -----------------------------------------------------------------------------

    def fill(self, message: SearchAttributesMessage) -> None:
        """Write these attributes into a message; a None value becomes a removal."""
        for key, value in self._values.items():
            message.indexed_fields[key.name].CopyFrom(_payload(key, value))

    @classmethod
    def from_message(cls, message: SearchAttributesMessage) -> SearchAttributes:
        """The attributes that a message holds; those of unknown types by their JSON value."""
        attributes = cls()
        for name, payload in sorted(message.indexed_fields.items()):
            key, value = _read(name, payload)
            if value is not None:
                attributes._values[key] = value
        return attributes


def of(attributes: AnyAttributes) -> SearchAttributes:
    """Attributes given by key or by name, as `SearchAttributes`."""
    return attributes if isinstance(attributes, SearchAttributes) else SearchAttributes(attributes)


def _payload(key: SearchAttributeKey[Any], value: Any) -> Payload:
    metadata = {"encoding": b"json/plain", "type": key.type.api_name.encode()}
    return Payload(metadata=metadata, data=msgspec.json.encode(value))


def _read(name: str, payload: Payload) -> tuple[SearchAttributeKey[Any], Any]:
    kind = _BY_API_NAME.get(payload.metadata["type"].decode("utf-8", "replace"))
    try:
        if kind is None:
            value = msgspec.json.decode(payload.data) if payload.data else None
            return _guessed(name, value), value
        value = msgspec.json.decode(payload.data) if payload.data else None
        if isinstance(value, list) and kind is not SearchAttributeType.KEYWORD_LIST:
            value = value[0] if len(value) == 1 else value
        if value is not None and not isinstance(value, list):
            value = msgspec.convert(value, _PYTHON_TYPES[kind])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConversionError(f"search attribute {name!r}: {error}", argument=name) from error
    return SearchAttributeKey(name, kind), value


def _guessed(name: str, value: Any) -> SearchAttributeKey[Any]:
    """The key for a value whose attribute was given by name only."""
    kinds: Sequence[tuple[Any, SearchAttributeType]] = (
        (bool, SearchAttributeType.BOOL),
        (int, SearchAttributeType.INT),
        (float, SearchAttributeType.DOUBLE),
        (datetime, SearchAttributeType.DATETIME),
        ((list, tuple), SearchAttributeType.KEYWORD_LIST),
    )
    for python_type, kind in kinds:
        if isinstance(value, python_type):
            return SearchAttributeKey(name, kind)
    return SearchAttributeKey(name, SearchAttributeType.KEYWORD)


def _check(key: SearchAttributeKey[Any], value: Any) -> None:
    if value is None:
        return
    try:
        msgspec.convert(value, _PYTHON_TYPES[key.type])
    except msgspec.ValidationError as error:
        raise ConversionError(
            f"search attribute {key.name!r} ({key.type.api_name}): {error}", argument=key.name
        ) from error
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ConversionError(
            f"search attribute {key.name!r}: {value} has no time zone, e.g. {UTC}",
            argument=key.name,
        )
