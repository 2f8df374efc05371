"""A queue's waiting tasks as far as memory holds them: the first so many, by rank."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Final

from perdure.store.contract import START, Place, TaskRow

_FAILURES_MAX: Final = 5
_FAILED_ROWS_MAX: Final = 1_000


class Window:
    """The first rows of a queue; those behind ``last`` are in the store only, if there is ``more``.

    Args:
        size: how many rows to hold; up to twice as many when others come before them.
    """

    __slots__ = ("_failures", "_heap", "_late", "_size", "_stale", "last", "loading", "more")

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[int, int, TaskRow]] = []
        self._late: list[TaskRow] = []
        self._failures: dict[int, int] = {}
        self._stale = False  # what is being loaded
        self.last: Place = START
        self.more = False
        self.loading = False

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def oldest_ns(self) -> int:
        """Since when the row waits that waits longest; 0 when there is none."""
        return min((row.created_ns for _, _, row in self._heap), default=0)

    @property
    def first(self) -> TaskRow:
        """The row to be given out next; there must be one."""
        return self._heap[0][2]

    def pop(self) -> TaskRow:
        """Take the first row."""
        return heappop(self._heap)[2]

    def drain(self) -> list[TaskRow]:
        """Take all rows, in order."""
        rows = [row for _, _, row in sorted(self._heap)]
        self._heap.clear()
        return rows

    def add(self, row: TaskRow) -> None:
        """A row was committed."""
        place = (row.rank, row.id)
        if self.loading:
            self._late.append(row)  # the load may have read before this row was there
        elif place < self.last:
            self._push(row)
            if len(self._heap) > 2 * self._size:
                self.forget()
        elif self.more or len(self._heap) >= self._size:
            self.more = True
        else:
            self._push(row)
            self.last = place

    def loaded(self, rows: Sequence[TaskRow], more: bool) -> None:
        """Rows behind ``last`` were read; `more`: others may follow them."""
        self.loading = False
        if self._stale:
            self._stale, rows, more = False, (), True
        self.more = more
        for row in rows:
            self._push(row)
            self.last = (row.rank, row.id)
        known = {row.id for row in rows}
        late, self._late = self._late, []
        for row in late:
            if row.id not in known:
                self.add(row)

    def failed(self) -> None:
        """The rows behind ``last`` could not be read."""
        self.loading = self._stale = False
        self.more = True
        late, self._late = self._late, []
        for row in late:
            self.add(row)

    def forget(self) -> None:
        """The store knows better: read everything anew."""
        self._heap.clear()
        self._failures.clear()
        self.last = START
        self.more = True
        self._stale = self.loading

    def put_back(self, row: TaskRow) -> None:
        """A row that was taken could not be looked at: it waits again."""
        self._push(row)

    def refused(self, row: TaskRow) -> None:
        """A claim was lost: the row waits again, unless that happens too often for it to be there
        still."""
        failures = self._failures.get(row.id, 0) + 1
        if failures > _FAILURES_MAX or len(self._failures) > _FAILED_ROWS_MAX:
            self.forget()
            return
        self._failures[row.id] = failures
        self._push(row)

    def claimed(self, row: TaskRow) -> None:
        """A row that was taken is gone from the store."""
        if self._failures:
            self._failures.pop(row.id, None)

    def _push(self, row: TaskRow) -> None:
        heappush(self._heap, (row.rank, row.id, row))


class LeasedWindow(Window):
    """Rows of a store that nodes share, leased to this one: as many as it has polls for.

    What others lease or write is not known here; ``more`` says that it is worth a look.

    Attributes:
        returning: rows without polls are about to be given back.
    """

    __slots__ = ("_again", "returning")

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._again = False
        self.returning = False
        self.more = True

    def add(self, row: TaskRow) -> None:
        """A row was committed: whoever leases it first gets it."""
        self.forget()

    def loaded(self, rows: Sequence[TaskRow], more: bool) -> None:
        """Rows were leased; `more`: others may wait."""
        self.loading = False
        self.more = more or self._again
        self._again = False
        for row in rows:
            self._push(row)

    def failed(self) -> None:
        """None could be leased."""
        self.loading = self._again = False
        self.more = True

    def forget(self) -> None:
        """The store may have rows that were not there before."""
        self._again = self.loading
        self.more = True

    def refused(self, row: TaskRow) -> None:
        """A claim was lost: try again, unless that happens too often for it to be ours still."""
        failures = self._failures.get(row.id, 0) + 1
        if failures > _FAILURES_MAX or len(self._failures) > _FAILED_ROWS_MAX:
            self._failures.pop(row.id, None)
            self.forget()
            return
        self._failures[row.id] = failures
        self._push(row)
