"""A server of a hundred lines: keeps one run's history and applies its commands to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.protocol.v1 import Message
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.update.v1 import Acceptance, Request, Response
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
)

from perdure.sdk.converter import Converter
from perdure.sdk.failures import failure_from
from perdure.sdk.runtime import guards
from perdure.sdk.runtime.cache import RunCache
from perdure.sdk.runtime.processor import make_settings
from perdure.sdk.runtime.replayer import replay
from perdure.sdk.runtime.tasks import TaskHandler
from perdure.sdk.workflow import definition_of

RUN_ID = "0d0c2a1e-run"
FIRST_NS = 1_700_000_000_000_000_000

_EVENTS_OF_COMMANDS = {
    CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK: "activity_task_scheduled",
    CommandType.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK: "activity_task_cancel_requested",
    CommandType.COMMAND_TYPE_START_TIMER: "timer_started",
    CommandType.COMMAND_TYPE_CANCEL_TIMER: "timer_canceled",
    CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION: "workflow_execution_completed",
    CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION: "workflow_execution_failed",
    CommandType.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION: "workflow_execution_canceled",
    CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION: (
        "workflow_execution_continued_as_new"
    ),
    CommandType.COMMAND_TYPE_RECORD_MARKER: "marker_recorded",
    CommandType.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION: (
        "start_child_workflow_execution_initiated"
    ),
    CommandType.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES: (
        "upsert_workflow_search_attributes"
    ),
    CommandType.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES: "workflow_properties_modified",
}


class Stage:
    """One run on a worker, and its history."""

    def __init__(self, workflow: Any, *args: Any, others: Sequence[Any] = (), **extra: Any) -> None:
        guards.arm()
        self.converter = extra.pop("converter", Converter())
        self.workflow = workflow
        self.workflows = [workflow, *others]
        self.history: list[HistoryEvent] = []
        self.answer: Any = None
        self._delivered = 0
        self._previous_started = 0
        self._messages: list[Message] = []
        self.handler = self.new_handler(**extra)
        definition = definition_of(workflow)
        assert definition is not None
        self.type_name = extra.get("type_name", definition.name)
        started = self.event("workflow_execution_started")
        started.workflow_type.name = self.type_name
        started.original_execution_run_id = RUN_ID
        started.task_queue.name = "q"
        self.converter.fill(started.input, args)

    def new_handler(self, **extra: Any) -> TaskHandler:
        """A worker with an empty cache."""
        settings = make_settings(
            self.workflows,
            converter=self.converter,
            namespace="default",
            task_queue="q",
            interceptors=extra.get("interceptors", ()),
            failure_exception_types=extra.get("failure_exception_types", ()),
        )
        return TaskHandler(
            extra.get("service"),  # type: ignore[arg-type]
            settings,
            identity="stage",
            cache=RunCache(10),
            sticky_queue="sticky",
            sticky_timeout_s=10,
            run_local_activity=extra.get("run_local_activity"),
            activity_slots=None,
        )

    # --- what happens ---------------------------------------------------------------------------

    def event(self, name: str) -> Any:
        """Append an event and return its attributes to fill."""
        event = HistoryEvent(event_id=len(self.history) + 1)
        event.event_type = EventType.Value(f"EVENT_TYPE_{name.upper()}")
        event.event_time.FromNanoseconds(FIRST_NS + len(self.history) * 1_000_000_000)
        attributes = getattr(event, f"{name}_event_attributes")
        attributes.SetInParent()
        self.history.append(event)
        return attributes

    def find(self, name: str, **wanted: Any) -> HistoryEvent:
        """The first event of a kind with these attributes."""
        for event in self.history:
            attributes = getattr(event, f"{name}_event_attributes")
            if event.event_type == EventType.Value(f"EVENT_TYPE_{name.upper()}") and all(
                getattr(attributes, key) == value for key, value in wanted.items()
            ):
                return event
        raise AssertionError(f"no {name} {wanted} in history")

    def complete_activity(self, activity_id: str, result: Any) -> None:
        scheduled = self.find("activity_task_scheduled", activity_id=activity_id)
        attributes = self.event("activity_task_completed")
        attributes.scheduled_event_id = scheduled.event_id
        self.converter.fill(attributes.result, [result])

    def fail_activity(self, activity_id: str, error: Exception) -> None:
        scheduled = self.find("activity_task_scheduled", activity_id=activity_id)
        attributes = self.event("activity_task_failed")
        attributes.scheduled_event_id = scheduled.event_id
        attributes.failure.CopyFrom(failure_from(error, self.converter))

    def fire_timer(self, timer_id: str) -> None:
        self.find("timer_started", timer_id=timer_id)
        self.event("timer_fired").timer_id = timer_id

    def signal(self, name: str, *args: Any) -> None:
        attributes = self.event("workflow_execution_signaled")
        attributes.signal_name = name
        self.converter.fill(attributes.input, args)

    def cancel(self) -> None:
        self.event("workflow_execution_cancel_requested")

    def update(self, update_id: str, name: str, *args: Any) -> None:
        request = Request()
        request.meta.update_id = update_id
        request.input.name = name
        self.converter.fill(request.input.args, args)
        message = Message(
            id=f"{update_id}/request", protocol_instance_id=update_id, event_id=len(self.history)
        )
        message.body.Pack(request)
        self._messages.append(message)

    # --- workflow tasks -------------------------------------------------------------------------

    def begin_task(self, whole: bool = False, **queries: Any) -> PollWorkflowTaskQueueResponse:
        """A workflow task with what the worker has not seen, or with the whole history."""
        scheduled = len(self.history) + 1
        self.event("workflow_task_scheduled")
        self.event("workflow_task_started").scheduled_event_id = scheduled
        task = PollWorkflowTaskQueueResponse(
            task_token=b"token",
            previous_started_event_id=self._previous_started,
            started_event_id=len(self.history),
            attempt=1,
        )
        task.workflow_execution.workflow_id = "stage"
        task.workflow_execution.run_id = RUN_ID
        task.workflow_type.name = self.type_name
        task.history.events.extend(self.history if whole else self.history[self._delivered :])
        task.messages.extend(self._messages)
        for name, args in queries.items():
            query = WorkflowQuery(query_type=name)
            self.converter.fill(query.query_args, args)
            task.queries[name].CopyFrom(query)
        self._messages = []
        return task

    def finish_task(self, answer: Any) -> Any:
        """Record an answer."""
        self.answer = answer
        if isinstance(answer, RespondWorkflowTaskFailedRequest):
            attributes = self.event("workflow_task_failed")
            attributes.failure.CopyFrom(answer.failure)
            self._delivered = 0
            return answer
        assert isinstance(answer, RespondWorkflowTaskCompletedRequest)
        started_id = len(self.history)
        self.event("workflow_task_completed").started_event_id = started_id
        for command in answer.commands:
            self._apply(command)
        self._delivered = self._previous_started = started_id
        return answer

    def task(self, **queries: Any) -> Any:
        """One workflow task, from its start to its recorded answer."""
        task = self.begin_task(**queries)
        answer = self.handler.advance(task)
        assert answer is not None, "declined"
        return self.finish_task(answer)

    def _apply(self, command: Command) -> None:
        if command.command_type == CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE:
            self._apply_message(command.protocol_message_command_attributes.message_id)
            return
        name = _EVENTS_OF_COMMANDS[command.command_type]
        source = getattr(command, command.WhichOneof("attributes"))
        attributes = self.event(name)
        for field, value in source.ListFields():
            target = attributes.DESCRIPTOR.fields_by_name.get(field.name)
            if target is None:
                continue
            if field.message_type is None:
                setattr(attributes, field.name, value)
            elif field.message_type.GetOptions().map_entry:
                for key, item in value.items():
                    getattr(attributes, field.name)[key].CopyFrom(item)
            else:
                getattr(attributes, field.name).CopyFrom(value)

    def _apply_message(self, message_id: str) -> None:
        message = next(m for m in self.answer.messages if m.id == message_id)
        acceptance, response = Acceptance(), Response()
        if message.body.Unpack(acceptance):
            accepted = self.event("workflow_execution_update_accepted")
            accepted.protocol_instance_id = message.protocol_instance_id
            accepted.accepted_request_message_id = acceptance.accepted_request_message_id
            accepted.accepted_request.CopyFrom(acceptance.accepted_request)
        elif message.body.Unpack(response):
            completed = self.event("workflow_execution_update_completed")
            completed.meta.CopyFrom(response.meta)
            completed.outcome.CopyFrom(response.outcome)

    # --- what to look at ------------------------------------------------------------------------

    @property
    def commands(self) -> list[str]:
        """Names of the last answer's commands, short."""
        names = [CommandType.Name(c.command_type) for c in self.answer.commands]
        return [name.removeprefix("COMMAND_TYPE_").lower() for name in names]

    @property
    def error(self) -> str:
        """Message of the failed task."""
        assert isinstance(self.answer, RespondWorkflowTaskFailedRequest), self.answer
        return self.answer.failure.message

    @property
    def result(self) -> Any:
        """The run's result."""
        completed = self.find("workflow_execution_completed")
        attributes = completed.workflow_execution_completed_event_attributes
        return self.converter.result(attributes.result)

    def query_result(self, name: str) -> Any:
        """The answer to a query of the last task."""
        return self.converter.result(self.answer.query_results[name].answer)

    def replay(self, *workflows: Any) -> None:
        """Replay the whole history, with other code if some is given.

        Raises:
            NonDeterminismError: it does not match.
        """
        replay(
            History(events=self.history),
            workflows or self.workflows,
            converter=self.converter,
            run_id=RUN_ID,
        )
