"""What a database must do for perdure: the one contract that every store keeps.

A store holds *runs*. A run is known by its ``key``, a small integer that the store hands out. Its
data are: a ``Record`` (what list and describe show; rarely written), a hot ``state`` blob with a
version (written by every transition), *items* (what is pending: activities, timers, …; one small
row each), the append-only history, *tasks* waiting for a worker, and outbox *messages* for other
runs. The blobs are opaque to the store.

Everything is written by ``commit``: many transitions in one database transaction. Each ``Write``
names the version it is based on; a write based on another version than the stored one is a
conflict, and its whole unit is left out while the rest of the batch is committed. Versions grow by
steps of any size: they tell what is newer, and count nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import msgspec

from perdure.store.query import Custom, Query

if TYPE_CHECKING:
    from perdure.store.sharing import Sharing


class Record(msgspec.Struct, gc=False):
    """A run as list, count and describe see it. Times are nanoseconds since the epoch.

    ``status`` is the number of ``temporal.api.enums.v1.WorkflowExecutionStatus``; ``close_ns`` is 0
    while the run is open. ``search_attributes`` maps a custom attribute's name to its plain value
    (str, int, float, bool, a list of str, or a datetime as integer nanoseconds), for filters.
    ``info`` is the engine's immutable description of the run, ``memo`` and ``attributes`` are
    serialised ``Memo`` and ``SearchAttributes`` messages, for answers.
    """

    key: int
    namespace: str
    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    status: int
    start_ns: int
    execution_ns: int
    close_ns: int = 0
    history_length: int = 0
    history_size_bytes: int = 0
    transition_count: int = 0
    parent_workflow_id: str = ""
    parent_run_id: str = ""
    root_workflow_id: str = ""
    root_run_id: str = ""
    first_run_id: str = ""
    search_attributes: dict[str, str | int | float | bool | list[str]] = {}
    info: bytes = b""
    memo: bytes = b""
    attributes: bytes = b""


LEVEL_BITS: Final = 48
"""A task's rank holds its priority level above this many bits."""

DEFAULT_RANK: Final = 3 << LEVEL_BITS


class TaskRow(msgspec.Struct, gc=False):
    """A workflow or activity task that no worker has taken yet.

    Of one queue's tasks the one with the lowest ``rank`` goes first, among equals that with the
    lowest id.
    """

    id: int
    namespace: str
    queue: str
    kind: int  # 1 workflow, 2 activity: temporal.api.enums.v1.TaskQueueType
    key: int
    scheduled_event_id: int
    stamp: int  # the task is stale when the run's own stamp has moved on
    created_ns: int
    rank: int = DEFAULT_RANK
    fairness_key: str = ""


Place: TypeAlias = tuple[int, int]
"""A task's place in its queue: (rank, id)."""

START: Final[Place] = (0, 0)
"""Before the first task."""


class Backlog(msgspec.Struct, gc=False, frozen=True):
    """The waiting tasks of one queue, one priority level and one fairness key, counted."""

    namespace: str
    queue: str
    kind: int
    level: int  # of their ranks
    fairness_key: str
    count: int
    first_rank: int
    last_rank: int
    oldest_ns: int


class MessageRow(msgspec.Struct, gc=False):
    """One entry of the outbox: work that reaches another run, opaque to the store."""

    id: int
    key: int  # the run that sent it
    body: bytes


ANY_SIZE: Final = 1 << 62
"""More bytes than there are."""

InFlight: TypeAlias = int
NOBODY: Final[InFlight] = 0
OTHERS: Final[InFlight] = 1  # workers of other nodes only
THIS_NODE: Final[InFlight] = 2  # workers of this node, perhaps of others too


