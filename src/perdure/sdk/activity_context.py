"""What a running activity knows of itself: the other side of the `activity` namespace."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from perdure.sdk.errors import NotInActivityError
from perdure.sdk.options import Priority, RetryPolicy

if TYPE_CHECKING:
    from perdure.sdk.client import Client


class CancellationReason(Enum):
    """Why a running activity is told to stop."""

    CANCEL_REQUESTED = "the workflow cancelled it"
    NOT_FOUND = "it is not wanted any more: it has timed out, or its workflow has ended"
    TIMED_OUT = "its own time limit has passed"
    PAUSED = "it was paused"
    RESET = "it was reset"
    WORKER_SHUTDOWN = "the worker is shutting down"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityInfo:
    """Facts about the attempt that is running.

    Attributes:
        activity_id: unique in the run.
        attempt: 1 for the first.
        heartbeat_details: what the last attempt that reported anything reported last.
        is_local: does it run as a local activity?
        scheduled_time: when the workflow scheduled the activity.
        current_attempt_scheduled_time: when this attempt was put into the queue.
        started_time: when this worker got it.
        task_token: for completing it from outside.
        workflow_id, workflow_run_id, workflow_type: who called; "" for a standalone activity.
    """

    activity_id: str
    activity_type: str
    attempt: int
    namespace: str
    task_queue: str
    task_token: bytes
    workflow_id: str
    workflow_run_id: str
    workflow_type: str
    is_local: bool = False
    scheduled_time: datetime | None = None
    current_attempt_scheduled_time: datetime | None = None
    started_time: datetime | None = None
    start_to_close_timeout: timedelta | None = None
    schedule_to_close_timeout: timedelta | None = None
    heartbeat_timeout: timedelta | None = None
    heartbeat_details: Sequence[Any] = ()
    retry: RetryPolicy | None = None
    priority: Priority = field(default_factory=Priority)


_GUARD = threading.Lock()
"""Held for moments only, so one serves all attempts."""


class ActivityContext(ABC):
    """One running attempt. The worker makes it; the `activity` namespace asks it.

    Reading is safe from any thread; `cancel` belongs to the event loop.
    """

    reason: CancellationReason | None = None
    shielded = 0
    _info: ActivityInfo | None = None
    _cancelled_event: asyncio.Event | None = None
    _thread_event: threading.Event | None = None

    # --- what the namespace offers ------------------------------------------------------------

    @property
    def info(self) -> ActivityInfo:
        """Facts about the attempt, gathered when first asked for."""
        if self._info is None:
            self._info = self.make_info()
        return self._info

    @abstractmethod
    def make_info(self) -> ActivityInfo:
        """Gather the facts."""

    @abstractmethod
    def heartbeat(self, details: Sequence[Any]) -> None:
        """Report progress; may be called from the activity's thread."""

    @property
    @abstractmethod
    def client(self) -> Client:
        """The worker's client.

        Raises:
            NotInActivityError: the activity runs in a child process, which has no client.
        """

    @property
    def is_worker_shutting_down(self) -> bool:
        """Has the worker begun to stop? The activity may still finish within the grace period."""
        return False

    def look(self) -> bool:
        """Is the activity to stop? `reason` tells why, after this."""
        return self.reason is not None

    def check_cancelled(self) -> None:
        """Raise where a synchronous activity can be stopped.

        Raises:
            asyncio.CancelledError: it is cancelled, and no shield is up.
        """
        if self.reason is not None and not self.shielded:
            raise asyncio.CancelledError(self.reason.value)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Heartbeats inside raise nothing; a cancellation is raised by the next one after it."""
        self.shielded += 1
        try:
            yield
        finally:
            self.shielded -= 1

    async def wait_for_cancelled(self) -> None:
        """Wait until the activity is cancelled; for ``async def`` activities."""
        if self.reason is None:
            if self._cancelled_event is None:
                self._cancelled_event = asyncio.Event()
            await self._cancelled_event.wait()

    def wait_for_cancelled_sync(self, timeout_s: float | None) -> bool:
        """Wait in a thread until the activity is cancelled; False if the time ran out first."""
        with _GUARD:
            if self.reason is not None:
                return True
            if self._thread_event is None:
                self._thread_event = threading.Event()
        return self._thread_event.wait(timeout_s)

    # --- what the worker does -----------------------------------------------------------------

    def mark_cancelled(self, reason: CancellationReason) -> bool:
        """Record why the activity is to stop and wake who waits for it; False if it was before."""
        with _GUARD:
            if self.reason is not None:
                return False
            self.reason = reason
        if self._cancelled_event is not None:
            self._cancelled_event.set()
        if self._thread_event is not None:
            self._thread_event.set()
        return True


running: contextvars.ContextVar[ActivityContext | None] = contextvars.ContextVar(
    "perdure_running_activity", default=None
)


def current() -> ActivityContext:
    """The attempt that the calling code belongs to.

    Raises:
        NotInActivityError: there is none.
    """
    context = running.get()
    if context is None:
        raise NotInActivityError(
            "Not in an activity: this works only in code that a worker runs as an activity"
        )
    return context
