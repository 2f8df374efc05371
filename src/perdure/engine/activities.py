"""Activities: scheduled by a command, tried until one attempt ends them.

Attempts leave no events: the item counts them and holds the last failure. When the activity ends,
the started event of the last attempt is written together with the event that ends it.
"""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.message import Message
from temporalio.api.command.v1 import ScheduleActivityTaskCommandAttributes
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.common.v1 import RetryPolicy as RetryPolicyMessage
from temporalio.api.enums.v1 import EventType, RetryState, TimeoutType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import (
    ActivityTaskCanceledEventAttributes,
    ActivityTaskCancelRequestedEventAttributes,
    ActivityTaskFailedEventAttributes,
    ActivityTaskTimedOutEventAttributes,
)

from perdure.api.errors import InvalidArgument, NotFound
from perdure.api.times import duration_ns
from perdure.engine import events, retry, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.state import Activity, RetryPolicy
from perdure.engine.transition import TaskRef, Transition

ACTIVITY = 2  # TaskQueueType
DEFAULT_RETRY = RetryPolicy(
    retry.DEFAULT_INTERVAL_NS,
    retry.DEFAULT_COEFFICIENT,
    retry.DEFAULT_INTERVAL_NS * retry.DEFAULT_MAXIMUM_FACTOR,
    0,
)
_DEFAULT_RETRY_BYTES = retry.message_of(DEFAULT_RETRY).SerializeToString()
_NOT_STARTED = Payloads(
    payloads=[Payload(metadata={"encoding": b"json/plain"}, data=b'"ACTIVITY_ID_NOT_STARTED"')]
).SerializeToString()
# Plain integers: an enum's attribute costs a microsecond, and these are on the hot path.
_SCHEDULED = int(EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)
_STARTED = int(EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED)
_COMPLETED = int(EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED)
_TO_CLOSE = int(TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE)
_TO_START = int(TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START)
_START_TO_CLOSE = int(TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE)
_HEARTBEAT = int(TimeoutType.TIMEOUT_TYPE_HEARTBEAT)
_NEVER_NS = 2**63 - 1
_NAMES = {
    _START_TO_CLOSE: "StartToClose",
    _TO_START: "ScheduleToStart",
    _TO_CLOSE: "ScheduleToClose",
    _HEARTBEAT: "Heartbeat",
}


# -- finding ---------------------------------------------------------------------------------------


def find(run: Execution, scheduled_event_id: int = 0, activity_id: str = "") -> Activity:
    """A pending activity, by either id. Raises NotFound."""
    found = (
        run.activities.get(scheduled_event_id)
        if scheduled_event_id
        else run.activity_ids.get(activity_id)
    )
    if found is not None and run.is_open:
        return found
    if not run.is_open:
        raise NotFound("workflow execution already completed")
    if activity_id:
        raise NotFound(
            f"cannot find pending activity with ActivityID {activity_id}, check workflow "
            "execution history for more details"
        )
    raise NotFound(
        "invalid activityID or activity already timed out or invoking workflow is completed"
    )


# -- scheduling ------------------------------------------------------------------------------------


def schedule(
    tx: Transition,
    command: ScheduleActivityTaskCommandAttributes,
    completed_event_id: int,
    extra: bytes = b"",
) -> Activity:
    """Apply a validated ScheduleActivityTask command."""
    info = tx.run.info
    to_close, to_start, start_to_close, heartbeat = timeouts(command, info.run_timeout_ns)
    policy, policy_bytes = DEFAULT_RETRY, _DEFAULT_RETRY_BYTES
    if command.HasField("retry_policy"):
        policy, policy_bytes = _policy(command.retry_policy.SerializeToString())
    has = command.HasField  # asking is cheaper than to serialise what is not there
    activity = Activity(
        tx.freed_item_id(), tx.run.state.next_event_id, command.activity_id,
        command.activity_type.name, command.task_queue.name or info.task_queue, tx.now_ns,
        input=command.input.SerializeToString() if has("input") else b"",
        header=command.header.SerializeToString() if has("header") else b"",
        schedule_to_close_ns=to_close, schedule_to_start_ns=to_start,
        start_to_close_ns=start_to_close, heartbeat_ns=heartbeat, retry=policy, due_ns=tx.now_ns,
        workflow_task_completed_event_id=completed_event_id,
        priority=command.priority.SerializeToString() if has("priority") else b"",
    )  # fmt: skip
    body = events.activity_task_scheduled(activity, command, policy_bytes, completed_event_id)
    tx.append(_SCHEDULED, body, extra)
    tx.put(activity)
    offer(tx, activity)
    return activity


