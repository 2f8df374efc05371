"""The runs that a node has in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from perdure.service.entries import Entry
from perdure.service.settings import Settings

_RUN_BYTES = 6_000
_ITEM_BYTES = 1_000
_LOOKED_AT_MAX = 16  # when some are to be forgotten, at once


class RunCache:
    """Runs by key, by run id, and by workflow id; those not used lately are forgotten.

    Args:
        settings: how many runs, and bytes, are kept.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runs: OrderedDict[int, Entry] = OrderedDict()
        self._by_run_id: dict[str, Entry] = {}
        self._current: dict[tuple[str, str], Entry] = {}
        self._bytes = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._runs.values())

    def get(self, key: int) -> Entry | None:
        """A run, if it is there."""
        return self._runs.get(key)

    def use(self, key: int) -> Entry | None:
        """The same, and it is kept longer."""
        entry = self._runs.get(key)
        if entry is not None:
            self._runs.move_to_end(key)
        return entry

    def with_run_id(self, namespace: str, workflow_id: str, run_id: str) -> Entry | None:
        """The run of these three names."""
        entry = self._by_run_id.get(run_id)
        if entry is None:
            return None
        info = entry.run.info
        return entry if (info.namespace, info.workflow_id) == (namespace, workflow_id) else None

    def current(self, namespace: str, workflow_id: str) -> Entry | None:
        """Of a workflow's runs in memory the open one, else the one that started last."""
        return self._current.get((namespace, workflow_id))

    def insert(self, entry: Entry) -> None:
        """Keep a run, in place of others if there are too many."""
        run = entry.run
        self._runs[run.key] = entry
        self._by_run_id[run.info.run_id] = entry
        name = (run.info.namespace, run.info.workflow_id)
        current = self._current.get(name)
        if current is None or run.is_open or current.run.info.start_ns <= run.info.start_ns:
            self._current[name] = entry
        self.weigh(entry)
        self._evict()

    def weigh(self, entry: Entry) -> None:
        """Note roughly what a run takes."""
        run = entry.run
        size_bytes = _RUN_BYTES + _ITEM_BYTES * len(run.items) + entry.tail_bytes + len(run.memo)
        self._bytes += size_bytes - entry.size_bytes
        entry.size_bytes = size_bytes

    def _evict(self) -> None:
        """Forget runs not used lately; never one with changes that are not committed."""
        settings, runs = self._settings, self._runs
        looked_at = 0
        while (
            len(runs) > settings.cached_runs_max or self._bytes > settings.cached_bytes_max
        ) and looked_at < _LOOKED_AT_MAX:
            looked_at += 1
            entry = next(iter(runs.values()))
            if entry.unit is None:
                self.drop(entry)
            else:
                runs.move_to_end(entry.run.key)

    def drop(self, entry: Entry) -> None:
        """Forget a run; the next look reads the store."""
        if entry.dropped:
            return
        entry.dropped = True
        run = entry.run
        name = (run.info.namespace, run.info.workflow_id)
        self._bytes -= entry.size_bytes
        if self._runs.get(run.key) is entry:
            del self._runs[run.key]
        if self._by_run_id.get(run.info.run_id) is entry:
            del self._by_run_id[run.info.run_id]
        if self._current.get(name) is entry:
            del self._current[name]
