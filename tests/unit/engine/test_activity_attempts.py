"""Attempts, timeouts, heartbeats and cancellation of activities."""

from __future__ import annotations

import pytest
from engine_play import SECOND, Play, activity
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import CommandType, RetryState, TimeoutType
from temporalio.api.failure.v1 import Failure

from perdure.api.errors import InvalidArgument, NotFound
from perdure.engine import activities, alarms
from perdure.engine.state import Activity

DETAILS = Payloads(payloads=[Payload(data=b"7")]).SerializeToString()


def with_activity(**wanted: float) -> tuple[Play, Activity]:
    """A run with one activity that nobody has taken yet; lengths in seconds."""
    play = Play()
    play.take()
    command = activity()
    attributes = command.schedule_activity_task_command_attributes
    attributes.retry_policy.maximum_attempts = int(wanted.pop("attempts", 0))
    for name, seconds in wanted.items():
        getattr(attributes, name).FromMilliseconds(int(seconds * 1000))
    play.answer(command)
    return play, next(iter(play.run.activities.values()))


def begin(play: Play, held: Activity) -> None:
    play.do(
        lambda tx: activities.start(
            tx, held.scheduled_event_id, identity="me", request_id="", in_process=True
        )
    )


def ring(play: Play, seconds: float) -> list[int]:
    """Let time pass; the kinds of tasks that became ready."""
    play.now += int(seconds * SECOND)
    assert play.run.state.wake_at_ns, "nothing would wake the run"
    assert play.run.state.wake_at_ns <= play.now, "the alarm is later than what is due"
    return [task.kind for task in play.do(alarms.ring).tasks]


def broken() -> Failure:
    failure = Failure(message="broken")
    failure.application_failure_info.type = "Broken"
    return failure


def test_a_failed_attempt_waits_and_is_offered_again() -> None:
    play, held = with_activity()
    begin(play, held)
    play.do(lambda tx: activities.fail(tx, held, broken(), "me"))
    assert (held.attempt, held.started_ns) == (2, 0)
    assert Failure.FromString(held.last_failure).message == "broken"
    assert play.types[-1] == "ACTIVITY_TASK_SCHEDULED"
    with pytest.raises(NotFound):
        begin(play, held)
    assert ring(play, 1) == [2]
    begin(play, held)
    play.do(lambda tx: activities.complete(tx, held, b"", "me"))
    assert play.types[-3:-1] == ["ACTIVITY_TASK_STARTED", "ACTIVITY_TASK_COMPLETED"]
    started = play.events[-3].activity_task_started_event_attributes
    assert started.attempt == 2
    assert started.last_failure.message == "broken"


def test_the_last_attempt_fails_the_activity() -> None:
    play, held = with_activity(attempts=1)
    begin(play, held)
    play.do(lambda tx: activities.fail(tx, held, broken(), "me"))
    failed = play.events[-2].activity_task_failed_event_attributes
    assert failed.retry_state == RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED
    assert failed.failure.message == "broken"
    assert not play.run.activities


@pytest.mark.parametrize(
    ("wanted", "begun", "seconds", "kind"),
    [
        ({"start_to_close_timeout": 3, "attempts": 1}, True, 3, "START_TO_CLOSE"),
        ({"heartbeat_timeout": 2, "attempts": 1}, True, 2, "HEARTBEAT"),
        ({"schedule_to_start_timeout": 4}, False, 4, "SCHEDULE_TO_START"),
        ({"schedule_to_close_timeout": 5}, False, 5, "SCHEDULE_TO_START"),
    ],
)
def test_timeouts(wanted: dict[str, float], begun: bool, seconds: float, kind: str) -> None:
    play, held = with_activity(**wanted)
    if begun:
        begin(play, held)
    play.now -= 1
    ring_quietly(play, seconds)
    assert play.run.activities
    play.now += 1
    play.do(alarms.ring)
    event = play.events[-2].activity_task_timed_out_event_attributes
    info = event.failure.timeout_failure_info
    name = TimeoutType.Name(info.timeout_type).removeprefix("TIMEOUT_TYPE_")
    assert name == kind
    assert play.types[-1] == "WORKFLOW_TASK_SCHEDULED"
    assert (event.started_event_id != 0) == begun


def test_schedule_to_close_bounds_all_attempts() -> None:
    play, held = with_activity(schedule_to_close_timeout=5)
    ring_quietly(play, 2)
    begin(play, held)
    ring_quietly(play, 2.9)
    assert play.run.activities
    ring_quietly(play, 0.1)
    event = play.events[-2].activity_task_timed_out_event_attributes
    kind = event.failure.timeout_failure_info.timeout_type
    assert kind == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE


def ring_quietly(play: Play, seconds: float) -> None:
    play.now += int(seconds * SECOND)
    play.do(alarms.ring)


def test_heartbeats_keep_an_activity_alive_and_carry_details_on() -> None:
    play, held = with_activity(heartbeat_timeout=2)
    begin(play, held)
    for _ in range(3):
        play.now += SECOND
        play.do(lambda tx: activities.heartbeat(tx, held, DETAILS, True))
        ring_quietly(play, 0)
    assert held.attempt == 1
    ring_quietly(play, 2)
    assert held.attempt == 2
    assert held.heartbeat_details == DETAILS


def cancel(held: Activity) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK)
    asked = command.request_cancel_activity_task_command_attributes
    asked.scheduled_event_id = held.scheduled_event_id
    return command


def wake(play: Play) -> None:
    """A second activity ends, so that the workflow gets a task."""
    other = next(a for a in play.run.activities.values() if a.activity_id == "other")
    begin(play, other)
    play.do(lambda tx: activities.complete(tx, other, b"", "me"))
    play.take()


