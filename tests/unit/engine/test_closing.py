"""How runs end, and what follows them."""

from __future__ import annotations

from typing import Any

import pytest
from engine_play import RESULT, SECOND, Play, activity, finish
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Memo, Payload, SearchAttributes
from temporalio.api.enums.v1 import CommandType, ContinueAsNewInitiator, RetryState
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
)

from perdure.api.errors import InvalidArgument, NotFound
from perdure.engine import alarms, lifecycle, retry
from perdure.engine.lifecycle import StartRun
from perdure.engine.limits import Limits
from perdure.engine.outbox import ChildClosed
from perdure.engine.state import RetryPolicy
from perdure.engine.transition import Transition

POLICY = RetryPolicy(SECOND, 2.0, 100 * SECOND, 3)


def fail(kind: str = "Broken") -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION)
    failure = command.fail_workflow_execution_command_attributes.failure
    failure.message = "broken"
    failure.application_failure_info.type = kind
    return command


def again(**fields: Any) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
    attributes = command.continue_as_new_workflow_execution_command_attributes
    attributes.SetInParent()
    for name, value in fields.items():
        if isinstance(value, int):
            getattr(attributes, name).FromSeconds(value)
        else:
            getattr(attributes, name).CopyFrom(value)
    return command


def ended_by(*answer: Command, **start: object) -> tuple[Play, Transition]:
    play = Play(**start)
    if start.get("first_task_backoff_ns"):
        ring(play, 60)
    play.take()
    return play, play.answer(*answer)


def ring(play: Play, seconds: float) -> Transition:
    play.now += int(seconds * SECOND)
    return play.do(alarms.ring)


def next_run(tx: Transition) -> StartRun:
    assert isinstance(tx.successor, StartRun)
    return tx.successor


def test_what_was_pending_is_let_go() -> None:
    play = Play()
    play.take()
    tx = play.answer(activity("1"), activity("2"), finish())
    assert tx.closed
    assert tx.visible
    assert not tx.tasks
    assert not play.run.items
    assert play.run.state.wake_at_ns == 0
    with pytest.raises(NotFound):
        play.do(lambda tx: lifecycle.terminate(tx, "late"))


def test_a_parent_hears_of_the_end() -> None:
    _, tx = ended_by(
        finish(), parent_workflow_id="p", parent_run_id="pr", parent_key=9,
        parent_initiated_event_id=5,
    )  # fmt: skip
    (message,) = tx.messages
    assert isinstance(message, ChildClosed)
    assert (message.parent_key, message.initiated_event_id) == (9, 5)


# -- retry -----------------------------------------------------------------------------------------


def test_a_failed_run_is_followed_by_another_attempt() -> None:
    play, tx = ended_by(
        fail(), retry=POLICY, input=RESULT.SerializeToString(), memo=b"", identity="starter"
    )
    event = play.events[-1].workflow_execution_failed_event_attributes
    assert event.retry_state == RetryState.RETRY_STATE_IN_PROGRESS
    after = next_run(tx)
    assert event.new_execution_run_id == after.run_id == play.run.state.successor_run_id
    assert (after.attempt, after.first_task_backoff_ns) == (2, SECOND)
    assert after.continued_from_run_id == "r"
    assert after.first_run_id == "r"
    assert after.input == RESULT.SerializeToString()
    assert after.continued_failure
    assert after.identity == ""
    assert after.initiator == ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_RETRY


@pytest.mark.parametrize(
    ("start", "command", "state"),
    [
        ({}, fail(), "RETRY_POLICY_NOT_SET"),
        ({"retry": POLICY, "attempt": 3}, fail(), "MAXIMUM_ATTEMPTS_REACHED"),
        ({"retry": RetryPolicy(SECOND, 2.0, 0, 0, ["Fatal"])}, fail("Fatal"),
         "NON_RETRYABLE_FAILURE"),
        ({"retry": RetryPolicy(50 * SECOND, 2.0, 0, 0), "execution_timeout_ns": 40 * SECOND},
         fail(), "TIMEOUT"),
    ],
)  # fmt: skip
def test_why_no_attempt_follows(start: dict[str, Any], command: Command, state: str) -> None:
    play, tx = ended_by(command, **start)
    assert tx.successor is None
    event = play.events[-1].workflow_execution_failed_event_attributes
    assert RetryState.Name(event.retry_state) == f"RETRY_STATE_{state}"


def test_a_run_timeout_is_retried_but_an_execution_timeout_is_not() -> None:
    play = Play(retry=POLICY, run_timeout_ns=5 * SECOND, execution_timeout_ns=60 * SECOND)
    tx = ring(play, 5)
    assert play.types[-1] == "WORKFLOW_EXECUTION_TIMED_OUT"
    after = next_run(tx)
    assert after.attempt == 2
    assert after.execution_deadline_ns == play.run.info.execution_deadline_ns
    play = Play(retry=POLICY, execution_timeout_ns=5 * SECOND)
    assert ring(play, 5).successor is None
    event = play.events[-1].workflow_execution_timed_out_event_attributes
    assert event.retry_state == RetryState.RETRY_STATE_TIMEOUT


