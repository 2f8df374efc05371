from __future__ import annotations

import random
from typing import Any

import pytest
from sample_runs import NOW_NS, Story, a_run, info, step
from temporalio.api.enums.v1 import (
    EventType,
    ResetReapplyExcludeType,
    ResetReapplyType,
    RetryState,
    WorkflowTaskFailedCause,
)
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.workflowservice.v1 import (
    ResetWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
)

from perdure.api.errors import InvalidArgument
from perdure.api.times import SECOND_NS
from perdure.engine import replay
from perdure.engine import reset as resets
from perdure.engine.execution import Execution
from perdure.engine.outbox import CancelRun, SignalRun, StartChild
from perdure.engine.state import Child
from perdure.engine.transition import TaskRef, Transition

LATER_NS = NOW_NS + 1_000 * SECOND_NS
NO_SIGNALS = ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL
NO_UPDATES = ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE
TEXT = {"metadata": {"encoding": b"json/plain"}, "data": b'"x"'}


def reset(
    story: Story,
    finish_event_id: int,
    *,
    following: Story | None = None,
    base: Execution | None = None,
    **request: Any,
) -> Transition:
    return resets.reset(
        ResetWorkflowExecutionRequest(
            workflow_task_finish_event_id=finish_event_id, reason="bad deploy", **request
        ),
        base or a_run(),
        story.events,
        following.events if following else [],
        key=8,
        run_id="new-run",
        now_ns=LATER_NS,
        rng=random.Random(1),
    )


def history(tx: Transition) -> list[HistoryEvent]:
    return list(History.FromString(tx.events).events)


def names(tx: Transition, after: int = 0) -> list[str]:
    """The types of the new run's events after an id."""
    return [
        EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
        for event in history(tx)[after:]
    ]


def check_whole(tx: Transition) -> None:
    """Whatever a reset makes is a whole run, all of it to be stored, and equal to its replay."""
    assert [event.event_id for event in history(tx)] == list(range(1, len(history(tx)) + 1))
    assert tx.first_event_id == 1
    assert tx.run.state.next_event_id == len(history(tx)) + 1
    assert set(tx.changed) == set(tx.run.items)
    assert replay.differences(tx.run, replay.rebuild(8, tx.run.info, history(tx))) == []


ENDING = ["WORKFLOW_TASK_FAILED", "WORKFLOW_TASK_SCHEDULED"]


# -- the point -------------------------------------------------------------------------------------


def test_reset_to_the_end_of_a_workflow_task() -> None:
    story = Story().begin()
    story.add("marker_recorded", marker_name="m")
    tx = reset(story, 4)
    check_whole(tx)
    assert history(tx)[:3] == story.events[:3]
    assert names(tx, 3) == ENDING
    failed = history(tx)[3].workflow_task_failed_event_attributes
    assert (failed.scheduled_event_id, failed.started_event_id) == (2, 3)
    assert failed.cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
    assert failed.failure.message == "bad deploy"
    assert failed.failure.HasField("reset_workflow_failure_info")
    assert failed.base_run_id == info().run_id
    assert failed.new_run_id == "new-run"
    task = tx.run.state.workflow_task
    assert task is not None
    assert (task.attempt, task.scheduled_event_id, task.queue) == (1, 5, "orders")
    assert tx.tasks == [TaskRef(1, "orders", 5, task.stamp)]
    assert tx.run.is_open


def test_reset_to_the_start_of_a_workflow_task_writes_the_start() -> None:
    tx = reset(Story().begin(), 3)
    check_whole(tx)
    assert names(tx, 2) == ["WORKFLOW_TASK_STARTED", *ENDING]
    failed = history(tx)[3].workflow_task_failed_event_attributes
    assert (failed.scheduled_event_id, failed.started_event_id) == (2, 3)


@pytest.mark.parametrize("end", ["workflow_task_failed", "workflow_task_timed_out"])
def test_reset_to_a_workflow_task_that_went_wrong(end: str) -> None:
    story = Story().begin()
    story.schedule()
    story.add("workflow_task_started", scheduled_event_id=5)
    story.add(end, scheduled_event_id=5, started_event_id=6)
    tx = reset(story, 7)
    check_whole(tx)
    assert names(tx, 6) == ENDING


