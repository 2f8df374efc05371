from __future__ import annotations

import re
from typing import Any

import pytest
from sample_runs import NOW_NS, Story, events, info, step
from temporalio.api.command.v1 import (
    RequestCancelExternalWorkflowExecutionCommandAttributes,
    SignalExternalWorkflowExecutionCommandAttributes,
    StartChildWorkflowExecutionCommandAttributes,
)
from temporalio.api.common.v1 import Memo, SearchAttributes
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.update.v1 import Outcome, Request
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
)

from perdure.api.times import SECOND_NS
from perdure.engine import children, external, lifecycle, replay, updates, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.outbox import ChildClosed
from perdure.engine.state import Activity, RetryPolicy, Timer, Update, WorkflowTask

CLOSED = EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED
FAILED = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
TEXT = {"metadata": {"encoding": b"json/plain"}, "data": b'"x"'}
NULL = {"metadata": {"encoding": b"binary/null"}}
EMPTY_LIST = {"metadata": {"encoding": b"json/plain"}, "data": b"[]"}


def rebuilt(story: Story, **changes: object) -> Execution:
    return replay.rebuild(7, info(**changes), story.events)


def at(event_id: int) -> int:
    return NOW_NS + event_id * SECOND_NS


# -- the run ---------------------------------------------------------------------------------------


def test_a_started_run() -> None:
    story = Story()
    story.add("workflow_execution_started", memo={"fields": {"m": TEXT}},
              search_attributes={"indexed_fields": {"Color": TEXT}},
              first_workflow_task_backoff={"seconds": 60})  # fmt: skip
    run = rebuilt(story)
    assert run.key == 7
    assert run.is_open
    assert run.state.next_event_id == 2
    assert run.state.first_task_backoff_until_ns == at(61)
    assert Memo.FromString(run.memo).fields["m"].data == b'"x"'
    assert SearchAttributes.FromString(run.attributes).indexed_fields["Color"].data == b'"x"'
    assert run.start_attributes is None


@pytest.mark.parametrize(
    "changes", [{"cron_schedule": "@daily"}, {"retry": RetryPolicy(1, 2.0, 100, 0)}]
)
def test_start_attributes_are_kept_for_another_run(changes: dict[str, Any]) -> None:
    run = rebuilt(Story().begin(identity="me"), **changes)
    assert run.start_attributes is not None
    assert b"me" in run.start_attributes.attributes


def test_history_size_is_that_of_the_stored_events() -> None:
    story = Story().begin()
    stored = b"".join(replay.framed(event) for event in story.events)
    assert list(History.FromString(stored).events) == story.events
    assert rebuilt(story).state.history_size_bytes == len(stored)


def test_signals_and_cancel_requests() -> None:
    story = Story().begin()
    story.add("workflow_execution_signaled", signal_name="go", request_id="r1")
    story.add("workflow_execution_signaled", signal_name="go")
    story.add("workflow_execution_cancel_requested", cause="late")
    run = rebuilt(story)
    assert run.state.signal_count == 2
    assert list(run.requests) == ["r1"]
    assert run.state.cancel_requested


@pytest.mark.parametrize(
    ("kind", "status", "attributes"),
    [
        ("workflow_execution_completed", 2, {"new_execution_run_id": "next"}),
        ("workflow_execution_failed", 3, {"new_execution_run_id": "next"}),
        ("workflow_execution_canceled", 4, {}),
        ("workflow_execution_terminated", 5, {}),
        ("workflow_execution_continued_as_new", 6, {"new_execution_run_id": "next"}),
        ("workflow_execution_timed_out", 7, {"new_execution_run_id": "next"}),
    ],
)
def test_closing(kind: str, status: int, attributes: dict[str, str]) -> None:
    story = Story().begin()
    story.schedule()
    close = story.add(kind, **attributes)
    state = rebuilt(story).state
    assert state.status == status
    assert (state.close_event_id, state.close_ns) == (close, at(close))
    assert state.successor_run_id == attributes.get("new_execution_run_id", "")
    assert state.workflow_task is None


