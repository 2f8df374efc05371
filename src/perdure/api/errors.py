"""What an RPC may raise, in process and over the wire alike.

    RPCError
    ├── InvalidArgument
    ├── NotFound
    │   └── NamespaceNotFound
    ├── AlreadyExists
    │   ├── WorkflowAlreadyStarted
    │   ├── NamespaceAlreadyExists
    │   └── CancellationAlreadyRequested
    ├── FailedPrecondition
    │   └── WorkflowNotReady
    ├── PermissionDenied
    ├── ResourceExhausted
    ├── QueryFailed
    ├── Cancelled
    ├── DeadlineExceeded
    ├── Aborted
    ├── Unimplemented
    ├── Unavailable
    ├── DataLoss
    └── Internal

Each carries the gRPC status code, a message for people, and the typed details that Temporal's SDKs
look for. A transport turns them into a status with ``google.rpc.Status`` details and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

from google.protobuf.message import Message
from temporalio.api.enums.v1 import ResourceExhaustedCause, ResourceExhaustedScope
from temporalio.api.errordetails.v1 import (
    CancellationAlreadyRequestedFailure,
    NamespaceAlreadyExistsFailure,
    NamespaceNotFoundFailure,
    NotFoundFailure,
    PermissionDeniedFailure,
    QueryFailedFailure,
    ResourceExhaustedFailure,
    WorkflowExecutionAlreadyStartedFailure,
    WorkflowNotReadyFailure,
)


class StatusCode(IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_CONCURRENT = ResourceExhaustedFailure(
    cause=ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_CONCURRENT_LIMIT,
    scope=ResourceExhaustedScope.RESOURCE_EXHAUSTED_SCOPE_NAMESPACE,
)


class RPCError(Exception):
    """A request was answered with an error.

    Attributes:
        code: the gRPC status code.
        message: one sentence that names the thing and the remedy.
        details: typed messages of ``temporal.api.errordetails.v1``.
    """

    code: StatusCode = StatusCode.UNKNOWN

    def __init__(self, message: str, details: Sequence[Message] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)

    by_code: ClassVar[dict[StatusCode, type[RPCError]]] = {}

    @classmethod
    def of(cls, code: int, message: str, details: Sequence[Message] = ()) -> RPCError:
        """The most exact error for a status and details that came over a wire."""
        for detail in details:
            exact = _BY_DETAIL.get(type(detail))
            if exact is not None:
                error = exact.__new__(exact)
                RPCError.__init__(error, message, details)
                return error
        known = cls.by_code.get(StatusCode(code))
        if known is not None:
            return known(message, details)
        error = RPCError(message, details)
        error.code = StatusCode(code)
        return error


class InvalidArgument(RPCError):
    """The request itself is wrong: the message names the field. Nothing was stored."""

    code = StatusCode.INVALID_ARGUMENT


class NotFound(RPCError):
    """The workflow, run, activity, task or update that is named does not exist (any more)."""

    code = StatusCode.NOT_FOUND

    def __init__(self, message: str, details: Sequence[Message] = (NotFoundFailure(),)) -> None:
        super().__init__(message, details)


class NamespaceNotFound(NotFound):
    """No namespace of that name."""

    def __init__(self, namespace: str) -> None:
        super().__init__(
            f"Namespace {namespace} is not found.", [NamespaceNotFoundFailure(namespace=namespace)]
        )


class AlreadyExists(RPCError):
    """What the request wants to create is there already."""

    code = StatusCode.ALREADY_EXISTS


class WorkflowAlreadyStarted(AlreadyExists):
    """The id reuse or id conflict policy forbids another run of this workflow id."""

    def __init__(
        self, message: str, start_request_id: str, run_id: str, first_run_id: str = ""
    ) -> None:
        detail = WorkflowExecutionAlreadyStartedFailure(
            start_request_id=start_request_id, run_id=run_id, first_execution_run_id=first_run_id
        )
        super().__init__(message, [detail])

    @property
    def run_id(self) -> str:
        """The run that stands in the way."""
        for detail in self.details:
            if isinstance(detail, WorkflowExecutionAlreadyStartedFailure):
                return detail.run_id
        return ""


class NamespaceAlreadyExists(AlreadyExists):
    """A namespace of that name was registered before."""

    def __init__(self, message: str) -> None:
        super().__init__(message, [NamespaceAlreadyExistsFailure()])


class CancellationAlreadyRequested(AlreadyExists):
    """The run was asked to cancel before."""

    def __init__(self, message: str) -> None:
        super().__init__(message, [CancellationAlreadyRequestedFailure()])


class FailedPrecondition(RPCError):
    """The thing exists but is in a state that does not allow the request."""

    code = StatusCode.FAILED_PRECONDITION


class WorkflowNotReady(FailedPrecondition):
    """The run has not yet done what the request needs (e.g. its first workflow task)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, [WorkflowNotReadyFailure()])


class PermissionDenied(RPCError):
    """The caller may not do this."""

    code = StatusCode.PERMISSION_DENIED

    def __init__(
        self, message: str, details: Sequence[Message] = (PermissionDeniedFailure(),)
    ) -> None:
        super().__init__(message, details)


class ResourceExhausted(RPCError):
    """A limit was met: try later, or raise the limit that the message names."""

    code = StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, details: Sequence[Message] = (_CONCURRENT,)) -> None:
        super().__init__(message, details)


class QueryFailed(RPCError):
    """The workflow's query handler failed."""

    code = StatusCode.INVALID_ARGUMENT

    def __init__(self, message: str, failure: Message | None = None) -> None:
        detail = QueryFailedFailure()
        if failure is not None:
            detail.failure.MergeFrom(failure)  # type: ignore[arg-type]
        super().__init__(message, [detail])


class Cancelled(RPCError):
    """The caller gave the call up."""

    code = StatusCode.CANCELLED


class DeadlineExceeded(RPCError):
    """The call's time ran out before an answer was there."""

    code = StatusCode.DEADLINE_EXCEEDED


class Aborted(RPCError):
    """The call met another one and may be tried again."""

    code = StatusCode.ABORTED


class Unimplemented(RPCError):
    """perdure does not offer this RPC."""

    code = StatusCode.UNIMPLEMENTED


class Unavailable(RPCError):
    """The node or its database cannot serve now. The request may or may not be done: retry."""

    code = StatusCode.UNAVAILABLE


class DataLoss(RPCError):
    """Stored data cannot be read."""

    code = StatusCode.DATA_LOSS


class Internal(RPCError):
    """A defect in perdure."""

    code = StatusCode.INTERNAL


RPCError.by_code = {
    kind.code: kind
    for kind in (
        InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, PermissionDenied,
        ResourceExhausted, Cancelled, DeadlineExceeded, Aborted, Unimplemented, Unavailable,
        DataLoss, Internal,
    )
}  # fmt: skip

_BY_DETAIL: dict[type[Message], type[RPCError]] = {
    NamespaceNotFoundFailure: NamespaceNotFound,
    WorkflowExecutionAlreadyStartedFailure: WorkflowAlreadyStarted,
    NamespaceAlreadyExistsFailure: NamespaceAlreadyExists,
    CancellationAlreadyRequestedFailure: CancellationAlreadyRequested,
    WorkflowNotReadyFailure: WorkflowNotReady,
    QueryFailedFailure: QueryFailed,
}
