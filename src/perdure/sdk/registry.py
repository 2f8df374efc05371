"""What the decorators have made, for workers that are given no lists.

It holds weak references: a function defined inside another one leaves when that one does. A worker
that is given lists does not look here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol


class Definition(Protocol):
    """What a decorator makes of a workflow or an activity."""

    @property
    def name(self) -> str:
        """The type name that is recorded in histories."""

    @property
    def origin(self) -> str:
        """``module:qualname`` of what was decorated."""


class Registry:
    """Definitions of one kind, in the order in which they were made."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._made: dict[int, weakref.ref[Any]] = {}
        self._count = 0

    def add(self, definition: Definition) -> None:
        """Remember a definition for as long as something else refers to it."""
        number = self._count = self._count + 1
        self._made[number] = weakref.ref(definition, lambda _: self._made.pop(number, None))

    def __iter__(self) -> Iterator[Any]:
        for reference in list(self._made.values()):
            definition = reference()
            if definition is not None:
                yield definition

    def in_module(self, *modules: str) -> list[Any]:
        """The definitions of these modules and of the packages below them; of all if none given."""
        if not modules:
            return list(self)
        return [
            definition
            for definition in self
            if any(f"{definition.origin.split(':')[0]}.".startswith(f"{m}.") for m in modules)
        ]


ACTIVITIES: Final = Registry("activity")
WORKFLOWS: Final = Registry("workflow")


def by_name(kind: str, definitions: Iterable[Any]) -> dict[str, Any]:
    """Definitions by their type name. Of one that was defined again, the last is taken.

    Raises:
        ValueError: two different ones have the same name.
    """
    found: dict[str, Any] = {}
    for definition in definitions:
        other = found.get(definition.name)
        if other is not None and other.origin != definition.origin:
            raise ValueError(
                f"two {kind} definitions are named {definition.name!r}: {other.origin} and "
                f"{definition.origin}; name one otherwise, or give the worker a list"
            )
        found[definition.name] = definition
    return found
