"""Indexes of what only some runs have, on PostgreSQL: made and dropped beside the work."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from store_rows import record, start

from perdure.store.contract import Write
from perdure.store.postgres import PostgresStore, indexes, render
from perdure.store.postgres.indexes import BUILT_IN, PREFIX, name_of, plan
from perdure.store.postgres.parts import parts
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
    Order,
    Query,
    StartsWith,
)

CITY, COUNT, TAGS = Custom("City"), Custom("Count", Kind.NUMBER), Custom("Tags", Kind.LIST)
RARE = Custom("Rare", Kind.NUMBER)
RUNS = 3_000
LIMIT_S = 30


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "PAUSE_S", 0.05)
    monkeypatch.setattr(indexes, "LATER_S", 0.05)
    monkeypatch.setattr(indexes, "SMALL_BYTES", 0)


@asynccontextmanager
async def opened(dsn: str, count: int = 1) -> AsyncIterator[list[PostgresStore]]:
    stores = [PostgresStore(dsn) for _ in range(count)]
    try:
        for store in stores:
            await store.open()
        yield stores
    finally:
        for store in stores:
            await store.close()


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PostgresStore]:
    async with opened(postgres_dsn) as [store]:
        yield store


async def fetch(dsn: str, statement: str, *parameters: Any) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        rows: list[Any] = await connection.fetch(statement, *parameters)
        return rows
    finally:
        await connection.close()


async def there(dsn: str) -> dict[str, bool]:
    """The indexes that are there, and whether they can be used."""
    statement = (
        "SELECT indexrelid::regclass::text, indisvalid FROM pg_index "
        "WHERE indrelid = 'perdure.runs'::regclass"
    )
    found = {row[0].rpartition(".")[2]: row[1] for row in await fetch(dsn, statement)}
    return {name: valid for name, valid in found.items() if name.startswith(PREFIX)}


async def statistics(dsn: str) -> set[str]:
    return {row[0] for row in await fetch(dsn, "SELECT stxname FROM pg_statistic_ext")}


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await is_so():  # noqa: ASYNC110, the database rings no bell
            await asyncio.sleep(0.02)


async def until_indexed(dsn: str, attributes: Sequence[Custom]) -> None:
    """Wait until these and the built-in ones have an index, and no others."""
    wanted = {name_of(attribute): True for attribute in (*BUILT_IN, *attributes)}

    async def are() -> bool:
        return await there(dsn) == wanted and await statistics(dsn) == wanted.keys()

    await until(are)


async def until_ready(store: PostgresStore, attributes: Sequence[Custom]) -> None:
    """Wait until a store knows that just these have an index, with statistics."""

    async def are() -> bool:
        return store._indexes.ready == {*BUILT_IN, *attributes}

    await until(are)


async def fill(store: PostgresStore) -> int:
    """Runs with attributes; of five one has none, and of a hundred one has a rare one."""
    first = await store.allocate(RUNS)
    units: list[list[Write]] = []
    for n in range(RUNS):
        attributes: dict[str, Any] = {"City": f"city-{n:04}", "Count": n, "Tags": ["all"]}
        if n % 100 == 7:
            attributes["Rare"] = n / 2
        units.append([start(first + n, search_attributes=attributes if n % 5 else {})])
    for at in range(0, RUNS, 500):
        assert await store.commit(units[at : at + 500]) == []
    return first


async def plans(dsn: str, query: Query) -> list[str]:
    """How the parts of a query are found."""
    found = []
    for part in parts(query):
        statement, parameters = render.select(part, query.limit)
        rows = await fetch(dsn, f"EXPLAIN {statement}", *parameters)
        found.append("\n".join(row[0] for row in rows))
    return found


RARE_VALUES: list[tuple[Condition, Field]] = [
    (Compare(COUNT, ">", 2_990), COUNT),
    (Compare(COUNT, ">=", 2_990.5), COUNT),
    (Compare(COUNT, "=", 7.0), COUNT),
    (And((Compare(COUNT, ">=", 10), Compare(COUNT, "<=", 20))), COUNT),
    (Not(Or((Compare(COUNT, "<", 10), Compare(COUNT, ">", 20)))), COUNT),
    (Or((Compare(COUNT, ">", 2_995), StartsWith(CITY, "city-000"))), CITY),
    (StartsWith(CITY, "city-000"), CITY),
    (Not(StartsWith(CITY, "city-")), CITY),
    (And((StartsWith(CITY, "city-000"), Compare(Column.STATUS, "=", 1))), CITY),
    (Compare(CITY, "<", "city-0003"), CITY),
    (Compare(RARE, "!=", 3.5), RARE),
    (Not(In(RARE, (3.5, 53.5))), RARE),
    (Not(IsNull(RARE)), RARE),
]


async def test_rare_values_are_found_by_their_index(
    store: PostgresStore, postgres_dsn: str
) -> None:
    await fill(store)
    store.index_attributes([CITY, COUNT, TAGS, RARE], 10)
    await until_ready(store, [CITY, COUNT, TAGS, RARE])
    await until_indexed(postgres_dsn, [CITY, COUNT, TAGS, RARE])
    for condition, attribute in RARE_VALUES:
        [found] = await plans(postgres_dsn, Query("default", condition, limit=50))
        assert name_of(attribute) in found, condition


DURATION, LENGTH, SIZE = Column.DURATION, Column.HISTORY_LENGTH, Column.HISTORY_SIZE
RARE_BUILT_IN_VALUES: list[tuple[Condition, Field]] = [
    (Compare(DURATION, ">", 2_990), DURATION),
    (Compare(LENGTH, "!=", 11), LENGTH),
    (Not(In(LENGTH, (11, 13))), LENGTH),
    (And((Compare(SIZE, ">=", 2_000), Compare(SIZE, "<", 2_010))), SIZE),
    (Compare(Column.TRANSITION_COUNT, "<", 10), Column.TRANSITION_COUNT),
    (Compare(Column.ROOT_WORKFLOW_ID, "=", "root-w"), Column.ROOT_WORKFLOW_ID),
    (Compare(Column.ROOT_RUN_ID, "=", "root-r"), Column.ROOT_RUN_ID),
    (Compare(Column.PARENT_RUN_ID, "=", "parent-r"), Column.PARENT_RUN_ID),
]


async def fill_with_closed(store: PostgresStore) -> None:
    """Runs of which a third is open, and one is a child."""
    first = await store.allocate(RUNS)
    child = {"root_workflow_id": "root-w", "root_run_id": "root-r", "parent_run_id": "parent-r"}
    units: list[list[Write]] = []
    for n in range(RUNS):
        own = {"root_workflow_id": f"w{n}", "root_run_id": f"r{n}"}
        changes: dict[str, Any] = {"workflow_id": f"w{n}", "run_id": f"r{n}", "start_ns": n} | own
        if n % 3:
            changes |= {"close_ns": RUNS + n, "status": 2, "execution_ns": RUNS}
            changes |= {"history_length": 11 if n % 100 else 12, "history_size_bytes": n}
            changes |= {"transition_count": n}
        units.append([start(first + n, **changes | (child if n == 77 else {}))])
    for at in range(0, RUNS, 500):
        assert await store.commit(units[at : at + 500]) == []


async def test_rare_values_of_built_in_attributes_are_found_by_their_index(
    store: PostgresStore, postgres_dsn: str
) -> None:
    await fill_with_closed(store)
    asked = [Query("default", condition, limit=50) for condition, _ in RARE_BUILT_IN_VALUES]
    before = [await store.list_runs(query) for query in asked]
    assert all(before)
    store.index_attributes([], 0)
    await until_ready(store, [])
    for query, (condition, field) in zip(asked, RARE_BUILT_IN_VALUES, strict=True):
        [found] = await plans(postgres_dsn, query)
        assert name_of(field) in found, condition
    assert [await store.list_runs(query) for query in asked] == before


async def test_runs_are_ordered_by_how_long_they_took(
    store: PostgresStore, postgres_dsn: str
) -> None:
    await fill_with_closed(store)
    store.index_attributes([], 0)
    await until_ready(store, [])
    for descending in (False, True):
        query = Query("default", order=(Order(DURATION, descending),), limit=50)
        present = (await plans(postgres_dsn, query))[0 if descending else 1]
        assert f"using {name_of(DURATION)}" in present
        assert "Sort Key" not in present


async def test_runs_are_ordered_by_an_index(store: PostgresStore, postgres_dsn: str) -> None:
    await fill(store)
    store.index_attributes([CITY, COUNT], 10)
    await until_ready(store, [CITY, COUNT])
    for field, after in ((CITY, "city-0003"), (COUNT, 7)):
        for descending in (False, True):
            order = (Order(field, descending),)
            whole = await plans(postgres_dsn, Query("default", order=order, limit=50))
            present = whole[0 if descending else 1]
            assert f"using {name_of(field)}" in present
            assert "Sort Key" not in present
            page = Query("default", order=order, limit=50, after=(after, 1))
            present = (await plans(postgres_dsn, page))[0]
            assert f"using {name_of(field)}" in present
            assert "Index Cond: ((namespace = 'default'::text) AND (ROW(" in present


async def test_it_is_used_however_often_a_list_is_asked(
    store: PostgresStore, postgres_dsn: str
) -> None:
    await fill(store)
    store.index_attributes([COUNT], 10)
    await until_ready(store, [COUNT])
    for n in range(20):
        found = await store.list_runs(Query("default", Compare(COUNT, ">", 2_990 - n)))
        assert len(found) == sum(value % 5 > 0 for value in range(2_991 - n, RUNS))
    async with store._listers.connection() as connection:
        counts = await connection.fetch(
            "SELECT custom_plans, generic_plans FROM pg_prepared_statements "
            "WHERE starts_with(statement, 'SELECT * FROM')"
        )
        assert await connection.fetchval("SHOW plan_cache_mode") == "auto"
    assert sum(row[0] for row in counts) >= 20
    assert sum(row[1] for row in counts) == 0


async def test_without_indexes_lists_are_the_same(store: PostgresStore) -> None:
    await fill(store)
    asked = [
        *(Query("default", condition, limit=50) for condition, _ in RARE_VALUES),
        *(
            Query("default", order=(Order(field, descending),), limit=RUNS)
            for field in (CITY, COUNT, RARE)
            for descending in (False, True)
        ),
    ]
    before = [await store.list_runs(query) for query in asked]
    store.index_attributes([CITY, COUNT, RARE], 10)
    await until_ready(store, [CITY, COUNT, RARE])
    assert [await store.list_runs(query) for query in asked] == before


async def test_those_that_nobody_wants_any_more_go(store: PostgresStore, postgres_dsn: str) -> None:
    store.index_attributes([CITY, COUNT], 10)
    await until_indexed(postgres_dsn, [CITY, COUNT])
    store.index_attributes([COUNT, TAGS], 10)
    await until_indexed(postgres_dsn, [COUNT, TAGS])
    store.index_attributes([], 10)
    await until_indexed(postgres_dsn, [])


async def test_an_attribute_may_have_several_kinds(store: PostgresStore, postgres_dsn: str) -> None:
    kinds = [Custom("Same", kind) for kind in Kind]
    store.index_attributes(kinds, 10)
    await until_indexed(postgres_dsn, kinds)


async def test_several_nodes_make_them_once(postgres_dsn: str) -> None:
    wanted = [Custom(f"A{n}", kind) for n in range(4) for kind in Kind]
    async with opened(postgres_dsn, 4) as stores:
        for store in stores:
            store.index_attributes(wanted, 100)
        await until_indexed(postgres_dsn, wanted)
        for store in stores:
            await until_ready(store, wanted)


@pytest.mark.parametrize(
    "name",
    [
        "it's",
        'o"d\\d',
        "%1$I %s {0} $1",
        "'; DROP TABLE perdure.runs; --",
        "ä\U0010ffff",
        "x" * 1_000,
    ],
)
async def test_any_name_can_be_indexed(store: PostgresStore, postgres_dsn: str, name: str) -> None:
    attribute = Custom(name)
    store.index_attributes([attribute], 10)
    await until_indexed(postgres_dsn, [attribute])
    key = await store.allocate(2)
    await store.commit([[start(key, search_attributes={name: "yes"})], [start(key + 1)]])
    query = Query("default", StartsWith(attribute, "y"))
    assert [found.key for found in await store.list_runs(query)] == [key]
    rows = await fetch(postgres_dsn, "SELECT pg_get_indexdef(to_regclass($1))", _full(attribute))
    quoted = await fetch(postgres_dsn, "SELECT quote_literal($1::text)", name)
    assert quoted[0][0].lstrip("E").replace("\\\\", "\\") in rows[0][0]


def _full(attribute: Custom) -> str:
    return f"perdure.{name_of(attribute)}"


async def test_the_longest_text_can_be_stored_and_found(
    store: PostgresStore, postgres_dsn: str
) -> None:
    store.index_attributes([CITY], 10)
    await until_indexed(postgres_dsn, [CITY])
    dice = random.Random(1)
    text = "".join(chr(dice.randrange(0x10000, 0x10FFFF)) for _ in range(5_000))
    cities = [text, text + "b", text + "a", text[:200], text[:199]]
    namespace = "n" * 1_000
    key = await store.allocate(len(cities))
    for n, city in enumerate(cities):
        attributes: dict[str, Any] = {"City": city}
        unit = [start(key + n, namespace=namespace, search_attributes=attributes)]
        assert await store.commit([unit]) == []

    async def found(condition: Condition) -> set[int]:
        return {run.key - key for run in await store.list_runs(Query(namespace, condition))}

    assert await found(StartsWith(CITY, text)) == {0, 1, 2}
    assert await found(StartsWith(CITY, text[:200])) == {0, 1, 2, 3}
    assert await found(StartsWith(CITY, text[:199])) == {0, 1, 2, 3, 4}
    assert await found(Compare(CITY, "=", text)) == {0}
    assert await found(Compare(CITY, "!=", text)) == {1, 2, 3, 4}
    assert await found(Compare(CITY, ">", text)) == {1, 2}
    assert await found(Compare(CITY, "<=", text[:200])) == {3, 4}
    assert await found(Compare(CITY, ">", text[:199])) == {0, 1, 2, 3}
    assert await found(Not(In(CITY, (text, text[:199])))) == {1, 2, 3}


async def test_an_index_that_was_left_half_made_is_made_anew(
    store: PostgresStore, postgres_dsn: str
) -> None:
    store.index_attributes([CITY], 10)
    await until_indexed(postgres_dsn, [CITY])
    await fetch(
        postgres_dsn,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass($1)",
        _full(CITY),
    )
    async with opened(postgres_dsn) as [second]:
        second.index_attributes([CITY], 10)
        await until_indexed(postgres_dsn, [CITY])


async def test_an_index_that_is_being_made_is_left_alone(
    store: PostgresStore, postgres_dsn: str
) -> None:
    """Its maker's node died, but the statement goes on: it waits for an old snapshot."""
    holder, maker = [await asyncpg.connect(postgres_dsn) for _ in range(2)]
    try:
        await store.namespaces()
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        statement = indexes._make(CITY)[1]
        statement = await maker.fetchval(
            "SELECT format($1::text, $2::text, $3::text)", statement, name_of(CITY), "City"
        )

        async def is_there() -> bool:
            return name_of(CITY) in await there(postgres_dsn)

        making = asyncio.create_task(maker.execute(statement))
        await until(is_there)
        looks = _counted(store)
        store.index_attributes([CITY], 10)
        await until(_is_longer(looks, 5))
        assert await there(postgres_dsn) == {name_of(CITY): False}
        assert not making.done()
        await holder.execute("COMMIT")
        await making
        await until_indexed(postgres_dsn, [CITY])
    finally:
        await holder.close()
        await maker.close()


