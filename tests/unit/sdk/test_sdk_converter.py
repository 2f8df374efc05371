"""Values to payloads and back."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution

from perdure.sdk.converter import Converter, RawValue
from perdure.sdk.errors import ConversionError
from perdure.sdk.signature import Signature

CONVERTER = Converter()
T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: int
    y: float | None = None
    tags: tuple[str, ...] = ()


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Circle:
    radius: float


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    depth: int


class Fast(msgspec.Struct):
    when: datetime
    cost: Decimal


class Model(pydantic.BaseModel):
    size: int
    inner: Model | None = None
    renamed: str = pydantic.Field(default="", alias="re-named")


VALUES: list[tuple[Any, Any]] = [
    (None, None),
    ("text ü 🙂", str),
    (2**80, int),
    (-1.5, float),
    (True, bool),
    (b"\x00\xff", bytes),
    ([1, [2]], list[Any]),
    ({"a": {"b": 1}}, dict[str, Any]),
    ({1: "x"}, dict[int, str]),
    ({1, 2}, set[int]),
    ((1, "x"), tuple[int, str]),
    (Color.RED, Color),
    (Level.HIGH, Level),
    ("fast", Literal["fast", "slow"]),
    (Point(1, 2.5, ("a",)), Point),
    (Box(Point(1)), Box[Point]),
    (Pair(1, "x"), Pair),
    ({"depth": 3}, Options),
    (Fast(datetime(2026, 1, 2, tzinfo=UTC), Decimal("1.10")), Fast),
    (datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), datetime),
    (date(2026, 1, 2), date),
    (timedelta(days=3, microseconds=1), timedelta),
    (uuid.UUID(int=7), uuid.UUID),
    (Decimal("0.1"), Decimal),
    (Path("/tmp/x"), Path),
    (Model(size=1, inner=Model(size=2)), Model),
    ([Model(size=1)], list[Model]),
    ({"m": Model(size=1)}, dict[str, Model]),
    (None, int | None),
    (Point(1), Point | None),
    (Circle(1.0), Point | Circle),
    (Model(size=4), Model | Point),
]


@pytest.mark.parametrize(("value", "type_"), VALUES)
def test_a_value_comes_back_as_it_was(value: Any, type_: Any) -> None:
    payload = CONVERTER.encode(value)
    assert CONVERTER.decode(Payload.FromString(payload.SerializeToString()), type_) == value


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), inner
    ),
    max_leaves=10,
)  # fmt: skip


@given(plain)
def test_plain_data_needs_no_annotation(value: Any) -> None:
    assert CONVERTER.decode(CONVERTER.encode(value)) == value


def test_encodings_are_those_of_other_sdks() -> None:
    found = {
        name: (CONVERTER.encode(value).metadata["encoding"], CONVERTER.encode(value).data)
        for name, value in {"null": None, "bytes": b"x", "text": "x", "point": Point(1)}.items()
    }
    assert found == {
        "null": (b"binary/null", b""),
        "bytes": (b"binary/plain", b"x"),
        "text": (b"json/plain", b'"x"'),
        "point": (b"json/plain", b'{"x":1,"y":null,"tags":[]}'),
    }


@pytest.mark.parametrize("size", [0, 1, 94, 95, 96, 126, 127, 128, 129, 16_383, 16_384, 70_000])
def test_every_size_is_written_right(size: int) -> None:
    text = "x" * size
    payloads = Payloads()
    CONVERTER.fill(payloads, [text, text.encode(), 1])
    assert CONVERTER.decode_all(payloads) == [text, text.encode(), 1]


def test_protobuf_messages_travel_as_json() -> None:
    message = WorkflowExecution(workflow_id="w", run_id="r")
    payload = CONVERTER.encode(message)
    assert payload.metadata["encoding"] == b"json/protobuf"
    assert payload.metadata["messageType"] == b"temporal.api.common.v1.WorkflowExecution"
    assert CONVERTER.decode(payload) == message
    assert CONVERTER.decode(payload, WorkflowExecution) == message


def test_binary_protobuf_is_read() -> None:
    message = Duration(seconds=3)
    metadata = {"encoding": b"binary/protobuf", "messageType": b"google.protobuf.Duration"}
    payload = Payload(metadata=metadata, data=message.SerializeToString())
    assert CONVERTER.decode(payload, Duration) == message
    assert CONVERTER.decode(payload) == message


def test_a_raw_value_is_left_alone() -> None:
    payload = Payload(metadata={"encoding": b"other"}, data=b"?")
    assert CONVERTER.encode(RawValue(payload)) == payload
    assert CONVERTER.decode(payload, RawValue) == RawValue(payload)
    assert CONVERTER.decode_all(Payloads(payloads=[payload]), [RawValue])[0].payload == payload


@pytest.mark.parametrize(
    "value",
    [object(), float("nan"), float("inf"), [1.0, float("nan")], {"a": [float("-inf")]},
     Point(1, float("nan")), "\ud800", 1j, lambda: None],
)  # fmt: skip
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(ConversionError):
        CONVERTER.encode(value)


@pytest.mark.parametrize(
    ("value", "type_", "text"),
    [
        ("x", int, "expected int"),
        ({"x": "no"}, Point, "expected Point.*`int`.*x"),
        (b"x", str, "expected str"),
        ({"size": "big"}, Model, "expected Model"),
        ("blue", Color, "expected Color"),
        ([1], WorkflowExecution, "expected WorkflowExecution"),
    ],
)
def test_what_does_not_fit_its_type_is_refused(value: Any, type_: Any, text: str) -> None:
    with pytest.raises(ConversionError, match=text):
        CONVERTER.decode(CONVERTER.encode(value), type_)


def test_an_unknown_encoding_is_named() -> None:
    with pytest.raises(ConversionError, match=r"binary/secret.*codec"):
        CONVERTER.decode(Payload(metadata={"encoding": b"binary/secret"}))
    with pytest.raises(ConversionError, match="no metadata"):
        CONVERTER.decode(Payload(data=b"x"))


# --- calls ----------------------------------------------------------------------------------------


async def charge(card: str, cents: int, point: Point | None = None, *rest: int) -> str:
    return card


SIGNATURE = Signature(charge, "charge")


def sent(*values: Any) -> Payloads:
    payloads = Payloads()
    CONVERTER.fill_arguments(payloads, values, SIGNATURE)
    return payloads


def test_arguments_come_back_as_declared() -> None:
    values = ["card", 5, Point(1), 7, 8]
    assert CONVERTER.arguments(sent(*values), SIGNATURE) == values


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        (("card", "5"), "cents"),
        ((None, 5), "card"),
        (("card", 2.5), "cents"),
        (("card", 5, {"x": "no"}), "point"),
        (("card", 5, None, 7, "8"), r"rest\[1\]"),
        ((object(), 5), "card"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_sent(
    values: tuple[Any, ...], argument: str
) -> None:
    payloads = Payloads()
    with pytest.raises(ConversionError, match=f"charge: argument '{argument}'") as caught:
        CONVERTER.fill_arguments(payloads, values, SIGNATURE)
    assert not payloads.payloads
    assert caught.value.function == "charge"


def test_missing_and_extra_arguments_are_counted() -> None:
    short = Payloads()
    CONVERTER.fill(short, ["card"])
    with pytest.raises(ConversionError, match="'cents' is missing"):
        CONVERTER.arguments(short, SIGNATURE)

    def one(a: int) -> None: ...

    with pytest.raises(ConversionError, match="2 arguments given, it takes 1"):
        CONVERTER.arguments(sent("card", 5), Signature(one, "one"))


def test_a_result_is_checked_against_its_annotation() -> None:
    def wrong() -> int:
        return "x"  # type: ignore[return-value]

    with pytest.raises(ConversionError, match="wrong: result: expected int") as caught:
        CONVERTER.fill_result(Payloads(), wrong(), Signature(wrong, "wrong"))
    assert caught.value.argument == "return"


def test_a_function_without_result_records_none() -> None:
    def nothing() -> None: ...

    payloads = Payloads()
    CONVERTER.fill_result(payloads, object(), Signature(nothing, "nothing"))
    assert CONVERTER.decode_all(payloads) == [None]


def test_types_of_yours_get_encoders_and_decoders() -> None:
    class Money:
        def __init__(self, cents: int) -> None:
            self.cents = cents

    converter = Converter(encoders={Money: lambda m: m.cents}, decoders={Money: Money})
    back = converter.decode(converter.encode([Money(5)]), list[Money])
    assert back[0].cents == 5