@pytest.mark.parametrize("finish_event_id", [0, 1, 6, -1])
def test_the_point_must_be_in_history(finish_event_id: int) -> None:
    story = Story().begin()
    story.add("marker_recorded")
    with pytest.raises(InvalidArgument, match="must be > 1 && <= workflow last event ID"):
        reset(story, finish_event_id)


@pytest.mark.parametrize("finish_event_id", [2, 5])
def test_a_workflow_task_must_be_under_way_at_the_point(finish_event_id: int) -> None:
    story = Story().begin()
    story.add("marker_recorded")
    with pytest.raises(InvalidArgument, match=f"WorkflowTaskStarted \\+ 1]: {finish_event_id}"):
        reset(story, finish_event_id)


def test_the_new_run_has_the_old_ones_info_and_its_own_time() -> None:
    base = a_run(
        execution_timeout_ns=50 * SECOND_NS, run_timeout_ns=60 * SECOND_NS, parent_key=3,
        execution_deadline_ns=1, run_deadline_ns=1,
    )  # fmt: skip
    tx = reset(Story().begin(memo={"fields": {"m": TEXT}}), 4, base=base)
    made = tx.run.info
    assert tx.run.key == 8
    assert made.run_id == "new-run"
    assert made.start_ns == LATER_NS
    assert made.execution_deadline_ns == LATER_NS + 50 * SECOND_NS
    assert made.run_deadline_ns == made.execution_deadline_ns  # no run outlives its execution
    assert (made.workflow_id, made.first_run_id, made.parent_key) == (
        base.info.workflow_id, base.info.first_run_id, 3,
    )  # fmt: skip
    assert tx.run.state.wake_at_ns == LATER_NS + 50 * SECOND_NS
    assert tx.wake_changed
    assert tx.visible
    assert tx.based_on == 0
    assert b"m" in tx.run.memo
    assert base.info.run_id != "new-run"


def test_the_request_id_is_remembered() -> None:
    assert "reset-1" in reset(Story().begin(), 4, request_id="reset-1").run.requests


# -- what is applied again -------------------------------------------------------------------------


def eventful() -> Story:
    """After the first workflow task: signals, updates in several states, and a cancel request."""
    story = Story().begin()
    story.add("workflow_execution_signaled", signal_name="s1", request_id="r1",
              input={"payloads": [TEXT]})  # fmt: skip
    story.add("workflow_execution_cancel_requested", cause="late")
    story.add("workflow_execution_update_accepted", protocol_instance_id="u1",
              accepted_request={"meta": {"update_id": "u1"}, "input": {"name": "add"}})  # fmt: skip
    story.add("workflow_execution_update_completed", meta={"update_id": "u1"}, accepted_event_id=7)
    story.add("workflow_execution_update_admitted", request={"meta": {"update_id": "u2"}}, origin=1)
    story.add("workflow_execution_update_accepted", protocol_instance_id="u2")
    return story