class Write(msgspec.Struct, gc=False):
    """All that one transition changes in one run.

    ``follows``, of a new run: on which run it was decided to start it, the closed one that was the
    last of its workflow id; 0 for none. None when that one is changed in the same unit, by which it
    is sure to be what it was.
    """

    key: int
    based_on: int  # the version read; 0 for a new run
    version: int  # greater than based_on; no other write of the run ever has it
    state: bytes
    wake_at_ns: int = 0  # 0: no alarm
    wake_changed: bool = False  # only then is wake_at written
    in_flight: InFlight = 0  # whether workers that live in a node's process hold tasks of it
    events: bytes = b""  # new events, framed as the field `events` of a History message
    first_event_id: int = 0
    last_event_id: int = 0
    record: Record | None = None  # present when something visible changed (start, close, upsert)
    follows: int | None = None
    put_items: list[tuple[int, bytes]] = []
    drop_items: list[int] = []
    put_tasks: list[TaskRow] = []
    drop_tasks: list[int] = []
    put_messages: list[MessageRow] = []
    drop_messages: list[int] = []


class Loaded(msgspec.Struct, gc=False):
    """A run as `load` reads it back."""

    record: Record
    version: int
    state: bytes
    wake_at_ns: int
    items: list[tuple[int, bytes]]


class HistoryBatch(msgspec.Struct, gc=False):
    """Events that were committed together, framed as the field `events` of a History message."""

    first_event_id: int
    last_event_id: int
    events: bytes


class NamespaceRow(msgspec.Struct, gc=False):
    """A namespace; ``body`` is the service's own description of it."""

    name: str
    id: str
    body: bytes


Unit = Sequence[Write]
"""Writes committed together or not at all (e.g. a run and its continue-as-new successor)."""


class StoreError(Exception):
    """The database could not do what was asked. The message says what to do.

    ``refused``: nothing was written, and nothing will be; else nobody knows.
    """

    refused = False


class StoreUnavailable(StoreError):
    """The database cannot be written or reached now (disk full, read-only, locked, lost)."""


class StoreBusy(StoreUnavailable):
    """Too many ask for the same at once; later it may be their turn."""


class StoreLocked(StoreUnavailable):
    """Another session of the database keeps units of a commit from being written.

    It is `refused`: nothing was written; the others, without those at `positions`, can be.
    """

    refused = True

    def __init__(self, text: str, positions: Sequence[int]) -> None:
        super().__init__(text)
        self.positions = positions


class StoreRefused(StoreError):
    """The database can never hold what it was given: a text with a NUL, more than an index takes.

    It is `refused`, and would be again. In a commit of several units one of them is at fault.
    """

    refused = True


class StoreMisnamed(StoreError):
    """The connection string makes no sense, or asks for what the driver or the server has not."""


class StoreHeld(StoreError):
    """Another process has this embedded database open; the message says which."""


class StoreTooNew(StoreError):
    """The database has a newer schema than this perdure knows."""


class StoreUndelivered(StoreError):
    """A run cannot be deleted: messages that it sent are not delivered yet."""


