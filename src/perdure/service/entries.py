"""A run in the cache, with what the service keeps beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from temporalio.api.common.v1 import SearchAttributes
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
)

from perdure.engine.execution import Execution
from perdure.service import tokens
from perdure.service.namespaces import Namespaces
from perdure.service.search_attributes import Value

if TYPE_CHECKING:
    from perdure.service.units import Unit


_KEPT_BYTES = 4_096  # of a sticky run, in case its worker has forgotten it
_KEPT_WHOLE_BYTES = 32_768  # of a run whose workers want the whole history each time


class Companion(Protocol):
    """Callers that wait for something of a run, held in memory beside it: queries and updates.

    It outlives the cached run: a conflict or an eviction does not touch it.
    """

    @property
    def admitted(self) -> Mapping[str, bytes]:
        """Update requests that the run has not accepted, by update id."""

    def on_task_started(self, response: PollWorkflowTaskQueueResponse) -> None:
        """A workflow task is about to be handed out: add queries and messages to it."""

    def on_task_applied(self, request: RespondWorkflowTaskCompletedRequest) -> None:
        """The open transition took in that task's answer."""

    def take_answer(self) -> RespondWorkflowTaskCompletedRequest | None:
        """That answer, once: `on_task_completed` or `on_task_undone` has to follow."""

    def on_task_completed(self, request: RespondWorkflowTaskCompletedRequest) -> None:
        """That task's answer is durable."""

    def on_task_undone(self, request: RespondWorkflowTaskCompletedRequest) -> None:
        """The commit of that answer was lost."""

    def on_task_lost(self) -> None:
        """The task failed, timed out, or its worker is gone: what it carried must be sent again."""

    def on_update_results(self, results: list[tuple[str, int, bytes]]) -> None:
        """(update id, stage, outcome) of updates, durable."""

    def on_closed(self) -> None:
        """The run closed, durably."""

    def look_again(self, run: Execution) -> None:
        """Other nodes may have changed the run, which was just read."""


class Entry:
    """One cached run.

    Attributes:
        run: its present, perhaps not yet committed.
        unit: the last unit that holds changes of it, until that is committed.
        tail: framed history events since the last completed workflow task, from id `tail_first`.
        dropped: no longer in the cache; another entry may have taken its place.
        close_is_stored: the run is closed, and that is committed.
        workflow_row: (stamp, row id) of the waiting workflow task's row, if it has one.
        activity_rows: the same for activities, by scheduled event id.
    """

    __slots__ = (
        "_namespaces",
        "activity_prefix",
        "activity_rows",
        "close_is_stored",
        "dropped",
        "run",
        "size_bytes",
        "tag",
        "tail",
        "tail_bytes",
        "tail_first",
        "task_prefix",
        "unit",
        "workflow_row",
    )

    def __init__(self, run: Execution, namespaces: Namespaces) -> None:
        self.run = run
        self.unit: Unit | None = None
        self.tail: list[bytes] = []
        self.tail_first = run.state.next_event_id
        self.tail_bytes = 0
        self.tag = tokens.run_tag(run.info.run_id)
        self.dropped = False
        self.close_is_stored = False
        self.size_bytes = 0
        self.workflow_row: tuple[int, int] | None = None
        self.activity_rows: dict[int, tuple[int, int]] = {}
        self.task_prefix: bytes | None = None
        self.activity_prefix: bytes | None = None
        self._namespaces = namespaces

    def plain_attributes(self) -> dict[str, Value]:
        """The search attributes as a filter sees them."""
        if not self.run.attributes:
            return {}
        attributes = SearchAttributes.FromString(self.run.attributes)
        return self._namespaces.values(self.run.info.namespace, attributes)

    def grow_tail(self, parts: list[bytes], limit_bytes: int) -> None:
        """Keep new events; forget those that a sticky worker has seen, unless all are short."""
        state = self.run.state
        if parts:
            self.tail += parts
            self.tail_bytes += sum(map(len, parts))
        if self.tail_bytes <= (_KEPT_BYTES if state.sticky_queue else _KEPT_WHOLE_BYTES):
            return
        seen = state.last_task_started_event_id + 1 - self.tail_first
        if seen > 0:
            self.tail_bytes -= sum(map(len, self.tail[:seen]))
            del self.tail[:seen]
            self.tail_first += seen
            self.tail_first = min(self.tail_first, state.next_event_id)
        if self.tail_bytes > limit_bytes:
            self.tail = []
            self.tail_bytes = 0
            self.tail_first = state.next_event_id

    def events(self, first_id: int, parts: list[bytes]) -> bytes | None:
        """History from an event id on, `parts` being the newest; None when memory has less."""
        missing = first_id - self.tail_first
        if missing < 0:
            return None
        if missing >= len(self.tail):
            return b"".join(parts[missing - len(self.tail) :])
        return b"".join(self.tail[missing:] if missing else self.tail) + b"".join(parts)
