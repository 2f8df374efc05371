"""Queries as parameterised SQL, for any database; what differs is a `Dialect`.

No text of the caller ever becomes SQL: values, and the names of custom attributes, are bound
parameters; columns and operators come from closed sets. Conditions keep SQL's three-valued logic:
a comparison with a missing attribute is neither true nor false, and so is its negation. NULL is the
least value in every order.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.store.contract import Record
from perdure.store.paging import NULL_WHEN_EMPTY, NULL_WHEN_OPEN, NULL_WHEN_ZERO, sort_terms
from perdure.store.query import (
    And,
    Column,
    Compare,
    Condition,
    Custom,
    Field,
    In,
    IsNull,
    Kind,
    Not,
    Or,
    Query,
    Scalar,
    StartsWith,
)

RECORD = Record.__struct_fields__
"""The columns of a run. They are named everywhere: a later version may have added some."""

_OPERATORS = frozenset({"=", "!=", "<", "<=", ">", ">="})
_MAX_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


def successor(prefix: str) -> str | None:
    """The least string above all that start with the prefix; None when there is no such string."""
    for end in range(len(prefix), 0, -1):
        code = ord(prefix[end - 1]) + 1
        if code in _SURROGATES:
            code = _SURROGATES.stop
        if code <= _MAX_CODE_POINT:
            return prefix[: end - 1] + chr(code)
    return None


class Rendering:
    """One statement under way; a database's own way is a subclass.

    Attributes:
        table: where runs are.
    """

    table = "runs"

    # -- what differs ------------------------------------------------------------------------------

    def bind(self, value: Scalar | None) -> str:
        """A value as a parameter."""
        raise NotImplementedError

    def custom(self, field: Custom, value: Scalar | None = None) -> str:
        """A custom attribute, as something to compare with values like this one."""
        raise NotImplementedError

    def any_member(self, field: Custom, test: str) -> str:
        """Whether any `value` of a keyword list passes; NULL when the run has no such list."""
        raise NotImplementedError

    def has_no(self, field: Field) -> str:
        """Whether a run has no value there."""
        return f"({self.field(field)} IS NULL)"

    def ranked(self, field: Field, value: Scalar | None = None) -> str:
        """A field as runs are ordered by it."""
        return self.field(field, value)

    def rank(self, field: Field, value: Scalar | None) -> Scalar | None:
        """A value as `ranked` has it."""
        return value

    def may_be_null(self, field: Field) -> bool:
        """Whether `ranked` may be NULL."""
        return nullable(field)

    def sort_keys(self, field: Field, descending: bool) -> list[str]:
        """What to order by."""
        return [f"{self.field(field)} {way(descending)}"]

    def grouped(self, field: Field) -> str:
        """What to group by."""
        return self.field(field)

    # -- statements --------------------------------------------------------------------------------

    def select(self, query: Query) -> str:
        """The page of runs that a query asks for."""
        assert query.limit > 0, query.limit
        where = self.where(query)
        if query.after is not None:
            where += f" AND {self.after(query, query.after)}"
        order, limit = self.order(query), self.bind(query.limit)
        columns = ", ".join(RECORD)
        return f"SELECT {columns} FROM {self.table} WHERE {where} ORDER BY {order} LIMIT {limit}"

    def order(self, query: Query) -> str:
        """By what the rows of a query are ordered."""
        terms = sort_terms(query)
        keys = [key for term in terms for key in self.sort_keys(term.field, term.descending)]
        return ", ".join([*keys, f"key {way(terms[-1].descending)}"])

    def count(self, query: Query) -> str:
        """The number of runs, after the columns that the query groups by."""
        columns = [self.grouped(field) for field in query.group_by]
        where = self.where(query)
        sql = f"SELECT {', '.join([*columns, 'count(*)'])} FROM {self.table} WHERE {where}"
        if columns:
            groups = ", ".join(str(number + 1) for number in range(len(columns)))
            sql += f" GROUP BY {groups} ORDER BY {groups}"
        return sql

    def where(self, query: Query) -> str:
        """Which runs."""
        sql = f"namespace = {self.bind(query.namespace)}"
        return sql if query.where is None else f"{sql} AND {self.condition(query.where)}"

    # -- fields and conditions ---------------------------------------------------------------------

    def field(self, field: Field, value: Scalar | None = None) -> str:
        """A field's value, NULL when the run has none; to be compared with values like `value`."""
        if isinstance(field, Custom):
            return self.custom(field, value)
        if field in NULL_WHEN_OPEN:
            return when_closed(field)
        if field in NULL_WHEN_ZERO:
            return f"nullif({field.value}, 0)"
        if field in NULL_WHEN_EMPTY:
            return f"nullif({field.value}, '')"
        return field.value

    def condition(self, condition: Condition) -> str:
        """A condition."""
        match condition:
            case And(terms):
                return self._joined(terms, " AND ", "1 = 1")
            case Or(terms):
                return self._joined(terms, " OR ", "1 = 0")
            case Not(term):
                return f"(NOT {self.condition(term)})"
            case IsNull(field):
                return self.has_no(field)
            case Compare(Custom(_, Kind.LIST) as field, "!=", value):
                return f"(NOT {self.any_member(field, f'value = {self.bind(value)}')})"
            case Compare(field, op, value):
                assert op in _OPERATORS, op
                return self._test(field, f"{op} {self.bind(value)}", value)
            case In(field, values):
                return self._in(field, values)
            case StartsWith(field, prefix):
                return self._starts_with(field, prefix)

    def _joined(self, terms: Sequence[Condition], word: str, empty: str) -> str:
        return f"({word.join(self.condition(term) for term in terms) or empty})"

    def _test(self, field: Field, test: str, value: Scalar) -> str:
        if isinstance(field, Custom) and field.is_list:
            return self.any_member(field, f"value {test}")
        return f"({self.field(field, value)} {test})"

    def _in(self, field: Field, values: Sequence[Scalar]) -> str:
        """Values of a kind together: they are bound, and compared, as what they are."""
        if not values:
            return self._never(field)
        kinds: dict[bool, list[Scalar]] = {}
        for value in values:
            kinds.setdefault(isinstance(value, str), []).append(value)
        tests = []
        for alike in kinds.values():
            marks = ", ".join(self.bind(value) for value in alike)
            tests.append(self._test(field, f"IN ({marks})", alike[0]))
        return f"({' OR '.join(tests)})"

    def _never(self, field: Field) -> str:
        """False, or NULL when the run has no value there."""
        if isinstance(field, Custom) and field.is_list:
            return self.any_member(field, "1 = 0")
        return f"({self.field(field)} <> {self.field(field)})"

    def _starts_with(self, field: Field, prefix: str) -> str:
        """As a range, which indexes can serve, and which is exact about case."""
        upper = successor(prefix)
        is_list = isinstance(field, Custom) and field.is_list
        name = "value" if is_list else self.field(field, prefix)
        test = f"{name} >= {self.bind(prefix)}"
        if upper is not None:
            test += f" AND {name} < {self.bind(upper)}"
        if isinstance(field, Custom) and field.is_list:
            return self.any_member(field, test)
        return f"({test})"

    # -- pages -------------------------------------------------------------------------------------

    def after(self, query: Query, marks: tuple[Scalar | None, ...]) -> str:
        """Rows later than a position."""
        terms = sort_terms(query)
        assert len(marks) == len(terms) + 1, "after: one value for each term, and the key"
        ranks = [self.rank(term.field, mark) for term, mark in zip(terms, marks, strict=False)]
        last_way = terms[-1].descending
        if not any(self.may_be_null(term.field) for term in terms) and all(
            term.descending == last_way for term in terms
        ):
            names = ", ".join([*(self.ranked(term.field) for term in terms), "key"])
            values = ", ".join(self.bind(mark) for mark in [*ranks, marks[-1]])
            return f"({names}) {'<' if last_way else '>'} ({values})"
        sql = _later("key", self.bind(marks[-1]), last_way)
        for term, mark in reversed(list(zip(terms, ranks, strict=True))):
            if mark is None:
                absent = self.has_no(term.field)
                later = "1 = 0" if term.descending else f"NOT {absent}"
                sql = f"({later} OR ({absent} AND ({sql})))"
                continue
            name, bound = self.ranked(term.field, mark), self.bind(mark)
            later = _later(name, bound, term.descending)
            if term.descending and self.may_be_null(term.field):
                later += f" OR {name} IS NULL"
            sql = f"({later} OR ({name} = {bound} AND ({sql})))"
        return sql


def _later(name: str, bound: str, descending: bool) -> str:
    return f"{name} < {bound}" if descending else f"{name} > {bound}"


def when_closed(field: Column) -> str:
    """One of NULL_WHEN_OPEN as SQL."""
    value = "close_ns - execution_ns" if field is Column.DURATION else field.value
    return f"(CASE WHEN close_ns = 0 THEN NULL ELSE {value} END)"


def nullable(field: Field) -> bool:
    """Whether a run may have no value there."""
    return (
        isinstance(field, Custom)
        or field in NULL_WHEN_OPEN
        or field in NULL_WHEN_ZERO
        or field in NULL_WHEN_EMPTY
    )


def way(descending: bool) -> str:
    """The word for an order."""
    return "DESC" if descending else "ASC"
