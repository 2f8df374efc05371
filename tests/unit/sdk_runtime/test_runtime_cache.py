"""Runs in memory: who stays, who leaves."""

from __future__ import annotations

from typing import Any

from perdure.sdk.runtime.cache import RunCache


class FakeRun:
    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.evicted = False

    def evict(self) -> None:
        self.evicted = True


def test_the_least_recently_used_leaves_first() -> None:
    cache = RunCache(2)
    runs: Any = [FakeRun(name) for name in "abc"]
    cache.put(runs[0])
    cache.put(runs[1])
    cache.get("a")
    cache.put(runs[2])
    assert [run.evicted for run in runs] == [False, True, False]


def test_a_run_in_hand_twice_stays_until_both_are_done() -> None:
    """Such as for a workflow task, and for a query that came beside it."""
    cache = RunCache(0)
    run: Any = FakeRun("a")
    cache.pin("a")
    cache.pin("a")
    cache.unpin("a")
    cache.put(run)
    assert not run.evicted
    assert cache.is_pinned("a")
    cache.unpin("a")
    assert run.evicted
    assert len(cache) == 0
