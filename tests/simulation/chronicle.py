"""What the store held after each commit: to say afterwards what was true while a call was made."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from perdure.engine.execution import Execution
from perdure.service import records
from perdure.store.contract import Loaded, Record, Store, Unit, Write


class Chronicle:
    """A store that remembers all that was written of runs.

    Attributes:
        commits: how many there were. It numbers the moments of the store: virtual time does not,
            much can happen while it stands still.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.commits = 0
        self._written: dict[int, list[tuple[int, Write]]] = defaultdict(list)
        self._chains: dict[str, list[int]] = defaultdict(list)  # keys, by workflow id
        self._runs: dict[tuple[int, int], Execution] = {}  # by key and number of writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        left_out = await self.inner.commit(units)
        self.commits += 1
        for number, unit in enumerate(units):
            for write in unit if number not in left_out else ():
                if write.key not in self._written:
                    assert write.record is not None
                    self._chains[write.record.workflow_id].append(write.key)
                self._written[write.key].append((self.commits, write))
        return left_out

    def run(self, key: int, moment: int) -> Execution | None:
        """A run as it was after so many commits."""
        written = self._written.get(key, [])
        known = bisect_right(written, moment, key=lambda pair: pair[0])
        if known and (key, known) not in self._runs:
            self._runs[key, known] = _folded([write for _, write in written[:known]])
        return self._runs.get((key, known))

    def chain(self, workflow_id: str, moment: int) -> Iterator[Execution]:
        """All runs of a workflow id that there were after so many commits."""
        found = (self.run(key, moment) for key in self._chains.get(workflow_id, ()))
        return (run for run in found if run is not None)

    def moment_of(self, key: int, event_id: int) -> int:
        """The number of the commit that wrote an event."""
        return next(number for number, w in self._written[key] if w.last_event_id >= event_id)


def _folded(writes: Sequence[Write]) -> Execution:
    """A run as several writes left it."""
    record: Record | None = None
    items: dict[int, bytes] = {}
    for write in writes:
        record = write.record or record
        items.update(write.put_items)
        for item_id in write.drop_items:
            items.pop(item_id, None)
    assert record is not None
    last = writes[-1]
    rows = list(items.items())
    return records.execution(Loaded(record, last.version, last.state, last.wake_at_ns, rows))
