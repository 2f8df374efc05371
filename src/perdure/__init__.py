"""perdure: durable execution in Python.

Write ordinary functions; they run to completion through crashes.

    from perdure import activity, workflow

    @activity
    async def charge(card: str, cents: int) -> str: ...

    @workflow
    async def checkout(order: Order) -> str:
        return await charge(order.card, order.cents)

    async with perdure.connect("sqlite:///orders.db") as client, client.worker():
        receipt = await client.execute(checkout, order, id="order-42")
"""

from perdure.connect import connect, execute
from perdure.sdk.activity import Activity, ActivityInfo, CancellationReason, activity
from perdure.sdk.async_activity import AsyncActivityHandle
from perdure.sdk.client import Client
from perdure.sdk.codecs import ChainedCodec, FileStorageCodec, PayloadCodec, ZlibCodec
from perdure.sdk.converter import Converter, RawValue
from perdure.sdk.errors import (
    ActivityCancelledError,
    ActivityError,
    ActivityNotFoundError,
    ApplicationError,
    CancelledFailure,
    ChildWorkflowError,
    ClientError,
    CompleteAsync,
    ContinueAsNew,
    ConversionError,
    ErrorCategory,
    FailureError,
    NexusOperationError,
    NonDeterminismError,
    NotInActivityError,
    NotInWorkflowError,
    PerdureError,
    QueryFailedError,
    QueryRejectedError,
    RetryState,
    RPCError,
    ServerError,
    TerminatedError,
    TimeoutError,
    TimeoutType,
    UnknownTypeError,
    UpdateFailedError,
    UsageError,
    WorkflowAlreadyStartedError,
    WorkflowContinuedAsNewError,
    WorkflowFailedError,
    WorkflowNotFoundError,
)
from perdure.sdk.handle import UpdateHandle, WorkflowHandle
from perdure.sdk.interceptors import ActivityInterceptor, ClientInterceptor, WorkflowInterceptor
from perdure.sdk.options import (
    ActivityCancellationType,
    ActivityOptions,
    ChildWorkflowCancellationType,
    ParentClosePolicy,
    Priority,
    QueryRejectCondition,
    ResetReapply,
    RetryPolicy,
    UpdateWaitStage,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
    WorkflowStatus,
)
from perdure.sdk.records import (
    WorkflowCount,
    WorkflowDescription,
    WorkflowExecution,
    WorkflowHistory,
)
from perdure.sdk.remote import RemoteService, TLSConfig
from perdure.sdk.search_attributes import (
    SearchAttributeKey,
    SearchAttributes,
    SearchAttributeType,
)
from perdure.sdk.starting import StartOptions
from perdure.sdk.worker import Worker
from perdure.sdk.workflow import ChildHandle, ChildOptions, WorkflowInfo, workflow

__all__ = [
    "Activity",
    "ActivityCancellationType",
    "ActivityCancelledError",
    "ActivityError",
    "ActivityInfo",
    "ActivityInterceptor",
    "ActivityNotFoundError",
    "ActivityOptions",
    "ApplicationError",
    "AsyncActivityHandle",
    "CancellationReason",
    "CancelledFailure",
    "ChainedCodec",
    "ChildHandle",
    "ChildOptions",
    "ChildWorkflowCancellationType",
    "ChildWorkflowError",
    "Client",
    "ClientError",
    "ClientInterceptor",
    "CompleteAsync",
    "ContinueAsNew",
    "ConversionError",
    "Converter",
    "ErrorCategory",
    "FailureError",
    "FileStorageCodec",
    "NexusOperationError",
    "NonDeterminismError",
    "NotInActivityError",
    "NotInWorkflowError",
    "ParentClosePolicy",
    "PayloadCodec",
    "PerdureError",
    "Priority",
    "QueryFailedError",
    "QueryRejectCondition",
    "QueryRejectedError",
    "RPCError",
    "RawValue",
    "RemoteService",
    "ResetReapply",
    "RetryPolicy",
    "RetryState",
    "SearchAttributeKey",
    "SearchAttributeType",
    "SearchAttributes",
    "ServerError",
    "StartOptions",
    "TLSConfig",
    "TerminatedError",
    "TimeoutError",
    "TimeoutType",
    "UnknownTypeError",
    "UpdateFailedError",
    "UpdateHandle",
    "UpdateWaitStage",
    "UsageError",
    "Worker",
    "WorkflowAlreadyStartedError",
    "WorkflowContinuedAsNewError",
    "WorkflowCount",
    "WorkflowDescription",
    "WorkflowExecution",
    "WorkflowFailedError",
    "WorkflowHandle",
    "WorkflowHistory",
    "WorkflowIDConflictPolicy",
    "WorkflowIDReusePolicy",
    "WorkflowInfo",
    "WorkflowInterceptor",
    "WorkflowNotFoundError",
    "WorkflowStatus",
    "ZlibCodec",
    "activity",
    "connect",
    "execute",
    "workflow",
]
