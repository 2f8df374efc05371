"""What every store must do. A store's own test module subclasses `StoreContract`.

The subclass gives `new_store()`; a store that keeps data beyond `close` also gives `reopened()`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from store_rows import COMPLETED, RUNNING, closed, start, step, task

from perdure.store.contract import (
    DEFAULT_RANK,
    LEVEL_BITS,
    START,
    THIS_NODE,
    Backlog,
    HistoryBatch,
    MessageRow,
    NamespaceRow,
    Record,
    Store,
    StoreError,
    StoreRefused,
    StoreUndelivered,
)
from perdure.store.paging import position
from perdure.store.query import Column, Compare, Custom, IsNull, Kind, Order, Query, StartsWith


class StoreContract:
    """The suite; inherit it in a class whose name starts with Test."""

    def new_store(self) -> Store:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, tmp_path: Any) -> AsyncIterator[Store]:
        self.directory = tmp_path
        store = self.new_store()
        await store.open()
        yield store
        await store.close()

    # ---- runs ----

    async def test_a_started_run_is_there_with_all_that_was_written(self, store: Store) -> None:
        key = await store.allocate(1)
        write = start(key, search_attributes={"City": "Ulm", "Tags": ["a", "b"], "Price": 1.0})
        write.wake_at_ns = 77
        write.put_items = [(2, b"two"), (1, b"one")]
        assert await store.commit([[write]]) == []
        loaded = await store.load(key)
        assert loaded is not None
        assert loaded.record == write.record
        assert loaded.version == 1
        assert loaded.state == b"state-1"
        assert loaded.wake_at_ns == 77
        assert loaded.items == [(1, b"one"), (2, b"two")]
        assert await store.history(key, 1, 10, limit=10) == [HistoryBatch(1, 2, b"started")]

    async def test_there_is_nothing_of_an_unknown_run(self, store: Store) -> None:
        assert await store.load(4711) is None
        assert await store.find("default", "nobody") is None
        assert await store.history(4711, 1, 10, limit=10) == []
        assert await store.delete(4711) == 0

    async def test_a_step_changes_what_it_names_and_nothing_else(self, store: Store) -> None:
        key = await store.allocate(1)
        first = start(key)
        first.wake_at_ns = 50
        first.put_items = [(1, b"one"), (2, b"two")]
        await store.commit([[first]])
        second = step(key, 1, put_items=[(2, b"zwei"), (3, b"drei")], drop_items=[1])
        assert await store.commit([[second]]) == []
        loaded = await store.load(key)
        assert loaded is not None
        assert (loaded.version, loaded.state, loaded.wake_at_ns) == (2, b"state-2", 50)
        assert loaded.items == [(2, b"zwei"), (3, b"drei")]
        assert loaded.record == first.record

    async def test_an_alarm_moves_only_when_told(self, store: Store) -> None:
        key = await store.allocate(1)
        first = start(key)
        first.wake_at_ns = 50
        await store.commit([[first]])
        await store.commit([[step(key, 1, wake_at_ns=60)]])
        assert await store.next_alarm() == 50
        await store.commit([[step(key, 2, wake_at_ns=70, wake_changed=True)]])
        assert await store.next_alarm() == 70
        await store.commit([[step(key, 3, wake_at_ns=0, wake_changed=True)]])
        assert await store.next_alarm() is None

    async def test_writes_of_one_run_in_one_batch_follow_each_other(self, store: Store) -> None:
        key = await store.allocate(1)
        first = start(key)
        first.wake_at_ns = 9
        units = [
            [first],
            [step(key, 1, put_items=[(1, b"a")], wake_at_ns=5, wake_changed=True)],
            [step(key, 2, drop_items=[1], events=b"more", first_event_id=3, last_event_id=3)],
            [step(key, 3, put_items=[(1, b"b")], record=closed(key))],
        ]
        assert await store.commit(units) == []
        loaded = await store.load(key)
        assert loaded is not None
        assert (loaded.version, loaded.state, loaded.wake_at_ns) == (4, b"state-4", 5)
        assert loaded.items == [(1, b"b")]
        assert loaded.record.status == COMPLETED
        assert len(await store.history(key, 1, 9, limit=9)) == 2

    async def test_items_of_neighbouring_runs_do_not_mix(self, store: Store) -> None:
        key = await store.allocate(3)
        last_item = (1 << 24) - 1
        for offset in range(3):
            write = start(key + offset)
            write.put_items = [(0, b"first"), (last_item, f"last-{offset}".encode())]
            await store.commit([[write]])
        loaded = await store.load(key + 1)
        assert loaded is not None
        assert loaded.items == [(0, b"first"), (last_item, b"last-1")]
        assert await store.delete(key + 1)
        for offset in (0, 2):
            loaded = await store.load(key + offset)
            assert loaded is not None
            assert len(loaded.items) == 2

    async def test_an_empty_batch_is_no_harm(self, store: Store) -> None:
        assert await store.commit([]) == []
        assert await store.commit([[]]) == []

    # ---- conflicts ----

    async def test_a_stale_write_is_left_out_alone(self, store: Store) -> None:
        key = await store.allocate(3)
        await store.commit([[start(key)], [start(key + 1)]])
        await store.commit([[step(key, 1)]])
        units = [
            [step(key + 1, 1)],
            [
                step(
                    key,
                    1,
                    put_items=[(1, b"never")],
                    events=b"x",
                    first_event_id=3,
                    last_event_id=3,
                )
            ],
            [start(key + 2)],
        ]
        assert await store.commit(units) == [1]
        loaded = await store.load(key)
        assert loaded is not None
        assert (loaded.version, loaded.items) == (2, [])
        assert len(await store.history(key, 1, 99, limit=9)) == 1
        other = await store.load(key + 1)
        assert other is not None
        assert other.version == 2
        assert await store.load(key + 2) is not None

    async def test_a_write_ahead_of_the_store_is_a_conflict(self, store: Store) -> None:
        key = await store.allocate(1)
        await store.commit([[start(key)]])
        assert await store.commit([[step(key, 2)]]) == [0]
        assert await store.commit([[step(key + 1, 1)]]) == [0]

    async def test_what_builds_on_a_conflict_is_one_too(self, store: Store) -> None:
        key = await store.allocate(2)
        await store.commit([[start(key)], [start(key + 1)]])
        units = [[step(key, 5)], [step(key, 6)], [step(key + 1, 1)]]
        assert await store.commit(units) == [0, 1]

    async def test_two_writes_on_one_version_in_one_batch(self, store: Store) -> None:
        key = await store.allocate(1)
        await store.commit([[start(key)]])
        units = [[step(key, 1, put_items=[(1, b"a")])], [step(key, 1, put_items=[(2, b"b")])]]
        assert await store.commit(units) == [1]
        loaded = await store.load(key)
        assert loaded is not None
        assert loaded.items == [(1, b"a")]

    async def test_a_unit_is_left_out_as_a_whole(self, store: Store) -> None:
        key = await store.allocate(3)
        await store.commit([[start(key)], [start(key + 1)]])
        unit = [step(key, 1, put_tasks=[task(key + 2, key)]), step(key + 1, 8)]
        assert await store.commit([unit]) == [0]
        loaded = await store.load(key)
        assert loaded is not None
        assert loaded.version == 1
        assert await store.tasks("default", "orders", 1, START, 9) == []

    async def test_one_open_run_per_workflow_id(self, store: Store) -> None:
        key = await store.allocate(4)
        await store.commit([[start(key, workflow_id="w")]])
        units = [
            [start(key + 1, workflow_id="w")],
            [start(key + 2, workflow_id="w", namespace="other")],
        ]
        assert await store.commit(units) == [0]
        assert await store.load(key + 1) is None
        successor = [
            step(key, 1, record=closed(key, workflow_id="w")),
            start(key + 3, workflow_id="w"),
        ]
        assert await store.commit([successor]) == []
        assert await store.find("default", "w") == key + 3

    async def test_successor_named_before_the_closing_run(self, store: Store) -> None:
        key = await store.allocate(2)
        await store.commit([[start(key, workflow_id="w")]])
        unit = [start(key + 1, workflow_id="w"), step(key, 1, record=closed(key, workflow_id="w"))]
        assert await store.commit([unit]) == []
        assert await store.find("default", "w") == key + 1

    async def test_of_two_starts_in_one_batch_one_wins(self, store: Store) -> None:
        key = await store.allocate(2)
        units = [[start(key, workflow_id="w")], [start(key + 1, workflow_id="w")]]
        assert await store.commit(units) == [1]
        assert await store.find("default", "w") == key

    async def test_a_start_follows_the_run_on_which_it_was_decided(self, store: Store) -> None:
        key = await store.allocate(5)
        assert await store.commit([[start(key, workflow_id="w", follows=0)]]) == []
        late = start(key + 1, workflow_id="w", follows=0)
        assert await store.commit([[late]]) == [0]
        await store.commit([[step(key, 1, record=closed(key, workflow_id="w"))]])
        assert await store.commit([[late], [start(key + 2, follows=0)]]) == [0]
        assert await store.commit([[start(key + 3, workflow_id="w", follows=key)]]) == []
        over = start(key + 4, workflow_id="w", follows=key, status=COMPLETED, close_ns=9_999)
        assert await store.commit([[over]]) == [0]
        assert await store.find("default", "w") == key + 3

    async def test_a_start_may_follow_a_run_that_its_batch_closes(self, store: Store) -> None:
        key = await store.allocate(4)
        await store.commit([[start(key, workflow_id="w")]])
        batch = [
            [step(key, 1, record=closed(key, workflow_id="w"))],
            [start(key + 1, workflow_id="w", follows=key, status=COMPLETED, close_ns=9_999)],
            [start(key + 2, workflow_id="w", follows=key)],
            [start(key + 3, workflow_id="w", follows=key + 1)],
        ]
        assert await store.commit(batch) == [2]
        assert await store.find("default", "w") == key + 3
        assert await store.find("default", "w", f"run-{key + 1}") == key + 1

    async def test_a_start_cannot_follow_a_run_that_is_gone(self, store: Store) -> None:
        key = await store.allocate(3)
        await store.commit([[start(key, workflow_id="w", status=COMPLETED, close_ns=9_999)]])
        await store.delete(key)
        assert await store.commit([[start(key + 1, workflow_id="w", follows=key)]]) == [0]
        assert await store.commit([[start(key + 2, workflow_id="w", follows=0)]]) == []

    async def test_the_run_that_started_last_by_the_clock_of_a_fast_node(
        self, store: Store
    ) -> None:
        key = await store.allocate(3)
        fast = {"start_ns": 9_000, "status": COMPLETED, "close_ns": 9_001}
        await store.commit([[start(key, workflow_id="w", **fast)]])
        await store.commit([[start(key + 1, workflow_id="w", follows=key)]])
        close = step(key + 1, 1, record=closed(key + 1, workflow_id="w"))
        if await store.commit([[close], [start(key + 2, workflow_id="w", follows=key + 1)]]):
            last = await store.find("default", "w")
            assert await store.commit([[start(key + 2, workflow_id="w", follows=last)]]) == []
        assert await store.find("default", "w") == key + 2

    async def test_a_run_cannot_be_started_twice(self, store: Store) -> None:
        key = await store.allocate(2)
        await store.commit([[start(key)]])
        assert await store.commit([[start(key, workflow_id="x", run_id="y")]]) == [0]
        assert await store.commit([[start(key + 1, run_id=f"run-{key}")]]) == [0]

    async def test_a_task_is_claimed_once(self, store: Store) -> None:
        key = await store.allocate(3)
        first = start(key)
        first.put_tasks = [task(key + 1, key), task(key + 2, key)]
        await store.commit([[first]])
        assert await store.commit([[step(key, 1, drop_tasks=[key + 1])]]) == []
        assert await store.commit([[step(key, 2, drop_tasks=[key + 1])]]) == [0]
        units = [[step(key, 2, drop_tasks=[key + 2])], [step(key, 3, drop_tasks=[key + 2])]]
        assert await store.commit(units) == [1]
        assert await store.tasks("default", "orders", 1, START, 9) == []

    @pytest.mark.parametrize("alone", [True, False])
    async def test_what_can_never_be_held_is_refused_and_nothing_written(
        self, store: Store, alone: bool
    ) -> None:
        key = await store.allocate(4)
        await store.commit([[start(key)], [start(key + 1)]])
        good = [[step(key, 1)], [start(key + 2)]]
        for bad in (
            start(key + 3, history_length=1 << 63),
            step(key + 1, 1, wake_at_ns=1 << 63, wake_changed=True),
        ):
            with pytest.raises(StoreRefused) as refused:
                await store.commit([[bad]] if alone else [*good, [bad]])
            assert refused.value.refused
        assert await store.load(key + 2) is await store.load(key + 3) is None
        assert await store.commit([*good, [step(key + 1, 1)]]) == []

    async def test_concurrent_commits_all_arrive(self, store: Store) -> None:
        key = await store.allocate(30)
        results = await asyncio.gather(
            *(store.commit([[start(key + n)]] * (1 if n % 2 else 12)) for n in range(30))
        )
        assert [len(left_out) for left_out in results] == [0 if n % 2 else 11 for n in range(30)]
        assert len(await store.list_runs(Query("default"))) == 30

    async def test_a_cancelled_commit_leaves_the_store_usable(self, store: Store) -> None:
        key = await store.allocate(60)
        commit = asyncio.ensure_future(store.commit([[start(key + n)] for n in range(50)]))
        await asyncio.sleep(0)
        commit.cancel()
        await asyncio.gather(commit, return_exceptions=True)
        assert await store.commit([[start(key + 50)]]) == []
        assert len(await store.list_runs(Query("default"))) in {1, 51}

    # ---- finding ----

    async def test_find_prefers_the_open_run_then_the_last(self, store: Store) -> None:
        key = await store.allocate(3)
        for n in range(3):
            await store.commit([[start(key + n, workflow_id="w")]])
            if n < 2:
                await store.commit([[step(key + n, 1, record=closed(key + n, workflow_id="w"))]])
        assert await store.find("default", "w") == key + 2
        assert await store.find("default", "w", f"run-{key}") == key
        assert await store.find("default", "w", "no-such-run") is None
        assert await store.find("default", "other", f"run-{key}") is None
        assert await store.find("other", "w") is None
        await store.commit([[step(key + 2, 1, record=closed(key + 2, workflow_id="w"))]])
        assert await store.find("default", "w") == key + 2

    async def test_ids_are_fresh(self, store: Store) -> None:
        seen: set[int] = set()
        for count in (1, 3, 1000, 1):
            first = await store.allocate(count)
            ids = set(range(first, first + count))
            assert not ids & seen
            assert min(ids) > 0
            seen |= ids

    async def test_concurrent_allocations_do_not_overlap(self, store: Store) -> None:
        firsts = await asyncio.gather(*(store.allocate(20_000) for _ in range(12)))
        assert len({n for first in firsts for n in (first, first + 19_999)}) == 24
        ordered = sorted(firsts)
        assert all(b - a >= 20_000 for a, b in itertools.pairwise(ordered))

    # ---- history ----

    async def test_history_ranges(self, store: Store) -> None:
        key = await store.allocate(2)
        await store.commit([[start(key)], [start(key + 1)]])
        version, event_id = 1, 3
        for size in (1, 4, 2, 3):
            last = event_id + size - 1
            write = step(
                key, version, events=b"e%d" % event_id, first_event_id=event_id, last_event_id=last
            )
            await store.commit([[write]])
            version, event_id = version + 1, last + 1
        ranges = [(1, 2), (3, 3), (4, 7), (8, 9), (10, 12)]

        async def ask(first: int, last: int, limit: int = 99, reverse: bool = False) -> list[Any]:
            batches = await store.history(key, first, last, limit=limit, reverse=reverse)
            return [(b.first_event_id, b.last_event_id) for b in batches]

        assert await ask(1, 99) == ranges
        assert await ask(1, 99, reverse=True) == ranges[::-1]
        for first in range(1, 14):
            for last in range(first, 14):
                overlap = [r for r in ranges if r[0] <= last and r[1] >= first]
                assert await ask(first, last) == overlap
                assert await ask(first, last, 2) == overlap[:2]
                assert await ask(first, last, 2, True) == overlap[::-1][:2]

    async def test_history_of_so_many_bytes(self, store: Store) -> None:
        key = await store.allocate(1)
        await store.commit([[start(key, events=b"x" * 10)]])
        for event_id in (3, 4, 5):
            events = {"events": b"y" * 10, "first_event_id": event_id, "last_event_id": event_id}
            await store.commit([[step(key, event_id - 2, **events)]])
        for max_bytes, count in ((1, 1), (10, 1), (11, 2), (20, 2), (31, 4), (99, 4)):
            for reverse in (False, True):
                found = await store.history(
                    key, 1, 9, limit=9, max_bytes=max_bytes, reverse=reverse
                )
                ends = [batch.last_event_id for batch in found]
                assert ends == ([5, 4, 3, 2] if reverse else [2, 3, 4, 5])[:count]
        assert len(await store.history(key, 1, 9, limit=1, max_bytes=99)) == 1

    async def test_changes_come_in_commit_order(self, store: Store) -> None:
        key = await store.allocate(2)
        await store.commit([[start(key)], [start(key + 1)]])
        more = step(key, 1, events=b"more", first_event_id=3, last_event_id=3)
        await store.commit([[more]])
        seen = [change async for change in store.changes(0, 99)]
        assert [(k, batch.first_event_id) for _, k, batch in seen] == [
            (key, 1),
            (key + 1, 1),
            (key, 3),
        ]
        positions = [p for p, _, _ in seen]
        assert positions == sorted(set(positions))
        assert [c async for c in store.changes(positions[0], 1)] == seen[1:2]
        await store.delete(key)
        await store.commit([[step(key + 1, 1, events=b"x", first_event_id=3, last_event_id=3)]])
        later = [change async for change in store.changes(positions[-1], 99)]
        assert [k for _, k, _ in later] == [key + 1]

    # ---- alarms, tasks, messages ----

    async def test_alarms_ring_in_order(self, store: Store) -> None:
        key = await store.allocate(5)
        for n, wake_at_ns in enumerate((30, 10, 0, 20, 40)):
            write = start(key + n)
            write.wake_at_ns = wake_at_ns
            await store.commit([[write]])
        assert await store.due(30, 99) == [(key + 1, 10), (key + 3, 20), (key, 30)]
        assert await store.due(30, 2) == [(key + 1, 10), (key + 3, 20)]
        assert await store.next_alarm() == 10

    async def test_in_flight_runs(self, store: Store) -> None:
        key = await store.allocate(3)
        writes = [start(key + n) for n in range(3)]
        for write in writes:
            write.in_flight = THIS_NODE
        await store.commit([writes])
        await store.commit([[step(key, 1)]])
        await store.commit([[step(key + 1, 1, in_flight=THIS_NODE, record=closed(key + 1))]])
        assert await store.in_flight() == [key + 2]

    async def test_tasks_wait_in_their_queue(self, store: Store) -> None:
        key = await store.allocate(6)
        write = start(key)
        rows = [task(key + n, key) for n in range(1, 4)]
        others = [task(key + 4, key, queue="other"), task(key + 5, key, kind=2)]
        write.put_tasks = rows + others
        await store.commit([[write]])
        assert await store.tasks("default", "orders", 1, START, 99) == rows
        behind = (rows[0].rank, rows[0].id)
        assert await store.tasks("default", "orders", 1, behind, 1) == rows[1:2]

    async def test_tasks_are_in_order_of_rank_and_then_of_id(self, store: Store) -> None:
        key = await store.allocate(6)
        write = start(key)
        low, high = 5 << LEVEL_BITS, 1 << LEVEL_BITS | 7
        ranks = [low, high, low, DEFAULT_RANK, high]
        write.put_tasks = [task(key + n, key, rank=rank) for n, rank in enumerate(ranks, 1)]
        await store.commit([[write]])
        found = await store.tasks("default", "orders", 1, START, 99)
        assert [row.id - key for row in found] == [2, 5, 4, 1, 3]
        behind = await store.tasks("default", "orders", 1, (high, key + 2), 99)
        assert behind == found[1:]

    async def test_backlogs_are_counted_by_queue_level_and_key(self, store: Store) -> None:
        key = await store.allocate(9)
        write = start(key)
        write.put_tasks = [
            task(key + 1, key, queue="b", created_ns=30),
            task(key + 2, key, queue="a", kind=2, rank=DEFAULT_RANK + 4, fairness_key="x"),
            task(key + 3, key, queue="a", kind=2, rank=DEFAULT_RANK + 9, fairness_key="x"),
            task(key + 4, key, queue="a", kind=2, rank=DEFAULT_RANK + 2, fairness_key="w"),
            task(key + 5, key, queue="a", kind=2, rank=1 << LEVEL_BITS),
            task(key + 6, key, queue="b", created_ns=20),
        ]
        await store.commit([[write]])
        top, middle = 1 << LEVEL_BITS, DEFAULT_RANK
        of_a = [
            Backlog("default", "a", 2, 1, "", 1, top, top, 5),
            Backlog("default", "a", 2, 3, "w", 1, middle + 2, middle + 2, 5),
            Backlog("default", "a", 2, 3, "x", 2, middle + 4, middle + 9, 5),
        ]
        of_b = [Backlog("default", "b", 1, 3, "", 2, middle, middle, 20)]
        assert await store.backlogs() == of_a + of_b
        assert await store.backlogs("default", "a", 2) == of_a
        assert await store.backlogs("default", "a", 1) == []

    async def test_messages_wait_until_dropped(self, store: Store) -> None:
        key = await store.allocate(4)
        write = start(key)
        rows = [MessageRow(key + n, key, b"m%d" % n) for n in range(1, 4)]
        write.put_messages = rows
        await store.commit([[write], [start(await store.allocate(1))]])
        assert await store.messages(0, 99) == rows
        assert await store.messages(key + 1, 1) == rows[1:2]
        await store.commit([[step(key, 1, drop_messages=[key + 2])]])
        assert await store.messages(0, 99) == [rows[0], rows[2]]

    # ---- deletion, namespaces ----

    async def test_a_deleted_run_leaves_nothing(self, store: Store) -> None:
        key = await store.allocate(4)
        write = start(key)
        write.put_items = [(1, b"one")]
        write.wake_at_ns = 5
        await store.commit([[write]])
        assert await store.delete(key) == 1
        assert await store.delete(key) == 0
        assert await store.load(key) is None
        assert await store.find("default", f"workflow-{key}") is None
        assert await store.history(key, 1, 99, limit=99) == []
        assert await store.list_runs(Query("default")) == []
        assert await store.next_alarm() is None
        assert await store.messages(0, 99) == []
        again = start(key + 2, workflow_id=f"workflow-{key}")
        assert await store.commit([[again]]) == []

    async def test_runs_are_deleted_together(self, store: Store) -> None:
        key = await store.allocate(4)
        await store.commit([[start(key + n)] for n in range(3)])
        assert await store.delete(key, key + 2, key + 3) == 2
        assert [found.key for found in await store.list_runs(Query("default"))] == [key + 1]
        assert await store.history(key + 1, 1, 99, limit=99)
        assert await store.history(key + 2, 1, 99, limit=99) == []

    async def test_a_run_is_not_deleted_before_its_messages_are_delivered(
        self, store: Store
    ) -> None:
        key = await store.allocate(2)
        write = start(key)
        write.put_messages = [MessageRow(key + 1, key, b"m")]
        await store.commit([[write]])
        with pytest.raises(StoreUndelivered):
            await store.delete(key)
        assert await store.messages(0, 9) == write.put_messages
        assert await store.commit([[step(key, 1, drop_messages=[key + 1])]]) == []
        assert await store.delete(key)
        assert await store.load(key) is None

    async def test_a_long_history_is_shortened_from_its_beginning(self, store: Store) -> None:
        key = await store.allocate(2)
        await store.commit([[start(key)], [start(key + 1)]])
        for n in range(1, 5):
            event = {"events": b"x", "first_event_id": n + 2, "last_event_id": n + 2}
            await store.commit([[step(key, n, **event)]])
        whole = await store.history(key, 1, 99, limit=99)
        assert len(whole) == 5
        assert not await store.shorten(key, 5), "no more than that"
        assert await store.history(key, 1, 99, limit=99) == whole
        assert await store.shorten(key, 2)
        assert await store.history(key, 1, 99, limit=99) == whole[2:]
        assert await store.shorten(key, 2)
        assert not await store.shorten(key, 2), "the last stays"
        assert await store.history(key, 1, 99, limit=99) == whole[4:]
        assert await store.load(key) is not None
        assert await store.delete(key)
        assert await store.history(key, 1, 99, limit=99) == []
        assert not await store.shorten(key, 2)
        assert await store.history(key + 1, 1, 99, limit=99)

    async def test_a_history_stays_whole_before_its_messages_are_delivered(
        self, store: Store
    ) -> None:
        key = await store.allocate(2)
        write = start(key)
        write.put_messages = [MessageRow(key + 1, key, b"m")]
        await store.commit([[write]])
        more = step(key, 1, events=b"x", first_event_id=3, last_event_id=3)
        await store.commit([[more]])
        with pytest.raises(StoreUndelivered):
            await store.shorten(key, 1)
        assert len(await store.history(key, 1, 99, limit=99)) == 2

    async def test_namespaces(self, store: Store) -> None:
        rows = [NamespaceRow("b", "2", b"two"), NamespaceRow("a", "1", b"one")]
        for row in rows:
            assert await store.put_namespace(row)
        assert await store.namespaces() == rows[::-1]
        assert not await store.put_namespace(NamespaceRow("b", "2", b"x"))
        assert not await store.put_namespace(NamespaceRow("b", "2", b"x"), b"never")
        assert await store.put_namespace(NamespaceRow("b", "2", b"changed"), b"two")
        assert (await store.namespaces())[1].body == b"changed"
        assert await store.namespace("a") == rows[1]
        assert await store.namespace("c") is None

    # ---- list and count ----

    async def test_list_is_newest_first_and_of_one_namespace(self, store: Store) -> None:
        key = await store.allocate(5)
        await store.commit([[start(key + n)] for n in range(4)])
        await store.commit([[start(key + 4, namespace="other")]])
        keys = [r.key for r in await store.list_runs(Query("default"))]
        assert keys == [key + 3, key + 2, key + 1, key]
        assert await store.count_runs(Query("default")) == [([], 4)]

    async def test_list_sees_a_commit_at_once(self, store: Store) -> None:
        key = await store.allocate(20)
        for n in range(20):
            await store.commit([[start(key + n)]])
            assert await store.count_runs(Query("default")) == [([], n + 1)]

    async def test_pages_with_ties_and_missing_values_never_overlap(self, store: Store) -> None:
        key = await store.allocate(30)
        for n in range(30):
            attributes: dict[str, Any] = {} if n % 3 == 0 else {"N": n % 4}
            changes: dict[str, Any] = {"start_ns": n // 7, "search_attributes": attributes}
            if n % 2:
                changes |= {"close_ns": n % 5 + 1, "status": COMPLETED}
            await store.commit([[start(key + n, **changes)]])
        orders: list[tuple[Order, ...]] = [
            (),
            (Order(Column.START),),
            (Order(Column.START, True), Order(Column.CLOSE)),
            (Order(Column.CLOSE, True),),
            (Order(Column.CLOSE), Order(Column.STATUS, True)),
            (Order(Custom("N", Kind.NUMBER), True), Order(Column.START)),
            (Order(Custom("N", Kind.NUMBER)), Order(Column.DURATION, True)),
        ]
        for order in orders:
            whole = await store.list_runs(Query("default", order=order))
            assert len(whole) == 30
            pages: list[Record] = []
            query = Query("default", order=order, limit=4)
            while page := await store.list_runs(query):
                pages += page
                assert len(pages) <= 30, "pages overlap"
                query = Query("default", order=order, limit=4, after=position(query, page[-1]))
            assert [r.key for r in pages] == [r.key for r in whole], order

    async def test_pages_go_on_behind_a_number_beyond_64_bits(self, store: Store) -> None:
        key = await store.allocate(5)
        for n, price in enumerate([1e300, -1e300, 2.0**63, 0.5, 10**20 + 1]):
            await store.commit([[start(key + n, search_attributes={"Price": price})]])
        for descending in (False, True):
            order = (Order(Custom("Price", Kind.NUMBER), descending),)
            pages: list[int] = []
            query = Query("default", order=order, limit=1)
            while page := await store.list_runs(query):
                pages.append(page[0].key - key)
                query = Query("default", order=order, limit=1, after=position(query, page[0]))
            assert pages == ([0, 4, 2, 3, 1] if descending else [1, 3, 2, 4, 0])

    async def test_count_by_group(self, store: Store) -> None:
        key = await store.allocate(5)
        for n in range(5):
            await store.commit([[start(key + n)]])
            if n < 3:
                await store.commit([[step(key + n, 1, record=closed(key + n))]])
        by_status = Query("default", group_by=(Column.STATUS,))
        assert sorted(await store.count_runs(by_status)) == [([RUNNING], 2), ([COMPLETED], 3)]
        nobody = Query("default", where=Compare(Column.WORKFLOW_ID, "=", "x"))
        assert await store.count_runs(nobody) == [([], 0)]

    async def test_a_stored_null_counts_as_no_attribute(self, store: Store) -> None:
        """Former versions let numbers pass that are not finite, and JSON has null for these."""
        key = await store.allocate(2)
        await store.commit([[start(key, search_attributes={"Price": math.nan, "City": "Ulm"})]])
        await store.commit([[start(key + 1)]])
        loaded = await store.load(key)
        assert loaded is not None
        assert loaded.record.search_attributes == {"City": "Ulm"}
        price = Custom("Price", Kind.NUMBER)
        nowhere = Query("default", where=IsNull(price), order=(Order(price),))
        assert [found.key for found in await store.list_runs(nowhere)] == [key, key + 1]
        assert await store.count_runs(Query("default", group_by=(price,))) == [([None], 2)]

    async def test_starts_with_is_exact_at_its_ends(self, store: Store) -> None:
        words = [
            "a",
            "b",
            "ab",
            "ac",
            "a\U0010ffff",
            "A",
            "\U0010ffff",
            "\ud7ff",
            "\ue000",
            "a_",
            "é",
        ]
        key = await store.allocate(len(words))
        for n, word in enumerate(words):
            attributes: dict[str, Any] = {"City": word, "Tags": ["x", word]}
            write = start(key + n, workflow_type=word, search_attributes=attributes)
            await store.commit([[write]])
        for prefix in ["", "a", "ab", "A", "\U0010ffff", "\ud7ff", "a%", "_", "e"]:
            expected = sorted(word for word in words if word.startswith(prefix))
            for field in (Column.WORKFLOW_TYPE, Custom("City"), Custom("Tags", Kind.LIST)):
                found = await store.list_runs(Query("default", StartsWith(field, prefix)))
                assert sorted(r.workflow_type for r in found) == expected, (field, prefix)

    # ---- life ----

    async def test_a_closed_store_says_so(self, tmp_path: Any) -> None:
        self.directory = tmp_path
        store = self.new_store()
        await store.open()
        await store.close()
        with pytest.raises(StoreError):
            await store.commit([])
        with pytest.raises(StoreError):
            await store.load(1)
        await store.close()


class DurableStoreContract(StoreContract):
    """What a store must do in addition when its data outlive it: `new_store` finds them again."""

    async def test_data_outlive_the_store(self, tmp_path: Any) -> None:
        self.directory = tmp_path
        first = self.new_store()
        await first.open()
        key = await first.allocate(2)
        write = start(key, search_attributes={"City": "Ulm"})
        write.put_items = [(1, b"one")]
        write.in_flight = THIS_NODE
        await first.commit([[write]])
        await first.put_namespace(NamespaceRow("n", "1", b"body"))
        [(place, _, _)] = [change async for change in first.changes(0, 9)]
        await first.close()

        second = self.new_store()
        await second.open()
        loaded = await second.load(key)
        assert loaded is not None
        assert loaded.record == write.record
        assert loaded.items == [(1, b"one")]
        assert await second.in_flight() == [key]
        assert await second.namespaces() == [NamespaceRow("n", "1", b"body")]
        assert await second.allocate(1) > key + 1
        await second.delete(key)
        await second.close()

        third = self.new_store()
        await third.open()
        fresh = await third.allocate(1)
        await third.commit([[start(fresh)]])
        [(later, _, _)] = [change async for change in third.changes(0, 9)]
        assert later > place, "a position is never used twice"
        await third.close()
