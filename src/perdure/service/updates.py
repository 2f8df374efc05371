"""Updates: a caller changes a run's state through its workflow code and learns the outcome.

A request waits in memory (see ``companion``) until a worker accepts or rejects it with a completed
workflow task; only then does history know of it. If the process dies before that, the caller's call
fails and is made again, under the same update id. A rejected update leaves no trace at all.
"""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.update.v1 import Outcome, Request, UpdateRef
from temporalio.api.workflowservice.v1 import (
    PollWorkflowExecutionUpdateRequest,
    PollWorkflowExecutionUpdateResponse,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure.api.caller import until
from perdure.api.errors import InvalidArgument, NotFound, PermissionDenied
from perdure.engine import updates as engine_updates
from perdure.engine import workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.transition import Transition
from perdure.engine.updates import ACCEPTED, ADMITTED, COMPLETED, Found
from perdure.service import validation, waiting
from perdure.service.companion import PendingUpdate, RunCompanion, Unblocked
from perdure.service.settings import Settings
from perdure.store.sharing import Awaited

if TYPE_CHECKING:
    from perdure.service.entries import Entry
    from perdure.service.node import Node

UNSPECIFIED = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_UNSPECIFIED


class Reached(NamedTuple):
    """How far an update of a run is; `outcome` is a serialised Outcome once it is completed."""

    run_id: str
    stage: int
    outcome: bytes = b""


# -- the request -----------------------------------------------------------------------------------


def check(request: UpdateWorkflowExecutionRequest, settings: Settings) -> None:
    """Raises InvalidArgument, or PermissionDenied for a stage that nobody can wait for."""
    if not request.HasField("workflow_execution"):
        raise InvalidArgument("Execution is not set on request.")
    if not request.request.HasField("meta"):
        raise InvalidArgument("Update meta is not set on request.")
    if len(request.request.meta.update_id.encode()) > settings.id_bytes_max:
        raise InvalidArgument("UpdateId length exceeds limit.")
    if not request.request.HasField("input"):
        raise InvalidArgument("Update input is not set on request.")
    if not request.request.input.name:
        raise InvalidArgument("Update name is not set on request.")
    validation.payload(request.request.input, "update input", settings)
    if request.wait_policy.lifecycle_stage == ADMITTED:
        raise PermissionDenied(
            "UpdateWorkflowExecution issued asynchronously and waiting on update admitted "
            "is not supported."
        )


def with_id(request: Request) -> Request:
    """The request with an update id: its own, or a fresh one."""
    made = Request()
    made.CopyFrom(request)
    made.meta.update_id = made.meta.update_id or str(uuid.uuid4())
    return made


def is_enough(stage: int, wanted: int) -> bool:
    """Whether a caller that waits for `wanted` is content with `stage`."""
    return stage >= (wanted or ACCEPTED)


# -- the answer ------------------------------------------------------------------------------------


def _outcome(reached: Reached) -> Outcome | None:
    return Outcome.FromString(reached.outcome) if reached.stage == COMPLETED else None


def _ref(workflow_id: str, run_id: str, update_id: str) -> UpdateRef:
    made = UpdateRef(update_id=update_id)
    made.workflow_execution.workflow_id = workflow_id
    made.workflow_execution.run_id = run_id
    return made


# -- the run ---------------------------------------------------------------------------------------


def _look(update_id: str, entry: Entry) -> tuple[Execution, Found | None]:
    """The run, and what it knows of an update."""
    return entry.run, engine_updates.find(entry.run, update_id)


def _admit(
    companion: RunCompanion, pending: PendingUpdate, settings: Settings, tx: Transition
) -> None:
    """See to it that a worker hears of an update, if the run can take one more."""
    if pending.stage == ADMITTED:  # else it was accepted with a task that was there already
        engine_updates.check_admission(
            tx.run,
            len(companion.admitted.keys() - {pending.update_id}),
            in_flight_limit=settings.limits.updates_in_flight_max,
            total_limit=settings.limits.updates_max,
        )
    workflow_tasks.schedule_speculative(tx)


class UpdateRPCs:
    """The RPCs about updates, as a part of the service."""

    node: Node

    async def update_workflow_execution(
        self, request: UpdateWorkflowExecutionRequest
    ) -> UpdateWorkflowExecutionResponse:
        """Ask a run to change itself, and wait until it accepted or completed that.

        The same update id again meets the same update. After 20 s the answer says how far it is,
        without an outcome; ``poll_workflow_execution_update`` goes on waiting.

        Raises:
            InvalidArgument: the request lacks something or is too large.
            NotFound: no such run, or it closed before it accepted the update.
            ResourceExhausted, FailedPrecondition: a limit on updates of one run was met.
            Unavailable: the store failed.
        """
        node = self.node
        node.namespaces.get(request.namespace)
        check(request, node.settings)
        update = with_id(request.request)
        deadline_ns = until(node.clock.now_ns(), node.settings.history_poll_ns)
        wanted = request.wait_policy.lifecycle_stage
        execution = request.workflow_execution
        while True:
            key = await node.executions.resolve(
                request.namespace, execution.workflow_id, execution.run_id
            )
            try:
                reached = await self._update(key, request, update, wanted, deadline_ns)
                break
            except NotFound:
                found = await node.executions.resolve(
                    request.namespace, execution.workflow_id, execution.run_id
                )
                if found == key:
                    raise
                # else it closed meanwhile, and another run took its place
            except Unblocked:
                pinned = bool(execution.run_id)
                await self._check_follower(key, update.meta.update_id, pinned=pinned)
        answer = UpdateWorkflowExecutionResponse(
            update_ref=_ref(execution.workflow_id, reached.run_id, update.meta.update_id),
            stage=reached.stage,  # type: ignore[arg-type]
        )
        outcome = _outcome(reached)
        if outcome is not None:
            answer.outcome.CopyFrom(outcome)
        return answer

    async def _check_follower(self, key: int, update_id: str, *, pinned: bool) -> None:
        """A run closed under an update: go on only when it is done, as another node may have seen
        to, or when another run took its place."""

        def check_open(entry: Entry) -> None:
            found = engine_updates.find(entry.run, update_id)
            if found is not None and found.completed_event_id:
                return
            follower = bool(entry.run.state.successor_run_id or entry.run.state.reset_run_id)
            if not entry.run.is_open and (pinned or not follower):
                raise engine_updates.closing_error(continues=follower)

        await self.node.executions.view(key, check_open)

    async def _update(
        self,
        key: int,
        request: UpdateWorkflowExecutionRequest,
        update: Request,
        wanted: int,
        deadline_ns: int,
    ) -> Reached:
        """The update on one run: found, joined, or admitted. Unblocked when the run closed."""
        node, update_id = self.node, update.meta.update_id
        run, found = await node.executions.view(key, partial(_look, update_id))
        first_run_id = request.first_execution_run_id
        if first_run_id and first_run_id != run.info.first_run_id:
            raise NotFound("workflow execution not found")
        if found is not None:
            return await self._follow(key, run, update_id, found, wanted, deadline_ns)
        known = node.companions.known(key)
        if known is None or known.find_update(update_id) is None:
            reached = await self._update_elsewhere(run, request, update, deadline_ns)
            if reached is not None:
                return reached
        companion = node.companions.of(key)
        pending = companion.find_update(update_id)
        if pending is not None:
            return await self._wait(key, run.info.run_id, pending, wanted, deadline_ns)
        pending = companion.add_update(update_id, update.SerializeToString())
        try:
            await node.executions.transact(key, partial(_admit, companion, pending, node.settings))
        except BaseException as error:
            if isinstance(error, Exception) and pending.stage == ADMITTED:
                companion.drop_update(pending, Unblocked())
            raise
        return await self._wait(key, run.info.run_id, pending, wanted, deadline_ns)

    async def _update_elsewhere(
        self,
        run: Execution,
        request: UpdateWorkflowExecutionRequest,
        update: Request,
        deadline_ns: int,
    ) -> Reached | None:
        """How far it came on the node where the run's worker polls; None when it is for this one.

        Raises Unblocked when the run closed under it.
        """
        neighbours = self.node.neighbours
        if neighbours is None or not run.is_open:
            return None
        asked = UpdateWorkflowExecutionRequest()
        asked.CopyFrom(request)
        asked.request.CopyFrom(update)
        asked.workflow_execution.run_id = run.info.run_id
        try:
            answer = await neighbours.ask_worker(
                run, "update_workflow_execution", asked, deadline_ns
            )
        except NotFound:
            if await self.node.executions.view(run.key, lambda entry: entry.run.is_open):
                raise
            raise Unblocked from None  # the run closed, and may have a successor
        if answer is None:
            return None
        outcome = answer.outcome.SerializeToString() if answer.HasField("outcome") else b""
        return Reached(run.info.run_id, answer.stage, outcome)

    async def _follow(
        self,
        key: int,
        run: Execution,
        update_id: str,
        found: Found,
        wanted: int,
        deadline_ns: int,
    ) -> Reached:
        """An update that the run knows: answer at once, or wait for its next step."""
        if is_enough(found.stage, wanted):
            return Reached(run.info.run_id, found.stage, found.outcome)
        companion = self.node.companions.of(key)
        pending = companion.find_update(update_id)
        if pending is None:
            pending = companion.add_update(update_id, b"", found.stage)
        return await self._wait(key, run.info.run_id, pending, wanted, deadline_ns)

    async def _wait(
        self, key: int, run_id: str, pending: PendingUpdate, wanted: int, deadline_ns: int
    ) -> Reached:
        """Wait for a stage, or until the caller is told how far it is."""
        companion = self.node.companions.of(key)
        pending.callers += 1
        try:
            while not is_enough(pending.stage, wanted):
                future = companion.wait_update(pending)
                self.node.executions.watch_elsewhere(key, Awaited.ANY)
                try:
                    if not await waiting.happened(future, self.node.clock, deadline_ns):
                        break
                    future.result()
                finally:
                    future.cancel()
        finally:
            pending.callers -= 1
            companion.release()
        return Reached(run_id, pending.stage, pending.outcome)

    async def poll_workflow_execution_update(
        self, request: PollWorkflowExecutionUpdateRequest
    ) -> PollWorkflowExecutionUpdateResponse:
        """Wait for a stage of an update that was asked for before.

        Without a stage to wait for, the answer tells at once how far the update is.

        Raises:
            InvalidArgument: no update is named.
            NotFound: no such run, or it does not know the update.
        """
        node = self.node
        node.namespaces.get(request.namespace)
        if not request.HasField("update_ref"):
            raise InvalidArgument("UpdateRef is not set on request.")
        ref, update_id = request.update_ref.workflow_execution, request.update_ref.update_id
        deadline_ns = until(node.clock.now_ns(), node.settings.history_poll_ns)
        while True:
            key = await node.executions.resolve(request.namespace, ref.workflow_id, ref.run_id)
            try:
                reached = await self._poll(
                    key, update_id, request.wait_policy.lifecycle_stage, deadline_ns
                )
                break
            except Unblocked:
                await self._check_follower(key, update_id, pinned=True)
        answer = PollWorkflowExecutionUpdateResponse(
            update_ref=_ref(ref.workflow_id, reached.run_id, update_id),
            stage=reached.stage,  # type: ignore[arg-type]
        )
        outcome = _outcome(reached)
        if outcome is not None:
            answer.outcome.CopyFrom(outcome)
        return answer

    async def _poll(self, key: int, update_id: str, wanted: int, deadline_ns: int) -> Reached:
        run, found = await self.node.executions.view(key, partial(_look, update_id))
        known = self.node.companions.known(key)
        pending = known.find_update(update_id) if known is not None else None
        if found is None and pending is None:
            answer = await self._poll_elsewhere(run, update_id, wanted, deadline_ns)
            if answer is None:
                raise NotFound(f'update "{update_id}" not found')
            return answer
        if wanted == UNSPECIFIED:
            if found is not None:
                return Reached(run.info.run_id, found.stage, found.outcome)
            return Reached(run.info.run_id, ADMITTED)
        if found is not None:
            return await self._follow(key, run, update_id, found, wanted, deadline_ns)
        assert pending is not None
        return await self._wait(key, run.info.run_id, pending, wanted, deadline_ns)

    async def _poll_elsewhere(
        self, run: Execution, update_id: str, wanted: int, deadline_ns: int
    ) -> Reached | None:
        """The same on the node where the run's worker polls: it may have admitted the update."""
        neighbours = self.node.neighbours
        if neighbours is None or not run.is_open:
            return None
        asked = PollWorkflowExecutionUpdateRequest(
            namespace=run.info.namespace,
            update_ref=_ref(run.info.workflow_id, run.info.run_id, update_id),
        )
        asked.wait_policy.lifecycle_stage = wanted  # type: ignore[assignment]
        answer = await neighbours.ask_worker(
            run, "poll_workflow_execution_update", asked, deadline_ns
        )
        if answer is None:
            return None
        outcome = answer.outcome.SerializeToString() if answer.HasField("outcome") else b""
        return Reached(run.info.run_id, answer.stage, outcome)
