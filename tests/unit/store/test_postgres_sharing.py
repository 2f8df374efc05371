"""What nodes that share a PostgreSQL database do for each other: two stores, one database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from store_rows import closed, start, step

from perdure.store.contract import (
    LEVEL_BITS,
    MessageRow,
    NamespaceRow,
    StoreError,
    StoreUnavailable,
    TaskRow,
)
from perdure.store.postgres import PostgresStore, sharing
from perdure.store.postgres.choice import lock_number
from perdure.store.postgres.leases import SECOND_NS
from perdure.store.postgres.news import NOTICE_BYTES_MAX, News
from perdure.store.postgres.statements import STATEMENTS
from perdure.store.sharing import CLOCK_SLACK_NS, Awaited, Letter, Queue

WITHIN_S = 20
ORDERS: Queue = ("default", "orders", 1)
LONG_NS = 3_600 * SECOND_NS


@dataclass
class Pair:
    """Two stores, what each was told, and a way to look below."""

    one: PostgresStore
    two: PostgresStore
    look: asyncpg.Connection
    heard_by_one: asyncio.Queue[str]
    heard_by_two: asyncio.Queue[str]

    async def beat(self) -> None:
        for store in (self.one, self.two):
            await store.sharing.beat([], [])
        await self.one.sharing.beat([], [])

    async def age(self, table: str, column: str, by_ns: int, where: str = "true") -> None:
        """Let time pass for some rows."""
        await self.look.execute(
            f"UPDATE perdure.{table} SET {column} = {column} - {by_ns} WHERE {where}"
        )


@pytest.fixture
async def pair(postgres_dsn: str) -> AsyncIterator[Pair]:
    one, two = PostgresStore(postgres_dsn), PostgresStore(postgres_dsn)
    by_one: asyncio.Queue[str] = asyncio.Queue()
    by_two: asyncio.Queue[str] = asyncio.Queue()
    for store, notices in ((one, by_one), (two, by_two)):
        store.sharing.listener = notices.put_nowait
        await store.open()
        await hears(notices, "")  # from now on all is heard
    look = await asyncpg.connect(postgres_dsn)
    yield Pair(one, two, look, by_one, by_two)
    await look.close()
    await one.close()
    await two.close()


async def hears(notices: asyncio.Queue[str], notice: str) -> None:
    """Wait for a notice; those before it do not matter."""
    async with asyncio.timeout(WITHIN_S):
        while await notices.get() != notice:
            pass


def task(number: int, key: int, **changes: Any) -> TaskRow:
    fields: dict[str, Any] = {
        "id": number, "namespace": "default", "queue": "orders", "kind": 1, "key": key,
        "scheduled_event_id": 2, "stamp": 1, "created_ns": 5,
    }  # fmt: skip
    return TaskRow(**(fields | changes))


async def new_run(store: PostgresStore, **changes: Any) -> int:
    """Start a run; `changes` are of the write."""
    key = await store.allocate(1)
    write = start(key)
    for name, value in changes.items():
        setattr(write, name, value)
    assert await store.commit([[write]]) == []
    return key


async def waiting(store: PostgresStore, count: int, **changes: Any) -> list[TaskRow]:
    """A run with so many waiting tasks."""
    first = await store.allocate(count)
    key = await store.allocate(1)
    tasks = [task(first + n, key, **changes) for n in range(count)]
    write = start(key)
    write.put_tasks = tasks
    assert await store.commit([[write]]) == []
    return tasks


def ids(rows: list[TaskRow]) -> list[int]:
    return [row.id for row in rows]


# -- tasks -----------------------------------------------------------------------------------------


async def test_a_task_is_leased_by_one_node(pair: Pair) -> None:
    tasks = await waiting(pair.one, 5)
    assert await pair.two.sharing.lease_tasks(ORDERS, 2) == tasks[:2]
    assert await pair.one.sharing.lease_tasks(ORDERS, 2) == tasks[2:4]
    assert await pair.two.sharing.lease_tasks(ORDERS, 10) == tasks[4:]
    assert await pair.one.sharing.lease_tasks(ORDERS, 10) == []


async def test_nodes_that_lease_at_once_get_different_tasks(pair: Pair) -> None:
    tasks = await waiting(pair.one, 60)
    stores = [pair.one, pair.two] * 10
    leased = await asyncio.gather(*(s.sharing.lease_tasks(ORDERS, 3) for s in stores))
    assert sorted(task_id for rows in leased for task_id in ids(rows)) == ids(tasks)


async def test_tasks_that_somebody_is_about_to_take_are_not_waited_for(pair: Pair) -> None:
    tasks = await waiting(pair.one, 3)
    async with pair.look.transaction():
        locked = "SELECT id FROM perdure.tasks WHERE id = $1 FOR UPDATE"
        assert await pair.look.fetchval(locked, tasks[0].id) == tasks[0].id
        assert await pair.two.sharing.lease_tasks(ORDERS, 2) == tasks[1:]
    assert await pair.two.sharing.lease_tasks(ORDERS, 2) == tasks[:1]


async def test_tasks_are_leased_in_order_and_of_one_queue(pair: Pair) -> None:
    [late] = await waiting(pair.one, 1, rank=9 << 48)
    [early] = await waiting(pair.one, 1, rank=1 << 48)
    others = ({"queue": "else"}, {"namespace": "else"}, {"kind": 2})
    for changes in others:
        await waiting(pair.one, 1, rank=0, **changes)
    assert await pair.two.sharing.lease_tasks(ORDERS, 1) == [early]
    assert await pair.two.sharing.lease_tasks(ORDERS, 9) == [late]


async def test_a_lease_runs_out(pair: Pair) -> None:
    tasks = await waiting(pair.one, 1)
    assert await pair.one.sharing.lease_tasks(ORDERS, 9) == tasks
    await pair.age("tasks", "leased_until_ns", sharing.TASK_LEASE_NS - SECOND_NS)
    assert await pair.two.sharing.lease_tasks(ORDERS, 9) == []
    await pair.age("tasks", "leased_until_ns", SECOND_NS)
    assert await pair.two.sharing.lease_tasks(ORDERS, 9) == tasks


async def test_leases_of_a_clock_that_was_ahead_are_over(pair: Pair) -> None:
    """As those are that come from before a fail-over to a server whose clock is behind."""
    tasks = await waiting(pair.one, 2)
    rows = [MessageRow(await pair.one.allocate(1), tasks[0].key, b"m")]
    await pair.one.commit([[step(tasks[0].key, 1, put_messages=rows)]])
    assert await pair.one.sharing.lease_tasks(ORDERS, 1) == tasks[:1]
    for table in ("tasks", "messages"):
        await pair.age(table, "leased_until_ns", -LONG_NS, "leased_until_ns > 0")
    [found] = await pair.two.backlogs(*ORDERS)
    assert found.first_rank == tasks[0].rank
    assert await pair.two.sharing.lease_tasks(ORDERS, 1) == tasks[:1]
    assert await pair.two.sharing.lease_tasks(ORDERS, 9) == tasks[1:]
    assert await pair.one.sharing.lease_tasks(ORDERS, 9) == []
    assert await pair.two.sharing.lease_messages(9) == rows
    assert await pair.one.sharing.lease_messages(9) == []


async def test_a_beat_tells_of_what_is_leased_by_a_clock_that_was_ahead(pair: Pair) -> None:
    [task] = await waiting(pair.one, 1)
    row = MessageRow(await pair.one.allocate(1), task.key, b"m")
    await pair.one.commit([[step(task.key, 1, put_messages=[row])]])
    await pair.one.sharing.lease_tasks(ORDERS, 1)
    before = await pair.two.sharing.beat([ORDERS], [])
    assert (before.queues, before.messages) == ((), False)
    for table in ("tasks", "messages"):
        await pair.age(table, "leased_until_ns", -LONG_NS)
    after = await pair.two.sharing.beat([ORDERS], [])
    assert (after.queues, after.messages) == ((ORDERS,), True)


async def test_a_clock_that_is_set_back_a_little_ends_no_lease(pair: Pair) -> None:
    tasks = await waiting(pair.one, 1)
    assert await pair.one.sharing.lease_tasks(ORDERS, 1) == tasks
    await pair.age("tasks", "leased_until_ns", -CLOCK_SLACK_NS // 2)
    assert await pair.two.sharing.lease_tasks(ORDERS, 1) == []


async def test_a_backlog_begins_with_what_no_node_has_leased(pair: Pair) -> None:
    ranks = [3 << LEVEL_BITS | place for place in range(3)]
    for rank in ranks:
        await waiting(pair.one, 1, rank=rank)
    [found] = await pair.one.backlogs(*ORDERS)
    assert (found.count, found.first_rank, found.last_rank) == (3, ranks[0], ranks[2])
    await pair.two.sharing.lease_tasks(ORDERS, 1)
    [found] = await pair.one.backlogs(*ORDERS)
    assert (found.count, found.first_rank, found.last_rank) == (3, ranks[1], ranks[2])
    await pair.two.sharing.lease_tasks(ORDERS, 2)
    [found] = await pair.one.backlogs(*ORDERS)
    assert (found.count, found.first_rank, found.last_rank) == (3, ranks[0], ranks[2])


async def test_a_lease_that_is_given_up_is_told(pair: Pair) -> None:
    await pair.beat()
    tasks = await waiting(pair.one, 2)
    assert await pair.one.sharing.lease_tasks(ORDERS, 9) == tasks
    await pair.one.sharing.release_tasks([tasks[1].id])
    await hears(pair.heard_by_two, 'tasks [["default","orders",1]]')
    assert await pair.two.sharing.lease_tasks(ORDERS, 9) == tasks[1:]


async def test_tasks_of_runs_that_are_gone_are_dropped_and_no_others(pair: Pair) -> None:
    [kept] = await waiting(pair.one, 1)
    [gone] = await waiting(pair.one, 1)
    assert await pair.one.delete(gone.key)
    await pair.two.sharing.drop_tasks([kept.id, gone.id])
    assert await pair.one.sharing.lease_tasks(ORDERS, 9) == [kept]


async def test_a_commit_with_tasks_is_told_to_company_only(pair: Pair) -> None:
    await waiting(pair.one, 1)  # before any beat nobody is known
    await pair.beat()
    await waiting(pair.one, 1, queue="second")
    assert await asyncio.wait_for(_first_of_tasks(pair.heard_by_two), WITHIN_S) == (
        'tasks [["default","second",1]]'
    )


async def test_commits_do_not_wait_until_others_are_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed while something is being told is told together, after it."""
    await pair.beat()
    watched = [await new_run(pair.one) for _ in range(2)]
    await pair.two.sharing.watch([(key, Awaited.ANY) for key in watched])
    told: asyncio.Queue[list[str]] = asyncio.Queue()
    go_on = asyncio.Event()

    async def send(notices: list[str]) -> None:
        told.put_nowait(notices)
        await go_on.wait()

    monkeypatch.setattr(pair.one.sharing.news, "_send", send)
    await waiting(pair.one, 1)
    assert await asyncio.wait_for(told.get(), WITHIN_S) == ['tasks [["default","orders",1]]']
    for name in ("third", "second", "third"):
        await waiting(pair.one, 1, queue=name)
    assert await pair.one.commit([[step(key, 1)] for key in watched]) == []
    assert told.empty()
    go_on.set()
    assert await asyncio.wait_for(told.get(), WITHIN_S) == [
        'tasks [["default","second",1],["default","third",1]]',
        f"awaited {watched[0]} {watched[1]}",
    ]