def test_pausing() -> None:
    story = Story().begin()
    story.add("workflow_execution_paused")
    assert rebuilt(story).state.status == 8
    assert rebuilt(story).is_open
    story.add("workflow_execution_unpaused")
    assert rebuilt(story).state.status == 1


def test_upserts_merge_and_remove() -> None:
    story = Story().begin(
        memo={"fields": {"a": TEXT, "b": TEXT}},
        search_attributes={"indexed_fields": {"A": TEXT, "B": TEXT}},
    )
    story.add("workflow_properties_modified", upserted_memo={"fields": {"a": NULL, "c": TEXT}})
    story.add(
        "upsert_workflow_search_attributes",
        search_attributes={"indexed_fields": {"A": EMPTY_LIST, "C": TEXT}},
    )
    run = rebuilt(story)
    assert set(Memo.FromString(run.memo).fields) == {"b", "c"}
    assert set(SearchAttributes.FromString(run.attributes).indexed_fields) == {"B", "C"}


# -- workflow tasks --------------------------------------------------------------------------------


def test_a_scheduled_then_started_task() -> None:
    story = Story().begin()
    story.add("workflow_task_scheduled", task_queue={"name": "sticky-1", "kind": 2},
              start_to_close_timeout={"seconds": 9}, attempt=1)  # fmt: skip
    task = rebuilt(story).state.workflow_task
    assert task == WorkflowTask(
        5, at(5), "sticky-1", sticky=True, attempt=1, timeout_ns=9 * SECOND_NS
    )
    story.add("workflow_task_started", scheduled_event_id=5, request_id="r", identity="w",
              history_size_bytes=99, suggest_continue_as_new=True)  # fmt: skip
    task = rebuilt(story).state.workflow_task
    assert task is not None
    assert (task.started_event_id, task.started_ns) == (6, at(6))
    assert (task.request_id, task.identity, task.history_size_bytes) == ("r", "w", 99)
    assert task.suggest_continue_as_new


def test_a_completed_task() -> None:
    state = rebuilt(Story().begin()).state
    assert state.workflow_task is None
    assert (state.last_task_started_event_id, state.last_task_completed_event_id) == (3, 4)


@pytest.mark.parametrize("kind", ["workflow_task_failed", "workflow_task_timed_out"])
def test_a_failed_task_counts_until_one_completes(kind: str) -> None:
    story = Story().begin()
    story.schedule()
    story.add("workflow_task_started", scheduled_event_id=5)
    story.add(kind, scheduled_event_id=5, started_event_id=6)
    state = rebuilt(story).state
    assert state.workflow_task is None
    assert state.failed_task_attempts == 1
    assert state.last_task_started_event_id == 3
    story.task(attempt=2)  # was transient while it ran
    assert rebuilt(story).state.failed_task_attempts == 0
    assert rebuilt(story).state.last_task_completed_event_id == 10


# -- items -----------------------------------------------------------------------------------------


def with_activity() -> Story:
    story = Story().begin()
    story.add(
        "activity_task_scheduled", activity_id="a1", activity_type={"name": "charge"},
        task_queue={"name": "cards"}, input={"payloads": [TEXT]},
        header={"fields": {"h": TEXT}}, start_to_close_timeout={"seconds": 3},
        schedule_to_close_timeout={"seconds": 30}, schedule_to_start_timeout={"seconds": 20},
        heartbeat_timeout={"seconds": 1}, workflow_task_completed_event_id=4,
        retry_policy={"initial_interval": {"seconds": 1}, "backoff_coefficient": 2.0,
                      "maximum_interval": {"seconds": 100}, "maximum_attempts": 5},
    )  # fmt: skip
    return story


