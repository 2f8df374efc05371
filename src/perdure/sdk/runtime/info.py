"""What workflow code may know of its run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes

from perdure.api.times import datetime_of, duration_ns
from perdure.sdk.failures import error_from
from perdure.sdk.options import Priority, RetryPolicy, timedelta_or_none
from perdure.sdk.search_attributes import SearchAttributes

if TYPE_CHECKING:
    from perdure.sdk.errors import FailureError
    from perdure.sdk.runtime.run import Run


class WorkflowInfo:
    """Facts about the run that is executing.

    Those that change are as of the current workflow task: `history_length`, `history_size_bytes`,
    `continue_as_new_suggested`, `search_attributes`, `memo`.
    """

    __slots__ = ("_run", "_started")

    def __init__(self, run: Run, started: WorkflowExecutionStartedEventAttributes) -> None:
        self._run = run
        self._started = started

    @property
    def namespace(self) -> str:
        """Name of the namespace."""
        return self._run.namespace

    @property
    def workflow_id(self) -> str:
        """The id that the starter chose."""
        return self._run.workflow_id

    @property
    def run_id(self) -> str:
        """Id of this run; each retry, cron start, continue-as-new and reset gets one of its own."""
        return self._run.run_id

    @property
    def first_run_id(self) -> str:
        """The run id that the chain of runs began with."""
        return self._started.first_execution_run_id

    @property
    def original_run_id(self) -> str:
        """The run id before any reset."""
        return self._started.original_execution_run_id

    @property
    def continued_run_id(self) -> str:
        """The run that continued as this one; "" if none did."""
        return self._started.continued_execution_run_id

    @property
    def workflow_type(self) -> str:
        """Name of the workflow type."""
        return self._run.type_name

    @property
    def task_queue(self) -> str:
        """The queue that this run's workflow tasks come from."""
        return self._run.task_queue

    @property
    def attempt(self) -> int:
        """1 unless the workflow's own retry policy started it again."""
        return self._started.attempt or 1

    @property
    def start_time(self) -> datetime:
        """When the run was started, in UTC."""
        return datetime_of(self._run.start_ns)

    @property
    def parent_workflow_id(self) -> str:
        """The parent's workflow id; "" if there is no parent."""
        return self._started.parent_workflow_execution.workflow_id

    @property
    def parent_run_id(self) -> str:
        """The parent's run id; "" if there is no parent."""
        return self._started.parent_workflow_execution.run_id

    @property
    def root_workflow_id(self) -> str:
        """The workflow id of the topmost parent; this one's if there is no parent."""
        return self._started.root_workflow_execution.workflow_id or self.workflow_id

    @property
    def execution_timeout(self) -> timedelta | None:
        """Limit of the whole chain of runs."""
        return timedelta_or_none(duration_ns(self._started.workflow_execution_timeout))

    @property
    def run_timeout(self) -> timedelta | None:
        """Limit of this run."""
        return timedelta_or_none(duration_ns(self._started.workflow_run_timeout))

    @property
    def task_timeout(self) -> timedelta | None:
        """Limit of one workflow task."""
        return timedelta_or_none(duration_ns(self._started.workflow_task_timeout))

    @property
    def retry(self) -> RetryPolicy | None:
        """The workflow's own retry policy."""
        if not self._started.HasField("retry_policy"):
            return None
        return RetryPolicy.from_message(self._started.retry_policy)

    @property
    def cron(self) -> str:
        """The cron schedule; "" if there is none."""
        return self._started.cron_schedule

    @property
    def priority(self) -> Priority:
        """Order among the queue's tasks."""
        message = self._started.priority
        return Priority(
            key=message.priority_key or None,
            fairness_key=message.fairness_key,
            fairness_weight=message.fairness_weight or None,
        )

    @property
    def headers(self) -> Mapping[str, Any]:
        """Payloads that came with the start, as interceptors put them there."""
        return dict(self._started.header.fields)

    @property
    def history_length(self) -> int:
        """Events in history when this workflow task started."""
        return self._run.history_length

    @property
    def history_size_bytes(self) -> int:
        """Size of the history when this workflow task started; 0 if the server does not tell."""
        return self._run.history_size_bytes

    @property
    def continue_as_new_suggested(self) -> bool:
        """Has the history grown so long that `workflow.continue_as_new` is due?"""
        return self._run.continue_as_new_suggested

    @property
    def search_attributes(self) -> SearchAttributes:
        """Search attributes, with those that this run has set."""
        return SearchAttributes(self._run.search_attributes)

    @property
    def memo(self) -> Mapping[str, Any]:
        """Memo values by name, with those that this run has set."""
        return self._run.memo()

    @property
    def last_failure(self) -> FailureError | None:
        """What the former run of a cron schedule or retry failed with."""
        if not self._started.HasField("continued_failure"):
            return None
        return error_from(self._started.continued_failure, self._run.converter)

    def last_result(self, type_: Any = Any) -> Any:
        """The last successful result of a cron workflow; None if there is none."""
        return self._run.converter.result(self._started.last_completion_result, type_)
