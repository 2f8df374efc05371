"""The window on a queue's waiting tasks gives out all of them, once, by rank."""

from __future__ import annotations

import random

import pytest

from perdure.service.window import Window
from perdure.store.contract import DEFAULT_RANK, START, Place, TaskRow


def row(id: int, rank: int = DEFAULT_RANK) -> TaskRow:
    return TaskRow(id, "d", "q", 1, 1, 2, 0, id, rank)


def place(one: TaskRow) -> Place:
    return one.rank, one.id


def ids(window: Window) -> list[int]:
    return [one.id for one in window.drain()]


class Queue:
    """A window over a store in memory."""

    def __init__(self, size: int) -> None:
        self.window = Window(size)
        self.size = size
        self.stored: dict[int, TaskRow] = {}

    def add(self, one: TaskRow) -> None:
        self.stored[one.id] = one
        self.window.add(one)

    def read(self) -> list[TaskRow]:
        behind = [one for one in self.stored.values() if place(one) > self.window.last]
        return sorted(behind, key=place)[: self.size]

    def load(self) -> None:
        if self.window.more and not self.window.loading:
            self.window.loading = True
            found = self.read()
            self.window.loaded(found, more=len(found) == self.size)

    def take(self) -> TaskRow:
        if not self.window:
            self.load()
        taken = self.window.pop()
        del self.stored[taken.id]
        return taken


def test_by_rank_and_then_by_age() -> None:
    window = Window(10)
    for one in (row(1, 5), row(2, 3), row(3, 5), row(4, 3)):
        window.add(one)
    assert window.first.id == 2
    assert window.oldest_ns == 1
    assert ids(window) == [2, 4, 1, 3]


def test_a_full_window_leaves_the_rest_in_the_store() -> None:
    window = Window(2)
    for number in range(1, 5):
        window.add(row(number))
    assert window.more
    assert ids(window) == [1, 2]


def test_a_better_rank_is_not_kept_waiting_behind_a_full_window() -> None:
    queue = Queue(2)
    for number in range(1, 5):
        queue.add(row(number, 9))
    queue.add(row(5, 1))
    assert [queue.take().id for _ in range(5)] == [5, 1, 2, 3, 4]


def test_rows_that_come_while_others_are_read() -> None:
    queue = Queue(3)
    for number in range(1, 6):
        queue.add(row(number, 10 * number))
    window = queue.window
    assert [queue.take().id for _ in range(3)] == [1, 2, 3]
    window.loading = True
    found = queue.read()
    queue.add(row(6, 45))
    queue.add(row(7, 99))
    window.loaded(found, more=False)
    assert ids(window) == [4, 6, 5]
    assert window.more  # the last one did not fit


def test_a_read_that_failed_is_done_again() -> None:
    queue = Queue(2)
    for number in range(1, 5):
        queue.add(row(number))
    assert [queue.take().id, queue.take().id] == [1, 2]
    queue.window.loading = True
    queue.add(row(5, 1))
    queue.window.failed()
    assert [queue.take().id for _ in range(3)] == [5, 3, 4]


def test_what_was_forgotten_during_a_read_is_read_again() -> None:
    queue = Queue(2)
    for number in range(1, 5):
        queue.add(row(number))
    queue.window.loading = True
    found = queue.read()
    queue.window.forget()
    queue.window.loaded(found, more=False)
    assert queue.window.more
    assert queue.window.last == START
    assert [queue.take().id for _ in range(4)] == [1, 2, 3, 4]


def test_a_row_that_is_refused_again_and_again_is_looked_up() -> None:
    window = Window(5)
    window.add(row(1))
    for _ in range(5):
        window.refused(window.pop())
    assert not window.more
    window.refused(window.pop())
    assert window.more
    assert len(window) == 0


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_lost_and_nothing_comes_twice(seed: int) -> None:
    dice = random.Random(seed)
    queue = Queue(dice.randint(1, 5))
    added = 0
    taken: list[int] = []
    pending: list[TaskRow] | None = None
    for _ in range(400):
        action = dice.random()
        if action < 0.5:
            added += 1
            queue.add(row(added, dice.randint(1, 6)))
        elif action < 0.6 and pending is None and queue.window.more:
            queue.window.loading = True
            pending = queue.read()
        elif pending is not None:
            still = [one for one in pending if one.id in queue.stored]
            assert still == pending
            queue.window.loaded(pending, more=len(pending) == queue.size)
            pending = None
        elif queue.stored:
            best = min(map(place, queue.stored.values()))
            one = queue.take()
            assert place(one) == best
            taken.append(one.id)
    if pending is not None:
        queue.window.loaded(pending, more=len(pending) == queue.size)
    while queue.stored:
        taken.append(queue.take().id)
    assert sorted(taken) == list(range(1, added + 1))