def test_a_pending_activity() -> None:
    story = with_activity()
    activity = rebuilt(story).activities[5]
    scheduled = story.events[4].activity_task_scheduled_event_attributes
    assert activity == Activity(
        1, 5, "a1", "charge", "cards", at(5),
        input=scheduled.input.SerializeToString(), header=scheduled.header.SerializeToString(),
        schedule_to_close_ns=30 * SECOND_NS, schedule_to_start_ns=20 * SECOND_NS,
        start_to_close_ns=3 * SECOND_NS, heartbeat_ns=SECOND_NS,
        retry=RetryPolicy(SECOND_NS, 2.0, 100 * SECOND_NS, 5), due_ns=at(5),
        workflow_task_completed_event_id=4,
    )  # fmt: skip


def test_a_started_activity_that_should_cancel() -> None:
    story = with_activity()
    story.add("activity_task_started", scheduled_event_id=5, attempt=3, identity="w",
              request_id="r")  # fmt: skip
    story.add("activity_task_cancel_requested", scheduled_event_id=5)
    activity = rebuilt(story).activities[5]
    assert (activity.started_ns, activity.attempt) == (at(6), 3)
    assert (activity.started_identity, activity.request_id) == ("w", "r")
    assert activity.cancel_requested
    assert activity.cancel_requested_event_id == 7


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        *(
            (("activity_task_scheduled", {"activity_id": "a"}), (end, {"scheduled_event_id": 5}))
            for end in ("activity_task_completed", "activity_task_failed",
                        "activity_task_timed_out", "activity_task_canceled")
        ),
        *(
            (("timer_started", {"timer_id": "t"}), (end, {"timer_id": "t"}))
            for end in ("timer_fired", "timer_canceled")
        ),
        *(
            (
                ("start_child_workflow_execution_initiated", {"workflow_id": "kid"}),
                (end, {"initiated_event_id": 5}),
            )
            for end in (
                "start_child_workflow_execution_failed", "child_workflow_execution_completed",
                "child_workflow_execution_failed", "child_workflow_execution_canceled",
                "child_workflow_execution_timed_out", "child_workflow_execution_terminated",
            )
        ),
        *(
            (
                ("signal_external_workflow_execution_initiated", {}),
                (end, {"initiated_event_id": 5}),
            )
            for end in ("signal_external_workflow_execution_failed",
                        "external_workflow_execution_signaled")
        ),
        *(
            (
                ("request_cancel_external_workflow_execution_initiated", {}),
                (end, {"initiated_event_id": 5}),
            )
            for end in ("request_cancel_external_workflow_execution_failed",
                        "external_workflow_execution_cancel_requested")
        ),
    ],
)  # fmt: skip
def test_what_begins_is_pending_until_it_ends(begin: Any, end: Any) -> None:
    story = Story().begin()
    story.add(begin[0], **begin[1])
    assert len(rebuilt(story).items) == 1
    story.add(end[0], **end[1])
    assert not rebuilt(story).items
    with pytest.raises(ValueError, match="not pending"):
        replay.rebuild(1, info(), [*story.events, _again(story.events[-1])])


def _again(event: HistoryEvent) -> HistoryEvent:
    copy = HistoryEvent()
    copy.CopyFrom(event)
    copy.event_id += 1
    return copy


def test_a_timer() -> None:
    story = Story().begin()
    story.add("timer_started", timer_id="t", start_to_fire_timeout={"seconds": 60})
    assert rebuilt(story).timers == {"t": Timer(1, 5, "t", at(65))}


def test_a_started_child() -> None:
    story = Story().begin()
    story.add("start_child_workflow_execution_initiated", namespace="default", workflow_id="kid",
              workflow_type={"name": "Kid"}, parent_close_policy=3)  # fmt: skip
    story.add("child_workflow_execution_started", initiated_event_id=5,
              workflow_execution={"workflow_id": "kid", "run_id": "kid-run"})  # fmt: skip
    child = rebuilt(story).children[5]
    assert (child.workflow_id, child.workflow_type, child.run_id) == ("kid", "Kid", "kid-run")
    assert (child.started_event_id, child.key) == (6, replay.UNKNOWN_KEY)
    assert child.parent_close_policy == 3


