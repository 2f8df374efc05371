"""The main road through the engine: start, workflow task, activity, close."""

from __future__ import annotations

from engine_play import RESULT, Play, activity, finish

from perdure.engine import activities


def test_a_run_with_one_activity() -> None:
    play = Play()
    assert [task.kind for task in play.last.tasks] == [1]
    play.take()
    tx = play.answer(activity())
    assert [(task.kind, task.queue) for task in tx.tasks] == [(2, "queue")]
    held = tx.tasks[0].scheduled_event_id
    play.do(lambda tx: activities.start(tx, held, identity="me", request_id="", in_process=True))
    assert play.run.in_flight
    pending = activities.find(play.run, held)
    play.do(lambda tx: activities.complete(tx, pending, RESULT.SerializeToString(), "me"))
    assert not play.run.in_flight
    play.take()
    tx = play.answer(finish())
    assert tx.closed
    assert not play.run.is_open
    assert play.types == [
        "WORKFLOW_EXECUTION_STARTED",
        "WORKFLOW_TASK_SCHEDULED", "WORKFLOW_TASK_STARTED", "WORKFLOW_TASK_COMPLETED",
        "ACTIVITY_TASK_SCHEDULED", "ACTIVITY_TASK_STARTED", "ACTIVITY_TASK_COMPLETED",
        "WORKFLOW_TASK_SCHEDULED", "WORKFLOW_TASK_STARTED", "WORKFLOW_TASK_COMPLETED",
        "WORKFLOW_EXECUTION_COMPLETED",
    ]  # fmt: skip
    assert [event.event_id for event in play.events] == list(range(1, 12))
    done = play.events[6].activity_task_completed_event_attributes
    assert (done.scheduled_event_id, done.started_event_id) == (5, 6)
    assert done.result == RESULT


def test_what_happens_during_a_workflow_task_comes_after_it() -> None:
    play = Play()
    play.take()
    held = play.answer(activity("1"), activity("2")).tasks
    for task in held:
        found = task.scheduled_event_id
        play.do(
            lambda tx, found=found: activities.start(
                tx, found, identity="me", request_id="", in_process=False
            )
        )
    first, second = (activities.find(play.run, task.scheduled_event_id) for task in held)
    play.do(lambda tx: activities.complete(tx, first, b"", "me"))
    play.take()
    play.do(lambda tx: activities.complete(tx, second, b"", "me"))
    assert play.types[-1] == "WORKFLOW_TASK_STARTED"
    play.answer()
    assert play.types[-4:] == [
        "WORKFLOW_TASK_COMPLETED", "ACTIVITY_TASK_STARTED", "ACTIVITY_TASK_COMPLETED",
        "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    end = play.events[-2].activity_task_completed_event_attributes
    assert end.started_event_id == play.events[-3].event_id
    assert end.scheduled_event_id == second.scheduled_event_id


def test_closing_before_having_seen_everything_fails_the_task() -> None:
    play = Play()
    play.take()
    held = play.answer(activity("1"), activity("2")).tasks
    for task in held:
        found = task.scheduled_event_id
        play.do(
            lambda tx, found=found: activities.start(
                tx, found, identity="me", request_id="", in_process=False
            )
        )
    first, second = (activities.find(play.run, task.scheduled_event_id) for task in held)
    play.do(lambda tx: activities.complete(tx, first, b"", "me"))
    play.take()
    play.do(lambda tx: activities.complete(tx, second, b"", "me"))
    play.answer(finish())
    assert play.run.is_open
    assert "WORKFLOW_TASK_FAILED" in play.types
    assert play.types[-1] == "WORKFLOW_TASK_SCHEDULED"


def test_a_bad_command_changes_nothing_but_the_task() -> None:
    play = Play()
    play.take()
    play.answer(activity("1"), activity("1"))
    assert play.types[-2:] == ["WORKFLOW_TASK_STARTED", "WORKFLOW_TASK_FAILED"]
    assert not play.run.activities
    task = play.run.state.workflow_task
    assert task is not None
    assert task.attempt == 2