def test_cancelling_what_nobody_has_begun() -> None:
    play = Play()
    play.take()
    play.answer(activity("1"), activity("other"))
    held = activities.find(play.run, activity_id="1")
    wake(play)
    play.answer(cancel(held))
    assert play.types[-4:] == [
        "WORKFLOW_TASK_COMPLETED", "ACTIVITY_TASK_CANCEL_REQUESTED", "ACTIVITY_TASK_CANCELED",
        "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    assert b"ACTIVITY_ID_NOT_STARTED" in play.events[-2].SerializeToString()


def test_cancelling_in_the_answer_that_schedules() -> None:
    play = Play()
    play.take()
    fresh = Command(command_type=CommandType.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK)
    fresh.request_cancel_activity_task_command_attributes.scheduled_event_id = 5
    play.answer(activity("1"), fresh, activity("1"))
    assert play.types[3:] == [
        "WORKFLOW_TASK_COMPLETED", "ACTIVITY_TASK_SCHEDULED", "ACTIVITY_TASK_CANCEL_REQUESTED",
        "ACTIVITY_TASK_SCHEDULED", "ACTIVITY_TASK_CANCELED", "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    assert list(play.run.activities) == [7]


def test_an_activity_cannot_be_cancelled_twice() -> None:
    play = Play()
    play.take()
    play.answer(activity("1"), activity("other"))
    held = activities.find(play.run, activity_id="1")
    begin(play, held)
    wake(play)
    play.answer(cancel(held), cancel(held))
    assert play.types[-1] == "WORKFLOW_TASK_FAILED"
    assert not held.cancel_requested


def test_heartbeat_details_and_the_former_failure_come_with_the_last_timeout() -> None:
    play, held = with_activity(heartbeat_timeout=2, attempts=2)
    begin(play, held)
    play.do(lambda tx: activities.heartbeat(tx, held, DETAILS, True))
    play.do(lambda tx: activities.fail(tx, held, broken(), "me"))
    assert ring(play, 1) == [2]
    begin(play, held)
    ring_quietly(play, 2)
    event = play.events[-2].activity_task_timed_out_event_attributes
    assert event.retry_state == RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED
    assert event.failure.cause.message == "broken"
    details = event.failure.timeout_failure_info.last_heartbeat_details
    assert details.SerializeToString() == DETAILS


def test_no_time_for_another_attempt_is_the_schedule_to_close_timeout() -> None:
    play, held = with_activity(start_to_close_timeout=3, schedule_to_close_timeout=4)
    begin(play, held)
    ring_quietly(play, 3.5)
    event = play.events[-2].activity_task_timed_out_event_attributes
    kind = event.failure.timeout_failure_info.timeout_type
    assert kind == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE
    assert event.retry_state == RetryState.RETRY_STATE_TIMEOUT
    assert event.failure.message.startswith("Not enough time")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [  # start-to-close, schedule-to-close, schedule-to-start, heartbeat; seconds
        ((5, 0, 0, 0), (5, 100, 100, 0)),
        ((500, 0, 0, 0), (100, 100, 100, 0)),
        ((0, 70, 0, 0), (70, 70, 70, 0)),
        ((90, 70, 80, 80), (70, 70, 70, 70)),
        ((5, 0, 300, 2), (5, 100, 100, 2)),
    ],
)
def test_timeouts_are_bounded_by_each_other_and_by_the_run(
    wanted: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    play = Play(run_timeout_ns=100 * SECOND)
    play.take()
    command = activity()
    attributes = command.schedule_activity_task_command_attributes
    names = ("start_to_close", "schedule_to_close", "schedule_to_start", "heartbeat")
    for name, seconds in zip(names, wanted, strict=True):
        getattr(attributes, f"{name}_timeout").FromSeconds(seconds)
    play.answer(command)
    event = play.events[-1].activity_task_scheduled_event_attributes
    found = tuple(getattr(event, f"{name}_timeout").ToSeconds() for name in names)
    assert found == expected


def test_cancelling_what_runs_is_told_at_the_next_heartbeat() -> None:
    play = Play()
    play.take()
    play.answer(activity("1"), activity("other"))
    held = activities.find(play.run, activity_id="1")
    begin(play, held)
    play.do(lambda tx: activities.heartbeat(tx, held, b"", False))
    assert play.result is False
    with pytest.raises(InvalidArgument, match="without activity being request canceled"):
        play.do(lambda tx: activities.cancel(tx, held, b"", "me"))
    wake(play)
    play.answer(cancel(held))
    play.do(lambda tx: activities.heartbeat(tx, held, b"", False))
    assert play.result is True
    play.do(lambda tx: activities.cancel(tx, held, DETAILS, "me"))
    assert play.types[-2] == "ACTIVITY_TASK_CANCELED"


def test_a_lost_worker_costs_an_attempt_but_no_pause() -> None:
    play, held = with_activity(attempts=2)
    begin(play, held)
    tx = play.do(lambda tx: activities.take_back(tx, held))
    assert [task.kind for task in tx.tasks] == [2]
    assert held.attempt == 2
    assert not play.run.in_flight
    begin(play, held)
    play.do(lambda tx: activities.take_back(tx, held))
    (timed_out,) = [
        event.activity_task_timed_out_event_attributes
        for event in play.events
        if event.HasField("activity_task_timed_out_event_attributes")
    ]
    assert timed_out.failure.message == "the worker process ended while the activity ran"
    assert not play.run.activities


def test_a_task_that_never_reached_its_worker_costs_nothing() -> None:
    play, held = with_activity(attempts=1)
    begin(play, held)
    tx = play.do(lambda tx: activities.take_back(tx, held, ran=False))
    assert [task.kind for task in tx.tasks] == [2]
    assert held.attempt == 1