async def test_news_that_cannot_be_told_are_no_harm(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.beat()

    async def send(_: list[str]) -> None:
        raise StoreUnavailable("no connection")

    with monkeypatch.context() as patch:
        patch.setattr(pair.one.sharing.news, "_send", send)
        await waiting(pair.one, 1)
        await pair.one.sharing.news.close()
    await waiting(pair.one, 1, queue="second")
    await hears(pair.heard_by_two, 'tasks [["default","second",1]]')


def test_many_runs_are_told_in_several_notices() -> None:
    news = News(lambda _: asyncio.sleep(0))
    news._runs = dict.fromkeys(range(10**18, 10**18 + 1_000))
    notices = news._take()
    assert all(len(notice.encode()) <= NOTICE_BYTES_MAX for notice in notices)
    assert sum(len(notice.split()) - 1 for notice in notices) == 1_000


async def _first_of_tasks(notices: asyncio.Queue[str]) -> str:
    while True:
        notice = await notices.get()
        if notice.startswith("tasks"):
            return notice


# -- runs ------------------------------------------------------------------------------------------


async def test_the_version_of_a_run(pair: Pair) -> None:
    key = await new_run(pair.one)
    await pair.one.commit([[step(key, 1)]])
    assert await pair.two.sharing.version(key) == 2
    assert await pair.two.sharing.version(key + 10**9) is None


async def test_who_watches_any_commit_is_told_once(pair: Pair) -> None:
    key = await new_run(pair.one)
    assert await pair.two.sharing.watch([(key, Awaited.ANY), (7, Awaited.ANY)]) == {key: 1}
    await pair.one.commit([[step(key, 1)]])
    await hears(pair.heard_by_two, f"awaited {key}")
    await pair.one.commit([[step(key, 2)]])
    await pair.one.sharing.tell("end")
    assert await pair.heard_by_two.get() == "end"


async def test_who_watches_the_close_hears_of_nothing_else(pair: Pair) -> None:
    key = await new_run(pair.one)
    assert await pair.two.sharing.watch([(key, Awaited.CLOSE)]) == {key: 1}
    await pair.one.commit([[step(key, 1)]])
    await pair.one.sharing.tell("so far")
    assert await pair.heard_by_two.get() == "so far"
    await pair.one.commit([[step(key, 2, record=closed(key))]])
    assert await pair.heard_by_two.get() == f"awaited {key}"


async def test_who_watches_many_runs_is_told_of_all_in_notices_that_fit(pair: Pair) -> None:
    await pair.look.execute("SELECT setval('perdure.ids', 1 + (1::bigint << 62))")
    pair.one._next_id = pair.one._last_id = 0
    first = await pair.one.allocate(1_000)
    keys = range(first, first + 1_000)
    assert await pair.one.commit([[start(key)] for key in keys]) == []
    await pair.two.sharing.watch([(key, Awaited.ANY) for key in keys])
    assert await pair.one.commit([[step(key, 1)] for key in keys]) == []
    await pair.one._sharing.news.close()
    await pair.one.sharing.tell("end")
    told: list[int] = []
    async with asyncio.timeout(WITHIN_S):
        while (notice := await pair.heard_by_two.get()) != "end":
            word, *about = notice.split()
            assert word == "awaited"
            told += map(int, about)
    assert sorted(told) == list(keys)


async def test_a_watch_for_all_is_not_weakened_by_one_for_the_close(pair: Pair) -> None:
    key = await new_run(pair.one)
    await pair.two.sharing.watch([(key, Awaited.ANY)])
    assert await pair.two.sharing.watch([(key, Awaited.CLOSE)]) == {key: 1}
    await pair.one.commit([[step(key, 1)]])
    await hears(pair.heard_by_two, f"awaited {key}")


async def test_a_due_alarm_is_rung_by_one_node_and_rings_again_for_others(pair: Pair) -> None:
    late = await new_run(pair.one, wake_at_ns=200)
    early = await new_run(pair.one, wake_at_ns=100)
    await new_run(pair.one)
    await new_run(pair.one, wake_at_ns=301)
    assert await pair.one.sharing.lease_due(300, 1) == [early]
    assert await pair.two.sharing.lease_due(300, 9) == [late]
    assert await pair.one.sharing.lease_due(300, 9) == []
    again_ns = 300 + sharing.ALARM_LEASE_NS
    assert sorted(await pair.two.sharing.lease_due(again_ns, 3))[:2] == [late, early]


async def test_a_beat_tells_of_alarms_that_nobody_rings(pair: Pair) -> None:
    now_ns = (await pair.one.sharing.beat([], [])).now_ns
    await new_run(pair.one, wake_at_ns=now_ns + 60 * SECOND_NS)
    assert not (await pair.two.sharing.beat([], [])).overdue
    due = await new_run(pair.one, wake_at_ns=now_ns - 2 * sharing.OVERDUE_NS)
    assert (await pair.two.sharing.beat([], [])).overdue
    assert await pair.two.sharing.lease_due(now_ns, 9) == [due]
    assert not (await pair.one.sharing.beat([], [])).overdue


# -- messages and letters --------------------------------------------------------------------------


async def test_a_message_is_delivered_by_one_node(pair: Pair) -> None:
    first = await pair.one.allocate(3)
    rows = [MessageRow(first + n, 1, b"m%d" % n) for n in range(3)]
    await new_run(pair.one, put_messages=rows)
    assert await pair.two.sharing.lease_messages(9) == []  # the writer delivers them
    await pair.age("messages", "leased_until_ns", sharing.MESSAGE_LEASE_NS)
    assert (await pair.two.sharing.beat([], [])).messages
    assert await pair.two.sharing.lease_messages(2) == rows[:2]
    assert await pair.one.sharing.lease_messages(9) == rows[2:]
    assert not (await pair.two.sharing.beat([], [])).messages


async def test_a_message_that_is_given_up_is_delivered_by_another_node(pair: Pair) -> None:
    row = MessageRow(await pair.one.allocate(1), 1, b"m")
    await new_run(pair.one, put_messages=[row])
    await pair.one.sharing.release_messages([row.id, row.id + 10**9])
    assert (await pair.two.sharing.beat([], [])).messages
    assert await pair.two.sharing.lease_messages(9) == [row]


async def test_letters_are_taken_once_in_order_and_by_address(pair: Pair) -> None:
    for number in range(3):
        await pair.one.sharing.post(Letter("two", b"%d" % number))
    await pair.one.sharing.post(Letter("three", b"else"))
    await hears(pair.heard_by_two, "letter three")
    assert (await pair.two.sharing.beat([], ["nobody", "two"])).letters
    taken = await pair.two.sharing.collect(["two", "nobody"], 2)
    assert taken == [Letter("two", b"0"), Letter("two", b"1")]
    assert await pair.one.sharing.collect(["two"], 9) == [Letter("two", b"2")]
    assert await pair.two.sharing.collect(["two"], 9) == []
    assert not (await pair.two.sharing.beat([], ["nobody", "two"])).letters
    assert (await pair.two.sharing.beat([], ["three"])).letters


async def test_a_letter_is_taken_back_or_taken(pair: Pair) -> None:
    first = await pair.one.sharing.post(Letter("two", b"first"))
    second = await pair.one.sharing.post(Letter("two", b"second"))
    assert await pair.one.sharing.take_back_letter(first)
    assert await pair.two.sharing.collect(["two"], 9) == [Letter("two", b"second")]
    assert not await pair.one.sharing.take_back_letter(second)
    assert not await pair.one.sharing.take_back_letter(first)


async def test_letters_that_nobody_takes_are_swept(pair: Pair) -> None:
    await pair.one.sharing.post(Letter("gone", b"old"))
    await pair.age("letters", "created_ns", sharing.LETTER_LIVES_NS + SECOND_NS)
    await pair.one.sharing.post(Letter("gone", b"new"))
    assert not await pair.two.sharing.sweep()
    assert await pair.two.sharing.collect(["gone"], 9) == [Letter("gone", b"new")]


async def test_tasks_of_closed_runs_are_swept_unless_leased(pair: Pair) -> None:
    [leased] = await waiting(pair.one, 1)
    assert await pair.one.sharing.lease_tasks(ORDERS, 1) == [leased]
    [of_closed], [of_deleted], [of_open] = [await waiting(pair.one, 1) for _ in range(3)]
    for row in (leased, of_closed):
        await pair.one.commit([[step(row.key, 1, record=closed(row.key))]])
    assert await pair.one.delete(of_deleted.key)
    assert not await pair.two.sharing.sweep()
    assert await task_ids(pair) == sorted([leased.id, of_open.id])
    await pair.age("tasks", "leased_until_ns", -LONG_NS, "leased_until_ns > 0")
    assert not await pair.two.sharing.sweep()
    assert await task_ids(pair) == [of_open.id]  # the lease was of another clock


async def test_tasks_are_swept_page_by_page_and_anew(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_SWEPT_AT_ONCE", 2)
    kept = await waiting(pair.one, 3)
    stale = await waiting(pair.one, 2)
    await pair.one.commit([[step(stale[0].key, 1, record=closed(stale[0].key))]])
    assert [await pair.two.sharing.sweep() for _ in range(3)] == [True, True, False]
    assert await task_ids(pair) == ids(kept)
    await pair.one.commit([[step(kept[0].key, 1, record=closed(kept[0].key))]])
    assert [await pair.two.sharing.sweep() for _ in range(2)] == [True, False]
    assert await task_ids(pair) == []


async def task_ids(pair: Pair) -> list[int]:
    found = await pair.look.fetch("SELECT id FROM perdure.tasks ORDER BY id")
    return [row[0] for row in found]


async def test_a_beat_is_one_statement(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is done beside: a node that gives no sign of life counts as dead."""
    run, statements = pair.one._read, []

    async def counted(statement: str, *parameters: object) -> Any:
        statements.append(statement)
        return await run(statement, *parameters)

    for name in ("_run", "_run_beat"):
        monkeypatch.setattr(pair.one.sharing, name, counted)
    for _ in range(120):
        await pair.one.sharing.beat([], [])
    assert len([text for text in statements if text != sharing.SQL["tell"]]) == 120


# -- rates -----------------------------------------------------------------------------------------


async def test_a_rate_holds_over_both_nodes(pair: Pair) -> None:
    stores = [pair.one, pair.two] * 10
    calls = (s.sharing.permits("orders", 0.001, 7, 2) for s in stores)
    assert sum(await asyncio.gather(*calls)) == 7
    assert await pair.one.sharing.permits("other", 0.001, 7, 9) == 7


async def test_a_rate_gives_anew_as_time_passes(pair: Pair) -> None:
    assert await pair.one.sharing.permits("orders", 0.001, 2, 5) == 2
    assert await pair.two.sharing.permits("orders", 0.001, 2, 5) == 0
    await pair.age("rates", "due_ns", 1_000 * SECOND_NS)
    assert await pair.two.sharing.permits("orders", 0.001, 2, 5) == 1
    await pair.age("rates", "due_ns", 10 * 1_000 * SECOND_NS)
    assert await pair.one.sharing.permits("orders", 0.001, 2, 5) == 2  # never more than a burst


async def test_a_rate_of_a_clock_that_was_ahead_counts_anew(pair: Pair) -> None:
    assert await pair.one.sharing.permits("orders", 0.01, 2, 5) == 2
    await pair.age("rates", "due_ns", -LONG_NS)
    assert await pair.two.sharing.permits("orders", 0.01, 2, 5) == 2
    assert await pair.one.sharing.permits("orders", 0.01, 2, 5) == 0


@pytest.mark.parametrize("former", [1e-9, 0.001])
async def test_a_rate_that_is_raised_counts_at_once(pair: Pair, former: float) -> None:
    assert await pair.one.sharing.permits("orders", former, 1, 5) == 1
    assert await pair.two.sharing.permits("orders", former, 1, 5) == 0
    assert await pair.two.sharing.permits("orders", 0.01, 1, 5) == 1
    assert await pair.one.sharing.permits("orders", 0.01, 1, 5) == 0
    assert await pair.one.sharing.permits("orders", former, 1, 5) == 0  # and lowered again


@pytest.mark.parametrize("per_second", [1e-10, 1e-300, 5e-324])
async def test_a_rate_of_one_in_more_than_a_lifetime(pair: Pair, per_second: float) -> None:
    assert await pair.one.sharing.permits("orders", per_second, 1, 5) == 1
    assert await pair.two.sharing.permits("orders", per_second, 1, 5) == 0
    assert await pair.two.sharing.permits("orders", 1e300, int(1e300), 5) == 5


async def test_rates_that_nobody_asks_for_are_swept(pair: Pair) -> None:
    for name in ("old", "new"):
        assert await pair.one.sharing.permits(name, 1.0, 1, 1) == 1
    await pair.age("rates", "due_ns", sharing.RATE_LIVES_NS + 2 * SECOND_NS, "name = 'old'")
    await pair.two.sharing.sweep()
    assert await pair.look.fetch("SELECT name FROM perdure.rates") == [("new",)]
    assert await pair.two.sharing.permits("old", 1.0, 1, 1) == 1


# -- what a beat tells -----------------------------------------------------------------------------


async def test_a_beat_tells_which_queues_have_free_tasks(pair: Pair) -> None:
    await waiting(pair.one, 1)
    empty, other = ("default", "empty", 1), ("default", "orders", 2)
    asked = [empty, ORDERS, other]
    assert (await pair.two.sharing.beat(asked, [])).queues == (ORDERS,)
    assert await pair.one.sharing.lease_tasks(ORDERS, 1)
    assert (await pair.two.sharing.beat(asked, [])).queues == ()


async def test_a_beat_tells_of_changed_namespaces_and_newer_schemas(pair: Pair) -> None:
    before = await pair.one.sharing.beat([], [])
    assert await pair.two.put_namespace(NamespaceRow("sales", "id", b"body"))
    await hears(pair.heard_by_one, "namespaces")
    changed = await pair.one.sharing.beat([], [])
    assert changed.namespaces != before.namespaces
    assert await pair.two.put_namespace(NamespaceRow("sales", "id", b"other"), b"body")
    assert (await pair.one.sharing.beat([], [])).namespaces not in (
        before.namespaces, changed.namespaces,
    )  # fmt: skip


async def test_a_beat_reads_no_body_of_a_namespace(pair: Pair) -> None:
    """They may be long; and where only FIPS is allowed, md5 fails."""
    await pair.look.execute(
        "CREATE SCHEMA shadow; CREATE FUNCTION shadow.md5(bytea) RETURNS text LANGUAGE sql "
        "AS $$ SELECT (1 / 0)::text $$; ALTER ROLE CURRENT_USER IN DATABASE "
        f"{await pair.look.fetchval('SELECT current_database()')} "
        "SET search_path = shadow, pg_catalog"
    )
    await pair.one.put_namespace(NamespaceRow("sales", "id", b"body"))
    await pair.one._reconnect()
    before = await pair.one.sharing.beat([], [])
    assert before.namespaces
    assert (await pair.one.sharing.beat([], [])).namespaces == before.namespaces


# -- notices ---------------------------------------------------------------------------------------


async def test_a_notice_reaches_the_others_and_not_its_sender(pair: Pair) -> None:
    await pair.one.sharing.tell("namespaces")
    await hears(pair.heard_by_two, "namespaces")
    await pair.two.sharing.tell("hello")
    assert await pair.heard_by_one.get() == "hello"


async def test_who_could_not_hear_for_a_while_is_told_so(pair: Pair) -> None:
    await pair.one.sharing.tell("first")
    await hears(pair.heard_by_two, "first")
    await pair.look.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    )
    await hears(pair.heard_by_two, "")
    await pair.one.sharing.tell("second")
    await hears(pair.heard_by_two, "second")


def test_a_notice_has_room_for_many_queues_or_names_none() -> None:
    few = sharing.notice_of([ORDERS, ("default", "a", 1)])
    assert few == 'tasks [["default","a",1],["default","orders",1]]'
    many = {("default", f"queue-{n}" * 20, 1) for n in range(100)}
    assert sharing.notice_of(many) == "tasks []"


async def test_a_commit_that_was_given_up_cannot_come_later(pair: Pair) -> None:
    key = await new_run(pair.one)
    late = [[step(key, 1)]]
    assert await pair.one.settle(late) == [0]
    assert await pair.one.commit(late) == [0]
    loaded = await pair.two.load(key)
    assert loaded is not None
    assert await pair.two.commit([[step(key, loaded.version)]]) == []


async def test_who_gives_up_a_commit_leaves_a_version_that_is_nobody_elses(pair: Pair) -> None:
    keys = [await new_run(pair.one) for _ in range(4)]
    assert await pair.one.settle([[step(key, 1)] for key in keys]) == [0, 1, 2, 3]
    versions = [await pair.one.sharing.version(key) for key in keys]
    assert len(set(versions)) > 1, versions
    assert all(version is not None and version > 1 for version in versions)


async def test_a_commit_that_was_written_is_not_given_up(pair: Pair) -> None:
    key, other = await new_run(pair.one), await new_run(pair.one)
    units = [[step(key, 1)], [step(other, 1)]]
    assert await pair.two.commit([units[1]]) == []
    assert await pair.one.settle(units) == [0]
    loaded = await pair.one.load(other)
    assert loaded is not None
    assert loaded.version == 2


@pytest.mark.parametrize("held", ["run", "workflow id"])
async def test_what_may_be_under_way_is_not_known(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    for name, text in STATEMENTS.items():
        monkeypatch.setitem(STATEMENTS, name, text.replace("'1s'", "'100ms'"))
    key = await new_run(pair.one)
    number = lock_number(("default", f"workflow-{key}"))
    async with pair.look.transaction():
        if held == "run":
            await pair.look.execute(f"SELECT FROM perdure.states WHERE key = {key} FOR UPDATE")
            unit = [step(key, 1)]
        else:
            await pair.look.execute(f"SELECT pg_advisory_xact_lock({number})")
            unit = [start(key)]
        with pytest.raises(StoreUnavailable, match="holds locks"):
            await pair.one.settle([unit])
    await pair.one.settle([unit])


async def end_who_waits(store: PostgresStore) -> None:
    """End the backend that waits for a lock, as soon as one does."""
    ended = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(WITHIN_S):
        while not await store._read(ended):
            pass


async def test_what_the_server_refused_is_known(pair: Pair) -> None:
    """An error that the server answers with undid the commit; a connection that breaks may not."""
    key = await new_run(pair.one)
    with pytest.raises(StoreError) as refused:
        await pair.one.commit([[step(key, 1, put_tasks=[task(1, key, queue="\0")])]])
    assert refused.value.refused
    async with pair.look.transaction():
        await pair.look.execute(f"SELECT FROM perdure.states WHERE key = {key} FOR UPDATE")
        ended = asyncio.ensure_future(pair.one.commit([[step(key, 1)]]))
        await end_who_waits(pair.two)
        with pytest.raises(StoreUnavailable) as broken:
            await ended
    assert not broken.value.refused