def test_updates() -> None:
    story = Story().begin()
    outcome = Outcome()
    outcome.success.payloads.add(data=b"1")
    story.add("workflow_execution_update_admitted", request={"meta": {"update_id": "u1"}})
    assert rebuilt(story).updates == {"u1": Update(1, "u1", 0)}
    story.add("workflow_execution_update_accepted", protocol_instance_id="u1")
    story.add("workflow_execution_update_accepted", protocol_instance_id="u2")
    story.add("workflow_execution_update_completed", meta={"update_id": "u2"},
              accepted_event_id=7, outcome=outcome)  # fmt: skip
    run = rebuilt(story)
    assert run.updates == {
        "u1": Update(1, "u1", 6),
        "u2": Update(2, "u2", 7, 8, outcome.SerializeToString()),
    }
    assert run.state.update_count == 2


@pytest.mark.parametrize("first", [0, 2])
def test_a_gap_is_refused(first: int) -> None:
    story = Story().begin()
    with pytest.raises(ValueError, match="expected event"):
        replay.rebuild(1, info(), story.events[:first] + story.events[first + 1 :])


# -- state equals replay ---------------------------------------------------------------------------


def lived() -> tuple[Execution, Story]:
    """A run with something of everything, and the history that it comes from."""
    story = with_activity()
    story.add("timer_started", timer_id="t", start_to_fire_timeout={"seconds": 60})
    story.add("start_child_workflow_execution_initiated", workflow_id="kid")
    story.add("signal_external_workflow_execution_initiated", signal_name="go")
    story.add("request_cancel_external_workflow_execution_initiated", reason="late")
    story.add("workflow_execution_update_accepted", protocol_instance_id="u1")
    story.schedule()
    return rebuilt(story), story


def test_the_same_history_makes_no_difference() -> None:
    run, story = lived()
    assert replay.differences(run, rebuilt(story)) == []


def spoil_task(run: Execution) -> None:
    assert run.state.workflow_task is not None
    run.state.workflow_task.started_event_id = 99


def set_state(**values: Any) -> Any:
    def change(run: Execution) -> None:
        for name, value in values.items():
            setattr(run.state, name, value)

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (set_state(next_event_id=99), "next_event_id"),
        (set_state(signal_count=1), "signal_count"),
        (set_state(cancel_requested=True), "cancel_requested"),
        (set_state(history_size_bytes=1), "history_size_bytes"),
        (set_state(last_task_completed_event_id=0), "last_task_completed_event_id"),
        (set_state(workflow_task=None), "workflow task is None"),
        (spoil_task, "workflow task.started_event_id"),
        (lambda run: run.forget(run.activities[5]), "activities: 5 is not pending"),
        (lambda run: run.forget(run.timers["t"]), "timers: 't' is not pending"),
        (lambda run: run.forget(run.children[7]), "children: 7 is not pending"),
        (lambda run: run.forget(run.signals[8]), "signals: 8 is not pending"),
        (lambda run: run.forget(run.cancels[9]), "cancels: 9 is not pending"),
        (lambda run: run.forget(run.updates["u1"]), "updates: 'u1' is not pending"),
        (lambda run: run.index(Timer(90, 80, "t2", 1)), "timers: 't2' is pending"),
        (lambda run: setattr(run.timers["t"], "due_ns", 1), "timers.*due_ns is 1"),
        (lambda run: setattr(run.activities[5], "queue", "q"), "activities.*queue is 'q'"),
        (lambda run: setattr(run, "memo", Memo(fields={"m": TEXT}).SerializeToString()), "memo"),
    ],
)  # fmt: skip
def test_differences_are_found(spoil: Any, words: str) -> None:
    run, story = lived()
    spoil(run)
    (found,) = replay.differences(run, rebuilt(story))
    assert re.search(words, found), found


