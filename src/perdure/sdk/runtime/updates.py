"""Updates of one run: protocol messages in, acceptances, rejections and responses out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message as ProtobufMessage
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.protocol.v1 import Message
from temporalio.api.update.v1 import Acceptance, Rejection, Request, Response

from perdure.sdk.errors import ApplicationError, ConversionError, NonDeterminismError
from perdure.sdk.failures import failure_from
from perdure.sdk.interceptors import HandleUpdate

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run
    from perdure.sdk.workflow.definition import Handler

_ADMITTED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED
_ACCEPTED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
_COMPLETED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED


class UpdateRequest:
    """An update that has arrived.

    Attributes:
        instance_id: of the protocol; equal to the update's id.
        message_id: of the message that brought it.
        event_id: the request belongs after this event.
    """

    __slots__ = ("event_id", "instance_id", "message_id", "request")

    def __init__(self, request: Request, instance_id: str, message_id: str, event_id: int) -> None:
        self.request = request
        self.instance_id = instance_id
        self.message_id = message_id
        self.event_id = event_id

    @property
    def update_id(self) -> str:
        """The id that the caller chose."""
        return self.request.meta.update_id

    @property
    def name(self) -> str:
        """The handler's name."""
        return self.request.input.name


def requests_in(messages: Iterable[Message]) -> list[UpdateRequest]:
    """The update requests among the messages of a workflow task."""
    found = []
    for message in messages:
        request = Request()
        if message.body.Unpack(request):
            found.append(
                UpdateRequest(request, message.protocol_instance_id, message.id, message.event_id)
            )
    return found


def admitted_in(events: Iterable[HistoryEvent]) -> list[UpdateRequest]:
    """The update requests that history itself holds: a reset writes those of the run before.

    They come without a message, so the answers name the message there would have been.
    """
    found = []
    for event in events:
        if event.event_type == _ADMITTED:
            request = event.workflow_execution_update_admitted_event_attributes.request
            id = request.meta.update_id
            found.append(UpdateRequest(request, id, f"{id}/request", event.event_id))
    return found


class Updates:
    """Update requests of one run. `messages` are the answers to send."""

    __slots__ = ("_admitted", "_deferred", "messages", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.messages: list[Message] = []
        self._admitted: dict[str, Request] = {}
        self._deferred: list[UpdateRequest] = []

    # --- what history holds ---------------------------------------------------------------------

    def admitted(self, event: HistoryEvent) -> None:
        """WorkflowExecutionUpdateAdmitted: the acceptance that follows does not repeat this."""
        request = event.workflow_execution_update_admitted_event_attributes.request
        self._admitted[request.meta.update_id] = request

    def accepted_in_history(self, event: HistoryEvent) -> UpdateRequest:
        """The request behind a WorkflowExecutionUpdateAccepted event."""
        attributes = event.workflow_execution_update_accepted_event_attributes
        request = attributes.accepted_request
        if not request.input.name:
            request = self._admitted.get(attributes.protocol_instance_id, request)
        return UpdateRequest(
            request,
            attributes.protocol_instance_id,
            attributes.accepted_request_message_id,
            attributes.accepted_request_sequencing_event_id,
        )

    # --- requests -------------------------------------------------------------------------------

    def receive(self, requests: Iterable[UpdateRequest]) -> None:
        """Hand requests to their handlers; keep those without one until the code had its turn."""
        for request in requests:
            handler = self.run.handlers.find("update", request.name)
            if handler is None:
                self._deferred.append(request)
            else:
                self._admit(handler, request)

    def receive_deferred(self) -> bool:
        """Try again, now that the code had its turn and may have set handlers. Was there any?"""
        waiting, self._deferred = self._deferred, []
        for request in waiting:
            handler = self.run.handlers.find("update", request.name)
            if handler is not None:
                self._admit(handler, request)
                continue
            known = ", ".join(self.run.handlers.names("update")) or "none"
            self._reject(
                request,
                ApplicationError(
                    f"update {request.name!r} has no handler; known updates: {known}",
                    type="UnknownUpdate",
                    non_retryable=True,
                ),
            )
        return bool(waiting)

    def _admit(self, handler: Handler, request: UpdateRequest) -> None:
        run = self.run
        input = request.request.input
        try:
            args = run.handlers.arguments(handler, request.name, input.args)
        except ConversionError as error:
            self._reject(request, error)
            return
        call = HandleUpdate(
            update=request.name,
            update_id=request.update_id,
            args=args,
            headers=dict(input.header.fields),
        )
        if not run.replaying:
            run.read_only = f"the validator of update {request.name!r}"
            waiting = len(run.loop.ready)
            try:
                run.handlers.validate(handler, call)
                if len(run.loop.ready) != waiting:
                    raise NonDeterminismError(
                        f"{run.read_only} has set something in motion (a task, an event, a lock)"
                    )
            except Exception as error:
                self._reject(request, error)
                return
            finally:
                run.read_only = ""
        self._accept(request)
        run.handlers.start_update(handler, request, call)

    # --- answers --------------------------------------------------------------------------------

    def _accept(self, request: UpdateRequest) -> None:
        body = Acceptance(
            accepted_request_message_id=request.message_id,
            accepted_request_sequencing_event_id=request.event_id,
            accepted_request=request.request,
        )
        self._send(_ACCEPTED, request, "accept", body)

    def _reject(self, request: UpdateRequest, error: Exception) -> None:
        if self.run.replaying:
            raise error  # history says that it was accepted
        failure = failure_from(error, self.run.converter)
        body = Rejection(
            rejected_request_message_id=request.message_id,
            rejected_request_sequencing_event_id=request.event_id,
            rejected_request=request.request,
            failure=failure,
        )
        # A rejection leaves no event, so it travels as a message without a command.
        self._message(request, "reject", body)

    def complete(self, request: UpdateRequest, handler: Handler, result: Any) -> None:
        """The handler has returned."""
        body = Response()
        body.meta.CopyFrom(request.request.meta)
        if not self.run.replaying:
            self.run.converter.fill_result(body.outcome.success, result, handler.signature)
        self._send(_COMPLETED, request, "complete", body)

    def fail(self, request: UpdateRequest, error: BaseException) -> None:
        """The handler has failed: so does the update, and not the run."""
        body = Response()
        body.meta.CopyFrom(request.request.meta)
        failure: Failure = failure_from(error, self.run.converter)
        body.outcome.failure.CopyFrom(failure)
        self._send(_COMPLETED, request, "complete", body)

    def _send(
        self, event_type: int, request: UpdateRequest, step: str, body: ProtobufMessage
    ) -> None:
        run = self.run
        key = (request.instance_id if event_type == _ACCEPTED else request.update_id,)
        command = None
        if not run.replaying:
            command = run.new_command()
            command.command_type = CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE
            message = self._message(request, step, body)
            command.protocol_message_command_attributes.message_id = message.id
        run.emit(event_type, key, command)

    def _message(self, request: UpdateRequest, step: str, body: ProtobufMessage) -> Message:
        message = Message(
            id=f"{request.message_id}/{step}", protocol_instance_id=request.instance_id
        )
        message.body.Pack(body)
        self.messages.append(message)
        return message
