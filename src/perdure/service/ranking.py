"""In which order the waiting tasks of one queue are given out.

A task gets a *rank* when its row is written, and keeps it: the lowest goes first, among equals the
oldest. The upper bits hold the priority's level, 1 before 2 and so on. The lower bits make each
level fair among its fairness keys, by start-time fair queueing: every task takes its key a stride
further, a short one if the key's weight is great, and a key that has had nothing waiting begins
where the level is now. Tasks without a key share one, so they go first in, first out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from temporalio.api.common.v1 import Priority

from perdure.store.contract import LEVEL_BITS, Backlog

LEVELS: Final = 5
DEFAULT_LEVEL: Final = 3
_KEYS_MAX: Final = 1_000  # remembered per level; a forgotten one begins anew
_STRIDE: Final = 1 << 10  # of weight 1
_LIGHTEST, _HEAVIEST = 0.001, 1_000.0
_PASS_MAX: Final = (1 << LEVEL_BITS) - 1


class Claim(NamedTuple):
    """What a task's priority says."""

    level: int = DEFAULT_LEVEL
    fairness_key: str = ""
    weight: float = 1.0


_DEFAULT: Final = Claim()


def claim(priority: bytes) -> Claim:
    """Read a serialised Priority; a level beyond the last one counts as the last."""
    return _claim(priority) if priority else _DEFAULT


@lru_cache(1_000)
def _claim(priority: bytes) -> Claim:
    read = Priority.FromString(priority)
    return Claim(
        min(read.priority_key, LEVELS) or DEFAULT_LEVEL,
        read.fairness_key,
        min(max(read.fairness_weight or 1.0, _LIGHTEST), _HEAVIEST),
    )


def level_of(rank: int) -> int:
    """The level of a rank."""
    return rank >> LEVEL_BITS


class _Level:
    """How far a level and each of its keys is."""

    __slots__ = ("now", "passes")

    def __init__(self) -> None:
        self.now = 0
        self.passes: OrderedDict[str, int] = OrderedDict()


class Ranking:
    """The ranks of one queue.

    Attributes:
        weights: weights by fairness key that an operator has set; they go before the task's own.
    """

    __slots__ = ("_levels", "weights")

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self.weights: dict[str, float] = {}

    def next(self, task: Claim) -> int:
        """The rank of a task that begins to wait."""
        level = self._level(task.level)
        key = task.fairness_key
        weight = self.weights.get(key, task.weight) if self.weights else task.weight
        weight = min(max(weight, _LIGHTEST), _HEAVIEST)
        begin = max(level.now, level.passes.get(key, 0))
        mine = min(begin + round(_STRIDE / weight), _PASS_MAX)
        level.passes[key] = mine
        level.passes.move_to_end(key)
        if len(level.passes) > _KEYS_MAX:
            level.passes.popitem(last=False)
        return task.level << LEVEL_BITS | mine

    def taken(self, rank: int) -> None:
        """The task of that rank was given out: its level is that far."""
        level = self._level(level_of(rank))
        level.now = max(level.now, rank & _PASS_MAX)

    def restore(self, backlogs: Iterable[Backlog]) -> None:
        """Go on from what waits in the store."""
        self._levels.clear()
        for number, waiting in _by_level(backlogs).items():
            level = self._level(number)
            first = min(backlog.first_rank & _PASS_MAX for backlog in waiting)
            level.now = max(first, *map(_begun, waiting))
            for backlog in waiting:
                level.passes[backlog.fairness_key] = backlog.last_rank & _PASS_MAX

    def reset(self) -> None:
        """Nothing waits any more."""
        self._levels.clear()

    def _level(self, number: int) -> _Level:
        found = self._levels.get(number)
        if found is None:
            found = self._levels[number] = _Level()
        return found


def _by_level(backlogs: Iterable[Backlog]) -> dict[int, list[Backlog]]:
    found: dict[int, list[Backlog]] = {}
    for backlog in backlogs:
        found.setdefault(backlog.level, []).append(backlog)
    return found


def _begun(backlog: Backlog) -> int:
    """How far a level is at least, by a key of which several wait: a stride before the first.

    A single one tells nothing, as its stride is not known. It may be the first that waits because a
    node ranked it that did not know how far the level is: those that follow must not be so, too.
    """
    if backlog.count == 1:
        return 0
    stride = (backlog.last_rank - backlog.first_rank) // (backlog.count - 1)
    return max(0, (backlog.first_rank & _PASS_MAX) - stride)
