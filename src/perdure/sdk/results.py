"""How a run ended, from its last event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.sdk import errors
from perdure.sdk.converter import Converter
from perdure.sdk.failures import error_from

__all__ = ["CloseEvent", "close_event"]

_COMPLETED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED
_FAILED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED
_CANCELED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED
_TERMINATED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED
_TIMED_OUT = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT
_CONTINUED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW


@dataclass(frozen=True, slots=True)
class CloseEvent:
    """The event that closed a run, and the run that goes on in its place, if any."""

    event: HistoryEvent
    next_run_id: str

    def value(self, converter: Converter, type_: Any, workflow_id: str, run_id: str) -> Any:
        """The result.

        Raises:
            WorkflowFailedError: there is none; `cause` says why.
            WorkflowContinuedAsNewError: the next run will have it.
            ConversionError: it is not of the expected type.
        """
        event = self.event
        if event.event_type == _COMPLETED:
            result = event.workflow_execution_completed_event_attributes.result
            return converter.result(result, type_)
        if event.event_type == _CONTINUED:
            raise errors.WorkflowContinuedAsNewError(self.next_run_id)
        verb, cause = self._failure(converter)
        raise errors.WorkflowFailedError(
            f"Workflow {workflow_id} {verb}", workflow_id=workflow_id, run_id=run_id
        ) from cause

    def _failure(self, converter: Converter) -> tuple[str, BaseException]:
        """What happened to the run, and the recorded failure behind it."""
        event = self.event
        if event.event_type == _FAILED:
            failure = event.workflow_execution_failed_event_attributes.failure
            return "failed", error_from(failure, converter)
        if event.event_type == _CANCELED:
            details = event.workflow_execution_canceled_event_attributes.details
            return "was cancelled", errors.CancelledFailure(
                "Workflow cancelled", *converter.decode_all(details)
            )
        if event.event_type == _TERMINATED:
            terminated = event.workflow_execution_terminated_event_attributes
            return "was terminated", errors.TerminatedError(
                terminated.reason or "Workflow terminated",
                *converter.decode_all(terminated.details),
            )
        return "timed out", errors.TimeoutError(
            "Workflow timed out", type=errors.TimeoutType.START_TO_CLOSE
        )


def close_event(event: HistoryEvent) -> CloseEvent:
    """The closing of a run by its last event.

    Raises:
        ValueError: the event closes no run.
    """
    kind = event.event_type
    if kind == _COMPLETED:
        following = event.workflow_execution_completed_event_attributes.new_execution_run_id
    elif kind == _FAILED:
        following = event.workflow_execution_failed_event_attributes.new_execution_run_id
    elif kind == _TIMED_OUT:
        following = event.workflow_execution_timed_out_event_attributes.new_execution_run_id
    elif kind == _CONTINUED:
        following = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    elif kind in (_CANCELED, _TERMINATED):
        following = ""
    else:
        raise ValueError(f"{EventType.Name(kind)} closes no run")
    return CloseEvent(event, following)
