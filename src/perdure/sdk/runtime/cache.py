"""Runs in memory, the least recently used leaving first."""

from __future__ import annotations

import atexit
import weakref
from collections import Counter, OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run


class RunCache:
    """At most `maximum` runs, by run id. A run that is in use is pinned and stays."""

    def __init__(self, maximum: int) -> None:
        if maximum < 0:
            raise ValueError(f"max_cached_runs: 0 or more, got {maximum}")
        self.maximum = maximum
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._pinned: Counter[str] = Counter()  # a workflow task and queries may come together
        _caches.add(self)

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, run_id: str) -> Run | None:
        """The run, now the most recently used."""
        run = self._runs.get(run_id)
        if run is not None:
            self._runs.move_to_end(run_id)
        return run

    def put(self, run: Run) -> None:
        """Keep a run, and let another go if there are too many."""
        old = self._runs.get(run.run_id)
        if old is not None and old is not run:
            old.evict()
        self._runs[run.run_id] = run
        self._runs.move_to_end(run.run_id)
        self._shrink()

    def pin(self, run_id: str) -> None:
        """A task of the run is in hand; `unpin` follows."""
        self._pinned[run_id] += 1

    def unpin(self, run_id: str) -> None:
        """It is answered."""
        self._pinned[run_id] -= 1
        if not self._pinned[run_id]:
            del self._pinned[run_id]
        self._shrink()

    def is_pinned(self, run_id: str) -> bool:
        """Is a task of the run in hand?"""
        return run_id in self._pinned

    def _shrink(self) -> None:
        excess = len(self._runs) - self.maximum
        if excess <= 0:
            return
        free = (run_id for run_id in self._runs if run_id not in self._pinned)
        for run_id in list(islice(free, excess)):
            self.evict(run_id)

    def evict(self, run_id: str) -> None:
        """Let a run go, if it is there."""
        run = self._runs.pop(run_id, None)
        if run is not None:
            run.evict()

    def clear(self) -> None:
        """Let all runs go."""
        for run_id in list(self._runs):
            self.evict(run_id)


_caches: weakref.WeakSet[RunCache] = weakref.WeakSet()


@atexit.register
def _clear_all() -> None:
    """At the end of the process coroutines would run their `finally` blocks as they are freed."""
    for cache in list(_caches):
        cache.clear()
