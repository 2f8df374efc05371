"""The list filter's language: what it accepts, and what it says about mistakes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from perdure.api.errors import InvalidArgument
from perdure.service.filter import parse
from perdure.service.filter_grammar import COLUMNS
from perdure.service.search_attributes import BUILT_IN
from perdure.store.query import (
    And,
    Column,
    Compare,
    Custom,
    In,
    IsNull,
    Kind,
    Not,
    Or,
    Order,
    StartsWith,
)

NOW_NS = 1_700_000_000_000_000_000  # 2023-11-14T22:13:20Z
HOUR_NS = 3_600_000_000_000
TYPES = {"City": 2, "Count": 3, "Price": 4, "Paid": 5, "DueAt": 6, "Tags": 7, "My Key": 2}

WORKFLOW_IS_X = Compare(Column.WORKFLOW_ID, "=", "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("  \n", None),
        ("WorkflowId = 'x'", WORKFLOW_IS_X),
        ('WorkflowId="x"', WORKFLOW_IS_X),
        ("`WorkflowId` = 'x'", WORKFLOW_IS_X),
        ("((WorkflowId = 'x'))", WORKFLOW_IS_X),
        ("WorkflowId != 'x'", Compare(Column.WORKFLOW_ID, "!=", "x")),
        ("WorkflowId <> 'x'", Compare(Column.WORKFLOW_ID, "!=", "x")),
        ("City = 'it''s'", Compare(Custom("City"), "=", "it's")),
        (r"City = 'it\'s'", Compare(Custom("City"), "=", "it's")),
        ("`My Key` = 'x'", Compare(Custom("My Key"), "=", "x")),
        ("Tags = 'x'", Compare(Custom("Tags", Kind.LIST), "=", "x")),
        ("BuildIds IN ('a', 'b')", In(Custom("BuildIds", Kind.LIST), ("a", "b"))),
        ("City NOT IN ('a')", Not(In(Custom("City"), ("a",)))),
        ("City STARTS_WITH 'U'", StartsWith(Custom("City"), "U")),
        ("City not starts_with 'U'", Not(StartsWith(Custom("City"), "U"))),
        ("CloseTime IS NULL", IsNull(Column.CLOSE)),
        ("CloseTime IS NOT NULL", Not(IsNull(Column.CLOSE))),
        ("Count = -5", Compare(Custom("Count", Kind.NUMBER), "=", -5)),
        ("Price >= 1", Compare(Custom("Price", Kind.NUMBER), ">=", 1.0)),
        ("Price < -2.5e3", Compare(Custom("Price", Kind.NUMBER), "<", -2500.0)),
        ("Paid = true", Compare(Custom("Paid", Kind.NUMBER), "=", True)),
        ("Paid = 'False'", Compare(Custom("Paid", Kind.NUMBER), "=", False)),
        (
            "Count BETWEEN 1 AND 3",
            And(
                (
                    Compare(Custom("Count", Kind.NUMBER), ">=", 1),
                    Compare(Custom("Count", Kind.NUMBER), "<=", 3),
                )
            ),
        ),
        (
            "WorkflowId = 'x' OR WorkflowId = 'x' AND NOT WorkflowId = 'x'",
            Or((WORKFLOW_IS_X, And((WORKFLOW_IS_X, Not(WORKFLOW_IS_X))))),
        ),
    ],
)
def test_conditions(text: str, expected: object) -> None:
    assert parse(text, TYPES, NOW_NS).where == expected


@pytest.mark.parametrize(
    "spelling",
    ["7", "'TimedOut'", "'timed_out'", "'TIMED_OUT'", "'WORKFLOW_EXECUTION_STATUS_TIMED_OUT'"],
)
def test_statuses(spelling: str) -> None:
    where = parse(f"ExecutionStatus = {spelling}", TYPES, NOW_NS).where
    assert where == Compare(Column.STATUS, "=", 7)


@pytest.mark.parametrize(
    ("spelling", "time_ns"),
    [
        ("'2023-11-14T22:13:20Z'", NOW_NS),
        ("'2023-11-14T22:13:20.000000001Z'", NOW_NS + 1),
        ("'2023-11-14T23:13:20+01:00'", NOW_NS),
        ("'2023-11-14 22:13:20'", NOW_NS),
        ("'2023-11-14'", NOW_NS - 80_000_000_000_000),
        (f"{NOW_NS}", NOW_NS),
        (f"'{NOW_NS}'", NOW_NS),
        ("now()", NOW_NS),
        ("now", NOW_NS),
        ("now() - 1h30m", NOW_NS - HOUR_NS * 3 // 2),
        ("now-1h", NOW_NS - HOUR_NS),
        ("'now-1h'", NOW_NS - HOUR_NS),
        ("NOW() + '1.5h'", NOW_NS + HOUR_NS * 3 // 2),
        ("now() - 2d", NOW_NS - 48 * HOUR_NS),
        ("'9999-12-31T00:00:00Z'", (1 << 63) - 1),
        ("'0001-01-01'", -(1 << 63)),
        ("now() + 100000d", (1 << 63) - 1),
    ],
)
def test_times(spelling: str, time_ns: int) -> None:
    for name, field in (("StartTime", Column.START), ("DueAt", Custom("DueAt", Kind.NUMBER))):
        where = parse(f"{name} >= {spelling}", TYPES, NOW_NS).where
        assert where == Compare(field, ">=", time_ns)


@pytest.mark.parametrize(
    ("spelling", "length_ns"),
    [
        ("'1h30m'", HOUR_NS * 3 // 2),
        ("1h30m", HOUR_NS * 3 // 2),
        ("'01:30:00'", HOUR_NS * 3 // 2),
        ("'00:00:00.5'", 500_000_000),
        ("1500000000", 1_500_000_000),
        ("'1.5ms'", 1_500_000),
        ("'7µs'", 7_000),
    ],
)
def test_durations(spelling: str, length_ns: int) -> None:
    where = parse(f"ExecutionDuration > {spelling}", TYPES, NOW_NS).where
    assert where == Compare(Column.DURATION, ">", length_ns)


def test_order_and_group() -> None:
    parsed = parse("City = 'x' ORDER BY StartTime DESC, `My Key`", TYPES, NOW_NS)
    assert parsed.order == (Order(Column.START, True), Order(Custom("My Key")))
    assert parse("ORDER BY CloseTime", TYPES, NOW_NS) == (None, (Order(Column.CLOSE),), ())
    assert parse(" group by ExecutionStatus", TYPES, NOW_NS) == (None, (), (Column.STATUS,))


def test_every_built_in_attribute_can_be_named() -> None:
    assert COLUMNS.keys() == BUILT_IN.keys()
    assert set(COLUMNS.values()) == set(Column)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("WorkflowId = ", "at line 1, column 12, near '=': Nothing to compare with"),
        ("City = 'a'\n  AND AND Count = 1", "at line 2, column 7, near 'AND'"),
        ("City = 'Ulm", "the quotation that opens at line 1, column 8 does not end"),
        ("(Count = 1", r"Expecting \)"),
        (
            "Cty = 'a'",
            "at line 1, column 1, near Cty: unknown search attribute Cty; did you mean City",
        ),
        ("City = 'a' AND\n workflowid = 'x'", "at line 2, column 2, .*did you mean WorkflowId"),
        ("Zebra42 = 'a'", "unknown search attribute Zebra42$"),
        ("City = Ulm", "values need quotes: 'Ulm'"),
        ("City = 5", "it is text: write the value in quotes"),
        ("Count = 'x'", "it is an Int: a whole number, without quotes"),
        ("Count = 1.5", "it is an Int"),
        ("Count = 99999999999999999999", "does not fit in 64 bits"),
        ("Price = 'x'", "it is a Double"),
        ("Price < 1e400", "too large for a Double"),
        ("Paid = 5", "it is a Bool"),
        ("Paid > true", "by =, != and IN only"),
        ("Tags > 'x'", "by =, != and IN only"),
        ("ExecutionStatus > 1", "by =, != and IN only"),
        ("ExecutionStatus = 'Sleeping'", "no such status; there are Running, Completed, Failed"),
        ("ExecutionStatus = 0", "no such status"),
        ("StartTime > 'yesterday'", "a time is written '2026-01-31T12:00:00Z'"),
        ("StartTime > '2026-02-30T00:00:00Z'", "there is no such time"),
        ("ExecutionDuration > 'long'", "a duration is written '1h30m'"),
        ("City = NULL", "IS NULL"),
        ("City LIKE 'a%'", "use STARTS_WITH"),
        ("Count STARTS_WITH '1'", "STARTS_WITH needs an attribute that is text"),
        ("'a' = City", "the attribute's name comes first"),
        ("City", "a comparison is missing"),
        ("City = 'a' LIMIT 5", "LIMIT is not supported"),
        ("City = 'a'; DROP TABLE runs", "semicolon"),
        ("City IN (SELECT 1)", "IN needs a list of values"),
        ("City = 'a' UNION SELECT 1", "only conditions, ORDER BY and GROUP BY"),
        ("ORDER BY Tags", "a list has no order"),
        ("ORDER BY Count NULLS LAST", "NULLS LAST are not supported"),
        ("GROUP BY Tags", "cannot be grouped by a list"),
        ("(" * 60 + "Count = 1" + ")" * 60, "nested deeper than 50 levels"),
        ("Count = 1 OR " * 500 + "Count = 1", "more than 500 comparisons"),
        ("Count = 1" + " " * 100_000, "longer than 100000 characters"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as raised:
        parse(text, TYPES, NOW_NS)
    assert "filter" in raised.value.message


def test_the_grammar_is_loaded_only_when_needed() -> None:
    script = (
        "import sys; from perdure.service.filter import parse; parse('', {}, 0)\n"
        "assert 'sqlglot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
