from __future__ import annotations

from typing import Any

import pytest
from sample_runs import a_run, events, step, types
from temporalio.api.enums.v1 import (
    UpdateAdmittedEventOrigin,
    WorkflowExecutionStatus,
    WorkflowTaskFailedCause,
)
from temporalio.api.protocol.v1 import Message
from temporalio.api.update.v1 import Acceptance, Outcome, Rejection, Request, Response

from perdure.api.errors import FailedPrecondition, NotFound, ResourceExhausted
from perdure.engine import updates
from perdure.engine.bad_command import BadCommand
from perdure.engine.execution import Execution
from perdure.engine.updates import ACCEPTED, ADMITTED, COMPLETED, Inbox

BAD = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE


def request(update_id: str = "u1", name: str = "add") -> Request:
    wanted = Request()
    wanted.meta.update_id = update_id
    wanted.input.name = name
    return wanted


def admitted(*update_ids: str) -> dict[str, bytes]:
    return {update_id: request(update_id).SerializeToString() for update_id in update_ids}


def message(update_id: str, body: Any, message_id: str = "") -> Message:
    packed = Message(
        id=message_id or f"{update_id}/{type(body).__name__}", protocol_instance_id=update_id
    )
    packed.body.Pack(body)
    return packed


def acceptance(update_id: str = "u1", **changes: Any) -> Message:
    fields = {
        "accepted_request_message_id": f"{update_id}/request",
        "accepted_request_sequencing_event_id": 2,
    }
    return message(update_id, Acceptance(**{**fields, **changes}))


def response(update_id: str = "u1", value: bytes = b"3", meta: str | None = None) -> Message:
    body = Response()
    body.meta.update_id = update_id if meta is None else meta
    body.meta.identity = "caller"
    body.outcome.success.payloads.add(data=value)
    return message(update_id, body)


def rejection(update_id: str = "u1", **changes: Any) -> Message:
    body = Rejection(rejected_request_message_id=f"{update_id}/request", **changes)
    body.failure.message = "no"
    return message(update_id, body)


def answer(run: Execution, *messages: Message, known: tuple[str, ...] = ("u1",)) -> Any:
    """Read and apply messages in a transition."""
    inbox = Inbox.read(run, messages, [], admitted(*known))
    tx = step(run)
    inbox.apply_rest(tx)
    return tx


# -- answers ---------------------------------------------------------------------------------------


def test_accepted_then_completed() -> None:
    run = a_run()
    tx = answer(run, acceptance())
    assert types(tx) == ["WORKFLOW_EXECUTION_UPDATE_ACCEPTED"]
    accepted = events(tx)[0].workflow_execution_update_accepted_event_attributes
    assert accepted.protocol_instance_id == "u1"
    assert accepted.accepted_request_message_id == "u1/request"
    assert accepted.accepted_request_sequencing_event_id == 2
    assert accepted.accepted_request == request()
    assert tx.update_results == [("u1", ACCEPTED, b"")]
    assert run.state.update_count == 1
    assert updates.find(run, "u1") == updates.Found(ACCEPTED, b"", 5)

    tx = answer(run, response(), known=())
    assert types(tx) == ["WORKFLOW_EXECUTION_UPDATE_COMPLETED"]
    completed = events(tx)[0].workflow_execution_update_completed_event_attributes
    assert completed.meta.update_id == "u1"
    assert completed.meta.identity == "caller"
    assert completed.accepted_event_id == 5
    assert completed.outcome.success.payloads[0].data == b"3"
    outcome = completed.outcome.SerializeToString()
    assert tx.update_results == [("u1", COMPLETED, outcome)]
    assert updates.find(run, "u1") == updates.Found(COMPLETED, outcome, 5, 6)


def test_a_failed_outcome_is_an_outcome() -> None:
    body = Response()
    body.meta.update_id = "u1"
    body.outcome.failure.message = "broken"
    tx = answer(a_run(), acceptance(), message("u1", body))
    (_, (update_id, stage, outcome)) = tx.update_results
    assert (update_id, stage) == ("u1", COMPLETED)
    assert Outcome.FromString(outcome).failure.message == "broken"


def test_rejected_leaves_no_event() -> None:
    run = a_run()
    tx = answer(run, rejection())
    assert not tx.has_events
    assert not run.updates
    ((update_id, stage, outcome),) = tx.update_results
    assert (update_id, stage) == ("u1", COMPLETED)
    assert Outcome.FromString(outcome).failure.message == "no"
    assert updates.find(run, "u1") is None


