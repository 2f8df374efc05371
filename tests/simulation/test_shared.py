"""The fake of a shared database goes wrong in the ways that PostgreSQL does."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest

from perdure.store.contract import Record, StoreUnavailable, Unit, Write
from perdure.store.sqlite import SqliteStore
from perdure.testing import VirtualLoop
from perdure.testing.faults import Faults

from .late import Late
from .shared import LATE_S, Database, Network, SharedStore
from .simulate import end

RECORD = Record(1, "default", "w", "r", "flow", "queue", 1, 1, 1)
START: Unit = [Write(1, 0, 1, b"start", record=RECORD)]


def after(version: int, state: bytes) -> Unit:
    return [Write(1, version, version + 1, state)]


def play(main: Callable[[SharedStore, SharedStore], Awaitable[None]]) -> float:
    """Two nodes' ways to one database, in which a run was started; how long it took."""
    loop = VirtualLoop()

    async def work() -> None:
        rows = SqliteStore(":memory:")
        await rows.open()
        database = Database(Network(), rows, Late())
        stores = [SharedStore(database, Faults(), random.Random(n)) for n in range(2)]
        for store in stores:
            await store.open()
        await stores[0].commit([START])
        await main(*stores)

    try:
        loop.run_until_complete(work())
        return loop.time()
    finally:
        end(loop)


async def state(store: SharedStore) -> bytes:
    loaded = await store.load(1)
    return loaded.state if loaded else b""


def test_of_two_writes_on_one_version_one_is_left_out() -> None:
    async def main(one: SharedStore, other: SharedStore) -> None:
        assert await one.commit([after(1, b"one")]) == []
        assert await other.commit([after(1, b"other")]) == [0]
        assert await state(other) == b"one"

    play(main)


@pytest.mark.parametrize(("fault", "found"), [("refused", b"start"), ("unanswered", b"one")])
def test_a_commit_that_failed_may_be_written(fault: str, found: bytes) -> None:
    async def main(one: SharedStore, other: SharedStore) -> None:
        setattr(one.faults, fault, 1.0)
        with pytest.raises(StoreUnavailable, match="injected"):
            await one.commit([after(1, b"one")])
        assert await state(other) == found

    play(main)


def test_connections_break_on_the_way_there_and_back() -> None:
    async def main(one: SharedStore, other: SharedStore) -> None:
        one.database.network.severed = 1.0
        heard = set()
        while len(heard) < 2:
            try:
                await one.load(1)
            except StoreUnavailable as error:
                heard.add(str(error))

    play(main)


def test_much_can_happen_before_a_late_answer_comes() -> None:
    async def main(one: SharedStore, other: SharedStore) -> None:
        one.database.network.late = 1.0
        await one.load(1)

    assert 0 < play(main) < LATE_S