def timeouts(
    command: ScheduleActivityTaskCommandAttributes, run_timeout_ns: int
) -> tuple[int, int, int, int]:
    """The four timeouts with Temporal's defaults: schedule-to-close, schedule-to-start,
    start-to-close, heartbeat; 0 is none."""
    to_close = to_start = heartbeat = 0
    if command.HasField("schedule_to_close_timeout"):
        to_close = duration_ns(command.schedule_to_close_timeout)
    if command.HasField("schedule_to_start_timeout"):
        to_start = duration_ns(command.schedule_to_start_timeout)
    if command.HasField("heartbeat_timeout"):
        heartbeat = duration_ns(command.heartbeat_timeout)
    start_to_close = duration_ns(command.start_to_close_timeout)
    if to_close:
        to_start = min(to_start or to_close, to_close)
        start_to_close = min(start_to_close or to_close, to_close)
    else:
        to_close = run_timeout_ns
        to_start = to_start or run_timeout_ns
    if run_timeout_ns:
        to_close = min(to_close, run_timeout_ns)
        to_start = min(to_start, run_timeout_ns)
        start_to_close = min(start_to_close, run_timeout_ns)
        heartbeat = min(heartbeat, run_timeout_ns)
    return to_close, to_start, start_to_close, min(heartbeat, start_to_close)


@lru_cache(maxsize=1024)
def _policy(serialised: bytes) -> tuple[RetryPolicy, bytes]:
    """A command's policy with its defaults filled in, and as bytes for the event."""
    policy = retry.policy(RetryPolicyMessage.FromString(serialised))
    return policy, retry.message_of(policy).SerializeToString()


def offer(tx: Transition, activity: Activity) -> None:
    """The present attempt is ready, now or when its pause is over."""
    activity.waiting = activity.due_ns > tx.now_ns
    if activity.paused_ns:
        return
    if activity.waiting:
        tx.wake_at(activity.due_ns)
        return
    tx.tasks.append(TaskRef(ACTIVITY, activity.queue, activity.scheduled_event_id, activity.stamp))
    if activity.schedule_to_start_ns:
        tx.wake_at(activity.due_ns + activity.schedule_to_start_ns)
    if activity.schedule_to_close_ns:
        tx.wake_at(activity.scheduled_ns + activity.schedule_to_close_ns)


def offer_again(tx: Transition, activity: Activity) -> None:
    """The pause before an attempt is over."""
    if activity.waiting and activity.id in tx.run.items:
        offer(tx, activity)
        tx.put(activity)


# -- a worker takes it -----------------------------------------------------------------------------


def start(
    tx: Transition,
    scheduled_event_id: int,
    *,
    identity: str,
    request_id: str,
    in_process: bool,
    holder: int = 0,
) -> Activity:
    """A worker takes the present attempt. Raises NotFound when it is not there to take.

    `in_process`: the worker dies with the process of node `holder`.
    """
    activity = find(tx.run, scheduled_event_id)
    if activity.started_ns or activity.due_ns > tx.now_ns or activity.paused_ns:
        raise NotFound("Activity task not found.")
    activity.started_ns = activity.last_heartbeat_ns = tx.now_ns
    activity.started_identity = identity
    activity.request_id = request_id
    _hold(tx, activity, in_process)
    activity.holder = holder
    tx.put(activity)
    if activity.start_to_close_ns:
        tx.wake_at(tx.now_ns + activity.start_to_close_ns)
    if activity.heartbeat_ns:
        tx.wake_at(tx.now_ns + activity.heartbeat_ns)
    return activity


def _hold(tx: Transition, activity: Activity, in_process: bool) -> None:
    if activity.in_process != in_process:
        activity.in_process = in_process
        tx.run.state.in_process_activities += 1 if in_process else -1


def heartbeat(tx: Transition, activity: Activity, details: bytes, has_details: bool) -> bool:
    """Note that the worker is alive; True when the activity is asked to cancel."""
    _check_started(activity)
    activity.last_heartbeat_ns = tx.now_ns
    if has_details:
        activity.heartbeat_details = details
    tx.put(activity)
    return activity.cancel_requested


def _check_started(activity: Activity) -> None:
    if not activity.started_ns:
        raise NotFound(
            "invalid activityID or activity already timed out or invoking workflow is completed"
        )


# -- it ends ---------------------------------------------------------------------------------------


