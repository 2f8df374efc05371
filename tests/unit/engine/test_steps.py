"""The main road through the engine: start, workflow task, activity, close."""

from __future__ import annotations

import random

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure.engine import activities, commands, lifecycle, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.lifecycle import StartRun
from perdure.engine.transition import Transition

SECOND = 1_000_000_000
RESULT = Payloads(payloads=[Payload(data=b"1", metadata={"encoding": b"json/plain"})])


class Play:
    """One run, driven step by step."""

    def __init__(self, **changes: object) -> None:
        values: dict[str, object] = {
            "namespace": "default", "namespace_id": "n", "workflow_id": "w", "run_id": "r",
            "workflow_type": "flow", "task_queue": "queue",
        }  # fmt: skip
        start = StartRun(**(values | changes))  # type: ignore[arg-type]
        self.now = 1_000 * SECOND
        self.rng = random.Random(1)
        self.run: Execution = lifecycle.new_execution(1, start, self.now)
        self.history = b""
        self.last = self.do(lambda tx: lifecycle.start(tx, start))

    def do(self, operation: object) -> Transition:
        tx = Transition(self.run, self.now, self.rng)
        self.result = operation(tx)  # type: ignore[operator]
        self.run.state.version += 1
        self.history += tx.events
        return tx

    def take(self) -> None:
        self.do(
            lambda tx: workflow_tasks.start(tx, identity="me", request_id="q", in_process=False)
        )

    def answer(self, *answer: Command) -> Transition:
        request = RespondWorkflowTaskCompletedRequest(commands=answer, identity="me")
        return self.do(lambda tx: commands.complete(tx, request))

    @property
    def events(self) -> list[HistoryEvent]:
        return list(History.FromString(self.history).events)

    @property
    def types(self) -> list[str]:
        return [EventType.Name(e.event_type).removeprefix("EVENT_TYPE_") for e in self.events]


def activity(activity_id: str = "1") -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    wanted = command.schedule_activity_task_command_attributes
    wanted.activity_id = activity_id
    wanted.activity_type.name = "work"
    wanted.start_to_close_timeout.FromSeconds(10)
    wanted.input.CopyFrom(RESULT)
    return command


def finish() -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    command.complete_workflow_execution_command_attributes.result.CopyFrom(RESULT)
    return command


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