def _is_longer(noted: list[Any], count: int) -> Callable[[], Awaitable[bool]]:
    async def is_longer() -> bool:
        return len(noted) > count

    return is_longer


def _counted(store: PostgresStore) -> list[str]:
    """Notes how often a store looks whether somebody works on the table."""
    looks: list[str] = []
    read = store._indexes._read

    async def counted(statement: str, *parameters: object) -> list[Any]:
        if statement == indexes.SQL["is_busy"]:
            looks.append(statement)
        return await read(statement, *parameters)

    store._indexes._read = counted
    return looks


async def test_a_node_that_may_not_make_them_says_so_once_and_serves(
    store: PostgresStore, postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await fetch(postgres_dsn, "CREATE ROLE guest LOGIN")
    try:
        for what in (
            "SCHEMA perdure",
            "ALL TABLES IN SCHEMA perdure",
            "ALL SEQUENCES IN SCHEMA perdure",
        ):
            await fetch(postgres_dsn, f"GRANT ALL ON {what} TO guest")
        guest_dsn = postgres_dsn.replace("//perdure@", "//guest@")
        with caplog.at_level(logging.WARNING, "perdure.store"):
            async with opened(guest_dsn) as [guest]:
                tries: list[float | None] = []
                attempt = guest._indexes._try

                async def counted() -> float | None:
                    tries.append(await attempt())
                    return tries[-1]

                guest._indexes._try = counted  # type: ignore[method-assign]
                guest.index_attributes([CITY], 10)
                await until(_is_longer(tries, 3))
                key = await guest.allocate(1)
                await guest.commit([[start(key, search_attributes={"City": "Ulm"})]])
                query = Query("default", StartsWith(CITY, "U"))
                assert [found.key for found in await guest.list_runs(query)] == [key]
        told = [line.getMessage() for line in caplog.records if "not indexed" in line.getMessage()]
        assert len(told) == 1
        assert "the user may not do that" in told[0]
        assert await there(postgres_dsn) == {}
    finally:
        await fetch(postgres_dsn, "DROP OWNED BY guest")
        await fetch(postgres_dsn, "DROP ROLE guest")


TIMEOUTS = ("statement_timeout", "lock_timeout", "transaction_timeout")


@pytest.mark.parametrize("timeout", TIMEOUTS)
async def test_timeouts_of_the_database_do_not_hold_for_them(
    store: PostgresStore, postgres_dsn: str, timeout: str
) -> None:
    """They wait for an old snapshot, for longer than anything else may take."""
    if not await fetch(postgres_dsn, "SELECT FROM pg_settings WHERE name = $1", timeout):
        pytest.skip("this server does not have it")
    holder = await asyncpg.connect(postgres_dsn)
    try:
        name = await holder.fetchval("SELECT current_database()")
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM perdure.runs")
        await fetch(postgres_dsn, f"ALTER DATABASE {name} SET {timeout} = '300ms'")
        store.index_attributes([CITY], 10)

        async def is_begun() -> bool:
            return bool(await there(postgres_dsn))

        await until(is_begun)
        await asyncio.sleep(1)
        [begun] = await there(postgres_dsn)
        await holder.execute("COMMIT")
        await until_indexed(postgres_dsn, [CITY])
        assert begun in await there(postgres_dsn)
        assert not store._indexes._told
    finally:
        await holder.close()


async def test_one_that_cannot_be_made_is_no_harm_to_the_others(
    store: PostgresStore, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = indexes._make
    broken = ("SELECT 1 / 0", "SELECT 1 / 0")
    monkeypatch.setattr(indexes, "_make", lambda field: broken if field == CITY else make(field))
    store.index_attributes([CITY, COUNT], 10)
    await until_ready(store, [COUNT])
    await until_indexed(postgres_dsn, [COUNT])
    assert any("division by zero" in text for text in store._indexes._told)


async def test_there_are_no_more_than_the_limit(
    store: PostgresStore, postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "perdure.store"):
        store.index_attributes([CITY, COUNT, TAGS], 2)
        await until_indexed(postgres_dsn, [CITY, COUNT])
        store.index_attributes([TAGS, COUNT, CITY], 2)  # what is there stays
        async with opened(postgres_dsn) as [second]:
            second.index_attributes([TAGS, COUNT, CITY], 2)
            await until_ready(second, [CITY, COUNT])
        await until_indexed(postgres_dsn, [CITY, COUNT])
        store.index_attributes([TAGS, CITY], 2)
        await until_indexed(postgres_dsn, [TAGS, CITY])
        store.index_attributes([TAGS, CITY], 0)  # another node's limit may be higher
        await until_ready(store, [TAGS, CITY])
        await until_indexed(postgres_dsn, [TAGS, CITY])
    told = [line.getMessage() for line in caplog.records]
    assert sum("1 custom attributes are not indexed, as more than 2," in text for text in told) == 2


def test_what_is_to_be_done() -> None:
    city, count, tags = map(name_of, (CITY, COUNT, TAGS))
    nothing = plan([], 10, {})
    assert (nothing.make, nothing.drop, nothing.left_out) == ((), (), 0)
    made = plan([CITY, COUNT], 10, {city: True, tags: True})
    assert (made.ready, made.make, made.drop) == ({CITY}, (COUNT,), (tags,))
    mended = plan([CITY], 10, {city: False})
    assert (mended.ready, mended.make, mended.drop) == (set(), (CITY,), (city,))
    full = plan([TAGS, COUNT, CITY], 2, {city: True, count: True})
    assert (full.ready, full.make, full.drop, full.left_out) == ({COUNT, CITY}, (), (), 1)
    early = plan([CITY, COUNT], 1, {tags: True}, is_small=True)
    assert (early.make, early.drop, early.is_early) == ((), (tags,), True)
    assert not plan([CITY], 1, {city: True}, is_small=True).is_early
    fewer = plan([CITY, COUNT], 1, {city: True, count: True})
    assert (fewer.ready, fewer.drop, fewer.left_out) == ({CITY, COUNT}, (), 0)


async def test_a_small_table_needs_none_and_a_grown_one_gets_them(
    store: PostgresStore, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "SMALL_BYTES", 100_000)
    store.index_attributes([CITY], 10)
    await asyncio.sleep(0.3)
    assert await there(postgres_dsn) == {}
    await fill(store)
    await until_indexed(postgres_dsn, [CITY])


async def test_a_store_that_is_closed_meanwhile_leaves_nothing_that_hinders(
    postgres_dsn: str,
) -> None:
    wanted = [Custom(f"A{n}") for n in range(10)]
    for _ in range(5):
        async with opened(postgres_dsn) as [store]:
            store.index_attributes(wanted, 100)
            await asyncio.sleep(0.05)
    async with opened(postgres_dsn) as [store]:
        store.index_attributes(wanted, 100)
        await until_indexed(postgres_dsn, wanted)
        key = await store.allocate(1)
        write = Write(key=key, based_on=0, version=1, state=b"", record=record(key))
        assert await store.commit([[write]]) == []
