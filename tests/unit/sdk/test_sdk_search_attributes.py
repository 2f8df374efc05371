"""Typed search attributes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.common.v1 import SearchAttributes as Message

from perdure.sdk.errors import ConversionError
from perdure.sdk.search_attributes import SearchAttributeKey, SearchAttributes

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)

VALUES: list[tuple[SearchAttributeKey[Any], Any]] = [
    (SearchAttributeKey.text("Text"), "some words"),
    (SearchAttributeKey.keyword("Keyword"), "c-7"),
    (SearchAttributeKey.int("Int"), 7),
    (SearchAttributeKey.float("Float"), 2.5),
    (SearchAttributeKey.bool("Bool"), True),
    (SearchAttributeKey.datetime("Datetime"), NOON),
    (SearchAttributeKey.keyword_list("List"), ["a", "b"]),
]


def there_and_back(attributes: SearchAttributes) -> SearchAttributes:
    message = Message()
    attributes.fill(message)
    return SearchAttributes.from_message(Message.FromString(message.SerializeToString()))


def test_every_type_comes_back() -> None:
    attributes = SearchAttributes(dict(VALUES))
    back = there_and_back(attributes)
    assert dict(back) == dict(VALUES)
    assert back["Int"] == 7
    assert back.get("Missing") is None
    assert back.by_name()["Keyword"] == "c-7"


def test_the_type_of_a_name_is_taken_from_its_value() -> None:
    back = there_and_back(SearchAttributes({key.name: value for key, value in VALUES}))
    kinds = {key.name: key.type.api_name for key in back}
    assert kinds == {
        "Text": "Keyword", "Keyword": "Keyword", "Int": "Int", "Float": "Double", "Bool": "Bool",
        "Datetime": "Datetime", "List": "KeywordList",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (SearchAttributeKey.int("A"), "7"),
        (SearchAttributeKey.keyword("A"), 7),
        (SearchAttributeKey.bool("A"), 1),
        (SearchAttributeKey.keyword_list("A"), "a"),
        (SearchAttributeKey.datetime("A"), datetime(2026, 1, 2)),
    ],
)
def test_a_value_of_another_type_is_refused(key: SearchAttributeKey[Any], value: Any) -> None:
    with pytest.raises(ConversionError, match="'A'"):
        SearchAttributes({key: value})


def test_none_removes() -> None:
    key = SearchAttributeKey.int("A")
    message = Message()
    SearchAttributes({key: None}).fill(message)
    assert message.indexed_fields["A"].data == b"null"
    assert len(SearchAttributes.from_message(message)) == 0


def test_what_another_sdk_wrote_is_read() -> None:
    message = Message()
    message.indexed_fields["A"].CopyFrom(Payload(metadata={"type": b"Int"}, data=b"[7]"))
    message.indexed_fields["B"].CopyFrom(Payload(data=b'"x"'))
    assert SearchAttributes.from_message(message).by_name() == {"A": 7, "B": "x"}
    message.indexed_fields["C"].CopyFrom(Payload(metadata={"type": b"Int"}, data=b"{"))
    with pytest.raises(ConversionError, match="'C'"):
        SearchAttributes.from_message(message)