def test_what_history_does_not_hold_makes_no_difference() -> None:
    run, story = lived()
    activity = run.activities[5]
    activity.attempt, activity.stamp, activity.started_ns = 4, 9, 1
    activity.heartbeat_details = b"x"
    run.children[7].request_id = "r"
    run.state.sticky_queue = "s"
    run.state.task_stamp = 6
    assert replay.differences(run, rebuilt(story)) == []


@pytest.mark.parametrize("task", [WorkflowTask(5, 1, "q", attempt=2),
                                  WorkflowTask(5, 1, "q", speculative=True)])  # fmt: skip
def test_transient_and_speculative_tasks_make_no_difference(task: WorkflowTask) -> None:
    story = Story().begin()
    run = rebuilt(story)
    run.state.workflow_task = task
    assert replay.differences(run, rebuilt(story)) == []


def test_a_rejected_update_that_a_reset_admitted_makes_no_difference() -> None:
    story = Story().begin()
    story.add("workflow_execution_update_admitted", request={"meta": {"update_id": "u1"}})
    run = rebuilt(story)
    run.forget(run.updates["u1"])
    assert replay.differences(run, rebuilt(story)) == []


def test_operations_agree_with_replay_at_every_step() -> None:
    """Children, signals, cancels and updates: state after each operation is what replay gives."""
    story = Story().begin()
    run = rebuilt(story)
    history = list(story.events)

    def check(tx: Any) -> None:
        history.extend(events(tx))
        assert replay.differences(run, replay.rebuild(7, run.info, history)) == []

    tx = step(run)
    for workflow_id in ("kid-1", "kid-2"):
        kid = StartChildWorkflowExecutionCommandAttributes(workflow_id=workflow_id)
        children.initiate(tx, kid, 4)
    signal = SignalExternalWorkflowExecutionCommandAttributes(signal_name="go")
    signal.execution.workflow_id = "other"
    external.initiate_signal(tx, signal, 4)
    message = tx.messages[-1]
    cancel = RequestCancelExternalWorkflowExecutionCommandAttributes(workflow_id="other")
    external.initiate_cancel(tx, cancel, 4)
    request = Request()
    request.meta.update_id = "u1"
    updates.admit(tx, request)
    check(tx)

    tx = step(run)
    children.started(tx, 5, "kid-run", key=9)
    check(tx)
    tx = step(run)
    workflow_tasks.start(tx, identity="w", request_id="r", in_process=False)
    check(tx)
    for operation in (
        lambda tx: children.closed(tx, ChildClosed(1, 5, "kid-1", "last", CLOSED, b"")),
        lambda tx: children.started(tx, 6, "kid-run-2", key=10),
        lambda tx: children.closed(tx, ChildClosed(1, 6, "kid-2", "last", CLOSED, b"")),
        lambda tx: external.signaled(tx, message),
    ):
        tx = step(run)
        assert operation(tx)
        assert not tx.has_events  # buffered
        check(tx)
    tx = step(run)
    workflow_tasks.fail(tx, FAILED)
    assert not run.buffered
    assert not run.children
    check(tx)


def test_buffered_signals_and_cancel_requests_make_no_difference() -> None:
    _, story = lived()
    story.add("workflow_task_started", scheduled_event_id=11)
    run = rebuilt(story)
    tx = step(run)
    lifecycle.signal(tx, SignalWorkflowExecutionRequest(signal_name="go"))
    lifecycle.request_cancel(tx, RequestCancelWorkflowExecutionRequest())
    assert len(run.buffered) == 2
    assert replay.differences(run, rebuilt(story)) == []


def test_a_buffered_end_makes_no_difference() -> None:
    _, story = lived()
    story.add("workflow_task_started", scheduled_event_id=11)
    run = rebuilt(story)
    tx = step(run)
    tx.drop(run.timers["t"])
    tx.record(EventType.EVENT_TYPE_TIMER_FIRED, b"", answers=6)
    assert replay.differences(run, rebuilt(story)) == []
