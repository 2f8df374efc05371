"""Queries as parameterised SQLite SQL.

No text of the caller ever becomes SQL: values, and the names of custom attributes, are bound
parameters; columns and operators come from closed sets. Conditions keep SQL's three-valued logic:
a comparison with a missing attribute is neither true nor false, and so is its negation.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.store.paging import NULL_WHEN_EMPTY, NULL_WHEN_ZERO, sort_terms
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
    Query,
    Scalar,
    StartsWith,
)

Parameters = dict[str, Scalar | None]

_OPERATORS = frozenset({"=", "!=", "<", "<=", ">", ">="})
_MAX_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


def select(query: Query) -> tuple[str, Parameters]:
    """The page of runs that a query asks for."""
    assert query.limit > 0, query.limit
    rendering = _Rendering()
    where = rendering.where(query)
    if query.after is not None:
        where += f" AND {rendering.after(query, query.after)}"
    terms = sort_terms(query)
    order = [f"{rendering.field(term.field)} {_way(term.descending)}" for term in terms]
    order.append(f"key {_way(terms[-1].descending)}")
    limit = rendering.bind(query.limit)
    sql = f"SELECT * FROM runs WHERE {where} ORDER BY {', '.join(order)} LIMIT {limit}"
    return sql, rendering.parameters


def count(query: Query) -> tuple[str, Parameters]:
    """The number of runs, after the columns that the query groups by."""
    rendering = _Rendering()
    columns = [rendering.field(field) for field in query.group_by]
    where = rendering.where(query)
    sql = f"SELECT {', '.join([*columns, 'count(*)'])} FROM runs WHERE {where}"
    if columns:
        groups = ", ".join(str(number + 1) for number in range(len(columns)))
        sql += f" GROUP BY {groups} ORDER BY {groups}"
    return sql, rendering.parameters


def successor(prefix: str) -> str | None:
    """The least string above all that start with the prefix; None when there is no such string."""
    for end in range(len(prefix), 0, -1):
        code = ord(prefix[end - 1]) + 1
        if code in _SURROGATES:
            code = _SURROGATES.stop
        if code <= _MAX_CODE_POINT:
            return prefix[: end - 1] + chr(code)
    return None


class _Rendering:
    """One statement under way, and its parameters by name."""

    def __init__(self) -> None:
        self.parameters: Parameters = {}

    def bind(self, value: Scalar | None) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f":{name}"

    def where(self, query: Query) -> str:
        sql = f"namespace = {self.bind(query.namespace)}"
        return sql if query.where is None else f"{sql} AND {self.condition(query.where)}"

    def field(self, field: Field) -> str:
        """A field's value, NULL when the run has none."""
        if isinstance(field, Custom):
            return self._custom(field.name)
        if field is Column.DURATION:
            return "iif(close_ns = 0, NULL, close_ns - execution_ns)"
        if field in NULL_WHEN_ZERO:
            return f"nullif({field.value}, 0)"
        if field in NULL_WHEN_EMPTY:
            return f"nullif({field.value}, '')"
        return field.value

    def _custom(self, name: str) -> str:
        if name and name.isprintable() and '"' not in name and "\\" not in name:
            path = self.bind(f'$."{name}"')
            return f"json_extract(search_attributes, {path})"
        return f"(SELECT value FROM json_each(search_attributes) WHERE key = {self.bind(name)})"

    def condition(self, condition: Condition) -> str:
        match condition:
            case And(terms):
                return self._joined(terms, " AND ", "1")
            case Or(terms):
                return self._joined(terms, " OR ", "0")
            case Not(term):
                return f"(NOT {self.condition(term)})"
            case IsNull(field):
                return f"({self.field(field)} IS NULL)"
            case Compare(Custom(_, True) as field, "!=", value):
                return f"(NOT {self._any(field, f'value = {self.bind(value)}')})"
            case Compare(field, op, value):
                assert op in _OPERATORS, op
                return self._test(field, f"{op} {self.bind(value)}")
            case In(field, values):
                marks = ", ".join(self.bind(value) for value in values)
                return self._test(field, f"IN ({marks})")
            case StartsWith(field, prefix):
                return self._starts_with(field, prefix)

    def _joined(self, terms: Sequence[Condition], word: str, empty: str) -> str:
        return f"({word.join(self.condition(term) for term in terms) or empty})"

    def _test(self, field: Field, test: str) -> str:
        if isinstance(field, Custom) and field.is_list:
            return self._any(field, f"value {test}")
        return f"({self.field(field)} {test})"

    def _any(self, field: Custom, test: str) -> str:
        """Whether any member of a keyword list passes."""
        members = self._custom(field.name)
        return (
            f"iif({members} IS NULL, NULL, "
            f"EXISTS (SELECT 1 FROM json_each({members}) WHERE {test}))"
        )

    def _starts_with(self, field: Field, prefix: str) -> str:
        """As a range, which indexes can serve, and which is exact about case."""
        upper = successor(prefix)
        is_list = isinstance(field, Custom) and field.is_list
        name = "value" if is_list else self.field(field)
        test = f"{name} >= {self.bind(prefix)}"
        if upper is not None:
            test += f" AND {name} < {self.bind(upper)}"
        return self._any(field, test) if isinstance(field, Custom) and is_list else f"({test})"

    def after(self, query: Query, marks: tuple[Scalar | None, ...]) -> str:
        """Rows later than a position; NULL is the least value, as in SQLite's own order."""
        terms = sort_terms(query)
        assert len(marks) == len(terms) + 1, "after: one value for each term, and the key"
        ways = [term.descending for term in terms]
        names = [*(self.field(term.field) for term in terms), "key"]
        ways.append(ways[-1])
        if len(set(ways)) == 1 and not any(_nullable(term.field) for term in terms):
            values = ", ".join(self.bind(mark) for mark in marks)
            return f"({', '.join(names)}) {'<' if ways[0] else '>'} ({values})"
        sql = "0"
        for name, descending, mark in reversed(list(zip(names, ways, marks, strict=True))):
            bound = self.bind(mark)
            later = _later(name, bound, descending, mark is None)
            sql = f"({later} OR ({name} IS {bound} AND {sql}))"
        return sql


def _later(name: str, bound: str, descending: bool, is_null: bool) -> str:
    if is_null:
        return "0" if descending else f"{name} IS NOT NULL"
    return f"{name} < {bound} OR {name} IS NULL" if descending else f"{name} > {bound}"


def _nullable(field: Field) -> bool:
    return (
        isinstance(field, Custom)
        or field is Column.DURATION
        or field in NULL_WHEN_ZERO
        or field in NULL_WHEN_EMPTY
    )


def _way(descending: bool) -> str:
    return "DESC" if descending else "ASC"
