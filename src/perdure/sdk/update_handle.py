"""The handle of one update: waiting for its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage
from temporalio.api.update.v1 import Outcome
from temporalio.api.workflowservice.v1 import PollWorkflowExecutionUpdateRequest

from perdure.sdk import errors
from perdure.sdk.failures import error_from
from perdure.sdk.outbound import execution, not_found

if TYPE_CHECKING:
    from perdure.sdk.client import Client

__all__ = ["UpdateHandle"]

R_co = TypeVar("R_co", covariant=True)

_STAGE = UpdateWorkflowExecutionLifecycleStage


class UpdateHandle(Generic[R_co]):
    """One update of one workflow.

    Attributes:
        id: the update's id.
        workflow_id, run_id: whom it was sent to.
    """

    def __init__(
        self,
        client: Client,
        id: str,
        *,
        workflow_id: str,
        run_id: str | None,
        outcome: Outcome | None = None,
        result_type: Any = Any,
    ) -> None:
        self._client = client
        self.id = id
        self.workflow_id = workflow_id
        self.run_id = run_id
        self._outcome = outcome
        self._result_type = result_type

    async def wait(self) -> None:
        """Wait until the update is over, with whatever outcome."""
        request = PollWorkflowExecutionUpdateRequest(
            namespace=self._client.namespace, identity=self._client.identity
        )
        reference = request.update_ref
        reference.workflow_execution.CopyFrom(execution(self.workflow_id, self.run_id or ""))
        reference.update_id = self.id
        request.wait_policy.lifecycle_stage = (
            _STAGE.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
        )
        while self._outcome is None:
            with not_found(self.workflow_id):
                response = await self._client.long_poll("poll_workflow_execution_update", request)
            if response is not None and response.HasField("outcome"):
                self._outcome = response.outcome

    async def result(self) -> R_co:
        """Wait until the update is over and return its result.

        Raises:
            UpdateFailedError: it was rejected, or its handler failed; see `cause`.
            WorkflowNotFoundError: there is no such update.
        """
        await self.wait()
        outcome = self._outcome
        assert outcome is not None
        converter = self._client.converter
        if outcome.HasField("failure"):
            cause = error_from(outcome.failure, converter)
            raise errors.UpdateFailedError(f"Update {self.id} failed") from cause
        value: R_co = converter.result(outcome.success, self._result_type)
        return value
