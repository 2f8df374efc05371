"""Who waits for commits of other nodes: what is asked of the database, and what is read again."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure.service.watches import Watches
from perdure.store.sharing import Awaited


class Runs:
    """Stands for the runs that somebody waits for, and for the database; memory holds none."""

    has_company = True

    def __init__(self, count: int) -> None:
        self.versions = dict.fromkeys(range(count), 1)
        self.asked: list[int] = []
        self.read: list[int] = []
        runs: Any = self
        self.watches = Watches(runs, runs, self.read.append)

    def watched(self) -> list[tuple[int, Awaited]]:
        return [(key, Awaited.CLOSE) for key in self.versions]

    def is_behind(self, _key: int, _stored: int | None) -> bool:
        return True

    async def watch(self, awaited: list[tuple[int, Awaited]]) -> dict[int, int]:
        self.asked += [key for key, _ in awaited]
        return {key: self.versions[key] for key, _ in awaited}

    async def renew(self, at_once: int | None = None) -> tuple[list[int], list[int]]:
        """What was asked for, and what was read, since one asked again."""
        self.asked.clear()
        self.read.clear()
        self.watches.renew(at_once)
        for _ in range(10):
            await asyncio.sleep(0)
        return sorted(self.asked), sorted(self.read)


async def test_a_run_is_read_again_only_when_it_changed() -> None:
    runs = Runs(3)
    assert await runs.renew() == ([0, 1, 2], [0, 1, 2])
    assert await runs.renew() == ([0, 1, 2], [])
    runs.versions[1] = 2
    assert await runs.renew() == ([0, 1, 2], [1])
    assert await runs.renew() == ([0, 1, 2], [])


async def test_a_run_that_could_not_be_read_is_read_again() -> None:
    runs = Runs(2)
    await runs.renew()
    runs.watches.forget(1)
    assert await runs.renew() == ([0, 1], [1])


async def test_of_many_runs_some_are_asked_for_at_a_time_all_in_turn() -> None:
    runs = Runs(7)
    asked = [(await runs.renew(3))[0] for _ in range(5)]
    assert [len(keys) for keys in asked] == [3] * 5
    assert {key for keys in asked[:3] for key in keys} == set(range(7))
    runs.versions[asked[0][0]] = 2
    read = [(await runs.renew(3))[1] for _ in range(3)]
    assert [key for keys in read for key in keys] == [asked[0][0]]


async def test_what_nobody_waits_for_any_more_is_forgotten() -> None:
    runs = Runs(2)
    await runs.renew()
    del runs.versions[0]
    await runs.renew()
    assert list(runs.watches._told) == [1]
