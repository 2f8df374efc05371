"""Workflow tasks: sticky ones, failing ones, long ones, and those made for updates."""

from __future__ import annotations

import pytest
from engine_play import SECOND, Play, activity, finish
from temporalio.api.enums.v1 import TimeoutType, WorkflowTaskFailedCause
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import History
from temporalio.api.protocol.v1 import Message
from temporalio.api.update.v1 import Rejection
from temporalio.api.workflowservice.v1 import (
    RespondWorkflowTaskCompletedRequest,
    SignalWorkflowExecutionRequest,
)

from perdure.api.errors import NotFound
from perdure.engine import activities, alarms, commands, lifecycle, workflow_tasks
from perdure.engine.state import WorkflowTask
from perdure.engine.transition import Transition

CAUSE = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
TASK = ["WORKFLOW_TASK_SCHEDULED", "WORKFLOW_TASK_STARTED"]


def fail(play: Play) -> Transition:
    return play.do(lambda tx: workflow_tasks.fail(tx, CAUSE, Failure(message="no"), "me"))


def signal(play: Play) -> Transition:
    request = SignalWorkflowExecutionRequest(signal_name="go")
    return play.do(lambda tx: lifecycle.signal(tx, request))


def present(play: Play) -> WorkflowTask:
    task = play.run.state.workflow_task
    assert task is not None
    return task


def ring(play: Play, seconds: float) -> Transition:
    play.now += int(seconds * SECOND)
    return play.do(alarms.ring)


def answer_stickily(play: Play, *answer: object) -> None:
    request = RespondWorkflowTaskCompletedRequest(commands=answer, identity="me")  # type: ignore[arg-type]
    request.sticky_attributes.worker_task_queue.name = "sticky"
    request.sticky_attributes.schedule_to_start_timeout.FromSeconds(5)
    play.do(lambda tx: commands.complete(tx, request))


# -- failing ---------------------------------------------------------------------------------------


def test_only_the_first_failure_leaves_events() -> None:
    play = Play()
    play.take()
    fail(play)
    play.take()
    fail(play)
    assert play.types == ["WORKFLOW_EXECUTION_STARTED", *TASK, "WORKFLOW_TASK_FAILED"]
    assert present(play).attempt == 3


def test_a_retry_that_works_gets_its_events_when_it_completes() -> None:
    play = Play()
    play.take()
    fail(play)
    play.take()
    shown = History.FromString(workflow_tasks.transient_events(play.run)).events
    assert [event.event_id for event in shown] == [5, 6]
    assert shown[0].workflow_task_scheduled_event_attributes.attempt == 2
    play.answer(finish())
    assert play.types[4:] == [*TASK, "WORKFLOW_TASK_COMPLETED", "WORKFLOW_EXECUTION_COMPLETED"]
    assert play.events[5].workflow_task_started_event_attributes.scheduled_event_id == 5


def test_news_make_a_retry_an_ordinary_task() -> None:
    play = Play()
    play.take()
    fail(play)
    signal(play)
    play.take()
    assert present(play).attempt == 1
    assert play.types[4:] == ["WORKFLOW_EXECUTION_SIGNALED", *TASK]
    assert workflow_tasks.transient_events(play.run) == b""


def test_from_the_third_attempt_on_retries_are_paced() -> None:
    play = Play()
    pauses = []
    for _ in range(5):
        play.take()
        tasks = fail(play).tasks
        due = present(play).due_ns
        pauses.append((due - play.now) / SECOND if due else 0)
        assert bool(tasks) == (due == 0)
        if due:
            assert [task.kind for task in ring(play, pauses[-1]).tasks] == [1]
    assert pauses == [0, 5, 10, 20, 40]


def test_a_task_that_is_not_answered_times_out() -> None:
    play = Play(task_timeout_ns=3 * SECOND)
    play.take()
    assert ring(play, 2).tasks == []
    assert len(ring(play, 1).tasks) == 1
    assert play.types[-1] == "WORKFLOW_TASK_TIMED_OUT"
    event = play.events[-1].workflow_task_timed_out_event_attributes
    assert event.timeout_type == TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE
    assert present(play).attempt == 2


def test_a_lost_worker_costs_no_attempt() -> None:
    play = Play()
    play.take()
    fail(play)
    play.take()
    assert present(play).attempt == 2
    assert len(play.do(workflow_tasks.take_back).tasks) == 1
    assert present(play).attempt == 2


def test_stale_tokens_are_refused() -> None:
    play = Play()
    with pytest.raises(NotFound):
        workflow_tasks.check_token(play.run, 2, 3, 1)
    play.take()
    stamp = present(play).stamp
    workflow_tasks.check_token(play.run, 2, 3, stamp)
    with pytest.raises(NotFound):
        workflow_tasks.check_token(play.run, 2, 3, stamp + 1)
    with pytest.raises(NotFound):
        play.take()


# -- sticky ----------------------------------------------------------------------------------------


