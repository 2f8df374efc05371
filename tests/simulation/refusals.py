"""Refusals must be true: of what the store held at some moment between a call and its answer.

A false one harms nobody for good, and so no other invariant sees it: a worker that hears that its
answer came too late drops it, a time-out gives the task to somebody again, and all ends well, late.

Not refused but put off is whoever hears Unavailable, Cancelled, Aborted, ResourceExhausted or
DeadlineExceeded: nothing was said about the run. What a worker hears about its answer to a query is
not judged: that somebody waits for it is in no store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from temporalio.api.enums.v1 import EventType

from perdure.api.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    QueryFailed,
    RPCError,
    WorkflowNotReady,
)
from perdure.engine import updates, workflow_tasks
from perdure.engine.execution import Execution
from perdure.service import queries, tokens

from .chronicle import Chronicle

REFUSED = (NotFound, AlreadyExists, FailedPrecondition, InvalidArgument)
NOT_JUDGED = ("respond_query_task_completed",)


@dataclass
class Refusal:
    """A call that was refused; `called` and `answered` are numbers of commits."""

    method: str
    request: Any
    error: RPCError
    called: int
    answered: int
    called_s: float
    answered_s: float

    def __str__(self) -> str:
        return (
            f"{self.method} was told {self.error!r}, which was not true at any moment between "
            f"commits {self.called} and {self.answered}"
        )


@dataclass
class Evidence:
    """What refusals are judged by.

    Attributes:
        polls: when each poll for workflow tasks that any worker may have began and ended.
    """

    chronicle: Chronicle
    refusals: list[Refusal] = field(default_factory=list)
    polls: list[tuple[float, float]] = field(default_factory=list)

    def is_polled_throughout(self, begin_s: float, end_s: float) -> bool:
        """Whether workers were there all the time."""
        for began_s, ended_s in sorted(self.polls):
            if began_s <= begin_s:
                begin_s = max(begin_s, ended_s)
        return begin_s >= end_s


@dataclass
class Moment:
    """The store after so many commits."""

    evidence: Evidence
    number: int

    @property
    def chronicle(self) -> Chronicle:
        return self.evidence.chronicle

    def run(self, key: int) -> Execution:
        """The run of a task that was handed out: it must be there."""
        found = self.chronicle.run(key, self.number)
        assert found is not None, f"a task of run {key}, which is not in the store"
        return found

    def named(self, workflow_id: str, run_id: str = "") -> Execution | None:
        """The run of that id; without one the open run, or else the last."""
        chain = list(self.chronicle.chain(workflow_id, self.number))
        if run_id:
            return next((run for run in chain if run.info.run_id == run_id), None)
        return next((run for run in chain if run.is_open), chain[-1] if chain else None)


def unfounded(evidence: Evidence) -> list[str]:
    """Refusals that nothing justifies, one sentence each."""
    return [str(refusal) for refusal in evidence.refusals if not _is_true(refusal, evidence)]


def _is_true(refusal: Refusal, evidence: Evidence) -> bool:
    judge = JUDGES.get(refusal.method, _never)
    moments = range(refusal.called, refusal.answered + 1)
    return any(judge(refusal, Moment(evidence, number)) for number in moments)


def _never(refusal: Refusal, moment: Moment) -> bool:
    return False


# --- workers ------------------------------------------------------------------------------------


def _workflow_task_is_over(refusal: Refusal, moment: Moment) -> bool:
    """Timed out, taken back, answered before; or failed by just this answer, as InvalidArgument
    says."""
    token = tokens.decode(refusal.request.task_token, tokens.WORKFLOW)
    run = moment.run(token.key)
    try:
        workflow_tasks.check_token(
            run, token.scheduled_event_id, token.started_event_id, token.stamp
        )
    except NotFound:
        return True
    return not run.is_open


def _attempt_is_over(refusal: Refusal, moment: Moment) -> bool:
    """Timed out, taken back, answered before, or no longer wanted."""
    token = tokens.decode(refusal.request.task_token, tokens.ACTIVITY)
    run = moment.run(token.key)
    activity = run.activities.get(token.scheduled_event_id)
    if activity is None or not run.is_open or not activity.started_ns:
        return True
    return (activity.stamp, activity.attempt) != (token.stamp, token.attempt)


# --- clients ------------------------------------------------------------------------------------


def _another_has_the_id(refusal: Refusal, moment: Moment) -> bool:
    """Of the run that this very request started the answer is its run id, closed or not."""
    run = moment.named(refusal.request.workflow_id)
    return run is not None and run.info.start_request_id != refusal.request.request_id


def _is_closed(refusal: Refusal, moment: Moment) -> bool:
    """A signal that is repeated is no refusal, though it closed the run."""
    run = _execution(refusal.request.workflow_execution, moment)
    if run is None:
        return True
    return not run.is_open and getattr(refusal.request, "request_id", "") not in run.requests


def _is_not_there(refusal: Refusal, moment: Moment) -> bool:
    request = refusal.request
    named = request.execution if hasattr(request, "execution") else request.workflow_execution
    return _execution(named, moment) is None


def _update_is_refused(refusal: Refusal, moment: Moment) -> bool:
    if isinstance(refusal.error, WorkflowNotReady):
        return _keeps_failing(_execution(refusal.request.workflow_execution, moment))
    return _is_closed(refusal, moment)


def _update_is_unknown(refusal: Refusal, moment: Moment) -> bool:
    ref = refusal.request.update_ref
    run = _execution(ref.workflow_execution, moment)
    if isinstance(refusal.error, WorkflowNotReady):
        return _keeps_failing(run)
    return run is None or updates.find(run, ref.update_id) is None


def _query_is_refused(refusal: Refusal, moment: Moment) -> bool:
    if isinstance(refusal.error, QueryFailed):
        return True  # said by the workflow's code
    if isinstance(refusal.error, WorkflowNotReady):
        return _keeps_failing(_execution(refusal.request.execution, moment))
    if isinstance(refusal.error, FailedPrecondition):  # no worker is there
        return not moment.evidence.is_polled_throughout(refusal.called_s, refusal.answered_s)
    return _is_not_there(refusal, moment)


def _keeps_failing(run: Execution | None) -> bool:
    try:
        if run is not None:
            queries.check(run)
    except WorkflowNotReady:
        return True
    return False


def _execution(named: Any, moment: Moment) -> Execution | None:
    return moment.named(named.workflow_id, named.run_id)


JUDGES: dict[str, Callable[[Refusal, Moment], bool]] = {
    "respond_workflow_task_completed": _workflow_task_is_over,
    "respond_workflow_task_failed": _workflow_task_is_over,
    "respond_activity_task_completed": _attempt_is_over,
    "respond_activity_task_failed": _attempt_is_over,
    "respond_activity_task_canceled": _attempt_is_over,
    "record_activity_task_heartbeat": _attempt_is_over,
    "start_workflow_execution": _another_has_the_id,
    "signal_workflow_execution": _is_closed,
    "request_cancel_workflow_execution": _is_not_there,
    "get_workflow_execution_history": _is_not_there,
    "update_workflow_execution": _update_is_refused,
    "poll_workflow_execution_update": _update_is_unknown,
    "query_workflow": _query_is_refused,
}


# --- workflows ----------------------------------------------------------------------------------


def missed_signals(run: Execution, events: Any, evidence: Evidence) -> Iterator[str]:
    """Signals between workflows that were said to find nobody, though somebody was always there.

    Nobody may signal himself: that he hears the same is right.
    """
    key, chronicle = run.key, evidence.chronicle
    failed = EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED
    for event in events:
        if event.event_type != failed:
            continue
        attributes = event.signal_external_workflow_execution_failed_event_attributes
        target = attributes.workflow_execution.workflow_id
        if target == run.info.workflow_id:
            continue
        since = chronicle.moment_of(key, attributes.initiated_event_id)
        until = chronicle.moment_of(key, event.event_id)
        moments = (Moment(evidence, number) for number in range(since, until + 1))
        if all((met := moment.named(target)) and met.is_open for moment in moments):
            yield f"{run.info.workflow_id}: event {event.event_id}: {target} was open all the time"
