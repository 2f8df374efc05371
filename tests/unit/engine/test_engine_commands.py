"""Commands of a worker: the good ones are applied, one bad one fails the whole answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_play import RESULT, SECOND, Play, activity, finish
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Memo, Payload, SearchAttributes
from temporalio.api.enums.v1 import CommandType, WorkflowTaskFailedCause
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure.engine import alarms, commands, workflow_tasks
from perdure.engine.commands import CompletedTask
from perdure.engine.limits import Limits
from perdure.engine.transition import Transition

TOO_LARGE, TOO_MANY_EVENTS = 1, 2  # SuggestContinueAsNewReason


def command(kind: str) -> Command:
    return Command(command_type=getattr(CommandType, f"COMMAND_TYPE_{kind}"))


def timer(timer_id: str = "t", seconds: int = 5) -> Command:
    made = command("START_TIMER")
    made.start_timer_command_attributes.timer_id = timer_id
    made.start_timer_command_attributes.start_to_fire_timeout.FromSeconds(seconds)
    return made


def cancel_timer(timer_id: str = "t") -> Command:
    made = command("CANCEL_TIMER")
    made.cancel_timer_command_attributes.timer_id = timer_id
    return made


def changed(change: Callable[[Command], object], made: Command) -> Command:
    change(made)
    return made


def scheduling(change: Callable[..., object]) -> Command:
    return changed(lambda c: change(c.schedule_activity_task_command_attributes), activity())


def cancel_activity(scheduled_event_id: int) -> Command:
    made = command("REQUEST_CANCEL_ACTIVITY_TASK")
    made.request_cancel_activity_task_command_attributes.scheduled_event_id = scheduled_event_id
    return made


def continuing(workflow_type: str, queue: str) -> Command:
    made = command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION")
    attributes = made.continue_as_new_workflow_execution_command_attributes
    attributes.workflow_type.name, attributes.task_queue.name = workflow_type, queue
    return made


def marker(name: str) -> Command:
    made = command("RECORD_MARKER")
    made.record_marker_command_attributes.marker_name = name
    made.record_marker_command_attributes.details["k"].CopyFrom(RESULT)
    return made


BAD: list[tuple[str, list[Command]]] = [
    ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES", [scheduling(lambda a: a.ClearField("activity_id"))]),
    ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES", [scheduling(lambda a: a.ClearField("activity_type"))]),
    ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES",
     [scheduling(lambda a: a.ClearField("start_to_close_timeout"))]),
    ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES",
     [scheduling(lambda a: a.heartbeat_timeout.FromSeconds(-1))]),
    *(
        ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES", [scheduling(change)])
        for name in ("x" * 1_001, "\u4e00" * 334, "a\0b")
        for change in (
            lambda a, name=name: setattr(a, "activity_id", name),
            lambda a, name=name: setattr(a.activity_type, "name", name),
            lambda a, name=name: setattr(a.task_queue, "name", name),
        )
    ),
    ("BAD_CONTINUE_AS_NEW_ATTRIBUTES", [continuing("\u4e00" * 334, "queue")]),
    ("BAD_CONTINUE_AS_NEW_ATTRIBUTES", [continuing("flow", "\u4e00" * 334)]),
    ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES",
     [scheduling(lambda a: setattr(a.input.payloads[0], "data", b"x" * 2_100_000))]),
    ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES",
     [scheduling(lambda a: setattr(a.retry_policy, "backoff_coefficient", 0.5))]),
    ("SCHEDULE_ACTIVITY_DUPLICATE_ID", [activity("1"), activity("1")]),
    ("BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES", [cancel_activity(0)]),
    ("BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES", [cancel_activity(99)]),
    ("BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES",
     [activity("1"), cancel_activity(5), cancel_activity(5)]),
    ("BAD_START_TIMER_ATTRIBUTES", [timer("")]),
    ("BAD_START_TIMER_ATTRIBUTES", [timer("t", -1)]),
    ("START_TIMER_DUPLICATE_ID", [timer(), timer()]),
    ("BAD_CANCEL_TIMER_ATTRIBUTES", [cancel_timer()]),
    ("BAD_CANCEL_TIMER_ATTRIBUTES", [timer(), cancel_timer(), cancel_timer()]),
    ("BAD_RECORD_MARKER_ATTRIBUTES", [marker("")]),
    ("BAD_FAIL_WORKFLOW_EXECUTION_ATTRIBUTES", [command("FAIL_WORKFLOW_EXECUTION")]),
    ("BAD_SEARCH_ATTRIBUTES", [command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES")]),
    ("UNSPECIFIED", [command("UNSPECIFIED")]),
]  # fmt: skip


def with_limits(play: Play, limits: Limits, *answer: Command) -> CompletedTask:
    def operation(tx: Transition) -> CompletedTask:
        tx.limits = limits
        return commands.complete(tx, RespondWorkflowTaskCompletedRequest(commands=answer))

    play.do(operation)
    assert isinstance(play.result, CompletedTask)
    return play.result


def test_names_may_be_as_long_as_the_limit_says() -> None:
    play = Play()
    play.take()
    play.answer(activity("x" * 1_000), scheduling(lambda a: setattr(a, "activity_id", "é" * 500)))
    assert play.types[3:] == ["WORKFLOW_TASK_COMPLETED", *["ACTIVITY_TASK_SCHEDULED"] * 2]


@pytest.mark.parametrize(("cause", "answer"), BAD)
def test_a_bad_command_fails_the_task_with_its_cause(cause: str, answer: list[Command]) -> None:
    play = Play()
    play.take()
    play.answer(timer("good"), *answer)
    assert play.types[3:] == ["WORKFLOW_TASK_FAILED"]
    event = play.events[-1].workflow_task_failed_event_attributes
    name = WorkflowTaskFailedCause.Name(event.cause)
    assert name == f"WORKFLOW_TASK_FAILED_CAUSE_{cause}"
    assert event.failure.message.startswith(cause.title().replace("_", "") + ": ")
    assert event.failure.HasField("server_failure_info")
    assert not play.run.items
    assert isinstance(play.result, CompletedTask)
    assert (play.result.failed, play.result.cause) == (True, event.cause)


def test_pending_activities_are_limited() -> None:
    play = Play()
    play.take()
    result = with_limits(
        play, Limits(pending_activities_max=2), activity("1"), activity("2"), activity("3")
    )
    cause = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_ACTIVITIES_LIMIT_EXCEEDED
    assert result.cause == cause
    assert not play.run.activities


@pytest.mark.parametrize(
    ("limits", "reasons"),
    [
        (Limits(history_suggest_events=3), []),
        (Limits(history_suggest_events=2), [TOO_MANY_EVENTS]),
        (Limits(history_suggest_bytes=1), [TOO_LARGE]),
        (Limits(history_suggest_events=2, history_suggest_bytes=1), [TOO_LARGE, TOO_MANY_EVENTS]),
    ],
)
def test_continue_as_new_is_suggested_when_history_grows(
    limits: Limits, reasons: list[int]
) -> None:
    play = Play()

    def start(tx: Transition) -> None:
        tx.limits = limits
        workflow_tasks.start(tx, identity="me", request_id="", in_process=False)

    play.do(start)
    event = play.events[-1].workflow_task_started_event_attributes
    assert event.suggest_continue_as_new == bool(reasons)
    assert event.suggest_continue_as_new_reasons == reasons
    assert event.history_size_bytes > 0


def test_eager_activities_are_named() -> None:
    play = Play()
    play.take()
    eager = scheduling(lambda a: setattr(a, "request_eager_execution", True))
    eager.schedule_activity_task_command_attributes.activity_id = "e"
    play.answer(activity("1"), eager)
    assert isinstance(play.result, CompletedTask)
    assert play.result.eager_activities == [6]


def test_memo_and_attributes_are_merged_and_null_removes() -> None:
    null = Payload(metadata={"encoding": b"binary/null"})
    old = Payload(data=b"1", metadata={"encoding": b"json/plain"})
    new = Payload(data=b"2", metadata={"encoding": b"json/plain"})
    play = Play(
        memo=Memo(fields={"a": old, "b": old}).SerializeToString(),
        attributes=SearchAttributes(indexed_fields={"a": old, "b": old}).SerializeToString(),
    )
    play.take()
    memo = command("MODIFY_WORKFLOW_PROPERTIES")
    fields = memo.modify_workflow_properties_command_attributes.upserted_memo.fields
    upsert = command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES")
    attributes = upsert.upsert_workflow_search_attributes_command_attributes.search_attributes
    for target in (fields, attributes.indexed_fields):
        target["a"].CopyFrom(null)
        target["c"].CopyFrom(new)
    assert play.answer(memo, upsert, marker("m")).visible
    assert Memo.FromString(play.run.memo).fields == {"b": old, "c": new}
    assert SearchAttributes.FromString(play.run.attributes).indexed_fields == {"b": old, "c": new}
    assert play.types[-3:] == [
        "WORKFLOW_PROPERTIES_MODIFIED", "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", "MARKER_RECORDED",
    ]  # fmt: skip


# -- timers ----------------------------------------------------------------------------------------


def test_timers_fire_in_order_of_time() -> None:
    play = Play()
    play.take()
    play.answer(timer("late", 9), timer("soon", 3))
    assert play.run.state.wake_at_ns == play.now + 3 * SECOND
    play.now += 20 * SECOND
    play.do(alarms.ring)
    fired = [e.timer_fired_event_attributes.timer_id for e in play.events]
    assert [timer_id for timer_id in fired if timer_id] == ["soon", "late"]
    assert play.run.state.wake_at_ns == 0


def test_a_timer_that_fired_unseen_can_still_be_cancelled() -> None:
    play = Play()
    play.take()
    request = RespondWorkflowTaskCompletedRequest(
        commands=[timer("t", 3)], force_create_new_workflow_task=True
    )
    play.do(lambda tx: commands.complete(tx, request))
    play.take()
    play.now += 3 * SECOND
    play.do(alarms.ring)
    assert len(play.run.buffered) == 1
    play.answer(cancel_timer(), finish())
    assert play.types[-3:] == [
        "WORKFLOW_TASK_COMPLETED", "TIMER_CANCELED", "WORKFLOW_EXECUTION_COMPLETED",
    ]  # fmt: skip
