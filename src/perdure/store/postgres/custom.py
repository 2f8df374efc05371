"""Custom attributes as SQL: what a query compares, and an index holds, word for word the same.

Attributes are JSON. A value is compared with those of its own kind, text by code point and numbers
(and booleans, as 0 and 1) by value; a run that holds another kind there counts as having none.
"""

from __future__ import annotations

from typing import Final

from perdure.store.query import Kind

TEXT_MAX: Final = 200
"""So many characters of a text are indexed, and told apart by its order. An index refuses rows of
more than 2,704 bytes, and with the row the run."""


def json(name: str) -> str:
    """An attribute's value; the name is SQL: a parameter or a literal."""
    return f"search_attributes -> {name}"


def text(found: str) -> str:
    """A JSON value as text, all of it."""
    return f"((CASE jsonb_typeof({found}) WHEN 'string' THEN {found} END) #>> '{{}}') COLLATE \"C\""


def short_text(found: str) -> str:
    """The beginning of a text; it compares with shorter texts as the whole one does."""
    return f"left({text(found)}, {TEXT_MAX})"


def number(found: str) -> str:
    """A JSON value as a number."""
    return (
        f"(CASE jsonb_typeof({found}) WHEN 'number' THEN ({found})::numeric "
        f"WHEN 'boolean' THEN ({found})::boolean::integer END)"
    )


def anything(found: str) -> str:
    """A JSON value of any kind; NULL for none."""
    return f"nullif({found}, 'null')"


def ordered(kind: Kind, found: str) -> str:
    """What orders the values of a kind, and is NULL where there is none. Lists have no order."""
    return {Kind.TEXT: short_text, Kind.NUMBER: number, Kind.LIST: anything}[kind](found)
