"""Every exception of the SDK, by who meets it.

    PerdureError
    ├── FailureError                     seen in workflow code, and as the cause of client errors
    │   ├── ApplicationError             user code (an activity, a child, this workflow) failed
    │   ├── ActivityError                an activity did not succeed; see .cause
    │   ├── ChildWorkflowError           a child workflow did not succeed; see .cause
    │   ├── NexusOperationError          a Nexus operation did not succeed; see .cause
    │   ├── TimeoutError                 one of the platform's timeouts ran out
    │   ├── CancelledFailure             something was cancelled; see .details
    │   ├── TerminatedError              a run was terminated
    │   └── ServerError                  the server itself gave up on something
    ├── ClientError                      seen by whoever calls a workflow from outside
    │   ├── WorkflowFailedError          the run ended, not with a result; see .cause
    │   ├── WorkflowContinuedAsNewError  the run asked for ended by starting another
    │   ├── WorkflowAlreadyStartedError  the workflow id is taken
    │   ├── WorkflowNotFoundError        no such workflow, run or update
    │   ├── QueryRejectedError           the run's status forbids the query
    │   ├── QueryFailedError             the query handler failed, or there is none
    │   ├── UpdateFailedError            the update was rejected or failed; see .cause
    │   ├── ActivityNotFoundError        the activity to complete from outside is not running
    │   └── ActivityCancelledError       the activity to complete from outside is to stop
    └── UsageError                       a mistake in the program
        ├── ConversionError              a value does not convert to or from its declared type
        ├── NonDeterminismError          workflow code did what cannot be replayed
        ├── NotInWorkflowError           called outside of a workflow
        ├── NotInActivityError           called outside of an activity
        └── UnknownTypeError             no workflow or activity of that name is registered
    BaseException                        control flow that `except Exception` must not swallow
    ├── ContinueAsNew                    ends a run and starts the next
    └── CompleteAsync                    an activity will be completed from outside

What an RPC may raise (`RPCError` and its subclasses) is drawn in ``perdure.api.errors``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from perdure.api.errors import RPCError

if TYPE_CHECKING:
    from temporalio.api.failure.v1 import Failure

__all__ = [
    "ActivityCancelledError",
    "ActivityError",
    "ActivityNotFoundError",
    "ApplicationError",
    "CancelledFailure",
    "ChildWorkflowError",
    "ClientError",
    "CompleteAsync",
    "ContinueAsNew",
    "ConversionError",
    "ErrorCategory",
    "FailureError",
    "NexusOperationError",
    "NonDeterminismError",
    "NotInActivityError",
    "NotInWorkflowError",
    "PerdureError",
    "QueryFailedError",
    "QueryRejectedError",
    "RPCError",
    "RetryState",
    "ServerError",
    "TerminatedError",
    "TimeoutError",
    "TimeoutType",
    "UnknownTypeError",
    "UpdateFailedError",
    "UsageError",
    "WorkflowAlreadyStartedError",
    "WorkflowContinuedAsNewError",
    "WorkflowFailedError",
    "WorkflowNotFoundError",
]


class TimeoutType(IntEnum):
    """Which of an activity's or a run's timeouts ran out."""

    UNSPECIFIED = 0
    START_TO_CLOSE = 1
    SCHEDULE_TO_START = 2
    SCHEDULE_TO_CLOSE = 3
    HEARTBEAT = 4


class RetryState(IntEnum):
    """Why a failed activity or child was not tried again."""

    UNSPECIFIED = 0
    IN_PROGRESS = 1
    NON_RETRYABLE_FAILURE = 2
    TIMEOUT = 3
    MAXIMUM_ATTEMPTS_REACHED = 4
    RETRY_POLICY_NOT_SET = 5
    INTERNAL_SERVER_ERROR = 6
    CANCEL_REQUESTED = 7


class ErrorCategory(IntEnum):
    """How an application error should be counted and logged."""

    UNSPECIFIED = 0
    BENIGN = 1
    """Expected in normal operation: logged at debug level and left out of failure metrics."""


class PerdureError(Exception):
    """Base of every error that perdure raises, except for RPC errors and control flow."""


# --- failures: recorded in history, seen in workflow code -------------------------------------


class FailureError(PerdureError):
    """Something durable failed. Recorded in history as a failure with its chain of causes.

    Attributes:
        message: what went wrong, without the names that ``str(error)`` may add.
        stack_trace: the trace of the process where it was raised; "" if it is from here.
        failure: the recorded protobuf failure, when this error was read from history.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.stack_trace = ""
        self.failure: Failure | None = None

    @property
    def cause(self) -> BaseException | None:
        """What brought this failure about: the same object as ``__cause__``."""
        return self.__cause__


