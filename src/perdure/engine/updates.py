"""Workflow updates: what a worker answers to them, and what a run remembers of them.

An update's life, and who holds it:

* *admitted*: a caller's request waits for a worker. The service keeps it in memory (after
  `check_admission`) and attaches `request_message` to a workflow task. Only a reset leaves admitted
  updates in history: such an update is an ``Update`` item without an accepted event.
* *accepted*, *completed*: the worker said so in the messages of its completed workflow task, read
  and checked as a whole by `Inbox.read` before anything changes, then applied in the order of the
  PROTOCOL_MESSAGE commands. These are events of history and an ``Update`` item that stays for the
  life of the run, so `find` answers a later caller with the same update id.
* *rejected*: leaves no event. The caller gets the failure as a completed update's outcome.

What happens is told through ``tx.update_results``: (update id, stage, serialised Outcome or b"" at
stage ACCEPTED). Nobody may be told before the transition is committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
from temporalio.api.enums.v1 import (
    EventType,
    UpdateAdmittedEventOrigin,
    UpdateWorkflowExecutionLifecycleStage,
    WorkflowTaskFailedCause,
)
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import (
    WorkflowExecutionUpdateAcceptedEventAttributes,
    WorkflowExecutionUpdateAdmittedEventAttributes,
    WorkflowExecutionUpdateCompletedEventAttributes,
)
from temporalio.api.protocol.v1 import Message
from temporalio.api.update.v1 import Acceptance, Outcome, Rejection, Request, Response

from perdure.api.errors import FailedPrecondition, NotFound, ResourceExhausted, RPCError
from perdure.engine.bad_command import BadCommand
from perdure.engine.execution import Execution
from perdure.engine.limits import DEFAULT
from perdure.engine.state import Update
from perdure.engine.transition import Transition

ADMITTED: Final = (
    UpdateWorkflowExecutionLifecycleStage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED
)
ACCEPTED: Final = (
    UpdateWorkflowExecutionLifecycleStage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
)
COMPLETED: Final = (
    UpdateWorkflowExecutionLifecycleStage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
)

_BAD: Final = (
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE
)
_REJECTED: Final = -1  # in Inbox.read: a stage that no caller sees

_Body: TypeAlias = Acceptance | Rejection | Response
_BODIES: Final[dict[str, type[_Body]]] = {
    kind.DESCRIPTOR.full_name: kind for kind in (Acceptance, Rejection, Response)
}


# -- what callers ask ------------------------------------------------------------------------------


class Found(msgspec.Struct):
    """How far an update is. `outcome`: a serialised Outcome, b"" before stage COMPLETED."""

    stage: int
    outcome: bytes = b""
    accepted_event_id: int = 0
    completed_event_id: int = 0


def find(run: Execution, update_id: str) -> Found | None:
    """What the run knows of an update; None when only the service may know it (admitted, rejected).

    An accepted update of a closed run never completes: it is answered with `lost_outcome`. An
    update that a reset admitted again is unknown once the run has closed.
    """
    update = run.updates.get(update_id)
    if update is None or not (run.is_open or update.accepted_event_id):
        return None
    if update.completed_event_id:
        return Found(COMPLETED, update.outcome, update.accepted_event_id, update.completed_event_id)
    if not update.accepted_event_id:
        return Found(ADMITTED)
    if not run.is_open:
        return Found(COMPLETED, lost_outcome(), update.accepted_event_id)
    return Found(ACCEPTED, b"", update.accepted_event_id)


def check_admission(
    run: Execution,
    waiting: int,
    *,
    in_flight_limit: int = DEFAULT.updates_in_flight_max,
    total_limit: int = DEFAULT.updates_max,
) -> None:
    """Raise unless the run can take one more update that it does not know yet.

    `waiting`: updates that the service has admitted and the run has not accepted. A limit of 0 is
    none. Raises NotFound (the run is closed), ResourceExhausted (limits) or FailedPrecondition (a
    limit, or it is paused).
    """
    if not run.is_open:
        raise NotFound("workflow execution already completed")
    if run.is_held:
        raise FailedPrecondition("Workflow is paused. Cannot update the workflow.")
    unfinished = sum(1 for update in run.updates.values() if not update.completed_event_id)
    if in_flight_limit and waiting + unfinished >= in_flight_limit:
        raise ResourceExhausted(
            f"limit on number of concurrent in-flight updates has been reached ({in_flight_limit})"
        )
    if total_limit and waiting + len(run.updates) >= total_limit:
        raise _too_many(total_limit)


def closing_error(*, continues: bool) -> RPCError:
    """What callers of updates that were not accepted get when the run closes.

    `continues`: another run follows (``tx.successor``); the service then tries the update on that
    run, and only gives this error out when it cannot. Accepted updates get `lost_outcome` instead.
    """
    if continues:
        return ResourceExhausted(
            "workflow operation can not be applied because workflow is closing"
        )
    return NotFound("workflow update was aborted by closing workflow")


def request_message(update_id: str, request: bytes, sequencing_event_id: int) -> Message:
    """The message that brings a request to a worker, with a workflow task.

    `request`: a serialised temporal.api.update.v1.Request. `sequencing_event_id`: the event before
    the task's started event, after which the worker applies the update.
    """
    message = Message(
        id=f"{update_id}/request", protocol_instance_id=update_id, event_id=sequencing_event_id
    )
    message.body.type_url = f"type.googleapis.com/{Request.DESCRIPTOR.full_name}"
    message.body.value = request
    return message


def lost_outcome() -> bytes:
    """The outcome of an accepted update whose run closed before it completed."""
    return _server_failure(
        "Workflow Update failed because the Workflow completed before the Update completed.",
        "AcceptedUpdateCompletedWorkflow",
    )


def unprocessed_outcome() -> bytes:
    """The outcome of an update that a worker got but did not answer in its completed task."""
    return _server_failure(
        "Workflow Update is rejected because it wasn't processed by worker. "
        "Probably, Workflow Update is not supported by the worker.",
        "UnprocessedUpdate",
    )


def _server_failure(message: str, error_type: str) -> bytes:
    failure = Failure(message=message, source="Server")
    failure.application_failure_info.type = error_type
    failure.application_failure_info.non_retryable = True
    return Outcome(failure=failure).SerializeToString()


def _too_many(total_limit: int) -> FailedPrecondition:
    return FailedPrecondition(
        "The limit on the total number of distinct updates in this workflow has been reached "
        f"({total_limit}). Make sure any duplicate updates share an Update ID so the server can "
        "deduplicate them, and consider rejecting updates that you aren't going to process. You "
        "can also Continue-as-New to avoid this; we recommend you check Continue-as-New Suggested "
        "in your Workflow."
    )


# -- what a worker answers -------------------------------------------------------------------------


class Inbox:
    """The messages of one completed workflow task, all found good, waiting to be applied."""

    def __init__(
        self, messages: list[tuple[Message, _Body]], admitted: Mapping[str, bytes]
    ) -> None:
        self._waiting = dict(enumerate(messages))
        self._index = {message.id: index for index, (message, _) in enumerate(messages)}
        self._admitted = admitted

    @classmethod
    def read(
        cls,
        run: Execution,
        messages: Sequence[Message],
        command_message_ids: Sequence[str] = (),
        admitted: Mapping[str, bytes] | None = None,
        *,
        total_limit: int = DEFAULT.updates_max,
    ) -> Inbox:
        """Check messages against the run, in the order in which they will be applied.

        `command_message_ids`: those that PROTOCOL_MESSAGE commands name, in order. `admitted`: the
        service's requests in flight, update id → serialised Request; an update that is not among
        them is taken if the worker repeats its request, as SDKs do.

        Raises BadCommand for a command without its message, an unknown update, an answer that does
        not fit how far an update is, an incomplete message, or too many updates in the run.
        """
        known = admitted or {}
        if not messages and not command_message_ids:
            return _EMPTY
        inbox = cls([(message, _body(message)) for message in messages], known)
        stages: dict[str, int] = {}
        order = inbox._order(command_message_ids)
        for message, body in order:
            _check(run, message, body, stages, known, total_limit)
        return inbox

    def _order(self, command_message_ids: Sequence[str]) -> list[tuple[Message, _Body]]:
        left = dict(self._waiting)
        order = []
        for message_id in command_message_ids:
            index = self._index.get(message_id, -1)
            if index not in left:
                raise BadCommand(
                    _BAD, f"ProtocolMessageCommand referenced absent message ID {message_id}"
                )
            order.append(left.pop(index))
        return order + list(left.values())

    def apply(self, tx: Transition, message_id: str) -> None:
        """Apply the message that a PROTOCOL_MESSAGE command names."""
        self._apply(tx, *self._waiting.pop(self._index[message_id]))

    def apply_rest(self, tx: Transition) -> None:
        """After all commands: apply what no command named (rejections, as a rule)."""
        if self._waiting:
            for pair in list(self._waiting.values()):
                self._apply(tx, *pair)
            self._waiting.clear()

    def _apply(self, tx: Transition, message: Message, body: _Body) -> None:
        update_id = message.protocol_instance_id
        if isinstance(body, Rejection):
            _reject(tx, update_id, body)
        elif not tx.run.is_open:
            return  # the workflow closed in this very task: `abort` has told, or the service will
        elif isinstance(body, Acceptance):
            _accept(tx, update_id, body, self._admitted.get(update_id, b""))
        else:
            _complete(tx, update_id, body)


_EMPTY = Inbox([], {})
"""Of the usual answer, which has no messages."""


def _body(message: Message) -> _Body:
    name = message.body.type_url.rpartition("/")[2]
    kind = _BODIES.get(name)
    if not message.protocol_instance_id or kind is None:
        raise BadCommand(
            _BAD, f"message {message.id!r} is no answer to an update (its body is {name!r})"
        )
    try:
        return kind.FromString(message.body.value)
    except Exception as error:  # DecodeError is not the same class in every protobuf runtime
        raise BadCommand(_BAD, f"unable to unmarshal message {message.id!r}: {error}") from None


def _check(
    run: Execution,
    message: Message,
    body: _Body,
    stages: dict[str, int],
    admitted: Mapping[str, bytes],
    total_limit: int,
) -> None:
    """Check one answer; `stages` holds how far the answers before it bring their updates."""
    update_id = message.protocol_instance_id
    stage = stages.get(update_id, _stage(run, update_id, admitted))
    name = type(body).__name__
    if not stage and not _repeats_request(body):
        raise BadCommand(
            _BAD,
            f"update {update_id} wasn't found on the server. This is most likely a transient error "
            "which will be resolved automatically by retries",
        )
    expected = ACCEPTED if isinstance(body, Response) else ADMITTED
    if stage not in (expected, 0):
        raise BadCommand(
            _BAD, f"invalid state transition attempted for Update {update_id}: "
            f"received {name} message at stage {stage}"
        )  # fmt: skip
    _check_fields(update_id, body)
    accepted_now = sum(1 for reached in stages.values() if reached != _REJECTED)
    is_new = isinstance(body, Acceptance) and update_id not in run.updates
    if is_new and 0 < total_limit <= len(run.updates) + accepted_now:
        raise BadCommand(_BAD, _too_many(total_limit).message)
    if isinstance(body, Rejection):
        stages[update_id] = _REJECTED
    else:
        stages[update_id] = ACCEPTED if isinstance(body, Acceptance) else COMPLETED


def _stage(run: Execution, update_id: str, admitted: Mapping[str, bytes]) -> int:
    update = run.updates.get(update_id)
    if update is None:
        return ADMITTED if update_id in admitted else 0
    if update.completed_event_id:
        return COMPLETED
    return ACCEPTED if update.accepted_event_id else ADMITTED


def _repeats_request(body: _Body) -> bool:
    match body:
        case Acceptance():
            return body.HasField("accepted_request")
        case Rejection():
            return body.HasField("rejected_request")
        case _:
            return False


def _check_fields(update_id: str, body: _Body) -> None:
    wrong = ""
    if isinstance(body, Acceptance):
        if not body.accepted_request_sequencing_event_id:
            wrong = "accepted_request_sequencing_event_id is not set"
        elif not body.accepted_request_message_id:
            wrong = "accepted_request_message_id is not set"
    elif isinstance(body, Response):
        if body.meta.update_id != update_id:
            wrong = f"meta.update_id {body.meta.update_id!r} != {update_id!r}"
        elif body.outcome.WhichOneof("value") is None:
            wrong = "outcome is not set"
    if wrong:
        raise BadCommand(_BAD, f"invalid {type(body).__name__} of update {update_id}: {wrong}")


# -- events ----------------------------------------------------------------------------------------


def admit(
    tx: Transition,
    request: Request,
    origin: int = UpdateAdmittedEventOrigin.UPDATE_ADMITTED_EVENT_ORIGIN_REAPPLY,
) -> int:
    """Write an update that waits for a worker into history, as a reset does; the event's id."""
    event = WorkflowExecutionUpdateAdmittedEventAttributes(request=request)
    event.origin = origin  # type: ignore[assignment]
    event_id = tx.append(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED, event)
    tx.put(Update(tx.item_id(), request.meta.update_id, 0))
    tx.run.state.update_count += 1
    return event_id


