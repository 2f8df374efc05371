"""The list filter's grammar: sqlglot's tree, checked node by node, as the store's conditions.

Only the kinds of nodes named here pass; whatever else SQL can say is refused with its place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import ClassVar

import sqlglot
from sqlglot import TokenType, exp
from sqlglot.dialects.mysql import MySQL
from sqlglot.errors import ParseError, SqlglotError
from temporalio.api.enums.v1 import IndexedValueType

from perdure.api.errors import InvalidArgument
from perdure.service import filter_values as values
from perdure.service.filter import MAXIMUM_FILTER_SIZE
from perdure.service.search_attributes import PREDEFINED, kind_of, words
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
    Order,
    Scalar,
    StartsWith,
)

MAXIMUM_DEPTH = 50  # of parentheses and NOTs
MAXIMUM_TERMS = 500  # joined by AND or OR
MAXIMUM_VALUES = 5_000

COLUMNS: dict[str, Column] = {
    "WorkflowId": Column.WORKFLOW_ID,
    "WorkflowType": Column.WORKFLOW_TYPE,
    "RunId": Column.RUN_ID,
    "ExecutionStatus": Column.STATUS,
    "StartTime": Column.START,
    "ExecutionTime": Column.EXECUTION,
    "CloseTime": Column.CLOSE,
    "HistoryLength": Column.HISTORY_LENGTH,
    "HistorySizeBytes": Column.HISTORY_SIZE,
    "StateTransitionCount": Column.TRANSITION_COUNT,
    "ExecutionDuration": Column.DURATION,
    "TaskQueue": Column.TASK_QUEUE,
    "ParentWorkflowId": Column.PARENT_WORKFLOW_ID,
    "ParentRunId": Column.PARENT_RUN_ID,
    "RootWorkflowId": Column.ROOT_WORKFLOW_ID,
    "RootRunId": Column.ROOT_RUN_ID,
}

_BOOL = int(IndexedValueType.INDEXED_VALUE_TYPE_BOOL)
_INT = int(IndexedValueType.INDEXED_VALUE_TYPE_INT)
_KEYWORD = int(IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
_TEXT = int(IndexedValueType.INDEXED_VALUE_TYPE_TEXT)
_LIST = int(IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST)
_DATETIME = int(IndexedValueType.INDEXED_VALUE_TYPE_DATETIME)

_TIMES = {Column.START, Column.EXECUTION, Column.CLOSE}
_NUMBERS = {Column.HISTORY_LENGTH, Column.HISTORY_SIZE, Column.TRANSITION_COUNT}

_COMPARISONS: dict[type[exp.Expression], str] = {
    exp.EQ: "=",
    exp.NEQ: "!=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
_PREFIX_LINES = 1
_WITH_WHERE = "SELECT * FROM runs WHERE\n"
_WITHOUT_WHERE = "SELECT * FROM runs\n"
_CLAUSES = {"expressions", "from", "from_", "where", "group", "order"}


class _Dialect(MySQL):
    """MySQL's quoting (backquoted names, both kinds of quoted strings) and STARTS_WITH."""

    class Tokenizer(MySQL.Tokenizer):
        KEYWORDS: ClassVar = {**MySQL.Tokenizer.KEYWORDS, "STARTS_WITH": TokenType.GLOB}


def translate(
    text: str, attribute_types: Mapping[str, int], now_ns: int
) -> tuple[Condition | None, tuple[Order, ...], tuple[Field, ...]]:
    """(where, order, group_by) of a filter that is not empty; see `filter.parse`."""
    if len(text) > MAXIMUM_FILTER_SIZE:
        raise InvalidArgument(f"filter longer than {MAXIMUM_FILTER_SIZE} characters")
    if any(0xD800 <= ord(char) < 0xE000 or char == "\0" for char in text):
        raise InvalidArgument("filter with characters that are no text (NUL or lone surrogates)")
    translation = _Translation(text, {**PREDEFINED, **attribute_types}, now_ns)
    try:
        return translation.run()
    except RecursionError:
        raise InvalidArgument(f"filter nested deeper than {MAXIMUM_DEPTH} levels") from None


