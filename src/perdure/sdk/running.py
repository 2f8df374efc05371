"""One running attempt in the worker's process: its facts, heartbeats and cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from temporalio.api.common.v1 import Payloads
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    RecordActivityTaskHeartbeatRequest,
)

from perdure.api import errors as rpc
from perdure.api.times import SECOND_NS, duration_ns
from perdure.sdk.activity_context import ActivityContext, ActivityInfo, CancellationReason
from perdure.sdk.errors import ConversionError
from perdure.sdk.interceptors import HeartbeatActivity
from perdure.sdk.options import Priority, RetryPolicy, timedelta_or_none
from perdure.sdk.records import moment

if TYPE_CHECKING:
    from perdure.sdk.activity import Activity
    from perdure.sdk.client import Client

__all__ = ["Host", "RunningLocal", "RunningActivity"]

_log = logging.getLogger("perdure.activity")

HEARTBEAT_SHARE: Final = 0.8
"""Heartbeats are sent once in this share of the heartbeat timeout."""

DEFAULT_HEARTBEAT_INTERVAL_S: Final = 30.0
LONGEST_HEARTBEAT_INTERVAL_S: Final = 60.0


class Host(Protocol):
    """What a running attempt needs of its worker."""

    client: Client
    task_queue: str
    loop: asyncio.AbstractEventLoop
    shutting_down: bool
    heartbeat: Callable[[HeartbeatActivity], None] | None


class RunningActivity(ActivityContext):
    """An attempt that a poll or the answer to a workflow task brought."""

    # What most attempts never change stays in the class: making an attempt is on the hot path.
    finished = False
    abandoned = False
    tell_child: Callable[[CancellationReason], None] | None = None
    latest: Payloads | None = None
    _unsent = False
    _woken = False
    _timer: asyncio.TimerHandle | None = None
    _sending: asyncio.Task[None] | None = None

    def __init__(
        self,
        host: Host,
        task: PollActivityTaskQueueResponse,
        definition: Activity[..., Any],
        slot: asyncio.Task[Any],
    ) -> None:
        self.host = host
        self.task = task
        self.definition = definition
        self.slot = slot
        if definition.auto_heartbeat:
            self._timer = host.loop.call_later(self._interval_s(), self._interval_over)

    # --- for the activity ---------------------------------------------------------------------

    @property
    def client(self) -> Client:
        return self.host.client

    @property
    def is_worker_shutting_down(self) -> bool:
        return self.host.shutting_down

    def make_info(self) -> ActivityInfo:
        task = self.task
        policy = task.retry_policy if task.HasField("retry_policy") else None
        return ActivityInfo(
            activity_id=task.activity_id,
            activity_type=task.activity_type.name,
            attempt=task.attempt,
            namespace=task.workflow_namespace or self.client.namespace,
            task_queue=self.host.task_queue,
            task_token=task.task_token,
            workflow_id=task.workflow_execution.workflow_id,
            workflow_run_id=task.workflow_execution.run_id,
            workflow_type=task.workflow_type.name,
            scheduled_time=moment(task.scheduled_time),
            current_attempt_scheduled_time=moment(task.current_attempt_scheduled_time),
            started_time=moment(task.started_time),
            start_to_close_timeout=timedelta_or_none(duration_ns(task.start_to_close_timeout)),
            schedule_to_close_timeout=timedelta_or_none(
                duration_ns(task.schedule_to_close_timeout)
            ),
            heartbeat_timeout=timedelta_or_none(duration_ns(task.heartbeat_timeout)),
            heartbeat_details=self.client.converter.decode_all(task.heartbeat_details),
            retry=None if policy is None else RetryPolicy.from_message(policy),
            priority=Priority(
                key=task.priority.priority_key or None,
                fairness_key=task.priority.fairness_key,
                fairness_weight=task.priority.fairness_weight or None,
            ),
        )

    def heartbeat(self, details: Sequence[Any]) -> None:
        around = self.host.heartbeat
        if around is not None:
            around(HeartbeatActivity(details=details))
        else:
            self.record(details)
        if not self.definition.is_async:
            self.check_cancelled()

    def record(self, details: Sequence[Any]) -> None:
        """Note the details and see to it that they are sent; from any thread."""
        payloads = Payloads()
        if details:
            self.client.converter.fill(payloads, details)
        self.latest = payloads
        self._unsent = True
        if self.definition.is_async:
            self._consider()
        elif not self._woken:  # one wake-up of the loop serves many heartbeats
            self._woken = True
            self.host.loop.call_soon_threadsafe(self._consider)

    def record_from_child(self, details: Sequence[Any]) -> None:
        """Note the details that a child process reported."""
        try:
            payloads = Payloads()
            self.client.converter.fill(payloads, details)
        except ConversionError as error:
            _log.warning("Heartbeat of %s is lost: %s", self.definition.name, error)
            return
        self.latest = payloads
        self._unsent = True
        self._consider()

    # --- for the worker, in its loop ----------------------------------------------------------

    def cancel(self, reason: CancellationReason) -> None:
        """Tell the activity to stop."""
        if self.finished or not self.mark_cancelled(reason):
            return
        if self.definition.is_async:
            self.slot.cancel(reason.value)
        elif self.tell_child is not None:
            self.tell_child(reason)

    def attach_child(self, tell: Callable[[CancellationReason], None]) -> None:
        """The activity runs in a child process, which is told to stop in this way."""
        self.tell_child = tell
        if self.reason is not None:
            tell(self.reason)

    def finish(self) -> None:
        """The function has returned: no more heartbeats."""
        self.finished = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- throttling ---------------------------------------------------------------------------

    def _interval_s(self) -> float:
        timeout_ns = duration_ns(self.task.heartbeat_timeout)
        if not timeout_ns:
            return DEFAULT_HEARTBEAT_INTERVAL_S
        return min(timeout_ns / SECOND_NS * HEARTBEAT_SHARE, LONGEST_HEARTBEAT_INTERVAL_S)

    def _consider(self) -> None:
        """Send now, unless something was sent less than an interval ago."""
        self._woken = False
        if self.finished or (self._timer is not None and not self._may_send_early()):
            return
        self._send()

    def _may_send_early(self) -> bool:
        """Automatic heartbeats run on a timer before anything was sent."""
        return self.definition.auto_heartbeat and self._sending is None

    def _interval_over(self) -> None:
        self._timer = None
        if not self.finished and (self._unsent or self.definition.auto_heartbeat):
            self._send()

    def _send(self) -> None:
        loop = self.host.loop
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(self._interval_s(), self._interval_over)
        if self._sending is None or self._sending.done():
            self._unsent = False
            self._sending = loop.create_task(self._report())

    async def _report(self) -> None:
        client = self.host.client
        request = RecordActivityTaskHeartbeatRequest(
            task_token=self.task.task_token,
            namespace=client.namespace,
            identity=client.identity,
        )
        if self.latest is not None:
            request.details.CopyFrom(self.latest)
        try:
            response = await client.calls("record_activity_task_heartbeat", request)
        except rpc.NotFound:
            self.cancel(CancellationReason.NOT_FOUND)
            return
        except rpc.RPCError as error:
            self._unsent = True
            _log.warning("Heartbeat of %s failed: %s", self.definition.name, error)
            return
        except Exception as error:
            self._unsent = True
            _log.error(
                "The codec failed for a heartbeat of %s", self.definition.name, exc_info=error
            )
            return
        if response.cancel_requested:
            self.cancel(CancellationReason.CANCEL_REQUESTED)
        elif response.activity_paused:
            self.cancel(CancellationReason.PAUSED)
        elif response.activity_reset:
            self.cancel(CancellationReason.RESET)


class RunningLocal(ActivityContext):
    """An attempt of a local activity: it has no heartbeats."""

    finished = False
    abandoned = False

    def __init__(
        self,
        host: Host,
        definition: Activity[..., Any],
        info: ActivityInfo,
        slot: asyncio.Task[Any],
    ) -> None:
        self.host = host
        self.definition = definition
        self.slot = slot
        self._info = info

    @property
    def client(self) -> Client:
        return self.host.client

    @property
    def is_worker_shutting_down(self) -> bool:
        return self.host.shutting_down

    def make_info(self) -> ActivityInfo:
        raise AssertionError("a local attempt is given its info")

    def heartbeat(self, details: Sequence[Any]) -> None:
        if not self.definition.is_async:
            self.check_cancelled()

    def cancel(self, reason: CancellationReason) -> None:
        """Tell the activity to stop."""
        if not self.finished and self.mark_cancelled(reason) and self.definition.is_async:
            self.slot.cancel(reason.value)

    def attach_child(self, tell: Callable[[CancellationReason], None]) -> None:
        """Local activities in a child process cannot be told to stop."""

    def record_from_child(self, details: Sequence[Any]) -> None:
        """Local activities have no heartbeats."""

    def finish(self) -> None:
        """The function has returned."""
        self.finished = True
