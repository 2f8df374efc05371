"""What a worker tells the service about an attempt that has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedRequest,
)

from perdure.api import errors as rpc
from perdure.sdk.activity_context import CancellationReason
from perdure.sdk.calls import TRANSIENT
from perdure.sdk.codecs import codec_error
from perdure.sdk.converter import Converter
from perdure.sdk.errors import ApplicationError, CompleteAsync, ErrorCategory, UnknownTypeError
from perdure.sdk.failures import fill_attempt_failure
from perdure.sdk.running import RunningActivity

if TYPE_CHECKING:
    from perdure.sdk.client import Client

__all__ = ["Answers", "shutdown_error"]

_log = logging.getLogger("perdure.activity")

_SHUTDOWN_TYPE: Final = "WorkerShutdown"

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0


class Answers:
    """Reports results, failures and cancellations in the name of one worker."""

    def __init__(self, client: Client, identity: str) -> None:
        self._client = client
        self._identity = identity

    async def answer(
        self,
        attempt: RunningActivity,
        completed: RespondActivityTaskCompletedRequest | None,
        error: BaseException | None,
    ) -> None:
        """Tell the service how an attempt ended, as soon as it can be told.

        Nobody else knows: were the answer dropped because the service cannot take it now (its disk
        is full, say), the activity would be done again, after its whole time limit.
        """
        pause_s = _FIRST_PAUSE_S
        while not await self._told(attempt, completed, error):
            if attempt.is_worker_shutting_down:
                _log.error("The result of %s is lost", attempt.definition.name)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _told(
        self,
        attempt: RunningActivity,
        completed: RespondActivityTaskCompletedRequest | None,
        error: BaseException | None,
    ) -> bool:
        """Try to tell; False if it should be tried again."""
        try:
            if error is None:
                assert completed is not None
                request = completed
                if self._client.converter.codec is not None:  # it rewrites what it is given
                    request = RespondActivityTaskCompletedRequest()
                    request.CopyFrom(completed)
                await self._client.calls("respond_activity_task_completed", request)
            elif isinstance(error, CompleteAsync):
                pass
            elif isinstance(error, asyncio.CancelledError):
                await self._stopped(attempt, error)
            else:
                await self.fail(attempt.task, error, attempt)
        except rpc.NotFound as problem:
            _log.debug("%s is not wanted any more: %s", attempt.definition.name, problem)
        except rpc.InvalidArgument as problem:  # too large, say: fail it, so that somebody sees why
            await self._fail_oversized(attempt, problem)
        except TRANSIENT as problem:
            _log.warning("The result of %s has to wait: %s", attempt.definition.name, problem)
            return False
        except rpc.RPCError as problem:
            _log.error("The result of %s is lost: %s", attempt.definition.name, problem)
        except Exception as problem:
            await self._fail_unencoded(attempt, problem)
        return True

    async def _stopped(self, attempt: RunningActivity, error: asyncio.CancelledError) -> None:
        """The function ended by a cancellation: what to answer depends on who wanted it."""
        reason = attempt.reason
        if reason is CancellationReason.CANCEL_REQUESTED:
            request = RespondActivityTaskCanceledRequest(
                task_token=attempt.task.task_token,
                namespace=self._client.namespace,
                identity=self._identity,
            )
            if attempt.latest is not None:
                request.details.CopyFrom(attempt.latest)
            await self._client.calls("respond_activity_task_canceled", request)
        elif reason is None:
            text = str(error) or "a cancellation that nobody asked for"
            await self.fail(attempt.task, ApplicationError(text, type="CancelledError"), attempt)
        elif reason is CancellationReason.WORKER_SHUTDOWN:
            await self.fail(attempt.task, shutdown_error(), attempt)
        elif reason in (CancellationReason.PAUSED, CancellationReason.RESET):
            kind = f"Activity{reason.name.capitalize()}"
            await self.fail(attempt.task, ApplicationError(reason.value, type=kind), attempt)

    async def fail(
        self,
        task: PollActivityTaskQueueResponse,
        error: BaseException,
        attempt: RunningActivity | None,
    ) -> None:
        if attempt is not None:
            _log_failure(attempt, error)
        request = RespondActivityTaskFailedRequest(
            task_token=task.task_token,
            namespace=self._client.namespace,
            identity=self._identity,
        )
        fill_attempt_failure(request.failure, error, self._client.converter)
        if attempt is not None and attempt.latest is not None:
            request.last_heartbeat_details.CopyFrom(attempt.latest)
        await self._client.calls("respond_activity_task_failed", request)

    async def _fail_oversized(self, attempt: RunningActivity, problem: rpc.RPCError) -> None:
        error = ApplicationError(
            f"The answer of {attempt.definition.name} was refused: {problem.message}",
            type="AnswerRefused",
            non_retryable=True,
        )
        try:
            await self.fail(attempt.task, error, None)
        except rpc.RPCError as again:
            _log.error("The result of %s is lost: %s", attempt.definition.name, again)

    async def _fail_unencoded(self, attempt: RunningActivity, problem: Exception) -> None:
        """The codec failed, so there is no way to send what would be to tell."""
        name = attempt.definition.name
        _log.error("The codec failed for the answer of %s", name, exc_info=problem)
        request = RespondActivityTaskFailedRequest(
            task_token=attempt.task.task_token,
            namespace=self._client.namespace,
            identity=self._identity,
        )
        fill_attempt_failure(request.failure, codec_error(problem), Converter())
        try:
            await self._client.service.respond_activity_task_failed(request)
        except rpc.RPCError as again:
            _log.error("The result of %s is lost: %s", name, again)

    async def refuse(self, task: PollActivityTaskQueueResponse, known: Sequence[str]) -> None:
        error = UnknownTypeError("activity", task.activity_type.name, known)
        _log.warning("%s", error)
        try:
            await self.fail(task, error, None)
        except rpc.RPCError as problem:
            _log.warning("Could not refuse activity %s: %s", task.activity_type.name, problem)


def shutdown_error() -> ApplicationError:
    """What an attempt fails with that did not end in time: to be retried elsewhere at once."""
    return ApplicationError(
        "The worker was shut down while the activity ran",
        type=_SHUTDOWN_TYPE,
        next_retry_delay=timedelta(milliseconds=1),
        category=ErrorCategory.BENIGN,
    )


def _log_failure(attempt: RunningActivity, error: BaseException) -> None:
    benign = isinstance(error, ApplicationError) and error.category is ErrorCategory.BENIGN
    level = logging.DEBUG if benign else logging.WARNING
    if _log.isEnabledFor(level):
        _log.log(
            level,
            "Attempt %d of activity %s (workflow %s) failed: %s: %s",
            attempt.task.attempt,
            attempt.definition.name,
            attempt.task.workflow_execution.workflow_id,
            type(error).__name__,
            error,
        )
