"""Search attributes: types, values and limits."""

from __future__ import annotations

import json
import math

import pytest
from temporalio.api.common.v1 import Payload, SearchAttributes

from perdure.api.errors import InvalidArgument
from perdure.service import search_attributes
from perdure.service.search_attributes import (
    BOOL,
    DATETIME,
    DOUBLE,
    INT,
    KEYWORD,
    KEYWORD_LIST,
    TEXT,
)
from perdure.service.settings import Settings


def payload(value: object, kind: str = "") -> Payload:
    made = Payload(data=json.dumps(value).encode())
    made.metadata["encoding"] = b"json/plain"
    if kind:
        made.metadata["type"] = kind.encode()
    return made


def attributes(**fields: Payload) -> SearchAttributes:
    return SearchAttributes(indexed_fields=fields)


@pytest.mark.parametrize(
    ("value", "wanted", "plain"),
    [
        ("x", KEYWORD, "x"),
        ("Two words", TEXT, ["two", "words"]),
        (7, INT, 7),
        (7, DOUBLE, 7.0),
        (1.5, DOUBLE, 1.5),
        (True, BOOL, True),
        (["a", "b"], KEYWORD_LIST, ["a", "b"]),
        ("a", KEYWORD_LIST, ["a"]),
        (["x"], KEYWORD, "x"),
        ("1970-01-01T00:00:01Z", DATETIME, 1_000_000_000),
        ("1970-01-01T01:00:00.000000001+01:00", DATETIME, 1),
        ("1970-01-01T00:00:00.5Z", DATETIME, 500_000_000),
        ("9999-12-31T23:59:59.999999999Z", DATETIME, (1 << 63) - 1),
        ("0001-01-01T00:00:00Z", DATETIME, -(1 << 63)),
        (None, INT, None),
        ([], KEYWORD_LIST, None),
    ],
)
def test_a_value_is_read_by_its_type(value: object, wanted: int, plain: object) -> None:
    found = search_attributes.decode("A", payload(value), wanted)
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("x", INT),
        (1, KEYWORD),
        (True, INT),
        (1, BOOL),
        (1.5, INT),
        (1 << 63, INT),
        ("yesterday", DATETIME),
        ("2024-01-01T00:00:00", DATETIME),
        (["a", 1], KEYWORD_LIST),
        (["a", "b"], KEYWORD),
        (math.nan, DOUBLE),
        (-math.inf, DOUBLE),
        (10**400, DOUBLE),
        ({"a": 1}, KEYWORD),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_type(value: object, wanted: int) -> None:
    with pytest.raises(InvalidArgument, match="search attribute A of type") as caught:
        search_attributes.decode("A", payload(value), wanted)
    assert search_attributes.type_name(wanted) in caught.value.message


def test_a_number_that_overflows_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="attribute A of type Double: 1e400"):
        search_attributes.decode("A", Payload(data=b"1e400"), DOUBLE)


def test_a_wrong_type_names_the_given_one() -> None:
    with pytest.raises(InvalidArgument, match=r"Num of type Int: \"x\" \(given as Keyword\)"):
        search_attributes.decode("Num", payload("x", "Keyword"), INT)


def test_an_encrypted_value_is_refused() -> None:
    sealed = Payload(metadata={"encoding": b"binary/encrypted"}, data=b"\0\1")
    with pytest.raises(InvalidArgument):
        search_attributes.decode("A", sealed, KEYWORD)


def test_unknown_attributes_are_registered_by_declared_type_or_value() -> None:
    wanted = attributes(
        T=payload("x", "Text"),
        K=payload("x"),
        N=payload(3),
        F=payload(0.5),
        B=payload(False),
        L=payload(["a"], "INDEXED_VALUE_TYPE_KEYWORD_LIST"),
        D=payload("2024-01-01T00:00:00Z", "Datetime"),
        Nothing=payload(None),
        TemporalChangeVersion=payload(["v1"]),
    )
    found = search_attributes.check(wanted, {}, "default", Settings())
    assert found == {
        "T": TEXT, "K": KEYWORD, "N": INT, "F": DOUBLE, "B": BOOL, "L": KEYWORD_LIST, "D": DATETIME,
    }  # fmt: skip


def test_without_auto_registration_unknown_attributes_are_refused() -> None:
    settings = Settings(auto_register_search_attributes=False)
    with pytest.raises(InvalidArgument, match=r"Namespace prod has no mapping .* attribute New"):
        search_attributes.check(attributes(New=payload("x")), {}, "prod", settings)


def test_system_attributes_cannot_be_set() -> None:
    with pytest.raises(InvalidArgument, match="WorkflowId attribute can't be set"):
        search_attributes.check(attributes(WorkflowId=payload("x")), {}, "n", Settings())


def test_limits_on_count_size_and_total() -> None:
    many = attributes(**{f"A{n}": payload(1) for n in range(101)})
    with pytest.raises(InvalidArgument, match="101 exceeds limit 100"):
        search_attributes.check(many, {}, "n", Settings())
    with pytest.raises(InvalidArgument, match="A value size 3002 exceeds size limit 2048"):
        search_attributes.check(attributes(A=payload("x" * 3000)), {}, "n", Settings())
    large = attributes(**{f"A{n}": payload("x" * 2000) for n in range(25)})
    with pytest.raises(InvalidArgument, match="total size"):
        search_attributes.check(large, {}, "n", Settings())


def test_a_namespace_has_room_for_so_many() -> None:
    full = {f"A{n}": int(KEYWORD) for n in range(Settings().custom_search_attributes_max)}
    with pytest.raises(InvalidArgument, match="cannot have more than"):
        search_attributes.check(attributes(One=payload(1)), full, "n", Settings())
    assert search_attributes.check(attributes(A1=payload("x")), full, "n", Settings()) == {}


@pytest.mark.parametrize("name", ["", "a`b", "line\nbreak", "x" * 256])
def test_names_that_no_filter_could_spell_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        search_attributes.check_name(name)


def test_plain_values_leave_out_what_is_unset_unknown_or_changed() -> None:
    given = attributes(A=payload("x"), B=payload(None), C=payload("x"), D=payload("y"))
    assert search_attributes.values(given, {"A": KEYWORD, "B": INT, "D": INT}) == {"A": "x"}
