"""Update-with-start: a run is started, if it is not there, and updated, by one call."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from google.protobuf.any_pb2 import Any as AnyMessage
from temporalio.api.errordetails.v1 import MultiOperationExecutionFailure
from temporalio.api.failure.v1 import MultiOperationExecutionAborted
from temporalio.api.update.v1 import Outcome as UpdateOutcome
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    ExecuteMultiOperationResponse,
    StartWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure.api.caller import until
from perdure.api.errors import InvalidArgument, NotFound, RPCError, StatusCode
from perdure.engine import updates as engine_updates
from perdure.service import updates
from perdure.service.companion import PendingUpdate, Unblocked
from perdure.service.entries import Entry
from perdure.service.settings import Settings
from perdure.service.starting import Outcome, start_response
from perdure.service.updates import Reached, UpdateRPCs


class MultiOperationRPCs(UpdateRPCs):
    """ExecuteMultiOperation, as a part of the service."""

    async def execute_multi_operation(
        self, request: ExecuteMultiOperationRequest
    ) -> ExecuteMultiOperationResponse:
        """Start a run and update it: the update reaches the run with its first workflow task.

        When the run is there already, its conflict policy says whether it may be used.

        Raises:
            InvalidArgument: not one start followed by one update, or either is wrong.
            RPCError: the error of the operation that failed, with the status of both as a
                MultiOperationExecutionFailure detail.
        """
        self.node.namespaces.get(request.namespace)
        start, update = _operations(request)
        _check_start(start)
        _check_update(start, update, self.node.settings)
        update.request.CopyFrom(updates.with_id(update.request))
        if not start.request_id:  # it may be asked twice
            start.request_id = self.node.new_id()
        answer = await self._elsewhere(request.namespace, start, update)
        if answer is not None:
            return answer
        pending: list[tuple[int, PendingUpdate]] = []
        try:
            outcome = await self.node.starting.start(
                start, prepare=partial(self._admit_first, update, pending)
            )
        except RPCError as error:
            self._withdraw(pending)
            raise _failure(error, position=0) from error
        except BaseException:
            self._withdraw(pending)
            raise
        try:
            updated = await self._answer(outcome, update, pending)
        except RPCError as error:
            raise _failure(error, position=1) from error
        made = ExecuteMultiOperationResponse()
        made.responses.add().start_workflow.CopyFrom(start_response(outcome, start))
        made.responses.add().update_workflow.CopyFrom(updated)
        return made

    async def _elsewhere(
        self,
        namespace: str,
        start: StartWorkflowExecutionRequest,
        update: UpdateWorkflowExecutionRequest,
    ) -> ExecuteMultiOperationResponse | None:
        """The answer of the node where workers of the start's task queue poll."""
        node = self.node
        if node.neighbours is None:
            return None
        request = ExecuteMultiOperationRequest(namespace=namespace)
        request.operations.add().start_workflow.CopyFrom(start)
        request.operations.add().update_workflow.CopyFrom(update)
        deadline_ns = until(node.clock.now_ns(), node.settings.history_poll_ns)
        answer: ExecuteMultiOperationResponse | None = await node.neighbours.ask_queues(
            namespace, [start.task_queue.name], "execute_multi_operation", request,
            deadline_ns,
        )  # fmt: skip
        return answer

    def _admit_first(
        self,
        request: UpdateWorkflowExecutionRequest,
        pending: list[tuple[int, PendingUpdate]],
        entry: Entry,
    ) -> None:
        """Let the update wait for a new run's first task; again, when the start is redone."""
        self._withdraw(pending)
        update = request.request
        companion = self.node.companions.of(entry.run.key)
        made = companion.add_update(update.meta.update_id, update.SerializeToString())
        pending.append((entry.run.key, made))

    def _withdraw(self, pending: list[tuple[int, PendingUpdate]]) -> None:
        """Forget an update whose start was lost."""
        for key, update in pending:
            self.node.companions.of(key).drop_update(update, Unblocked())
        pending.clear()

    async def _answer(
        self,
        outcome: Outcome,
        request: UpdateWorkflowExecutionRequest,
        pending: list[tuple[int, PendingUpdate]],
    ) -> UpdateWorkflowExecutionResponse:
        if not pending:  # the run was there
            await self._address(outcome, request)
            return await self.update_workflow_execution(request)
        [(key, update)] = pending
        deadline_ns = until(self.node.clock.now_ns(), self.node.settings.history_poll_ns)
        wanted = request.wait_policy.lifecycle_stage
        try:
            reached = await self._wait(key, outcome.run_id, update, wanted, deadline_ns)
        except Unblocked:
            await self._check_follower(key, request.request.meta.update_id, pinned=False)
            return await self.update_workflow_execution(request)
        return _response(request, reached)

    async def _address(self, outcome: Outcome, request: UpdateWorkflowExecutionRequest) -> None:
        """Asked again, the update is the one of the run that was started, though others follow."""
        if not outcome.started:
            return
        look_up = partial(_find, request.request.meta.update_id)
        with suppress(NotFound):  # that run was deleted
            if await self.node.executions.view(outcome.key, look_up) is not None:
                request.workflow_execution.run_id = outcome.run_id


