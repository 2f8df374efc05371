"""An operator's hand on pending activities: pause, unpause, reset, other options.

None of it leaves an event. An attempt that runs is left alone: what is changed holds for the
next one, and its worker hears of a pause or a reset with its next heartbeat.
"""

from __future__ import annotations

from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.command.v1 import ScheduleActivityTaskCommandAttributes
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.history.v1 import ActivityTaskScheduledEventAttributes

from perdure.api.errors import FailedPrecondition, InvalidArgument, NotFound
from perdure.api.times import duration, duration_ns
from perdure.engine import activities, priorities, retry
from perdure.engine.execution import Execution
from perdure.engine.limits import Limits
from perdure.engine.state import Activity
from perdure.engine.transition import Transition

Scheduled = ActivityTaskScheduledEventAttributes
_TIMEOUTS = (
    "schedule_to_close_timeout",
    "schedule_to_start_timeout",
    "start_to_close_timeout",
    "heartbeat_timeout",
)
FIELDS = frozenset(
    {
        "task_queue.name", *_TIMEOUTS, "priority", "priority.priority_key", "priority.fairness_key",
        "priority.fairness_weight", "retry_policy", "retry_policy.initial_interval",
        "retry_policy.backoff_coefficient", "retry_policy.maximum_interval",
        "retry_policy.maximum_attempts",
    }
)  # fmt: skip
"""What an update mask may name."""


def chosen(
    run: Execution, *, activity_id: str = "", kind: str = "", all_: bool = False
) -> list[Activity]:
    """The pending activities that a request means. Raises NotFound when there is none."""
    if not run.is_open:
        raise NotFound("workflow execution already completed")
    found = [
        activity
        for activity in run.activities.values()
        if all_
        or (activity_id and activity.activity_id == activity_id)
        or (kind and activity.activity_type == kind)
    ]
    if not found:
        raise NotFound(
            "Can't find pending activity with such ID. Invalid activityID or activity already "
            "completed"
        )
    return found


def pause(
    tx: Transition, activity: Activity, *, identity: str, reason: str, request_id: str
) -> None:
    """Offer no further attempt. Raises FailedPrecondition when it is paused by another request."""
    if activity.paused_ns:
        if activity.pause_request_id == request_id:
            return
        raise FailedPrecondition("activity is already paused")
    if not activity.started_ns:
        activity.stamp += 1  # a task that waits for a worker is void
    activity.paused_ns = tx.now_ns
    activity.pause_identity = identity
    activity.pause_reason = reason
    activity.pause_request_id = request_id
    tx.put(activity)
    tx.visible = True


def unpause(
    tx: Transition,
    activity: Activity,
    *,
    reset_attempts: bool = False,
    reset_heartbeat: bool = False,
    jitter_ns: int = 0,
) -> None:
    """Offer attempts again, at once or within the jitter; nothing to do when it is not paused."""
    if not activity.paused_ns:
        return
    _clear_pause(tx, activity)
    if reset_attempts and not activity.started_ns:
        activity.attempt = 1
    elif reset_attempts:
        activity.reset = True
    if reset_heartbeat:
        activity.heartbeat_details = b""
    _offer_soon(tx, activity, jitter_ns)


def reset(
    tx: Transition,
    activity: Activity,
    *,
    original: Scheduled | None = None,
    reset_heartbeat: bool = False,
    keep_paused: bool = False,
    jitter_ns: int = 0,
) -> None:
    """Begin again with attempt 1: at once, or after the attempt that runs.

    `original`: what the activity was scheduled with, if its options are to be restored.
    """
    if original is not None:
        _set_options(activity, original_options(original), tx.run.info.run_timeout_ns)
    if activity.started_ns:
        activity.reset = True
        activity.reset_heartbeat = activity.reset_heartbeat or reset_heartbeat
        tx.put(activity)
        return
    activity.attempt = 1
    if reset_heartbeat:
        activity.heartbeat_details = b""
    if activity.paused_ns and keep_paused:
        tx.put(activity)
        return
    _clear_pause(tx, activity)
    _offer_soon(tx, activity, jitter_ns)


def change_options(
    tx: Transition, activity: Activity, given: ActivityOptions, fields: set[str]
) -> ActivityOptions:
    """Take the named fields from the given options; what the options are then.

    Raises:
        InvalidArgument: a field lacks its message, or the options make no sense.
    """
    wanted = options(activity)
    for field in sorted(fields):
        _merge(wanted, given, field)
    _check(activity, wanted, tx.limits)
    _set_options(activity, wanted, tx.run.info.run_timeout_ns)
    _offer_by_policy(tx, activity)
    return options(activity)


def restore_options(tx: Transition, activity: Activity, original: Scheduled) -> ActivityOptions:
    """Take the options that the activity was scheduled with."""
    _set_options(activity, original_options(original), tx.run.info.run_timeout_ns)
    _offer_by_policy(tx, activity)
    return options(activity)