class ApplicationError(FailureError):
    """User code failed. Raise it yourself to control how the failure is retried and recorded.

    Any other exception that leaves an activity or a workflow is recorded as this, with `type`
    naming its class. What was recorded elsewhere, in any language, is raised as this.

    Args:
        message: what went wrong.
        details: values recorded with the failure, converted as arguments are.
        type: name that retry policies and callers compare; default: none.
        non_retryable: never retry, whatever the retry policy says.
        next_retry_delay: wait this long before the next attempt in place of the policy's interval.
        category: `ErrorCategory.BENIGN` for failures that belong to normal operation.

    Example:
        >>> raise ApplicationError("card declined", type="CardDeclined", non_retryable=True)
    """

    def __init__(
        self,
        message: str,
        *details: Any,
        type: str | None = None,
        non_retryable: bool = False,
        next_retry_delay: timedelta | None = None,
        category: ErrorCategory = ErrorCategory.UNSPECIFIED,
    ) -> None:
        super().__init__(message)
        self.details: Sequence[Any] = details
        self.type = type
        self.non_retryable = non_retryable
        self.next_retry_delay = next_retry_delay
        self.category = category

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.type else self.message


class ActivityError(FailureError):
    """An activity failed for good, timed out or was cancelled: `cause` says which and why.

    `cause` is an `ApplicationError`, `TimeoutError` or `CancelledFailure`.
    """

    def __init__(
        self,
        message: str,
        *,
        activity_type: str = "",
        activity_id: str = "",
        retry_state: RetryState = RetryState.UNSPECIFIED,
        identity: str = "",
        scheduled_event_id: int = 0,
        started_event_id: int = 0,
    ) -> None:
        super().__init__(message)
        self.activity_type = activity_type
        self.activity_id = activity_id
        self.retry_state = retry_state
        self.identity = identity
        self.scheduled_event_id = scheduled_event_id
        self.started_event_id = started_event_id

    def __str__(self) -> str:
        return _with_cause(self, self.activity_type)


class ChildWorkflowError(FailureError):
    """A child workflow failed, timed out, was cancelled or terminated: `cause` says which."""

    def __init__(
        self,
        message: str,
        *,
        namespace: str = "",
        workflow_id: str = "",
        run_id: str = "",
        workflow_type: str = "",
        retry_state: RetryState = RetryState.UNSPECIFIED,
        initiated_event_id: int = 0,
        started_event_id: int = 0,
    ) -> None:
        super().__init__(message)
        self.namespace = namespace
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.workflow_type = workflow_type
        self.retry_state = retry_state
        self.initiated_event_id = initiated_event_id
        self.started_event_id = started_event_id

    def __str__(self) -> str:
        return _with_cause(self, self.workflow_type)


class NexusOperationError(FailureError):
    """A Nexus operation failed, timed out or was cancelled: `cause` says which and why."""

    def __init__(
        self,
        message: str,
        *,
        endpoint: str = "",
        service: str = "",
        operation: str = "",
        operation_token: str = "",
        scheduled_event_id: int = 0,
    ) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.service = service
        self.operation = operation
        self.operation_token = operation_token
        self.scheduled_event_id = scheduled_event_id


class TimeoutError(FailureError):
    """One of the platform's timeouts ran out: the cause of an `ActivityError`, say.

    Attributes:
        type: which timeout.
        last_heartbeat_details: what the activity last reported, for a heartbeat timeout.
    """

    def __init__(
        self,
        message: str,
        *,
        type: TimeoutType = TimeoutType.UNSPECIFIED,
        last_heartbeat_details: Sequence[Any] = (),
    ) -> None:
        super().__init__(message)
        self.type = type
        self.last_heartbeat_details = last_heartbeat_details


class CancelledFailure(FailureError):
    """Something was cancelled, as recorded: the cause of an `ActivityError`, say.

    Code that *is* cancelled sees `asyncio.CancelledError`; code that asks about something else
    that was cancelled sees this.
    """

    def __init__(self, message: str = "Cancelled", *details: Any, identity: str = "") -> None:
        super().__init__(message)
        self.details: Sequence[Any] = details
        self.identity = identity


class TerminatedError(FailureError):
    """A run was terminated from outside."""

    def __init__(self, message: str = "Workflow terminated", *details: Any) -> None:
        super().__init__(message)
        self.details: Sequence[Any] = details


class ServerError(FailureError):
    """The server itself could not do what was asked of it."""

    def __init__(self, message: str, *, non_retryable: bool = False) -> None:
        super().__init__(message)
        self.non_retryable = non_retryable


# --- what a client sees -----------------------------------------------------------------------