# -- cron ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [finish(), fail()])
def test_a_cron_run_is_followed_by_the_next(command: Command) -> None:
    play, tx = ended_by(
        command, cron_schedule="* * * * *", first_task_backoff_ns=20 * SECOND, retry=POLICY,
        attempt=3, last_completion_result=b"",
    )  # fmt: skip
    after = next_run(tx)
    assert after.initiator == ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
    assert after.attempt == 1
    assert (play.now + after.first_task_backoff_ns) % (60 * SECOND) == 0
    if command.HasField("complete_workflow_execution_command_attributes"):
        assert after.last_completion_result == RESULT.SerializeToString()
        assert not after.continued_failure
    else:
        assert after.continued_failure


def test_a_cancelled_cron_run_is_the_last() -> None:
    command = Command(command_type=CommandType.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION)
    _, tx = ended_by(command, cron_schedule="* * * * *", first_task_backoff_ns=20 * SECOND)
    assert tx.closed
    assert tx.successor is None


# -- continue as new -------------------------------------------------------------------------------


def test_continuing_keeps_what_the_command_leaves_out() -> None:
    memo = Memo(fields={"a": Payload(data=b"1")}).SerializeToString()
    attributes = SearchAttributes(indexed_fields={"k": Payload(data=b"1")}).SerializeToString()
    play, tx = ended_by(
        again(input=RESULT), memo=memo, attributes=attributes, run_timeout_ns=50 * SECOND,
        task_timeout_ns=7 * SECOND, retry=POLICY, attempt=2,
    )  # fmt: skip
    after = next_run(tx)
    assert (after.workflow_type, after.task_queue) == ("flow", "queue")
    assert (after.memo, after.attributes) == (memo, attributes)
    assert (after.run_timeout_ns, after.task_timeout_ns) == (50 * SECOND, 7 * SECOND)
    assert (after.retry, after.attempt) == (POLICY, 1)
    assert after.input == RESULT.SerializeToString()
    assert play.types[-1] == "WORKFLOW_EXECUTION_CONTINUED_AS_NEW"
    event = play.events[-1].workflow_execution_continued_as_new_event_attributes
    assert event.new_execution_run_id == after.run_id


def test_continuing_takes_what_the_command_says() -> None:
    memo = Memo(fields={"a": Payload(data=b"1")})
    policy = retry.message_of(POLICY)
    _, tx = ended_by(
        again(memo=Memo(fields={"b": Payload(data=b"2")}), retry_policy=policy,
              workflow_run_timeout=900, workflow_task_timeout=400, backoff_start_interval=3),
        memo=memo.SerializeToString(), execution_timeout_ns=100 * SECOND,
    )  # fmt: skip
    after = next_run(tx)
    assert set(Memo.FromString(after.memo).fields) == {"b"}
    assert after.retry == POLICY
    assert (after.run_timeout_ns, after.task_timeout_ns) == (100 * SECOND, 100 * SECOND)
    assert after.first_task_backoff_ns == 3 * SECOND


# -- the first task's pause ------------------------------------------------------------------------


def test_a_delayed_start_lets_nothing_wake_the_workflow() -> None:
    play = Play(first_task_backoff_ns=5 * SECOND)
    assert not play.last.tasks
    request = SignalWorkflowExecutionRequest(signal_name="go")
    assert not play.do(lambda tx: lifecycle.signal(tx, request)).tasks
    assert not ring(play, 4.9).tasks
    assert [task.kind for task in ring(play, 0.1).tasks] == [1]
    assert play.types == [
        "WORKFLOW_EXECUTION_STARTED", "WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip


# -- signals, cancel, limits -----------------------------------------------------------------------


def test_a_repeated_request_does_nothing() -> None:
    play = Play()
    signal = SignalWorkflowExecutionRequest(signal_name="go", request_id="1")
    for _ in range(2):
        play.do(lambda tx: lifecycle.signal(tx, signal))
    cancel = RequestCancelWorkflowExecutionRequest(request_id="2", reason="why")
    for _ in range(2):
        play.do(lambda tx: lifecycle.request_cancel(tx, cancel))
    assert play.types[2:] == [
        "WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_EXECUTION_CANCEL_REQUESTED"
    ]  # fmt: skip


def limited(**limits: int) -> Any:
    """Signals a run under limits."""

    def operation(tx: Transition) -> None:
        tx.limits = Limits(**limits)
        lifecycle.signal(tx, SignalWorkflowExecutionRequest(signal_name="go"))

    return operation


def test_signals_are_limited() -> None:
    play = Play()
    play.do(limited(signals_max=1))
    with pytest.raises(InvalidArgument, match="1 signals"):
        play.do(limited(signals_max=1))
    assert play.types.count("WORKFLOW_EXECUTION_SIGNALED") == 1


@pytest.mark.parametrize(
    ("limits", "word"),
    [({"history_events_max": 3}, "count"), ({"history_bytes_max": 200}, "size")],
)
def test_a_history_that_grows_too_long_ends_the_run_with_a_reason(
    limits: dict[str, int], word: str
) -> None:
    play = Play()
    for _ in range(20):
        if play.run.is_open:
            play.do(limited(**limits))
    event = play.events[-1].workflow_execution_terminated_event_attributes
    assert word in event.reason
    assert play.types.count("WORKFLOW_EXECUTION_TERMINATED") == 1