def test_commands_fix_the_order() -> None:
    run = a_run()
    messages = [acceptance("a"), acceptance("b"), response("b"), rejection("c"), acceptance("d")]
    inbox = Inbox.read(run, messages, ["b/Acceptance", "a/Acceptance", "b/Response"],
                       admitted("a", "b", "c", "d"))  # fmt: skip
    tx = step(run)
    for message_id in ("b/Acceptance", "a/Acceptance", "b/Response"):
        inbox.apply(tx, message_id)
    assert not any(update_id in ("c", "d") for update_id, _, _ in tx.update_results)
    inbox.apply_rest(tx)
    assert [(u, s) for u, s, _ in tx.update_results] == [
        ("b", ACCEPTED), ("a", ACCEPTED), ("b", COMPLETED), ("c", COMPLETED), ("d", ACCEPTED),
    ]  # fmt: skip
    assert [event.event_id for event in events(tx)] == [5, 6, 7, 8]


def test_a_request_that_the_worker_repeats_is_taken_when_the_service_forgot_it() -> None:
    run = a_run()
    tx = answer(run, acceptance(accepted_request=request(name="sub")), known=())
    accepted = events(tx)[0].workflow_execution_update_accepted_event_attributes
    assert accepted.accepted_request.input.name == "sub"
    tx = answer(run, rejection("u2", rejected_request=request("u2")), known=())
    assert [u for u, _, _ in tx.update_results] == ["u2"]


def test_a_rejected_id_may_be_used_again() -> None:
    run = a_run()
    answer(run, rejection())
    assert types(answer(run, acceptance())) == ["WORKFLOW_EXECUTION_UPDATE_ACCEPTED"]


# -- bad messages ----------------------------------------------------------------------------------


def foreign() -> Message:
    return message("u1", Outcome())


def broken() -> Message:
    spoiled = acceptance()
    spoiled.body.value = b"\xff\xff\xff"
    return spoiled


@pytest.mark.parametrize(
    ("messages", "known", "words"),
    [
        ([acceptance()], [], "u1 wasn't found"),
        ([rejection()], [], "u1 wasn't found"),
        ([response()], [], "u1 wasn't found"),
        ([response()], ["u1"], "invalid state transition"),
        ([acceptance(), acceptance()], ["u1"], "invalid state transition"),
        ([acceptance(), rejection()], ["u1"], "invalid state transition"),
        ([rejection(), acceptance()], ["u1"], "invalid state transition"),
        ([rejection(), rejection()], ["u1"], "invalid state transition"),
        ([acceptance(), response(), response()], ["u1"], "invalid state transition"),
        ([acceptance(), response(), rejection()], ["u1"], "invalid state transition"),
        ([acceptance(accepted_request_message_id="")], ["u1"], "message_id is not set"),
        ([acceptance(accepted_request_sequencing_event_id=0)], ["u1"], "event_id is not set"),
        ([acceptance(), response(meta="u2")], ["u1"], "meta.update_id 'u2' != 'u1'"),
        ([acceptance(), message("u1", Response(meta={"update_id": "u1"}))], ["u1"], "outcome"),
        ([foreign()], ["u1"], "no answer to an update"),
        ([acceptance("")], ["u1"], "no answer to an update"),
        ([broken()], ["u1"], "unable to unmarshal"),
    ],
)
def test_bad_messages_are_refused_whole(
    messages: list[Message], known: list[str], words: str
) -> None:
    run = a_run()
    with pytest.raises(BadCommand, match=words) as caught:
        Inbox.read(run, messages, [], admitted(*known))
    assert caught.value.cause == BAD
    assert not run.updates


def test_an_update_that_was_accepted_before_cannot_be_accepted_again() -> None:
    run = a_run()
    answer(run, acceptance())
    with pytest.raises(BadCommand, match="invalid state transition"):
        Inbox.read(run, [acceptance()], [], admitted("u1"))
    answer(run, response())
    with pytest.raises(BadCommand, match="invalid state transition"):
        Inbox.read(run, [response()])


@pytest.mark.parametrize("ids", [["nothing"], ["u1/Acceptance", "u1/Acceptance"]])
def test_a_command_needs_its_message(ids: list[str]) -> None:
    with pytest.raises(BadCommand, match="referenced absent message ID") as caught:
        Inbox.read(a_run(), [acceptance()], ids, admitted("u1"))
    assert caught.value.cause == BAD


def test_command_order_counts_for_the_check() -> None:
    messages = [acceptance(), response()]
    with pytest.raises(BadCommand, match="invalid state transition"):
        Inbox.read(a_run(), messages, ["u1/Response", "u1/Acceptance"], admitted("u1"))


# -- limits ----------------------------------------------------------------------------------------