def _find(update_id: str, entry: Entry) -> engine_updates.Found | None:
    return engine_updates.find(entry.run, update_id)


def _response(
    request: UpdateWorkflowExecutionRequest, reached: Reached
) -> UpdateWorkflowExecutionResponse:
    made = UpdateWorkflowExecutionResponse()
    made.update_ref.update_id = request.request.meta.update_id
    made.update_ref.workflow_execution.workflow_id = request.workflow_execution.workflow_id
    made.update_ref.workflow_execution.run_id = reached.run_id
    made.stage = reached.stage  # type: ignore[assignment]
    if reached.stage == engine_updates.COMPLETED:
        made.outcome.CopyFrom(UpdateOutcome.FromString(reached.outcome))
    return made


def _operations(
    request: ExecuteMultiOperationRequest,
) -> tuple[StartWorkflowExecutionRequest, UpdateWorkflowExecutionRequest]:
    """Copies of the start and the update that a request holds."""
    kinds = [operation.WhichOneof("operation") for operation in request.operations]
    if kinds != ["start_workflow", "update_workflow"]:
        raise InvalidArgument("Operations have to be exactly [Start, Update].")
    start, update = StartWorkflowExecutionRequest(), UpdateWorkflowExecutionRequest()
    start.CopyFrom(request.operations[0].start_workflow)
    update.CopyFrom(request.operations[1].update_workflow)
    for part in (start, update):
        if part.namespace and part.namespace != request.namespace:
            raise InvalidArgument("Namespace is not the same in the request and its operations.")
        part.namespace = request.namespace
    return start, update


def _check_start(start: StartWorkflowExecutionRequest) -> None:
    wrong = ""
    if start.cron_schedule:
        wrong = "CronSchedule is not allowed."
    elif start.request_eager_execution:
        wrong = "RequestEagerExecution is not supported."
    elif start.HasField("workflow_start_delay"):
        wrong = "WorkflowStartDelay is not supported."
    if wrong:
        raise _failure(InvalidArgument(wrong), position=0)


def _check_update(
    start: StartWorkflowExecutionRequest, update: UpdateWorkflowExecutionRequest, settings: Settings
) -> None:
    try:
        if update.workflow_execution.workflow_id != start.workflow_id:
            raise InvalidArgument("WorkflowId is not consistent with previous operation(s).")
        if update.workflow_execution.run_id:
            raise InvalidArgument("RunId is not allowed.")
        if update.first_execution_run_id:
            raise InvalidArgument("FirstExecutionRunId is not allowed.")
        updates.check(update, settings)
    except RPCError as error:
        raise _failure(error, position=1) from error


def _failure(error: RPCError, *, position: int) -> RPCError:
    """The error of one operation as the error of the whole."""
    detail = MultiOperationExecutionFailure()
    for number in range(2):
        status = detail.statuses.add()
        inner = AnyMessage()
        if number == position:
            status.code = int(error.code)
            status.message = error.message
            for typed in error.details:
                inner.Pack(typed)
                status.details.append(inner)
        else:
            status.code = int(StatusCode.ABORTED)
            status.message = "Operation was aborted."
            inner.Pack(MultiOperationExecutionAborted())
            status.details.append(inner)
    return RPCError.of(error.code, "Update-with-Start could not be executed.", [detail])