def options(activity: Activity) -> ActivityOptions:
    """The present options of an activity."""
    made = ActivityOptions()
    made.task_queue.name = activity.queue
    made.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_NORMAL
    made.schedule_to_close_timeout.CopyFrom(duration(activity.schedule_to_close_ns))
    made.schedule_to_start_timeout.CopyFrom(duration(activity.schedule_to_start_ns))
    made.start_to_close_timeout.CopyFrom(duration(activity.start_to_close_ns))
    made.heartbeat_timeout.CopyFrom(duration(activity.heartbeat_ns))
    made.priority.MergeFromString(activity.priority)
    made.priority.SetInParent()
    if activity.retry is not None:
        made.retry_policy.CopyFrom(retry.message_of(activity.retry))
    return made


def original_options(original: Scheduled) -> ActivityOptions:
    """The options in a scheduled event."""
    made = ActivityOptions()
    made.task_queue.name = original.task_queue.name
    for name in (*_TIMEOUTS, "retry_policy", "priority"):
        if original.HasField(name):  # type: ignore[arg-type]
            getattr(made, name).CopyFrom(getattr(original, name))
    return made


# -- parts -----------------------------------------------------------------------------------------


def _clear_pause(tx: Transition, activity: Activity) -> None:
    tx.visible |= activity.paused_ns > 0
    activity.paused_ns = 0
    activity.pause_identity = activity.pause_reason = activity.pause_request_id = ""


def _offer_soon(tx: Transition, activity: Activity, jitter_ns: int) -> None:
    """Offer an attempt that does not run; others go on."""
    if not activity.started_ns:
        activity.stamp += 1
        activity.due_ns = tx.now_ns + (tx.random.randrange(jitter_ns) if jitter_ns > 0 else 0)
        activities.offer(tx, activity)
    tx.put(activity)


def _offer_by_policy(tx: Transition, activity: Activity) -> None:
    """Offer an attempt that does not run when its retry policy, as it is now, says."""
    if not activity.started_ns and not activity.paused_ns:
        activity.stamp += 1
        if activity.attempt > 1 and activity.retry is not None:
            pause_ns = retry.backoff_ns(activity.retry, activity.attempt - 1)
            activity.due_ns = activity.last_attempt_complete_ns + pause_ns
        activities.offer(tx, activity)
    for when_ns, _ in activities.deadlines(activity):
        tx.wake_at(when_ns)
    tx.put(activity)


def _merge(wanted: ActivityOptions, given: ActivityOptions, field: str) -> None:
    part, _, name = field.partition(".")
    if not name:
        wanted.ClearField(part)  # type: ignore[arg-type]
        if given.HasField(part):  # type: ignore[arg-type]
            getattr(wanted, part).CopyFrom(getattr(given, part))
        return
    if not given.HasField(part):  # type: ignore[arg-type]
        words = "".join(word.capitalize() for word in part.split("_"))
        raise InvalidArgument(f"{words} is not provided")
    source, target = getattr(given, part), getattr(wanted, part)
    target.ClearField(name)
    value = getattr(source, name)
    if hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


def _check(activity: Activity, wanted: ActivityOptions, limits: Limits) -> None:
    if not wanted.task_queue.name:
        raise InvalidArgument("TaskQueue is not set on request.")
    wrong = limits.fault_of_id(wanted.task_queue.name)
    if wrong:
        raise InvalidArgument(f"TaskQueue {wrong}")
    wrong = priorities.fault(wanted.priority)
    if wrong:
        raise InvalidArgument(f"invalid priorities: {wrong}")
    lengths = {name: duration_ns(getattr(wanted, name)) for name in _TIMEOUTS}
    for name, length_ns in lengths.items():
        if length_ns < 0:
            raise InvalidArgument(f"{name} cannot be negative.")
    if not lengths["start_to_close_timeout"] and not lengths["schedule_to_close_timeout"]:
        raise InvalidArgument(
            "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. "
            f"ActivityId={activity.activity_id} ActivityType={activity.activity_type}"
        )
    wrong = retry.mistake(wanted.retry_policy)
    if wrong:
        raise InvalidArgument(wrong)


def _set_options(activity: Activity, wanted: ActivityOptions, run_timeout_ns: int) -> None:
    asked = ScheduleActivityTaskCommandAttributes()
    for name in _TIMEOUTS:
        if duration_ns(getattr(wanted, name)):
            getattr(asked, name).CopyFrom(getattr(wanted, name))
    (
        activity.schedule_to_close_ns,
        activity.schedule_to_start_ns,
        activity.start_to_close_ns,
        activity.heartbeat_ns,
    ) = activities.timeouts(asked, run_timeout_ns)
    kept = activity.retry.non_retryable_types if activity.retry else []
    activity.queue = wanted.task_queue.name
    activity.priority = wanted.priority.SerializeToString()
    activity.retry = retry.policy(wanted.retry_policy)
    activity.retry.non_retryable_types = kept
