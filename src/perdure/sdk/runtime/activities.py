"""Activities of one run, except for local ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.api.times import duration, timedelta_ns
from perdure.sdk.errors import ActivityError, CancelledFailure, FailureError, RetryState
from perdure.sdk.failures import error_from
from perdure.sdk.options import ActivityCancellationType, ActivityOptions
from perdure.sdk.runtime.loop import Future
from perdure.sdk.signature import Signature

if TYPE_CHECKING:
    from perdure.sdk.runtime.commands import Record
    from perdure.sdk.runtime.run import Run

_SCHEDULED: Final = EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
_CANCEL_REQUESTED: Final = EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED


class ActivityCall(Future[Any]):
    """A scheduled activity: a future of its result, whose `cancel` reaches the activity."""

    __slots__ = (
        "activities",
        "activity_id",
        "cancel_record",
        "kind",
        "name",
        "record",
        "result_type",
        "scheduled_id",
    )

    activities: Activities
    activity_id: str
    cancel_record: Record | None
    kind: ActivityCancellationType
    name: str
    record: Record
    result_type: Any
    scheduled_id: int

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        return self.activities.cancel(self, msg)

    def cancel_now(self, msg: Any | None = None) -> bool:
        """End the wait with `asyncio.CancelledError`, whatever the activity does."""
        return super().cancel(msg)

    def recorded(self, event_id: int) -> None:
        """The ActivityTaskScheduled event is there."""
        self.scheduled_id = event_id
        self.activities.pending[event_id] = self


class Activities:
    """Pending activities by the id of their ActivityTaskScheduled event."""

    __slots__ = ("_count", "pending", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pending: dict[int, ActivityCall] = {}
        self._count = 0

    def next_id(self) -> str:
        """A number in the run, for activities that were given no id."""
        self._count += 1
        return str(self._count)

    def schedule(
        self,
        name: str,
        args: Sequence[Any],
        signature: Signature | None,
        options: ActivityOptions,
        result_type: Any,
        headers: dict[str, Payload] | None = None,
    ) -> ActivityCall:
        """Emit the command and return the future of the result."""
        run = self.run
        if run.read_only:
            run.check_writable(f"activity {name!r}")
        activity_id = options.activity_id or self.next_id()
        command = None
        if not run.replaying:
            command = run.new_command()
            command.MergeFromString(_template(name, options))
            attributes = command.schedule_activity_task_command_attributes
            attributes.activity_id = activity_id
            if options.task_queue is None:
                attributes.task_queue.name = run.task_queue
                if run.settings.eager_activities and options.eager is not False:
                    attributes.request_eager_execution = True
            if args:
                run.fill_arguments(attributes.input, args, signature)
            if headers:
                for key, value in headers.items():
                    attributes.header.fields[key].CopyFrom(value)
            if options.summary:
                command.user_metadata.summary.CopyFrom(run.converter.encode(options.summary))
        call = ActivityCall(loop=run.loop)
        call.activities = self
        call.activity_id = activity_id
        call.cancel_record = None
        call.kind = options.cancellation_type or ActivityCancellationType.TRY_CANCEL
        call.name = name
        call.result_type = signature if signature is not None else result_type
        call.record = run.emit(_SCHEDULED, (activity_id, name), command, call)
        return call

    def cancel(self, call: ActivityCall, msg: Any | None) -> bool:
        """Cancel a call in the way of its cancellation type."""
        run = self.run
        if call.kind is ActivityCancellationType.ABANDON:
            return call.cancel_now(msg)
        if run.take_back(call.record):
            return call.cancel_now(msg)
        if call.kind is ActivityCancellationType.TRY_CANCEL:
            self._request_cancel(call)
            return call.cancel_now(msg)
        self._request_cancel(call)
        return True

    def _request_cancel(self, call: ActivityCall) -> None:
        if call.cancel_record is not None:
            return
        run = self.run
        command = None
        if not run.replaying:
            command = run.new_command()
            command.command_type = CommandType.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK
            attributes = command.request_cancel_activity_task_command_attributes
            attributes.scheduled_event_id = call.scheduled_id
        call.cancel_record = run.emit(_CANCEL_REQUESTED, (call.scheduled_id,), command)

    # --- events -------------------------------------------------------------------------------

    def _ended(self, scheduled_id: int) -> ActivityCall | None:
        """The call whose activity has ended: nobody may ask to cancel it any more."""
        call = self.pending.pop(scheduled_id, None)
        if call is not None and call.cancel_record is not None:
            self.run.take_back(call.cancel_record)
        return call

    def completed(self, event: HistoryEvent) -> None:
        """ActivityTaskCompleted."""
        attributes = event.activity_task_completed_event_attributes
        call = self._ended(attributes.scheduled_event_id)
        if call is None or call.done():
            return
        type_ = call.result_type
        if type_.__class__ is Signature:
            type_ = type_.return_type
        call.set_result(self.run.decode_result(attributes.result, type_, call.name))

    def failed(self, event: HistoryEvent) -> None:
        """ActivityTaskFailed."""
        self._failed(event, event.activity_task_failed_event_attributes, "Activity task failed")

    def timed_out(self, event: HistoryEvent) -> None:
        """ActivityTaskTimedOut."""
        attributes = event.activity_task_timed_out_event_attributes
        self._failed(event, attributes, "Activity task timed out")

    def _failed(self, event: HistoryEvent, attributes: Any, message: str) -> None:
        call = self._ended(attributes.scheduled_event_id)
        if call is None or call.done():
            return
        error = ActivityError(
            message,
            activity_type=call.name,
            activity_id=call.activity_id,
            retry_state=RetryState(attributes.retry_state),
            identity=getattr(attributes, "identity", ""),
            scheduled_event_id=attributes.scheduled_event_id,
            started_event_id=attributes.started_event_id,
        )
        error.__cause__ = error_from(attributes.failure, self.run.converter)
        call.set_exception(error)

    def canceled(self, event: HistoryEvent) -> None:
        """ActivityTaskCanceled."""
        attributes = event.activity_task_canceled_event_attributes
        call = self._ended(attributes.scheduled_event_id)
        if call is not None and not call.done():
            call.cancel_now()


def is_cancellation(error: FailureError) -> bool:
    """Is a cancellation at the bottom of this failure?"""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CancelledFailure):
            return True
        cause = cause.__cause__
    return False


# --- command templates --------------------------------------------------------------------------

_MAXIMUM_TEMPLATES: Final = 4096
_templates: dict[tuple[str, int], tuple[ActivityOptions, bytes]] = {}
"""What is the same in all calls of an activity with the same options object, serialised.