class ClientError(PerdureError):
    """Base of what calls on a `Client` or a handle raise, apart from `RPCError`."""

    @property
    def cause(self) -> BaseException | None:
        """The recorded failure behind this error, if there is one: the same as ``__cause__``."""
        return self.__cause__


class WorkflowFailedError(ClientError):
    """The run ended without a result.

    `cause` is an `ApplicationError`, `CancelledFailure`, `TerminatedError`, `TimeoutError`,
    `ActivityError` or `ChildWorkflowError`.
    """

    def __init__(self, message: str, *, workflow_id: str = "", run_id: str = "") -> None:
        super().__init__(message)
        self.workflow_id = workflow_id
        self.run_id = run_id

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}: {self.__cause__}" if self.__cause__ is not None else message


class WorkflowContinuedAsNewError(ClientError):
    """The run ended by continuing as a new one, and the caller asked not to follow it."""

    def __init__(self, new_run_id: str) -> None:
        super().__init__(f"The run continued as a new run {new_run_id}")
        self.new_run_id = new_run_id


class WorkflowAlreadyStartedError(ClientError):
    """The id reuse or conflict policy forbids another run of this workflow id."""

    def __init__(self, workflow_id: str, workflow_type: str, run_id: str = "") -> None:
        super().__init__(f"Workflow {workflow_id!r} has already been started (run {run_id})")
        self.workflow_id = workflow_id
        self.workflow_type = workflow_type
        self.run_id = run_id


class WorkflowNotFoundError(ClientError):
    """The workflow, run or update does not exist, or is closed where an open one is needed."""

    def __init__(self, message: str, *, workflow_id: str = "", run_id: str = "") -> None:
        super().__init__(message)
        self.workflow_id = workflow_id
        self.run_id = run_id


class QueryRejectedError(ClientError):
    """The run's status is one that the query's reject condition excludes."""

    def __init__(self, status: str) -> None:
        super().__init__(f"Query rejected, the run's status is {status}")
        self.status = status


class QueryFailedError(ClientError):
    """The query's handler raised an error, or the workflow has no handler of that name."""


class UpdateFailedError(ClientError):
    """The update was rejected by its validator or failed in its handler: see `cause`."""

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}: {self.__cause__}" if self.__cause__ is not None else message


class ActivityNotFoundError(ClientError):
    """The activity named by a token or an id is not running (any more)."""


class ActivityCancelledError(ClientError):
    """A heartbeat from outside was answered with: the activity is to stop."""


# --- mistakes in a program --------------------------------------------------------------------


class UsageError(PerdureError):
    """Base of errors that only a change of the program can mend."""


class ConversionError(UsageError):
    """A value does not convert to or from the type that was declared for it. Nothing was sent.

    Attributes:
        function: name of the activity, workflow or handler, or "".
        argument: name of the argument; "return" for a result; or "".
    """

    def __init__(self, message: str, *, function: str = "", argument: str = "") -> None:
        super().__init__(message)
        self.function = function
        self.argument = argument


class NonDeterminismError(UsageError):
    """Workflow code did what cannot be replayed, or what does not match its recorded history."""


class NotInWorkflowError(UsageError):
    """A function of the `workflow` namespace was called outside of workflow code."""

    def __init__(self, message: str = "Not in a workflow") -> None:
        super().__init__(message)


class NotInActivityError(UsageError):
    """A function of the `activity` namespace was called outside of a running activity."""

    def __init__(self, message: str = "Not in an activity") -> None:
        super().__init__(message)


class UnknownTypeError(UsageError):
    """No workflow or activity of that name is registered with this worker."""

    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        listing = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"{kind} {name!r} is not registered with this worker; registered are: {listing}"
        )
        self.name = name


# --- control flow -----------------------------------------------------------------------------


class ContinueAsNew(BaseException):
    """Ends this run and starts the next one: raised by `workflow.continue_as_new`.

    It is no `Exception`, so that ``except Exception`` in workflow code lets it pass.

    Attributes:
        workflow: the next run's workflow object or type name; None for the same.
        args: its arguments.
        options: the other keyword arguments of `workflow.continue_as_new`.
    """

    def __init__(
        self,
        workflow: Any = None,
        args: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__("The workflow continues as a new run")
        self.workflow = workflow
        self.arguments: Sequence[Any] = args
        self.options: Mapping[str, Any] = options or {}


class CompleteAsync(BaseException):
    """Ends an activity's function but not the activity: raised by `activity.raise_complete_async`.

    It is no `Exception`, so that ``except Exception`` in activity code lets it pass.
    """


def _with_cause(error: FailureError, name: str) -> str:
    """One line that names what failed and why, since the message alone says only 'failed'."""
    head = f"{error.message} ({name})" if name else error.message
    return f"{head}: {error.__cause__}" if error.__cause__ is not None else head
