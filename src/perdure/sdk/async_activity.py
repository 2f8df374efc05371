"""Completing an activity from outside of its worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from temporalio.api.workflowservice.v1 import (
    RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatRequest,
    RespondActivityTaskCanceledByIdRequest,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedRequest,
)

from perdure.api import errors as rpc
from perdure.sdk import errors
from perdure.sdk.failures import fill_attempt_failure

if TYPE_CHECKING:
    from perdure.sdk.client import Client

__all__ = ["AsyncActivityHandle"]


class AsyncActivityHandle:
    """An activity that is completed by somebody else than its worker.

    Made by `Client.activity_handle`. Every method raises `ActivityNotFoundError` if the activity
    is not running: completed before, timed out, or its workflow is closed.
    """

    def __init__(
        self,
        client: Client,
        *,
        task_token: bytes | None,
        workflow_id: str | None,
        run_id: str | None,
        activity_id: str | None,
    ) -> None:
        by_id = workflow_id is not None and activity_id is not None
        if (task_token is not None) == by_id:
            raise ValueError(
                "task_token: give it, or workflow_id and activity_id, but not both and not neither"
            )
        self._client = client
        self._token = task_token
        self._ids = {
            "workflow_id": workflow_id or "",
            "run_id": run_id or "",
            "activity_id": activity_id or "",
        }

    async def complete(self, result: Any = None) -> None:
        """The activity has this result."""
        request = self._request(
            RespondActivityTaskCompletedRequest, RespondActivityTaskCompletedByIdRequest
        )
        self._client.converter.fill(request.result, [result])
        await self._send("respond_activity_task_completed", request)

    async def fail(self, error: BaseException, *last_heartbeat_details: Any) -> None:
        """This attempt failed; the retry policy says what comes next."""
        request = self._request(
            RespondActivityTaskFailedRequest, RespondActivityTaskFailedByIdRequest
        )
        fill_attempt_failure(request.failure, error, self._client.converter)
        if last_heartbeat_details:
            self._client.converter.fill(request.last_heartbeat_details, last_heartbeat_details)
        await self._send("respond_activity_task_failed", request)

    async def heartbeat(self, *details: Any) -> None:
        """The activity is alive.

        Raises:
            ActivityCancelledError: it is to stop: call `report_cancelled` when it has.
        """
        request = self._request(
            RecordActivityTaskHeartbeatRequest, RecordActivityTaskHeartbeatByIdRequest
        )
        if details:
            self._client.converter.fill(request.details, details)
        response = await self._send("record_activity_task_heartbeat", request)
        if response.cancel_requested:
            raise errors.ActivityCancelledError("The activity's cancellation was requested")
        if response.activity_paused or response.activity_reset:
            state = "paused" if response.activity_paused else "reset"
            raise errors.ActivityCancelledError(f"The activity was {state}")

    async def report_cancelled(self, *details: Any) -> None:
        """The activity has stopped because it was cancelled."""
        request = self._request(
            RespondActivityTaskCanceledRequest, RespondActivityTaskCanceledByIdRequest
        )
        if details:
            self._client.converter.fill(request.details, details)
        await self._send("respond_activity_task_canceled", request)

    def _request(self, by_token: type[Any], by_id: type[Any]) -> Any:
        client = self._client
        common = {"namespace": client.namespace, "identity": client.identity}
        if self._token is not None:
            return by_token(task_token=self._token, **common)
        return by_id(**self._ids, **common)

    async def _send(self, method: str, request: Any) -> Any:
        with self._found():
            suffix = "" if self._token is not None else "_by_id"
            return await self._client.calls(f"{method}{suffix}", request)

    @contextmanager
    def _found(self) -> Iterator[None]:
        try:
            yield
        except rpc.NamespaceNotFound:
            raise
        except rpc.NotFound as error:
            raise errors.ActivityNotFoundError(error.message) from error
