"""What the service tells about runs, as plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.history.v1 import History as HistoryMessage
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflow.v1 import PendingActivityInfo, WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsResponse,
    DescribeWorkflowExecutionResponse,
)

from perdure.sdk.converter import Converter
from perdure.sdk.failures import error_from
from perdure.sdk.options import WorkflowStatus
from perdure.sdk.search_attributes import SearchAttributes

if TYPE_CHECKING:
    from perdure.sdk.errors import FailureError

__all__ = [
    "CountGroup",
    "PendingActivity",
    "PendingChild",
    "WorkflowCount",
    "WorkflowDescription",
    "WorkflowExecution",
    "WorkflowHistory",
]


@dataclass(frozen=True, kw_only=True)
class WorkflowExecution:
    """A run, as `Client.list` tells it.

    Attributes:
        id, run_id: which one.
        workflow_type: name of the workflow.
        status: running, or how it ended.
        start_time: when it was started.
        execution_time: when its first workflow task was due: later than `start_time` after a
            start delay, for cron and retries.
        close_time: when it ended; None while it is open.
        history_length: number of events; 0 if the service does not say for open runs.
        history_size_bytes: size of its history.
        memo: values given at its start, not searchable.
        search_attributes: typed values that filters can use.
        parent_id, parent_run_id: of the workflow that started it; None if a client did.
    """

    id: str
    run_id: str
    workflow_type: str
    status: WorkflowStatus
    task_queue: str
    start_time: datetime | None
    execution_time: datetime | None
    close_time: datetime | None
    history_length: int
    history_size_bytes: int
    memo: Mapping[str, Any]
    search_attributes: SearchAttributes
    parent_id: str | None
    parent_run_id: str | None
    root_id: str | None
    first_run_id: str | None

    @classmethod
    def from_message(
        cls, message: WorkflowExecutionInfo, converter: Converter
    ) -> WorkflowExecution:
        """The record that a message describes."""
        return cls(**_facts(message, converter))


@dataclass(frozen=True, kw_only=True)
class PendingActivity:
    """An activity that a run waits for.

    Attributes:
        attempt: the one that runs or comes next.
        maximum_attempts: 0 for no limit.
        state: SCHEDULED, STARTED, CANCEL_REQUESTED or PAUSED.
        last_failure: why the last attempt failed; None if none did.
        next_attempt_time: when the next attempt is due, if the last one failed.
        heartbeat_details: what it last reported.
    """

    activity_id: str
    activity_type: str
    state: str
    attempt: int
    maximum_attempts: int
    last_failure: FailureError | None
    next_attempt_time: datetime | None
    last_heartbeat_time: datetime | None
    last_worker_identity: str
    heartbeat_details: Sequence[Any]
    paused: bool

    @classmethod
    def from_message(cls, message: PendingActivityInfo, converter: Converter) -> PendingActivity:
        """The record that a message describes."""
        failure = message.last_failure if message.HasField("last_failure") else None
        state = message.DESCRIPTOR.fields_by_name["state"].enum_type
        assert state is not None
        name = state.values_by_number[message.state].name
        return cls(
            activity_id=message.activity_id,
            activity_type=message.activity_type.name,
            state=name.removeprefix("PENDING_ACTIVITY_STATE_"),
            attempt=message.attempt,
            maximum_attempts=message.maximum_attempts,
            last_failure=None if failure is None else error_from(failure, converter),
            next_attempt_time=_moment(message, "next_attempt_schedule_time"),
            last_heartbeat_time=_moment(message, "last_heartbeat_time"),
            last_worker_identity=message.last_worker_identity,
            heartbeat_details=converter.decode_all(message.heartbeat_details),
            paused=message.paused,
        )


@dataclass(frozen=True, kw_only=True)
class PendingChild:
    """A child workflow that a run waits for."""

    workflow_id: str
    run_id: str
    workflow_type: str


@dataclass(frozen=True, kw_only=True)
class WorkflowDescription(WorkflowExecution):
    """A run, as `handle.describe` tells it.

    Attributes:
        execution_timeout, run_timeout: None for no limit.
        pending_activities, pending_children: what it waits for.
        raw: the service's whole answer.
    """

    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    pending_activities: Sequence[PendingActivity]
    pending_children: Sequence[PendingChild]
    raw: DescribeWorkflowExecutionResponse = field(repr=False)

    @classmethod
    def from_response(
        cls, response: DescribeWorkflowExecutionResponse, converter: Converter
    ) -> WorkflowDescription:
        """The record that an answer describes."""
        facts = _facts(response.workflow_execution_info, converter)
        config = response.execution_config
        facts["task_queue"] = config.task_queue.name or facts["task_queue"]
        return cls(
            **facts,
            execution_timeout=config.workflow_execution_timeout.ToTimedelta() or None,
            run_timeout=config.workflow_run_timeout.ToTimedelta() or None,
            pending_activities=[
                PendingActivity.from_message(pending, converter)
                for pending in response.pending_activities
            ],
            pending_children=[
                PendingChild(
                    workflow_id=pending.workflow_id,
                    run_id=pending.run_id,
                    workflow_type=pending.workflow_type_name,
                )
                for pending in response.pending_children
            ],
            raw=response,
        )


@dataclass(frozen=True)
class CountGroup:
    """How many runs have these values of the attributes after ``GROUP BY``."""

    values: Sequence[Any]
    count: int


@dataclass(frozen=True)
class WorkflowCount:
    """How many runs a filter finds, in all and by group."""

    count: int
    groups: Sequence[CountGroup] = ()

    @classmethod
    def from_response(
        cls, response: CountWorkflowExecutionsResponse, converter: Converter
    ) -> WorkflowCount:
        """The record that an answer describes."""
        groups = [
            CountGroup([converter.decode(value) for value in group.group_values], group.count)
            for group in response.groups
        ]
        return cls(response.count, groups)


@dataclass(frozen=True)
class WorkflowHistory:
    """All events of one run.

    Attributes:
        workflow_id: whose history it is; "" if it was read from a file that does not say.
        events: in order.
    """

    workflow_id: str
    events: Sequence[HistoryEvent]

    def to_json(self) -> str:
        """The history as Temporal's tools export it."""
        message = HistoryMessage(events=self.events)
        return json_format.MessageToJson(message, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, workflow_id: str = "") -> WorkflowHistory:
        """A history from what `to_json`, the command line or a UI exported.

        Raises:
            ValueError: it is no history.
        """
        message = HistoryMessage()
        try:
            json_format.Parse(text, message, ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise ValueError(f"not a workflow history: {error}") from error
        return cls(workflow_id, list(message.events))


def _facts(info: WorkflowExecutionInfo, converter: Converter) -> dict[str, Any]:
    """The fields of `WorkflowExecution`."""
    return {
        "id": info.execution.workflow_id,
        "run_id": info.execution.run_id,
        "workflow_type": info.type.name,
        "status": WorkflowStatus(info.status),
        "task_queue": info.task_queue,
        "start_time": _moment(info, "start_time"),
        "execution_time": _moment(info, "execution_time"),
        "close_time": _moment(info, "close_time"),
        "history_length": info.history_length,
        "history_size_bytes": info.history_size_bytes,
        "memo": {name: converter.decode(value) for name, value in info.memo.fields.items()},
        "search_attributes": SearchAttributes.from_message(info.search_attributes),
        "parent_id": info.parent_execution.workflow_id or None,
        "parent_run_id": info.parent_execution.run_id or None,
        "root_id": info.root_execution.workflow_id or None,
        "first_run_id": info.first_run_id or None,
    }


def _moment(message: Any, field: str) -> datetime | None:
    return moment(getattr(message, field)) if message.HasField(field) else None


def moment(value: Timestamp) -> datetime | None:
    """A timestamp as an aware datetime; None if it is not set."""
    if not value.seconds and not value.nanos:
        return None
    return value.ToDatetime(tzinfo=UTC)