def _accept(tx: Transition, update_id: str, body: Acceptance, request: bytes) -> None:
    event = WorkflowExecutionUpdateAcceptedEventAttributes(
        protocol_instance_id=update_id,
        accepted_request_message_id=body.accepted_request_message_id,
        accepted_request_sequencing_event_id=body.accepted_request_sequencing_event_id,
    )
    update = tx.run.updates.get(update_id)
    if update is None:  # else the admitted event in history has the request
        if request:
            event.accepted_request.MergeFromString(request)
        else:
            event.accepted_request.CopyFrom(body.accepted_request)
        update = Update(tx.item_id(), update_id, 0)
        tx.run.state.update_count += 1
    update.accepted_event_id = tx.append(
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED, event
    )
    tx.put(update)
    tx.update_results.append((update_id, ACCEPTED, b""))


def _complete(tx: Transition, update_id: str, body: Response) -> None:
    update = tx.run.updates[update_id]
    event = WorkflowExecutionUpdateCompletedEventAttributes(
        meta=body.meta, accepted_event_id=update.accepted_event_id, outcome=body.outcome
    )
    update.completed_event_id = tx.append(
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED, event
    )
    update.outcome = body.outcome.SerializeToString()
    tx.put(update)
    tx.update_results.append((update_id, COMPLETED, update.outcome))


def _reject(tx: Transition, update_id: str, body: Rejection) -> None:
    update = tx.run.updates.get(update_id)
    if update is not None:  # admitted by a reset
        tx.drop(update)
    outcome = Outcome(failure=body.failure).SerializeToString()
    tx.update_results.append((update_id, COMPLETED, outcome))


def abort(tx: Transition) -> None:
    """The run closes: tell the callers of accepted, uncompleted updates that these are lost.

    Nothing is stored: `find` gives the same answer later. Callers of updates that were not accepted
    are the service's to answer (`closing_error`).
    """
    for update in tx.run.updates.values():
        if update.accepted_event_id and not update.completed_event_id:
            tx.update_results.append((update.update_id, COMPLETED, lost_outcome()))