def test_admission_limits() -> None:
    run = a_run()
    updates.check_admission(run, 9)
    with pytest.raises(ResourceExhausted, match=r"in-flight updates has been reached \(10\)"):
        updates.check_admission(run, 10)
    answer(run, acceptance())
    with pytest.raises(ResourceExhausted):
        updates.check_admission(run, 9)
    answer(run, response())
    updates.check_admission(run, 9)  # a completed update is in flight no more
    with pytest.raises(FailedPrecondition, match=r"total number .* reached \(2\)"):
        updates.check_admission(run, 1, total_limit=2)
    updates.check_admission(run, 100, in_flight_limit=0, total_limit=0)


def test_admission_to_a_closed_run() -> None:
    run = a_run()
    run.state.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
    with pytest.raises(NotFound, match="workflow execution already completed"):
        updates.check_admission(run, 0)


def test_the_worker_cannot_exceed_the_total_limit_either() -> None:
    run = a_run()
    messages = [acceptance("a"), rejection("b"), acceptance("c")]
    known = admitted("a", "b", "c")
    Inbox.read(run, messages, [], known, total_limit=2)
    with pytest.raises(BadCommand, match="total number of distinct updates"):
        Inbox.read(run, messages, [], known, total_limit=1)


# -- closing ---------------------------------------------------------------------------------------


def test_accepted_updates_are_lost_when_the_run_closes() -> None:
    run = a_run()
    answer(run, acceptance("a"), acceptance("b"), response("b"), known=("a", "b"))
    done = updates.find(run, "b")
    run.state.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
    tx = step(run)
    updates.abort(tx)
    assert tx.update_results == [("a", COMPLETED, updates.lost_outcome())]
    assert not tx.has_events
    failure = Outcome.FromString(updates.lost_outcome()).failure
    assert failure.application_failure_info.type == "AcceptedUpdateCompletedWorkflow"
    assert failure.application_failure_info.non_retryable
    assert failure.message == (
        "Workflow Update failed because the Workflow completed before the Update completed."
    )
    assert updates.find(run, "a") == updates.Found(COMPLETED, updates.lost_outcome(), 5)
    assert updates.find(run, "b") == done


def test_answers_after_the_closing_command_change_nothing() -> None:
    run = a_run()
    inbox = Inbox.read(run, [acceptance("a"), rejection("b")], [], admitted("a", "b"))
    run.state.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
    tx = step(run)
    inbox.apply_rest(tx)
    assert not tx.has_events
    assert [update_id for update_id, _, _ in tx.update_results] == ["b"]


def test_closing_errors() -> None:
    final = updates.closing_error(continues=False)
    assert isinstance(final, NotFound)
    assert final.message == "workflow update was aborted by closing workflow"
    assert isinstance(updates.closing_error(continues=True), ResourceExhausted)


def test_unprocessed_outcome() -> None:
    failure = Outcome.FromString(updates.unprocessed_outcome()).failure
    assert failure.application_failure_info.type == "UnprocessedUpdate"


# -- admitted in history ---------------------------------------------------------------------------


def admitted_by_reset(run: Execution, update_id: str = "u1") -> Any:
    tx = step(run)
    updates.admit(tx, request(update_id))
    return tx


def test_admitted_in_history() -> None:
    run = a_run()
    tx = admitted_by_reset(run)
    written = events(tx)[0].workflow_execution_update_admitted_event_attributes
    assert written.request == request()
    assert written.origin == UpdateAdmittedEventOrigin.UPDATE_ADMITTED_EVENT_ORIGIN_REAPPLY
    assert updates.find(run, "u1") == updates.Found(ADMITTED)

    tx = answer(run, acceptance(), known=())
    accepted = events(tx)[0].workflow_execution_update_accepted_event_attributes
    assert not accepted.HasField("accepted_request")  # the admitted event has it
    assert run.state.update_count == 1
    assert updates.find(run, "u1") == updates.Found(ACCEPTED, b"", 6)


def test_admitted_in_history_then_rejected() -> None:
    run = a_run()
    admitted_by_reset(run)
    tx = answer(run, rejection(), known=())
    assert not tx.has_events
    assert updates.find(run, "u1") is None


def test_admitted_in_history_is_unknown_once_the_run_has_closed() -> None:
    run = a_run()
    admitted_by_reset(run)
    run.state.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
    assert updates.find(run, "u1") is None


def test_request_message() -> None:
    built = updates.request_message("u1", request().SerializeToString(), 7)
    assert built.id == "u1/request"
    assert built.protocol_instance_id == "u1"
    assert built.event_id == 7
    unpacked = Request()
    assert built.body.Unpack(unpacked)
    assert unpacked == request()