def test_signals_and_updates_are_applied_again() -> None:
    tx = reset(eventful(), 4)
    check_whole(tx)
    assert names(tx, 3) == [
        "WORKFLOW_TASK_FAILED", "WORKFLOW_EXECUTION_SIGNALED",
        "WORKFLOW_EXECUTION_UPDATE_ADMITTED", "WORKFLOW_EXECUTION_UPDATE_ADMITTED",
        "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    _, signal, first, second, _ = history(tx)[3:]
    assert signal.workflow_execution_signaled_event_attributes == (
        eventful().events[4].workflow_execution_signaled_event_attributes
    )
    admitted = first.workflow_execution_update_admitted_event_attributes
    assert admitted.request.input.name == "add"
    assert admitted.origin == 1
    assert second.workflow_execution_update_admitted_event_attributes.request.meta.update_id == "u2"
    state = tx.run.state
    assert (state.signal_count, state.update_count) == (1, 2)
    assert not state.cancel_requested
    assert "r1" in tx.run.requests
    assert set(tx.run.updates) == {"u1", "u2"}


@pytest.mark.parametrize(
    ("request_fields", "signals", "admissions"),
    [
        ({"reset_reapply_exclude_types": [NO_SIGNALS]}, 0, 2),
        ({"reset_reapply_exclude_types": [NO_UPDATES]}, 1, 0),
        ({"reset_reapply_exclude_types": [1, 2, 3, 4]}, 0, 0),
        ({"reset_reapply_type": ResetReapplyType.RESET_REAPPLY_TYPE_SIGNAL}, 1, 0),
        ({"reset_reapply_type": ResetReapplyType.RESET_REAPPLY_TYPE_NONE}, 0, 0),
        ({"reset_reapply_type": ResetReapplyType.RESET_REAPPLY_TYPE_ALL_ELIGIBLE}, 1, 2),
    ],
)
def test_kinds_can_be_left_out(
    request_fields: dict[str, Any], signals: int, admissions: int
) -> None:
    tx = reset(eventful(), 4, **request_fields)
    check_whole(tx)
    found = names(tx)
    assert found.count("WORKFLOW_EXECUTION_SIGNALED") == signals
    assert found.count("WORKFLOW_EXECUTION_UPDATE_ADMITTED") == admissions


def test_events_of_the_runs_that_followed_are_applied_too() -> None:
    story = Story().begin()
    story.add("workflow_execution_continued_as_new", new_execution_run_id="second")
    assert resets.next_run_id(story.events) == "second"
    following = Story().begin()
    following.add("workflow_execution_signaled", signal_name="s2")
    assert resets.next_run_id(following.events) == ""
    assert resets.next_run_id([]) == ""
    tx = reset(story, 4, following=following)
    check_whole(tx)
    assert names(tx, 3) == [
        "WORKFLOW_TASK_FAILED", "WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip


def test_what_the_kept_part_holds_is_not_applied_twice() -> None:
    story = eventful()
    story.task()
    tx = reset(story, 13)
    check_whole(tx)
    assert names(tx, 12) == ENDING
    assert tx.run.state.signal_count == 1


# -- what was pending ------------------------------------------------------------------------------


def test_pending_activities_are_scheduled_again() -> None:
    story = Story().begin()
    story.add("activity_task_scheduled", activity_id="a", task_queue={"name": "cards"},
              schedule_to_close_timeout={"seconds": 30},
              schedule_to_start_timeout={"seconds": 20})  # fmt: skip
    story.task()
    story.add("activity_task_started", scheduled_event_id=5, attempt=2)
    story.add("activity_task_completed", scheduled_event_id=5, started_event_id=9)
    tx = reset(story, 8)
    check_whole(tx)
    assert names(tx, 7) == ENDING
    activity = tx.run.activities[5]
    assert (activity.scheduled_ns, activity.due_ns) == (LATER_NS, LATER_NS)
    assert (activity.attempt, activity.started_ns) == (1, 0)
    assert TaskRef(2, "cards", 5, activity.stamp) in tx.tasks
    assert tx.run.state.wake_at_ns == LATER_NS + 20 * SECOND_NS


def test_an_activity_whose_end_is_cut_off_has_failed() -> None:
    story = Story().begin()
    story.add("activity_task_scheduled", activity_id="a", task_queue={"name": "cards"})
    story.schedule()
    story.add("activity_task_started", scheduled_event_id=5, identity="w")
    story.add("activity_task_completed", scheduled_event_id=5, started_event_id=7)
    tx = reset(story, 8)
    check_whole(tx)
    assert names(tx, 7) == [
        "WORKFLOW_TASK_STARTED", "WORKFLOW_TASK_FAILED", "ACTIVITY_TASK_FAILED",
        "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    failed = history(tx)[9].activity_task_failed_event_attributes
    assert (failed.scheduled_event_id, failed.started_event_id) == (5, 7)
    assert failed.identity == "w"
    assert failed.retry_state == RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE
    assert failed.failure.HasField("reset_workflow_failure_info")
    assert not tx.run.activities


def test_kept_timers_keep_their_time() -> None:
    story = Story().begin()
    story.add("timer_started", timer_id="t", start_to_fire_timeout={"seconds": 60})
    story.task()
    story.add("timer_fired", timer_id="t", started_event_id=5)
    tx = reset(story, 8)
    check_whole(tx)
    assert tx.run.timers["t"].due_ns == NOW_NS + 65 * SECOND_NS
    assert tx.run.state.wake_at_ns == NOW_NS + 65 * SECOND_NS


def with_child() -> Story:
    story = Story().begin()
    story.add("start_child_workflow_execution_initiated", namespace="default", workflow_id="kid",
              workflow_type={"name": "Kid"}, task_queue={"name": "kids"},
              parent_close_policy=1)  # fmt: skip
    return story


def test_a_kept_child_that_ended_later_ends_again() -> None:
    story = with_child()
    story.task()
    story.add("child_workflow_execution_started", initiated_event_id=5,
              workflow_execution={"workflow_id": "kid", "run_id": "kid-run"})  # fmt: skip
    story.add("child_workflow_execution_completed", initiated_event_id=5, started_event_id=9,
              result={"payloads": [TEXT]})  # fmt: skip
    tx = reset(story, 8)
    check_whole(tx)
    assert names(tx, 7) == [
        "WORKFLOW_TASK_FAILED", "CHILD_WORKFLOW_EXECUTION_STARTED",
        "CHILD_WORKFLOW_EXECUTION_COMPLETED", "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    started, completed = history(tx)[8:10]
    attributes = completed.child_workflow_execution_completed_event_attributes
    assert attributes.started_event_id == started.event_id
    assert attributes.result.payloads[0].data == b'"x"'
    assert not tx.run.children
    assert not tx.messages


def test_a_kept_child_that_runs_is_taken_over() -> None:
    story = with_child()
    story.task()
    story.add("child_workflow_execution_started", initiated_event_id=5,
              workflow_execution={"workflow_id": "kid", "run_id": "kid-run"})  # fmt: skip
    tx = reset(story, 8)
    check_whole(tx)
    child = tx.run.children[5]
    assert (child.run_id, child.started_event_id) == ("kid-run", 9)
    assert child.key
    assert not tx.messages


def test_a_kept_child_that_did_not_start_is_started() -> None:
    story = with_child()
    story.task()
    tx = reset(story, 8)
    check_whole(tx)
    (message,) = tx.messages
    assert isinstance(message, StartChild)
    child = tx.run.children[5]
    assert message.initiated_event_id == 5
    assert (message.run_id, message.request_id) == (child.run_id, child.request_id)
    assert message.run_id != ""
    request = StartWorkflowExecutionRequest.FromString(message.request)
    assert (request.workflow_id, request.task_queue.name) == ("kid", "kids")


def test_a_kept_child_that_is_just_being_started_keeps_its_ids() -> None:
    story = with_child()
    story.task()
    base = a_run()
    base.index(Child(1, 5, "default", "kid", "Kid", 1, request_id="kid-request", run_id="kid-run"))
    tx = reset(story, 8, base=base)
    (message,) = tx.messages
    assert (message.run_id, message.request_id) == ("kid-run", "kid-request")


def test_children_of_runs_that_followed_are_not_mistaken_for_kept_ones() -> None:
    story = with_child()
    story.task()
    following = with_child()
    following.add("start_child_workflow_execution_failed", initiated_event_id=5)
    tx = reset(story, 8, following=following)
    assert names(tx, 7) == ENDING
    assert tx.run.children


def test_kept_messages_that_were_answered_are_not_sent_again() -> None:
    story = Story().begin()
    story.add("signal_external_workflow_execution_initiated", signal_name="go",
              workflow_execution={"workflow_id": "other"})  # fmt: skip
    story.add("request_cancel_external_workflow_execution_initiated", reason="late",
              workflow_execution={"workflow_id": "other"})  # fmt: skip
    story.task()
    unanswered = reset(story, 9)
    check_whole(unanswered)
    signal, cancel = unanswered.messages
    assert isinstance(signal, SignalRun)
    assert isinstance(cancel, CancelRun)
    assert SignalWorkflowExecutionRequest.FromString(signal.request).signal_name == "go"
    assert signal.request_id == unanswered.run.signals[5].request_id != ""
    assert cancel.request_id == unanswered.run.cancels[6].request_id != ""

    story.add("external_workflow_execution_signaled", initiated_event_id=5)
    story.add("request_cancel_external_workflow_execution_failed", initiated_event_id=6, cause=1)
    answered = reset(story, 9)
    check_whole(answered)
    assert names(answered, 8) == [
        "WORKFLOW_TASK_FAILED", "EXTERNAL_WORKFLOW_EXECUTION_SIGNALED",
        "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED", "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    assert not answered.messages


def test_a_run_that_is_left_names_its_successor() -> None:
    tx = step(a_run())
    resets.leave(tx, "new-run")
    assert tx.run.state.reset_run_id == "new-run"