class _Translation:
    def __init__(self, text: str, types: Mapping[str, int], now_ns: int) -> None:
        clause = text.lstrip().upper()
        bare = clause.startswith(("ORDER BY", "GROUP BY"))
        self._text = text
        self._prefix = _WITHOUT_WHERE if bare else _WITH_WHERE
        self._types = types
        self._now_ns = now_ns
        self._terms = 0
        self._values = 0

    def run(self) -> tuple[Condition | None, tuple[Order, ...], tuple[Field, ...]]:
        tree = self._tree()
        where, order, group = (tree.args.get(name) for name in ("where", "order", "group"))
        return (
            None if where is None else self._condition(where.this, 0),
            () if order is None else tuple(map(self._order, order.expressions)),
            () if group is None else tuple(self._groups(group)),
        )

    def _tree(self) -> exp.Expression:
        try:
            statements = sqlglot.parse(self._prefix + self._text, dialect=_Dialect)
        except ParseError as error:
            raise self._unparsable(error) from None
        except SqlglotError:
            raise InvalidArgument(f"invalid filter: {_unterminated(self._text)}") from None
        tree = statements[0]
        if len(statements) > 1:
            raise InvalidArgument("invalid filter: it goes on after a semicolon")
        if not isinstance(tree, exp.Select):
            raise InvalidArgument("invalid filter: only conditions, ORDER BY and GROUP BY")
        more = [name for name, part in tree.args.items() if part and name not in _CLAUSES]
        if more or tree.args["from_" if "from_" in tree.args else "from"].sql() != "FROM runs":
            clause = (more or ["JOIN"])[0].upper()
            raise InvalidArgument(
                f"invalid filter: {clause} is not supported, only conditions, ORDER BY and GROUP BY"
            )
        return tree

    def _unparsable(self, error: ParseError) -> InvalidArgument:
        found = error.errors[0]
        shown = str(found.get("highlight") or "")
        line = int(found.get("line") or 1) - _PREFIX_LINES
        column = int(found.get("col") or 0) - len(shown) + 1
        why = str(found.get("description") or "").partition(" for <class")[0]
        why = why.replace("Required keyword: 'expression' missing", "Nothing to compare with")
        why = why.replace("Required keyword: 'this' missing", "Nothing to compare")
        if line < 1:
            return InvalidArgument(f"invalid filter at its start: {why}")
        place = f"line {line}, column {max(column, 1)}"
        return InvalidArgument(f"invalid filter at {place}, near {shown!r}: {why}")

    def _error(self, node: exp.Expression, why: str) -> InvalidArgument:
        return InvalidArgument(f"invalid filter {self._place(node)}: {why}")

    def _place(self, node: exp.Expression) -> str:
        shown = node.sql(dialect=_Dialect)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        starts = [
            int(part.meta["start"])
            for part in node.find_all(exp.Identifier, exp.Literal)
            if "start" in part.meta
        ]
        if not starts:
            return f"near {shown}"
        before = self._text[: max(min(starts) - len(self._prefix), 0)]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return f"at line {line}, column {column}, near {shown}"

    # ---- conditions ----

    def _condition(self, node: exp.Expression, depth: int) -> Condition:
        if depth > MAXIMUM_DEPTH:
            raise InvalidArgument(f"filter nested deeper than {MAXIMUM_DEPTH} levels")
        if isinstance(node, exp.Paren):
            return self._condition(node.this, depth + 1)
        if isinstance(node, exp.Not):
            return Not(self._condition(node.this, depth + 1))
        if isinstance(node, exp.And):
            return And(tuple(self._condition(term, depth + 1) for term in _flat(node, exp.And)))
        if isinstance(node, exp.Or):
            return Or(tuple(self._condition(term, depth + 1) for term in _flat(node, exp.Or)))
        self._terms += 1
        if self._terms > MAXIMUM_TERMS:
            raise InvalidArgument(f"filter with more than {MAXIMUM_TERMS} comparisons")
        return self._comparison(node)

    def _comparison(self, node: exp.Expression) -> Condition:
        if type(node) in _COMPARISONS:
            return self._compare(node, _COMPARISONS[type(node)])
        if isinstance(node, exp.Glob):
            return self._starts_with(node)
        if isinstance(node, exp.In):
            return self._in(node)
        if isinstance(node, exp.Between):
            field = self._field(node.this)
            low, high = (self._value(node, field, node.args[end]) for end in ("low", "high"))
            self._ordered(node, field)
            return And((Compare(field, ">=", low), Compare(field, "<=", high)))
        if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
            return IsNull(self._field(node.this))
        if isinstance(node, exp.Like):
            raise self._error(node, "LIKE is not supported, use STARTS_WITH")
        if isinstance(node, exp.Column | exp.Literal | exp.Boolean):
            raise self._error(node, "a comparison is missing")
        raise self._error(node, "not a comparison that a filter may use")

    def _compare(self, node: exp.Expression, op: str) -> Condition:
        field = self._field(node.this)
        if isinstance(node.expression, exp.Null):
            raise self._error(node, "compare with NULL by IS NULL or IS NOT NULL")
        value = self._value(node, field, node.expression)
        if op not in {"=", "!="}:
            self._ordered(node, field)
        if self._kind(field) == _TEXT:
            found = In(field, tuple(words(str(value))))
            return found if op == "=" else Not(found)
        return Compare(field, op, value)

    def _starts_with(self, node: exp.Expression) -> Condition:
        field = self._field(node.this)
        if self._kind(field) not in {_KEYWORD, _TEXT, _LIST}:
            raise self._error(node, "STARTS_WITH needs an attribute that is text")
        prefix = self._value(node, field, node.expression)
        if not isinstance(prefix, str):
            raise self._error(node, "STARTS_WITH needs a quoted prefix")
        if self._kind(field) == _TEXT:
            prefix = prefix.lower()
        return StartsWith(field, prefix)

    def _in(self, node: exp.In) -> Condition:
        field = self._field(node.this)
        if not node.expressions:
            raise self._error(node, "IN needs a list of values in parentheses")
        given = tuple(self._value(node, field, item) for item in node.expressions)
        if self._kind(field) == _TEXT:
            return In(field, tuple(word for text in given for word in words(str(text))))
        return In(field, given)

    def _ordered(self, node: exp.Expression, field: Field) -> None:
        if field is Column.STATUS or self._kind(field) in {_BOOL, _LIST, _TEXT}:
            raise self._error(node, "this attribute can be compared by =, != and IN only")

    # ---- names ----

    def _field(self, node: exp.Expression) -> Field:
        if not isinstance(node, exp.Column):
            raise self._error(node, "the attribute's name comes first, then the comparison")
        name = ".".join(part.name for part in node.parts)
        if name in COLUMNS:
            return COLUMNS[name]
        kind = self._types.get(name)
        if kind is None:
            near = difflib.get_close_matches(name, self._names(name), n=3, cutoff=0.6)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise self._error(node, f"unknown search attribute {name}{hint}")
        return Custom(name, kind_of(kind))

    def _names(self, wanted: str) -> list[str]:
        names = [*COLUMNS, *self._types]
        same = [name for name in names if name.lower() == wanted.lower()]
        return same or names

    def _kind(self, field: Field) -> int:
        if isinstance(field, Custom):
            return self._types[field.name]
        if field in _TIMES:
            return _DATETIME
        return _INT if field in _NUMBERS or field is Column.DURATION else _KEYWORD

    def _order(self, node: exp.Expression) -> Order:
        field = self._field(node.this)
        descending = bool(node.args.get("desc"))
        if bool(node.args.get("nulls_first")) == descending:
            raise self._error(node.this, "NULLS FIRST and NULLS LAST are not supported")
        if isinstance(field, Custom) and field.is_list:
            raise self._error(node.this, "a list has no order")
        return Order(field, descending)

    def _groups(self, group: exp.Expression) -> Iterator[Field]:
        if any(part for name, part in group.args.items() if name != "expressions"):
            raise self._error(group, "only names can be grouped by")
        for node in group.expressions:
            field = self._field(node)
            if isinstance(field, Custom) and field.is_list:
                raise self._error(node, "runs cannot be grouped by a list")
            yield field

    # ---- values ----

    def _value(self, node: exp.Expression, field: Field, given: exp.Expression) -> Scalar:
        self._values += 1
        if self._values > MAXIMUM_VALUES:
            raise InvalidArgument(f"filter with more than {MAXIMUM_VALUES} values")
        kind = self._kind(field)
        try:
            value = self._literal(given, field, kind == _DATETIME)
            if field is Column.STATUS:
                return values.status(value)
            if field is Column.DURATION:
                return values.duration_ns(value)
            if kind == _DATETIME:
                return values.time_ns(value, self._now_ns)
            return values.plain(value, kind)
        except (ValueError, OverflowError) as error:
            raise self._error(node, str(error)) from None

    def _literal(self, node: exp.Expression, field: Field, is_time: bool) -> Scalar:
        match node:
            case exp.Literal() if node.is_string:
                return str(node.this)
            case exp.Literal():
                return _number(str(node.this))
            case exp.Neg(this=exp.Literal(is_string=False) as literal):
                return _number(f"-{literal.this}")
            case exp.Boolean():
                return bool(node.this)
            case exp.Sub() | exp.Add() | exp.Anonymous() | exp.Column() if is_time:
                return self._relative(node)
            case exp.Column() if field is Column.DURATION:
                return str(node.name)  # 1h30m, without quotes
            case exp.Column():
                raise ValueError(f"values need quotes: '{node.name}'")
        raise ValueError("a value is quoted text, a number, true or false")

    def _relative(self, node: exp.Expression) -> str:
        """now(), and what is added to it, as the text that `filter_values.time_ns` reads."""
        if isinstance(node, exp.Sub | exp.Add):
            sign = "-" if isinstance(node, exp.Sub) else "+"
            length = node.expression
            if isinstance(length, exp.Literal) or (
                isinstance(length, exp.Column) and len(length.parts) == 1
            ):
                return f"{self._now(node.this)}{sign}{length.name}"
        return self._now(node)

    @staticmethod
    def _now(node: exp.Expression) -> str:
        is_call = isinstance(node, exp.Anonymous) and not node.expressions
        if (is_call or isinstance(node, exp.Column)) and node.name.lower() == "now":
            return "now"
        raise ValueError("a time is written '2026-01-31T12:00:00Z', or now() - 1h")


def _flat(node: exp.Expression, kind: type[exp.Expression]) -> list[exp.Expression]:
    """The terms of a chain of ANDs or ORs, which the parser nests to the left, in their order."""
    terms: list[exp.Expression] = []
    while isinstance(node, kind):
        terms.append(node.expression)
        node = node.this
    return [node, *reversed(terms)]


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _unterminated(text: str) -> str:
    """Which quotation does not end."""
    opened = -1
    quote = ""
    escaped = False
    for index, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\" and quote in {"'", '"'}:
            escaped = True
        elif not quote and char in "'\"`":
            opened, quote = index, char
        elif char == quote:
            quote = ""
    if not quote:
        return "it cannot be read"
    line, column = text.count("\n", 0, opened) + 1, opened - text.rfind("\n", 0, opened)
    return f"the quotation that opens at line {line}, column {column} does not end"