def test_a_sticky_queue_that_nobody_reads_is_left() -> None:
    play = Play()
    play.take()
    answer_stickily(play)
    assert [(task.kind, task.queue) for task in signal(play).tasks] == [(1, "sticky")]
    queue = play.events[-1].workflow_task_scheduled_event_attributes.task_queue
    assert (queue.name, queue.normal_name) == ("sticky", "queue")
    assert [(task.kind, task.queue) for task in ring(play, 5).tasks] == [(1, "queue")]
    assert play.types[-2:] == ["WORKFLOW_TASK_TIMED_OUT", "WORKFLOW_TASK_SCHEDULED"]
    event = play.events[-2].workflow_task_timed_out_event_attributes
    assert event.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START
    assert present(play).attempt == 1


def test_a_failed_task_ends_stickiness() -> None:
    play = Play()
    play.take()
    answer_stickily(play)
    signal(play)
    play.take()
    assert [task.queue for task in fail(play).tasks] == ["queue"]
    assert play.types[-2:] == ["WORKFLOW_TASK_FAILED", "WORKFLOW_TASK_SCHEDULED"]
    assert present(play).attempt == 1
    play.take()
    fail(play)
    assert present(play).attempt == 2


# -- long ones, and what comes meanwhile -----------------------------------------------------------


def test_a_long_task_is_kept_alive_by_asking_for_the_next() -> None:
    play = Play()
    play.take()
    request = RespondWorkflowTaskCompletedRequest(force_create_new_workflow_task=True)
    tx = play.do(lambda tx: commands.complete(tx, request))
    assert [task.kind for task in tx.tasks] == [1]
    assert play.types[-2:] == ["WORKFLOW_TASK_COMPLETED", "WORKFLOW_TASK_SCHEDULED"]


def test_buffered_ends_come_after_all_other_buffered_events() -> None:
    play = Play()
    play.take()
    held = play.answer(activity("1")).tasks[0].scheduled_event_id
    play.do(lambda tx: activities.start(tx, held, identity="", request_id="", in_process=False))
    signal(play)
    play.take()
    found = activities.find(play.run, held)
    play.do(lambda tx: activities.complete(tx, found, b"", "me"))
    signal(play)
    assert play.run.buffered
    play.answer()
    assert play.types[-4:] == [
        "ACTIVITY_TASK_STARTED", "WORKFLOW_EXECUTION_SIGNALED", "ACTIVITY_TASK_COMPLETED",
        "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    end = play.events[-2].activity_task_completed_event_attributes
    assert end.started_event_id == play.events[-4].event_id
    assert not play.run.buffered


def test_terminating_ends_the_started_task_and_shows_what_was_buffered() -> None:
    play = Play()
    play.take()
    signal(play)
    play.do(lambda tx: lifecycle.terminate(tx, "why", None, "me"))
    assert play.types[3:] == [
        "WORKFLOW_TASK_FAILED", "WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_EXECUTION_TERMINATED",
    ]  # fmt: skip
    forced = play.events[3].workflow_task_failed_event_attributes
    assert forced.cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND
    assert forced.identity == "history-service"


# -- for updates -----------------------------------------------------------------------------------


def rejection(*, capable: bool) -> RespondWorkflowTaskCompletedRequest:
    request = RespondWorkflowTaskCompletedRequest(identity="me")
    request.capabilities.discard_speculative_workflow_task_with_events = capable
    body = Rejection()
    body.rejected_request.meta.update_id = "u"
    message = Message(id="u/rejected", protocol_instance_id="u")
    message.body.Pack(body)
    request.messages.append(message)
    return request


def with_speculative_task(*before: object) -> Play:
    play = Play()
    play.take()
    play.answer(*before)  # type: ignore[arg-type]
    tx = play.do(workflow_tasks.schedule_speculative)
    assert [task.kind for task in tx.tasks] == [1]
    assert not tx.has_events
    play.take()
    assert not play.last.has_events or play.types[-1] != "WORKFLOW_TASK_STARTED"
    return play


def test_a_rejected_update_leaves_no_trace() -> None:
    play = with_speculative_task()
    before = play.history
    tx = play.do(lambda tx: commands.complete(tx, rejection(capable=False)))
    assert play.history == before
    assert [result[0] for result in tx.update_results] == ["u"]
    assert play.run.state.workflow_task is None


@pytest.mark.parametrize(
    ("capable", "scheduled", "dropped"),
    [(True, 1, True), (False, 1, False), (True, 11, False)],
)
def test_a_task_is_kept_when_too_much_would_be_sent_again(
    capable: bool, scheduled: int, dropped: bool
) -> None:
    play = with_speculative_task(*(activity(str(n)) for n in range(scheduled)))
    before = play.history
    play.do(lambda tx: commands.complete(tx, rejection(capable=capable)))
    assert (play.history == before) == dropped
    if not dropped:
        assert play.types[-3:] == [*TASK, "WORKFLOW_TASK_COMPLETED"]


def test_news_make_a_waiting_speculative_task_an_ordinary_one() -> None:
    play = Play()
    play.take()
    play.answer()
    play.do(workflow_tasks.schedule_speculative)
    signal(play)
    assert play.types[-2:] == ["WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_TASK_SCHEDULED"]
    assert not present(play).speculative


def test_terminating_writes_a_started_speculative_task() -> None:
    play = with_speculative_task()
    play.do(lambda tx: lifecycle.terminate(tx, "why", None, "me"))
    assert play.types[-4:] == [*TASK, "WORKFLOW_TASK_FAILED", "WORKFLOW_EXECUTION_TERMINATED"]