class Store(Protocol):
    """The seam. Every store passes the suite in ``tests/unit/store/store_contract.py``.

    Attributes:
        name: what messages call the database; never with a password.
        node: a number that no process had before which opened this database.
        sharing: how nodes share it; None when only one can have it open.
    """

    @property
    def name(self) -> str: ...

    @property
    def node(self) -> int: ...

    @property
    def sharing(self) -> Sharing | None: ...

    async def open(self) -> None:
        """Connect, take hold of the database, and migrate its schema forward."""

    async def close(self) -> None:
        """Let go. What was committed stays."""

    async def commit(self, units: Sequence[Unit]) -> list[int]:
        """Write all units in one transaction; durable when this returns.

        Returns the positions of the units left out because of a conflict: a version that is not the
        stored one, a second open run of one workflow id, a new run that follows another one than
        `find` gives, or a task row to drop that is gone.
        Raises StoreUnavailable with nothing written, or (a lost answer) with everything written, or
        with everything to be written a while later: `settle` makes an end of that. Raises
        StoreRefused, with nothing written, when a unit holds what the database cannot, and
        StoreLocked when others hold locks for so long that units are not to wait for these.
        """

    async def settle(self, units: Sequence[Unit]) -> list[int]:
        """Have a commit that failed be over: each of its units is stored by now, or never will be.

        Returns the positions of units that never will be; of the others, look what is stored.
        Raises StoreUnavailable when the database may still be at it.
        """

    async def allocate(self, count: int) -> int:
        """The first of `count` fresh ids, for keys of runs and ids of tasks and messages.

        No id is ever handed out twice, whatever crashes or is deleted.
        """

    async def find(self, namespace: str, workflow_id: str, run_id: str = "") -> int | None:
        """The key of a run; without `run_id` the open one, else the one that started last."""

    async def load(self, key: int) -> Loaded | None:
        """All of one run but its history."""

    async def history(
        self,
        key: int,
        first_event_id: int,
        last_event_id: int,
        *,
        limit: int,
        max_bytes: int = ANY_SIZE,
        reverse: bool = False,
    ) -> list[HistoryBatch]:
        """Up to `limit` batches that overlap the range, in order of event id (or the reverse).

        The one with which they are `max_bytes` or more together is the last.
        """

    async def list_runs(self, query: Query) -> list[Record]:
        """A page of runs; see Query. Raises StoreBusy."""

    async def count_runs(self, query: Query) -> list[tuple[list[object], int]]:
        """The number of runs, per group: one pair ([], n) when the query does not group.

        Raises StoreBusy.
        """

    def index_attributes(self, attributes: Sequence[Custom], limit: int) -> None:
        """Prepare for queries about these custom attributes, in place of those named before.

        If they are more than `limit`, the first ones. Returns at once: what makes queries quick is
        made while the store serves, and they mean the same without it.
        """

    async def due(self, until_ns: int, limit: int) -> list[tuple[int, int]]:
        """(key, wake_at_ns) of runs whose alarm is set for `until_ns` or before, earliest first."""

    async def next_alarm(self) -> int | None:
        """The earliest alarm of all runs."""

    async def in_flight(self) -> list[int]:
        """Keys of open runs whose tasks a worker of the former process held."""

    async def tasks(
        self, namespace: str, queue: str, kind: int, after: Place, limit: int
    ) -> list[TaskRow]:
        """Waiting tasks of one queue behind a place, in order of place."""

    async def backlogs(self, namespace: str = "", queue: str = "", kind: int = 0) -> list[Backlog]:
        """What waits, counted: in one queue, or in all without a name. Ordered by queue, level and
        fairness key."""

    async def messages(self, after_id: int, limit: int) -> list[MessageRow]:
        """Undelivered outbox messages, oldest first."""

    async def delete(self, *keys: int) -> int:
        """Remove runs with their items and history; how many there were.

        Their waiting tasks stay: they are stale now, and dropped when claimed. Raises
        StoreUndelivered, with nothing changed, while any of them has messages.
        """

    async def shorten(self, key: int, count: int) -> bool:
        """Remove the first `count` batches of a run's history, if it has more than that.

        False when it has not: a long history is removed like this, before the run is deleted, for
        others' commits wait as long as one of these takes. The last batch always stays: whoever
        reads what is left can tell by the gap. Raises StoreUndelivered as `delete` does.
        """

    async def put_namespace(self, row: NamespaceRow, former: bytes | None = None) -> bool:
        """Insert a namespace, or replace the one with the body `former`.

        False, with nothing written, when the stored one is another: somebody changed it meanwhile.
        """

    async def namespaces(self) -> list[NamespaceRow]:
        """All namespaces, by name."""

    async def namespace(self, name: str) -> NamespaceRow | None:
        """One namespace."""

    def changes(self, after: int, limit: int) -> AsyncIterator[tuple[int, int, HistoryBatch]]:
        """(position, key, batch) of history in commit order after a position: a standby's feed."""
