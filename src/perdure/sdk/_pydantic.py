"""Pydantic models, when pydantic is there. It is never imported on its own account."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def is_model(value: Any) -> bool:
    """Is this an instance of a pydantic model?"""
    return is_model_class(type(value))


def is_model_class(kind: Any) -> bool:
    """Is this a pydantic model's class? Only a program that imported pydantic can have one."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def dump(model: Any) -> Any:
    """A model as plain JSON data that validates to an equal model."""
    return model.model_dump(mode="json", by_alias=True, round_trip=True)


def available() -> bool:
    """Can pydantic be imported?"""
    return "pydantic" in sys.modules or importlib.util.find_spec("pydantic") is not None


def validator(type_: Any) -> Callable[[bytes], Any]:
    """A function from JSON to a value of any type that pydantic can describe."""
    from pydantic import TypeAdapter

    return TypeAdapter(type_).validate_json
