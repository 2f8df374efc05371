"""Binding calls to recorded arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from perdure.sdk.errors import ConversionError
from perdure.sdk.signature import Signature

if TYPE_CHECKING:
    from decimal import Decimal


async def mixed(a: int, b: str = "b", *, c: int = 3, d: int = 4) -> float:
    return 1.0


MIXED = Signature(mixed, "mixed")


@pytest.mark.parametrize(
    ("args", "keywords", "recorded"),
    [
        ((1,), {}, [1]),
        ((1, "x"), {}, [1, "x"]),
        ((), {"a": 1}, [1]),
        ((1,), {"c": 9}, [1, "b", 9]),
        ((1,), {"d": 9}, [1, "b", 3, 9]),
        ((1,), {"b": "y"}, [1, "y"]),
    ],
)
def test_arguments_are_recorded_by_position(
    args: tuple[Any, ...], keywords: dict[str, Any], recorded: list[Any]
) -> None:
    assert list(MIXED.bind(args, keywords)) == recorded


def test_keyword_only_arguments_are_given_back_by_name() -> None:
    positional, keywords = MIXED.unbind([1, "b", 9])
    assert (list(positional), keywords) == ([1, "b"], {"c": 9})


@pytest.mark.parametrize(
    ("args", "keywords"), [((), {}), ((1, "x", 3), {}), ((1,), {"z": 1}), ((1,), {"a": 1})]
)
def test_a_call_that_python_would_refuse_is_refused(
    args: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match="mixed: "):
        MIXED.bind(args, keywords)


def test_types_come_from_annotations() -> None:
    assert MIXED.types == (int, str, int, int)
    assert MIXED.return_type is float


def test_a_method_loses_its_first_parameter() -> None:
    class Thing:
        def method(self, x: int) -> None: ...

    assert Signature(Thing.method, "method", bound=True).types == (int,)
    assert Signature(Thing().method, "method").types == (int,)


def test_local_classes_are_found() -> None:
    class Local: ...

    def function(x: Local) -> list[Local]:
        return [x] if isinstance(x, Local) else []

    signature = Signature(function, "function")
    assert signature.types == (Local,)
    assert signature.return_type == list[Local]


def test_a_type_that_exists_for_checkers_only_is_explained() -> None:
    def function(x: Decimal) -> None: ...

    with pytest.raises(ConversionError, match=r"'Decimal' of argument 'x'.*TYPE_CHECKING"):
        _ = Signature(function, "function").types


def test_keywords_without_names_are_refused() -> None:
    def function(**rest: int) -> None: ...

    with pytest.raises(TypeError, match=r"\*\*kwargs"):
        Signature(function, "function")
