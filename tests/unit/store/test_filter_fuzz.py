"""The list filter against its oracle: random filters, as text, over random runs, in every store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from store_oracle import answer
from store_rows import record

from perdure.api.errors import InvalidArgument
from perdure.service import search_attributes
from perdure.service.filter import parse
from perdure.store.contract import Record, Store, Write
from perdure.store.paging import position
from perdure.store.postgres import PostgresStore, indexes
from perdure.store.query import Order, Query
from perdure.store.sqlite import SqliteStore
from postgres import PostgresServer

TYPES = {
    "Note": 1,
    "City": 2,
    "Count": 3,
    "Price": 4,
    "Paid": 5,
    "Due at": 6,
    "Tags": 7,
    'o"d\\d': 2,
}
NOW_NS = 1_700_000_000_000_000_000
WORDS = (
    "",
    "a",
    "A",
    "ab",
    "b",
    "ac",
    "a'b",
    'a"b',
    "ä",
    "z\U0010ffff",
    "a%",
    "a_",
    "\\",
    "; DROP TABLE runs",
)

words = st.sampled_from(WORDS)
small = st.integers(-2, 3)
prices = st.sampled_from((-1.5, 0.0, 1.0, 2.5, 1e300))

attributes = st.fixed_dictionaries(
    {},
    optional={
        "Note": words.map(search_attributes.words),
        "City": words,
        'o"d\\d': words,
        "Count": small,
        "Price": prices,
        "Paid": st.booleans(),
        "Due at": small.map(lambda n: NOW_NS + n),
        "Tags": st.lists(words, min_size=1, max_size=3),
    },
)


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    found = []
    for key in range(1, draw(st.integers(1, 12)) + 1):
        start_ns = NOW_NS + draw(small)
        close_ns = start_ns + draw(st.integers(1, 3)) if draw(st.booleans()) else 0
        found.append(
            record(
                key,
                namespace=draw(st.sampled_from(("default", "default", "other"))),
                workflow_id=draw(words) + f"-{key}",
                workflow_type=draw(words),
                status=draw(st.integers(2, 7)) if close_ns else 1,
                start_ns=start_ns,
                execution_ns=start_ns,
                close_ns=close_ns,
                history_length=draw(small),
                parent_workflow_id=draw(words),
                search_attributes=draw(attributes),
            )
        )
    return found


def quoted(text: str, quote: str) -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, quote * 2) + quote


strings = st.builds(quoted, words, st.sampled_from("'\""))
times = st.one_of(
    small.map(lambda n: str(NOW_NS + n)),
    small.map(lambda n: f"now() - {abs(n)}ns"),
    small.map(lambda n: f"'2023-11-14T22:13:20.{max(n, 0):09}Z'"),
)
statuses = st.sampled_from(("'Running'", "1", '"COMPLETED"', "'timed_out'", "3"))
durations = st.sampled_from(("'1ns'", "2", "'00:00:01'", "'1h30m'"))

KINDS: dict[str, tuple[st.SearchStrategy[str], tuple[str, ...], bool]] = {}
ALL, EQUAL = ("=", "!=", "<", "<=", ">", ">="), ("=", "!=")
for name in ("WorkflowType", "WorkflowId", "ParentWorkflowId", "City", '`o"d\\d`'):
    KINDS[name] = (strings, ALL, True)
KINDS |= {
    "Note": (strings, EQUAL, True),
    "Tags": (strings, EQUAL, True),
    "ExecutionStatus": (statuses, EQUAL, False),
    "StartTime": (times, ALL, False),
    "CloseTime": (times, ALL, False),
    "`Due at`": (times, ALL, False),
    "ExecutionDuration": (durations, ALL, False),
    "HistoryLength": (small.map(str), ALL, False),
    "Count": (small.map(str), ALL, False),
    "Price": (prices.map(repr), ALL, False),
    "Paid": (st.sampled_from(("true", "FALSE", "'true'")), EQUAL, False),
}


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(sorted(KINDS)))
    values, operators, is_text = KINDS[name]
    forms = ["compare", "in", "null"] + ["starts"] * is_text + ["between"] * (operators == ALL)
    no = draw(st.sampled_from(("", "NOT ", "not ")))
    match draw(st.sampled_from(forms)):
        case "compare":
            return f"{name} {draw(st.sampled_from(operators))} {draw(values)}"
        case "in":
            return f"{name} {no}IN ({', '.join(draw(st.lists(values, min_size=1, max_size=3)))})"
        case "null":
            return f"{name} IS {no}NULL"
        case "starts":
            return f"{name} {no}STARTS_WITH {draw(values)}"
    return f"{name} {no}BETWEEN {draw(values)} AND {draw(values)}"


filters = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.builds(
            lambda a, b, word: f"{a} {word} {b}", inner, inner, st.sampled_from(("AND", "or"))
        ),
        inner.map(lambda term: f"NOT ({term})"),
        inner.map(lambda term: f"({term})"),
    ),
    max_leaves=6,
)
orders = st.lists(
    st.builds(
        lambda name, way: f"{name} {way}".strip(),
        st.sampled_from(sorted(set(KINDS) - {"Tags", "Note"})),
        st.sampled_from(("", "ASC", "desc")),
    ),
    max_size=2,
    unique=True,
)


async def in_every_store(runs: list[Record], check: Callable[[Store], Awaitable[None]]) -> None:
    with TemporaryDirectory() as directory:
        for path in (":memory:", Path(directory) / "a.db"):
            store = SqliteStore(path)
            await store.open()
            try:
                await fill(store, runs)
                await check(store)
            finally:
                await store.close()


async def in_postgres(
    dsn: str, runs: list[Record], check: Callable[[Store], Awaitable[None]]
) -> None:
    store = PostgresStore(dsn)
    await store.open()
    try:
        await fill(store, runs)
        await check(store)
    finally:
        await store.close()
        connection = await asyncpg.connect(dsn)
        await connection.execute("TRUNCATE perdure.runs, perdure.states")
        await connection.close()


async def fill(store: Store, runs: list[Record]) -> None:
    units = [[Write(key=r.key, based_on=0, version=1, state=b"", record=r)] for r in runs]
    assert await store.commit(units) == []


@pytest.fixture(scope="module", params=[False, True], ids=["", "indexed"])
def dsn(postgres_server: PostgresServer, request: pytest.FixtureRequest) -> str:
    name = f"filters_{request.param:d}"
    asyncio.run(postgres_server.execute(f"CREATE DATABASE {name}"))
    dsn = postgres_server.dsn(name)
    if request.param:
        asyncio.run(index_all(dsn))
    return dsn


async def index_all(dsn: str) -> None:
    """Index all attributes, and see to it that small tables are looked up by them, too."""
    store = PostgresStore(dsn)
    await store.open()
    try:
        wanted = search_attributes.by_use([TYPES])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(indexes, "SMALL_BYTES", 0)
            store.index_attributes(wanted, len(wanted))
            async with asyncio.timeout(30):
                while store._indexes.ready != {*wanted, *indexes.BUILT_IN}:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
    finally:
        await store.close()
    connection = await asyncpg.connect(dsn)
    database = dsn.partition("@/")[2].partition("?")[0]
    await connection.execute(f"ALTER DATABASE {database} SET enable_seqscan = off")
    await connection.execute("DROP INDEX perdure.runs_by_start, perdure.runs_by_attributes")
    await connection.close()


questions = st.lists(st.tuples(filters, orders), min_size=1, max_size=8)


@settings(deadline=None, max_examples=100)
@given(records(), questions)
def test_filters_mean_what_the_oracle_says(runs: list[Record], asked: list[Any]) -> None:
    asyncio.run(in_every_store(runs, partial(ask_all, runs, asked)))


@settings(deadline=None, max_examples=60)
@given(records(), questions)
def test_filters_mean_the_same_on_postgres(dsn: str, runs: list[Record], asked: list[Any]) -> None:
    asyncio.run(in_postgres(dsn, runs, partial(ask_all, runs, asked)))


async def ask_all(runs: list[Record], asked: list[Any], store: Store) -> None:
    for where, order in asked:
        text = where + (f" ORDER BY {', '.join(order)}" if order else "")
        parsed = parse(text, TYPES, NOW_NS)
        query = Query("default", where=parsed.where, order=parsed.order)
        expected = [r.key for r in answer(runs, query)]
        assert [r.key for r in await store.list_runs(query)] == expected, text
        assert await store.count_runs(query) == [([], len(expected))], text
        assert await paged(store, parsed.where, parsed.order) == expected, text


async def paged(store: Store, where: Any, order: tuple[Order, ...]) -> list[int]:
    keys: list[int] = []
    query = Query("default", where=where, order=order, limit=2)
    while page := await store.list_runs(query):
        keys += [r.key for r in page]
        assert len(keys) == len(set(keys)), "pages overlap"
        after = position(query, page[-1])
        query = Query("default", where=where, order=order, limit=2, after=after)
    return keys


ugly = st.text(
    st.one_of(st.sampled_from("'\"`\\();-/*=<>!%?:@#,. \n\0"), st.characters(codec=None)),
    max_size=12,
)
SYNTAX = """
AND OR NOT = != < ( ) ; -- /* */ UNION SELECT FROM runs WHERE ORDER BY GROUP LIMIT 1 IN BETWEEN IS
NULL STARTS_WITH 'x' CASE WHEN THEN END EXISTS CAST AS INTERVAL COLLATE
"""
pieces = st.one_of(
    filters,
    ugly,
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(SYNTAX.split()),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(pieces, max_size=8).map(" ".join))
@example("WorkflowId = 'x'; DROP TABLE runs")
@example("WorkflowId = 'x' UNION SELECT * FROM runs")
@example("1=1) OR (1=1")
@example("WorkflowId = 'x\\' OR 1=1 -- '")
@example("`o\"d\\d' OR 1=1 -- ` = 'x'")
@example("WorkflowId IN (SELECT run_id FROM runs)")
@example("ORDER BY (SELECT 1)")
@example("GROUP BY count(*)")
@example("Count = " + "9" * 400)
@example("Price = " + "9" * 400)
@example("Price = " + "9" * 5_000)
@example("Count = 1 AND " * 1_000 + "Count = 1")
@example("NOT " * 1_000 + "Count = 1")
@example("(" * 1_000 + "Count = 1")
def test_any_text_is_refused_or_answered(text: str) -> None:
    try:
        parsed = parse(text, TYPES, NOW_NS)
    except InvalidArgument:
        return
    runs = [record(1), record(2, namespace="other", run_id="secret")]

    async def check(store: Store) -> None:
        query = Query("default", parsed.where, parsed.order)
        found = await store.list_runs(query)
        assert [r.key for r in found] == [r.key for r in answer(runs, query)]
        assert all(r.namespace == "default" for r in found)
        await store.count_runs(Query("default", parsed.where, group_by=parsed.group_by))

    asyncio.run(in_every_store(runs, check))
