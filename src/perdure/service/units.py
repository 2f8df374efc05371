"""What waits for the database: the transitions of one or a few runs that are written together.

A unit gathers changes until it is sent. Further transitions of a run whose unit is still waiting
join it: state and items are serialised once, when the unit is sent, and by then hold the last of
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from perdure.api.errors import InvalidArgument, RPCError, Unavailable
from perdure.engine import outbox, state
from perdure.engine.execution import Execution
from perdure.engine.state import AnyItem
from perdure.engine.transition import TaskRef, Transition
from perdure.service import records
from perdure.store.contract import (
    NOBODY,
    OTHERS,
    THIS_NODE,
    InFlight,
    MessageRow,
    TaskRow,
    Write,
)

if TYPE_CHECKING:
    from perdure.service.entries import Entry


class Conflict(Exception):
    """The run changed under a transition, or an earlier one of it was lost: reload and redo.

    Its text, if it has one, is what callers hear when it does not end.
    """


class Refused(InvalidArgument):
    """The database can never hold what the unit has in it. Nothing was stored."""


class HandedOut(NamedTuple):
    """A task that was started for a worker."""

    key: int
    kind: int
    scheduled_event_id: int
    request_id: str


class RunWrite:
    """The changes of one run in a unit."""

    __slots__ = (
        "based_on",
        "changed",
        "closes",
        "drop_messages",
        "drop_tasks",
        "dropped",
        "entry",
        "first_event_id",
        "follows",
        "handed_out",
        "parts",
        "put_messages",
        "put_tasks",
        "visible",
        "wake_changed",
    )

    def __init__(
        self, entry: Entry, based_on: int, first_event_id: int, follows: int | None = None
    ) -> None:
        self.entry = entry
        self.based_on = based_on
        self.first_event_id = first_event_id
        self.follows = follows
        self.parts: list[bytes] = []
        self.changed: dict[int, AnyItem] = {}
        self.dropped: dict[int, None] = {}
        self.put_tasks: list[TaskRow] = []
        self.drop_tasks: list[int] = []
        self.put_messages: list[MessageRow] = []
        self.drop_messages: list[int] = []
        self.handed_out: list[HandedOut] = []
        self.visible = based_on == 0
        self.closes = False
        self.wake_changed = False

    def merge(self, tx: Transition) -> None:
        """Take in what a transition changed."""
        self.parts += tx.parts
        if tx.dropped:
            for item_id in tx.dropped:
                self.changed.pop(item_id, None)
            self.dropped.update(tx.dropped)
        self.changed.update(tx.changed)
        self.drop_messages += tx.messages_done
        self.handed_out += [HandedOut(tx.run.key, *task) for task in tx.handed_out]
        self.wake_changed |= tx.wake_changed
        self.visible |= tx.visible or tx.closed

    @property
    def size_bytes(self) -> int:
        """About how much is to be written: what payloads are in, as little else can be large."""
        size_bytes = sum(map(len, self.parts))
        for item in self.changed.values():
            size_bytes += state.payload_bytes(item)
        for message in self.put_messages:
            size_bytes += len(message.body)
        return size_bytes + len(self.entry.run.memo) if self.visible else size_bytes

    def drop_task(self, row_id: int) -> None:
        """Remove a task row; one that was not written yet is never written."""
        for position, row in enumerate(self.put_tasks):
            if row.id == row_id:
                del self.put_tasks[position]
                return
        self.drop_tasks.append(row_id)

    def encode(self, node: int) -> Write:
        """The row changes, as of now; `node` is this node's number."""
        run = self.entry.run
        hot = run.state
        events = b"".join(self.parts)
        return Write(
            key=run.key,
            based_on=self.based_on,
            version=hot.version,
            state=state.encode(hot),
            wake_at_ns=hot.wake_at_ns,
            wake_changed=self.wake_changed,
            in_flight=_in_flight(run, node),
            events=events,
            first_event_id=self.first_event_id if events else 0,
            last_event_id=hot.next_event_id - 1 if events else 0,
            record=records.record(run, self.entry.plain_attributes()) if self.visible else None,
            follows=self.follows,
            put_items=[(item.id, state.encode(item)) for item in self.changed.values()],
            drop_items=list(self.dropped),
            put_tasks=self.put_tasks,
            drop_tasks=self.drop_tasks,
            put_messages=self.put_messages,
            drop_messages=self.drop_messages,
        )


class Unit:
    """Writes that are committed together or not at all, and all that waits for them.

    Attributes:
        writes: by run key, in the order in which the runs joined.
        ready: workflow tasks to be dispatched just before the unit is sent, by run key.
        sent: the commit is under way or over; nothing may join any more.
        abandoned: taken back before it was sent.
        waiters: callers to answer, whose changes it holds.
        onlookers: who saw its changes, and waits until they are stored.
        done: called after the commit, in order.
        undo: called if the commit did not happen, or may not have, in reverse order.
        messages: (row id, sender's key, message) for the courier, after the commit.
    """

    __slots__ = (
        "abandoned",
        "done",
        "messages",
        "onlookers",
        "ready",
        "sent",
        "undo",
        "waiters",
        "writes",
    )

    def __init__(self) -> None:
        self.writes: dict[int, RunWrite] = {}
        self.ready: dict[int, TaskRef] = {}
        self.sent = False
        self.abandoned = False
        self.waiters: list[asyncio.Future[None]] = []
        self.onlookers: list[asyncio.Future[None]] = []
        self.done: list[Callable[[], Any]] = []
        self.undo: list[Callable[[], Any]] = []
        self.messages: list[tuple[int, int, outbox.Message]] = []

    def wait(self) -> asyncio.Future[None]:
        """A future for the end of the commit: raises Conflict, Refused, or Unavailable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(future)
        return future

    async def is_written(self) -> bool:
        """For who has no part in it: wait for the end of the commit; whether it was written.

        Raises Unavailable.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.onlookers.append(future)
        try:
            await future
        except (Conflict, Refused):
            return False
        return True

    def end(self, failure: RPCError | Conflict | None = None) -> None:
        """Answer all who wait; without a failure the unit is written."""
        _answer(self.onlookers, failure)
        if isinstance(failure, Refused) and len(self.waiters) > 1:  # each will be told when alone
            failure = Unavailable(f"{failure.message} (or another call's at the same time)")
        _answer(self.waiters, failure)

    @property
    def handed_out(self) -> list[HandedOut]:
        """The tasks that were started for workers, who get them after the commit."""
        return [task for write in self.writes.values() for task in write.handed_out]

    @property
    def size_bytes(self) -> int:
        """About how much is to be written."""
        return sum([write.size_bytes for write in self.writes.values()])

    @property
    def workflow_ids(self) -> str:
        """Of the runs, for the log."""
        return ", ".join(write.entry.run.info.workflow_id for write in self.writes.values())

    def encode(self, node: int) -> list[Write]:
        """The writes, as of now; `node` is this node's number."""
        return [write.encode(node) for write in self.writes.values()]


def _answer(futures: Iterable[asyncio.Future[None]], failure: RPCError | Conflict | None) -> None:
    for future in futures:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)
            future.exception()  # a caller that is gone need not fetch it


def _in_flight(run: Execution, node: int) -> InFlight:
    if not run.in_flight:
        return NOBODY
    return THIS_NODE if run.is_in_flight_at(node) else OTHERS