def complete(
    tx: Transition, activity: Activity, result: bytes, identity: str, *, unstarted: bool = False
) -> None:
    """The worker has the result (serialised Payloads; b"" for none).

    `unstarted`: it may come before any worker took the activity, which then starts with it.
    """
    if unstarted and not activity.started_ns:
        activity.started_ns = tx.now_ns
        activity.started_identity = identity
    _check_started(activity)
    started_event_id = _close(tx, activity)
    body = events.activity_task_completed(
        result, bool(result), activity.scheduled_event_id, started_event_id, identity
    )
    _record_end(tx, activity, _COMPLETED, body)


def fail(
    tx: Transition, activity: Activity, failure: Failure, identity: str, details: bytes = b""
) -> None:
    """The attempt failed: another follows, or the activity has failed.

    `details`: the last heartbeat's, if the worker sent them along.
    """
    _check_started(activity)
    if details:
        activity.heartbeat_details = details
    state = _retry(tx, activity, failure)
    if not state:
        return
    event = ActivityTaskFailedEventAttributes(
        scheduled_event_id=activity.scheduled_event_id,
        started_event_id=_close(tx, activity),
        identity=identity,
    )
    event.failure.CopyFrom(failure)
    event.retry_state = state  # type: ignore[assignment]
    _record_end(tx, activity, EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED, event)


def cancel(tx: Transition, activity: Activity, details: bytes, identity: str) -> None:
    """The worker says that the activity has stopped, as it was asked to."""
    _check_started(activity)
    if not activity.cancel_requested:
        raise InvalidArgument(
            "unable to mark activity as canceled without activity being request canceled first"
        )
    _record_cancelled(tx, activity, _close(tx, activity), details, identity)


def _record_cancelled(
    tx: Transition, activity: Activity, started_event_id: int, details: bytes, identity: str
) -> None:
    event = ActivityTaskCanceledEventAttributes(
        latest_cancel_requested_event_id=activity.cancel_requested_event_id,
        scheduled_event_id=activity.scheduled_event_id,
        started_event_id=started_event_id,
        identity=identity,
    )
    if details:
        event.details.MergeFromString(details)
    _record_end(tx, activity, EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED, event)


def time_out(
    tx: Transition, activity: Activity, timeout_type: int, why: Failure | None = None
) -> None:
    """One of the four timeouts ran out; after some of them another attempt follows.

    `why`: the failure of this attempt, if more is known of it than that.
    """
    failure = why or _timeout_failure(timeout_type)
    state: int = RetryState.RETRY_STATE_TIMEOUT
    if timeout_type in (_START_TO_CLOSE, _HEARTBEAT):
        state = _retry(tx, activity, failure)
    if not state:
        return
    if state == RetryState.RETRY_STATE_TIMEOUT and timeout_type != _TO_START:
        failure = _timeout_failure(_TO_CLOSE)
        failure.message = (
            "Not enough time to schedule next retry before activity ScheduleToClose timeout, "
            "giving up retrying"
        )
    if activity.last_failure:  # what the attempts before met says more than the timeout
        failure.cause.MergeFromString(activity.last_failure)
    if activity.heartbeat_details:
        details = failure.timeout_failure_info.last_heartbeat_details
        details.MergeFromString(activity.heartbeat_details)
    started_event_id = 0
    if activity.started_ns:
        started_event_id = _close(tx, activity)
    else:
        _forget(tx, activity)
    event = ActivityTaskTimedOutEventAttributes(
        scheduled_event_id=activity.scheduled_event_id, started_event_id=started_event_id
    )
    event.failure.CopyFrom(failure)
    event.retry_state = state  # type: ignore[assignment]
    _record_end(tx, activity, EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT, event)


def _timeout_failure(timeout_type: int) -> Failure:
    failure = Failure(message=f"activity {_NAMES[timeout_type]} timeout", source="Server")
    failure.timeout_failure_info.timeout_type = timeout_type  # type: ignore[assignment]
    return failure


def _close(tx: Transition, activity: Activity) -> int:
    """Take the activity out and write its started event; the event's id, 0 if it is buffered."""
    _forget(tx, activity)
    return tx.record(
        _STARTED, events.activity_task_started(activity), answers=activity.scheduled_event_id
    )


def _forget(tx: Transition, activity: Activity) -> None:
    _hold(tx, activity, False)
    tx.drop(activity)
    tx.visible |= activity.paused_ns > 0  # the run shows what of it is paused


def _record_end(tx: Transition, activity: Activity, event_type: int, body: Message | bytes) -> None:
    tx.record(event_type, body, answers=activity.scheduled_event_id)
    workflow_tasks.ensure_scheduled(tx)