The entry holds the options, so that their address is not used again while it is there."""


def _template(name: str, options: ActivityOptions) -> bytes:
    key = (name, id(options))
    found = _templates.get(key)
    if found is not None:
        return found[1]
    if len(_templates) >= _MAXIMUM_TEMPLATES:
        _templates.clear()
    data = _build_template(name, options)
    _templates[key] = (options, data)
    return data


def _build_template(name: str, options: ActivityOptions) -> bytes:
    command = Command()
    command.command_type = CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK
    attributes = command.schedule_activity_task_command_attributes
    attributes.activity_type.name = name
    if options.task_queue is not None:
        attributes.task_queue.name = options.task_queue
    for label, length in (
        ("schedule_to_close_timeout", options.schedule_to_close_timeout),
        ("schedule_to_start_timeout", options.schedule_to_start_timeout),
        ("start_to_close_timeout", options.effective_start_to_close_timeout),
        ("heartbeat_timeout", options.heartbeat_timeout),
    ):
        if length is not None:
            getattr(attributes, label).CopyFrom(duration(timedelta_ns(length)))
    if options.retry is not None:
        attributes.retry_policy.CopyFrom(options.retry.to_message())
    if options.priority is not None:
        attributes.priority.priority_key = options.priority.key or 0
        attributes.priority.fairness_key = options.priority.fairness_key
        attributes.priority.fairness_weight = options.priority.fairness_weight or 0.0
    return command.SerializeToString()
