"""What a database does for nodes that share it, beside the contract of every store.

Nodes do not know of each other but through the database. What waits there (tasks, alarms, messages)
is *leased*: a node that dies with a lease loses it after a while. Times of leases and of signs of
life are the database's own, so that the clocks of nodes need not agree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from enum import IntEnum
from typing import Final, Protocol

import msgspec

from perdure.store.contract import MessageRow, TaskRow

Queue = tuple[str, str, int]
"""A task queue: namespace, name, kind."""


class Awaited(IntEnum):
    """Which commit of a run somebody waits for."""

    CLOSE = 1
    ANY = 2


class Beat(msgspec.Struct, frozen=True):
    """What a node hears when it gives a sign of life.

    Attributes:
        now_ns: the database's clock.
        nodes: the numbers of all that live, as far as this one can tell, and its own.
        died: nodes whose work this one shall offer again, and then `bury`.
        queues: those of the asked task queues that have tasks waiting.
        letters: whether letters wait at the asked addresses.
        messages: whether messages wait that no node delivers.
        overdue: whether runs should have been rung some time ago.
        namespaces: changes with every change of a namespace.
        newer_schema: the version of the database's schema if a newer perdure migrated it, else 0;
            this node may go on.
    """

    now_ns: int
    nodes: frozenset[int]
    died: frozenset[int]
    queues: tuple[Queue, ...]
    letters: bool
    messages: bool
    overdue: bool
    namespaces: str
    newer_schema: int = 0


class Orphans(msgspec.Struct, frozen=True):
    """Of some open runs, those whose tasks may be held by workers of nodes that died.

    Attributes:
        keys: of these runs.
        last: where the next page begins, if there may be one.
    """

    keys: list[int]
    last: tuple[str, str] | None = None


FIRST_RUN: Final = ("", "")
"""Where the first page of runs begins."""


class Letter(msgspec.Struct):
    """What nodes say to each other; lost when the database server crashes."""

    address: str
    body: bytes


# -- rates -----------------------------------------------------------------------------------------

_SECOND_NS: Final = 1_000_000_000
_INTERVAL_MAX_NS: Final = 1 << 62
"""150 years; a moment that is so far ahead fits into a database's integers."""


def interval_ns(per_second: float) -> int:
    """Between two that a rate, of more than 0, gives out."""
    return round(min(_SECOND_NS / per_second, _INTERVAL_MAX_NS))


CLOCK_SLACK_NS: Final = 1_000_000_000
"""The database's clock may be set back a little."""


def permitted(
    now_ns: int, due_ns: int, per_second: float, burst: int, wanted: int
) -> tuple[int, int]:
    """How many a rate gives out now, of those that are wanted, and when the next is due then.

    One that is due later than a whole burst puts it was put off by another rate, a slower one: what
    is said now counts at once, as it does at a node that is alone.
    """
    between_ns = max(1, interval_ns(per_second))
    full_ns = now_ns + burst * between_ns
    if not now_ns < due_ns <= full_ns + CLOCK_SLACK_NS:
        due_ns = now_ns
    count = max(0, min(wanted, (full_ns - due_ns) // between_ns))
    return count, due_ns + count * between_ns


# -- notices: a word, and what it is about ---------------------------------------------------------

TASKS = "tasks"  # a JSON list of queues; an empty one: any
AWAITED = "awaited"  # keys of runs that were watched
LETTER = "letter"  # an address
HELLO = "hello"  # a node came
NAMESPACES = "namespaces"  # one was changed


def queues_notice(word: str, queues: Iterable[Queue]) -> str:
    """A notice about task queues."""
    return f"{word} {msgspec.json.encode(sorted(queues)).decode()}"


def queues_of(text: str) -> list[Queue]:
    """The task queues that a notice is about."""
    return msgspec.json.decode(text, type=list[Queue])


class Sharing(Protocol):
    """The other side of a store that is shared.

    Attributes:
        node: this node's number, never used before; known once the store is open.
        listener: called with every notice of another node, and with "" when some may have been
            missed; it is called on the loop's thread.
        has_company: whether other nodes were there at the last beat; alone, a node tells nobody.
        deaf: whether notices do not come through; known by the second beat that finds it so.
    """

    node: int
    listener: Callable[[str], None]
    has_company: bool

    @property
    def deaf(self) -> bool: ...

    async def version(self, key: int) -> int | None:
        """The version of a run, if it exists."""

    async def watch(self, awaited: Sequence[tuple[int, Awaited]]) -> dict[int, int]:
        """Ask to be told, once, of a commit; the runs' versions as of now."""

    async def lease_tasks(self, queue: Queue, limit: int) -> list[TaskRow]:
        """The first waiting tasks that no node has leased, leased now."""

    async def release_tasks(self, ids: Sequence[int]) -> None:
        """Give up leases, and tell the others."""

    async def drop_tasks(self, ids: Sequence[int]) -> None:
        """Remove waiting tasks of runs that are gone."""

    async def lease_due(self, until_ns: int, limit: int) -> list[int]:
        """Runs whose alarm is due; it is put off a little for the others."""

    async def lease_messages(self, limit: int) -> list[MessageRow]:
        """Messages that no node delivers, leased now."""

    async def release_messages(self, ids: Sequence[int]) -> None:
        """Give up leases: whoever looks next delivers these."""

    async def permits(self, name: str, per_second: float, burst: int, wanted: int) -> int:
        """Take up to so many of what a rate allows all nodes together; how many were there."""

    async def post(self, letter: Letter) -> int:
        """Leave a letter, and tell who may take it; its number."""

    async def take_back_letter(self, number: int) -> bool:
        """Remove a letter; False when somebody took it."""

    async def collect(self, addresses: Sequence[str], limit: int) -> list[Letter]:
        """Take letters, oldest first."""

    async def tell(self, notice: str) -> None:
        """Send a notice to all nodes."""

    async def beat(self, queues: Sequence[Queue], addresses: Sequence[str]) -> Beat:
        """Give a sign of life, and hear what waits.

        Raises StoreTooNew when a newer perdure changed the database so that this one must stop.
        """

    async def sweep(self) -> bool:
        """Remove some of what nobody takes any more; whether there is more to look at."""

    async def orphans(self, after: tuple[str, str] = FIRST_RUN) -> Orphans:
        """A page of the open runs, in an order that stays."""

    async def dead(self, nodes: Collection[int]) -> frozenset[int]:
        """Those of some nodes that came, and do not live any more."""

    async def bury(self, nodes: Sequence[int]) -> None:
        """Forget nodes if they are silent still: their work was offered again. For this one: it
        leaves."""