# -- and begins again ------------------------------------------------------------------------------


def _retry(tx: Transition, activity: Activity, failure: Failure) -> int:
    """Set the next attempt up and return 0, or return why there is none (a RetryState)."""
    if activity.cancel_requested:
        return RetryState.RETRY_STATE_CANCEL_REQUESTED
    deadline = 0
    if activity.schedule_to_close_ns:
        deadline = activity.scheduled_ns + activity.schedule_to_close_ns
    attempt = 1 if activity.reset else activity.attempt
    pause_ns, state = retry.decide(activity.retry, attempt, tx.now_ns, deadline, failure)
    if pause_ns < 0:
        return state
    _begin_again(tx, activity, pause_ns, failure)
    return 0


def _begin_again(tx: Transition, activity: Activity, pause_ns: int, failure: Failure) -> None:
    _hold(tx, activity, False)
    activity.last_failure = failure.SerializeToString()
    activity.last_worker_identity = activity.started_identity
    activity.last_attempt_complete_ns = tx.now_ns
    activity.attempt += 1
    activity.stamp += 1
    if activity.reset:
        activity.attempt = 2  # the one that was reset counts as the first
        if activity.reset_heartbeat:
            activity.heartbeat_details = b""
        activity.reset = activity.reset_heartbeat = False
    activity.started_ns = 0
    activity.started_identity = activity.request_id = ""
    activity.due_ns = tx.now_ns + pause_ns
    tx.put(activity)
    offer(tx, activity)


def take_back(tx: Transition, activity: Activity, *, ran: bool = True) -> None:
    """The worker that holds the attempt is gone.

    `ran`: it may have begun its work. Then the attempt counts, and the next one, if the policy
    allows it, follows at once: waiting would serve nothing. Else the same attempt is offered again.
    """
    _check_started(activity)
    if not ran:
        _hold(tx, activity, False)
        activity.stamp += 1
        activity.started_ns = 0
        activity.started_identity = activity.request_id = ""
        tx.put(activity)
        offer(tx, activity)
        return
    failure = _timeout_failure(_START_TO_CLOSE)
    failure.message = "the worker process ended while the activity ran"
    policy = activity.retry
    exhausted = policy is None or 0 < policy.maximum_attempts <= activity.attempt
    deadline = activity.scheduled_ns + activity.schedule_to_close_ns
    late = activity.schedule_to_close_ns and tx.now_ns >= deadline
    if exhausted or late or activity.cancel_requested:
        time_out(tx, activity, TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE, failure)
    else:
        _begin_again(tx, activity, 0, failure)


# -- cancelling ------------------------------------------------------------------------------------


def request_cancel(
    tx: Transition, scheduled_event_id: int, completed_event_id: int, identity: str
) -> None:
    """Apply a validated RequestCancelActivityTask command.

    A worker that runs the activity hears of it at its next heartbeat; one that nobody has started
    is cancelled on the spot.
    """
    event = ActivityTaskCancelRequestedEventAttributes(
        scheduled_event_id=scheduled_event_id,
        workflow_task_completed_event_id=completed_event_id,
    )
    event_id = tx.append(EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED, event)
    activity = tx.run.activities.get(scheduled_event_id)
    if activity is None:
        return  # it ended while the worker asked
    activity.cancel_requested = True
    activity.cancel_requested_event_id = event_id
    if activity.started_ns:
        tx.put(activity)
        return
    _forget(tx, activity)
    _record_cancelled(tx, activity, 0, _NOT_STARTED, identity)


def deadlines(activity: Activity) -> list[tuple[int, int]]:
    """(when, TimeoutType) of the timeouts that run now."""
    found = []
    if activity.schedule_to_close_ns:
        when = activity.scheduled_ns + activity.schedule_to_close_ns
        found.append((when, _TO_CLOSE))
    if activity.started_ns:
        if activity.start_to_close_ns:
            when = activity.started_ns + activity.start_to_close_ns
            found.append((when, _START_TO_CLOSE))
        if activity.heartbeat_ns:
            when = activity.last_heartbeat_ns + activity.heartbeat_ns
            found.append((when, _HEARTBEAT))
    elif activity.schedule_to_start_ns and not activity.paused_ns and not activity.waiting:
        when = activity.due_ns + activity.schedule_to_start_ns
        found.append((when, _TO_START))
    return found


def over_ns(activity: Activity) -> int:
    """When a started attempt is over, unless its worker is heard of before."""
    return min((when for when, _ in deadlines(activity)), default=_NEVER_NS)
