"""Is a command well formed, and may the run do it? Pure: looks at the run and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import RetryPolicy
from temporalio.api.enums.v1 import CommandType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause

from perdure.api.errors import InvalidArgument
from perdure.api.times import duration_ns
from perdure.engine import children, closing, cron, external, priorities, retry, timers
from perdure.engine.bad_command import BadCommand
from perdure.engine.execution import Execution
from perdure.engine.limits import Limits

_Type = CommandType
_Timeout = Literal[
    "schedule_to_close_timeout",
    "schedule_to_start_timeout",
    "start_to_close_timeout",
    "heartbeat_timeout",
]
_ACTIVITY = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SCHEDULE_ACTIVITY_ATTRIBUTES
_CANCEL_ACTIVITY = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES
_TIMER = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_START_TIMER_ATTRIBUTES
_CANCEL_TIMER = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_CANCEL_TIMER_ATTRIBUTES
_MARKER = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_RECORD_MARKER_ATTRIBUTES
_CONTINUE = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_CONTINUE_AS_NEW_ATTRIBUTES
_COMPLETE = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_COMPLETE_WORKFLOW_EXECUTION_ATTRIBUTES
_FAIL = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_FAIL_WORKFLOW_EXECUTION_ATTRIBUTES
_MODIFY = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_MODIFY_WORKFLOW_PROPERTIES_ATTRIBUTES
_SEARCH = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SEARCH_ATTRIBUTES


_ACTIVITY_TIMEOUTS: tuple[_Timeout, ...] = (
    "schedule_to_close_timeout",
    "schedule_to_start_timeout",
    "start_to_close_timeout",
    "heartbeat_timeout",
)


_BOUNDING = frozenset(("start_to_close_timeout", "schedule_to_close_timeout"))
"""An activity has one of these, or it might run for ever."""


class Names:
    """Names in use, seen over those that the run has: the cost does not grow with these."""

    __slots__ = ("_added", "_there", "_without")

    def __init__(self, there: Mapping[str, object]) -> None:
        self._there = there
        self._added: set[str] = set()  # not there
        self._without: set[str] = set()  # there

    def __contains__(self, name: str) -> bool:
        return name in self._added or (name in self._there and name not in self._without)

    def __len__(self) -> int:
        return len(self._there) + len(self._added) - len(self._without)

    def add(self, name: str) -> None:
        """A command takes the name."""
        if name in self._there:
            self._without.discard(name)
        else:
            self._added.add(name)

    def discard(self, name: str) -> None:
        """A command frees the name, if it is in use."""
        if name in self._there:
            self._without.add(name)
        else:
            self._added.discard(name)


class Plan:
    """What the commands checked so far will have made of the run."""

    def __init__(self, run: Execution, limits: Limits, next_event_id: int) -> None:
        self.run = run
        self.limits = limits
        self.next_event_id = next_event_id  # of the event that the next command will write
        self.scheduled: dict[int, str] = {}  # activities of this answer: event id → activity id
        self.unseen: set[int] = set()  # buffered events (item ids) that a command takes back
        self.timers = Names(run.timers)
        self.activity_ids = Names(run.activity_ids)
        self.cancelled: set[int] = set()
        self.children = 0
        self.child_ids: set[str] = set()
        self.signals = 0
        self.cancels = 0


def check(plan: Plan, command: Command) -> int:
    """Raise BadCommand unless the command can be applied after those checked before it.

    Returns its type.
    """
    kind: int = command.command_type
    rule = _RULES.get(kind)
    if rule is None:
        raise BadCommand(
            Cause.WORKFLOW_TASK_FAILED_CAUSE_UNSPECIFIED,
            f"Unknown or unsupported command type {kind}.",
        )
    rule(plan, command)
    plan.next_event_id += 1
    return kind


def _no_rule(plan: Plan, command: Command) -> None:
    """Nothing of it can be wrong."""


def _marker(plan: Plan, command: Command) -> None:
    wanted = command.record_marker_command_attributes
    if not wanted.marker_name:
        raise BadCommand(_MARKER, "MarkerName is not set on RecordMarkerCommand.")
    _size(plan, _MARKER, "RecordMarkerCommand", wanted.ByteSize())


def _complete(plan: Plan, command: Command) -> None:
    if not command.HasField("complete_workflow_execution_command_attributes"):
        raise BadCommand(
            _COMPLETE,
            "CompleteWorkflowExecutionCommandAttributes is not set on "
            "CompleteWorkflowExecutionCommand.",
        )
    result = command.complete_workflow_execution_command_attributes.result
    _size(plan, _COMPLETE, "CompleteWorkflowExecutionCommand", result.ByteSize())


def _fail(plan: Plan, command: Command) -> None:
    if not command.fail_workflow_execution_command_attributes.HasField("failure"):
        raise BadCommand(_FAIL, "Failure is not set on FailWorkflowExecutionCommand.")


def _child(plan: Plan, command: Command) -> None:
    child = command.start_child_workflow_execution_command_attributes
    children.validate(
        plan.run,
        child,
        already_initiated=plan.children,
        pending_limit=plan.limits.pending_children_max,
        id_limit_bytes=plan.limits.id_bytes_max,
    )
    plan.children += 1
    plan.child_ids.add(child.workflow_id)


def _signal_external(plan: Plan, command: Command) -> None:
    external.validate_signal(
        plan.run,
        command.signal_external_workflow_execution_command_attributes,
        already_initiated=plan.signals,
        pending_limit=plan.limits.pending_signals_max,
        id_limit_bytes=plan.limits.id_bytes_max,
    )
    plan.signals += 1


def _cancel_external(plan: Plan, command: Command) -> None:
    external.validate_cancel(
        plan.run,
        command.request_cancel_external_workflow_execution_command_attributes,
        already_initiated=plan.cancels,
        initiated_children=plan.child_ids,
        pending_limit=plan.limits.pending_cancels_max,
        id_limit_bytes=plan.limits.id_bytes_max,
    )
    plan.cancels += 1


def _upsert(plan: Plan, command: Command) -> None:
    changes = command.upsert_workflow_search_attributes_command_attributes
    if not changes.search_attributes.indexed_fields:
        raise BadCommand(
            _SEARCH, "IndexedFields is not set on UpsertWorkflowSearchAttributesCommand."
        )


def _modify(plan: Plan, command: Command) -> None:
    wanted = command.modify_workflow_properties_command_attributes
    where = "ModifyWorkflowPropertiesCommand"
    if not wanted.HasField("upserted_memo"):
        raise BadCommand(_MODIFY, f"UpsertedMemo is not set on {where}.")
    memo = wanted.upserted_memo
    size_bytes = memo.ByteSize()
    if len(plan.run.memo) + size_bytes > plan.limits.payload_bytes_max:  # some may be replaced
        size_bytes = len(closing.merged_memo(plan.run.memo, memo))
    _size(plan, _MODIFY, f"the memo with {where}", size_bytes)


def _size(plan: Plan, cause: int, where: str, size_bytes: int) -> None:
    limit = plan.limits.payload_bytes_max
    if 0 < limit < size_bytes:
        raise BadCommand(
            cause, f"{where} exceeds size limit: {size_bytes} bytes, at most {limit} are allowed."
        )


def _id(plan: Plan, cause: int, name: str, where: str, value: str, *, needed: bool = True) -> None:
    if needed and not value:
        raise BadCommand(cause, f"{name} is not set on {where}.")
    wrong = plan.limits.fault_of_id(value)
    if wrong:
        raise BadCommand(cause, f"{name} on {where} {wrong}")


def _policy(cause: int, where: str, policy: RetryPolicy) -> None:
    wrong = retry.mistake(policy)
    if wrong:
        raise BadCommand(cause, f"invalid RetryPolicy on {where}: {wrong}")


def _activity_names(plan: Plan, where: str, activity_id: str, kind: str, queue: str) -> None:
    fault = plan.limits.fault_of_id
    if activity_id and kind and not (fault(activity_id) or fault(kind) or fault(queue)):
        return
    _id(plan, _ACTIVITY, "ActivityId", where, activity_id)
    _id(plan, _ACTIVITY, "ActivityType", where, kind)
    _id(plan, _ACTIVITY, "TaskQueue", where, queue, needed=False)


def _activity(plan: Plan, command: Command) -> None:
    wanted = command.schedule_activity_task_command_attributes
    where = "ScheduleActivityTaskCommand"
    activity_id = wanted.activity_id
    _activity_names(plan, where, activity_id, wanted.activity_type.name, wanted.task_queue.name)
    if activity_id in plan.activity_ids:
        raise BadCommand(
            Cause.WORKFLOW_TASK_FAILED_CAUSE_SCHEDULE_ACTIVITY_DUPLICATE_ID,
            f"activity id {activity_id!r} is in use by a pending activity",
        )
    limit = plan.limits.pending_activities_max
    if 0 < limit <= len(plan.activity_ids):
        raise BadCommand(
            Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_ACTIVITIES_LIMIT_EXCEEDED,
            f"the number of pending activities, {len(plan.activity_ids)}, has reached the "
            f"per-workflow limit of {limit}",
        )
    is_bounded = False
    for name in _ACTIVITY_TIMEOUTS:
        if wanted.HasField(name):
            length_ns = duration_ns(getattr(wanted, name))
            if length_ns < 0:
                raise BadCommand(_ACTIVITY, f"{name} cannot be negative on {where}.")
            is_bounded = is_bounded or (length_ns > 0 and name in _BOUNDING)
    if not is_bounded:
        raise BadCommand(
            _ACTIVITY,
            f"A valid StartToClose or ScheduleToCloseTimeout is not set on {where}."
            f" ActivityId={activity_id} ActivityType={wanted.activity_type.name}",
        )
    if wanted.HasField("retry_policy"):
        _policy(_ACTIVITY, where, wanted.retry_policy)
    if wanted.HasField("priority"):
        fault = priorities.fault(wanted.priority)
        if fault:
            raise BadCommand(_ACTIVITY, f"invalid priorities: {fault}")
    if wanted.HasField("input"):
        _size(plan, _ACTIVITY, where, wanted.input.ByteSize())
    plan.activity_ids.add(activity_id)
    plan.scheduled[plan.next_event_id] = activity_id


def _cancel_activity(plan: Plan, command: Command) -> None:
    asked = command.request_cancel_activity_task_command_attributes
    scheduled_event_id = asked.scheduled_event_id
    fresh = plan.scheduled.get(scheduled_event_id, "")
    if not fresh and not 0 < scheduled_event_id < plan.run.state.next_event_id:
        raise BadCommand(
            _CANCEL_ACTIVITY,
            f"ScheduledEventId {scheduled_event_id} on RequestCancelActivityTaskCommand names no "
            "scheduled activity.",
        )
    activity = plan.run.activities.get(scheduled_event_id)
    activity_id = activity.activity_id if activity is not None else fresh
    before = activity is not None and activity.cancel_requested
    if activity_id and (before or scheduled_event_id in plan.cancelled):
        raise BadCommand(_CANCEL_ACTIVITY, f"activity {activity_id!r} was asked to cancel before")
    plan.cancelled.add(scheduled_event_id)
    if activity_id and (activity is None or not activity.started_ns):
        plan.activity_ids.discard(activity_id)


def _timer(plan: Plan, command: Command) -> None:
    wanted = command.start_timer_command_attributes
    _id(plan, _TIMER, "TimerId", "StartTimerCommand", wanted.timer_id)
    if duration_ns(wanted.start_to_fire_timeout) < 0:
        raise BadCommand(
            _TIMER,
            "A valid StartToFireTimeout is not set on StartTimerCommand."
            f" TimerId={wanted.timer_id}",
        )
    if wanted.timer_id in plan.timers:
        raise BadCommand(
            Cause.WORKFLOW_TASK_FAILED_CAUSE_START_TIMER_DUPLICATE_ID,
            f"timer id {wanted.timer_id!r} is in use by a pending timer",
        )
    plan.timers.add(wanted.timer_id)


def _cancel_timer(plan: Plan, command: Command) -> None:
    timer_id = command.cancel_timer_command_attributes.timer_id
    _id(plan, _CANCEL_TIMER, "TimerId", "CancelTimerCommand", timer_id)
    if timer_id in plan.timers:
        plan.timers.discard(timer_id)
        return
    fired = timers.buffered_fire(plan.run, timer_id)
    if fired is None or fired.id in plan.unseen:
        raise BadCommand(_CANCEL_TIMER, f"no timer {timer_id!r} is pending")
    plan.unseen.add(fired.id)


def _continue(plan: Plan, command: Command) -> None:
    wanted = command.continue_as_new_workflow_execution_command_attributes
    where = "ContinueAsNewWorkflowExecutionCommand"
    _id(plan, _CONTINUE, "WorkflowType", where, wanted.workflow_type.name, needed=False)
    _id(plan, _CONTINUE, "TaskQueue", where, wanted.task_queue.name, needed=False)
    for name in ("workflow_run_timeout", "workflow_task_timeout", "backoff_start_interval"):
        if duration_ns(getattr(wanted, name)) < 0:
            raise BadCommand(_CONTINUE, f"Invalid {name} on {where}: it cannot be negative.")
    if wanted.HasField("retry_policy"):
        _policy(_CONTINUE, where, wanted.retry_policy)
    try:
        cron.validate(wanted.cron_schedule)
    except InvalidArgument as wrong:
        raise BadCommand(_CONTINUE, wrong.message) from None
    _size(plan, _CONTINUE, where, wanted.input.ByteSize())


_RULES: dict[int, Callable[[Plan, Command], None]] = {
    _Type.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK: _activity,
    _Type.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK: _cancel_activity,
    _Type.COMMAND_TYPE_START_TIMER: _timer,
    _Type.COMMAND_TYPE_CANCEL_TIMER: _cancel_timer,
    _Type.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION: _child,
    _Type.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION: _signal_external,
    _Type.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION: _cancel_external,
    _Type.COMMAND_TYPE_PROTOCOL_MESSAGE: _no_rule,  # updates.Inbox knows
    _Type.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION: _complete,
    _Type.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION: _fail,
    _Type.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION: _no_rule,
    _Type.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION: _continue,
    _Type.COMMAND_TYPE_RECORD_MARKER: _marker,
    _Type.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES: _upsert,
    _Type.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES: _modify,
}
