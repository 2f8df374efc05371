"""The RPCs of operators about pending activities: pause, unpause, reset, update options.

Each is there twice: by activity id or type within a run, and, in the younger form whose names end
in ``Execution``, by activity id. The younger form is meant for activities without a workflow, too;
those are not offered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.history.v1 import ActivityTaskScheduledEventAttributes, History
from temporalio.api.workflowservice.v1 import (
    PauseActivityExecutionRequest,
    PauseActivityExecutionResponse,
    PauseActivityRequest,
    PauseActivityResponse,
    ResetActivityExecutionRequest,
    ResetActivityExecutionResponse,
    ResetActivityRequest,
    ResetActivityResponse,
    UnpauseActivityExecutionRequest,
    UnpauseActivityExecutionResponse,
    UnpauseActivityRequest,
    UnpauseActivityResponse,
    UpdateActivityExecutionOptionsRequest,
    UpdateActivityExecutionOptionsResponse,
    UpdateActivityOptionsRequest,
    UpdateActivityOptionsResponse,
)

from perdure.api.errors import InvalidArgument, Unimplemented
from perdure.api.times import duration_ns
from perdure.engine import activity_control as control
from perdure.engine.state import Activity
from perdure.engine.transition import Transition
from perdure.service import pages
from perdure.service.reading import reading

if TYPE_CHECKING:
    from perdure.service.node import Node

T = TypeVar("T")
Scheduled = ActivityTaskScheduledEventAttributes


class ActivityControlRPCs:
    """The RPCs of operators about pending activities, as a part of the service."""

    node: Node

    # -- by id or type -----------------------------------------------------------------------------

    async def pause_activity(self, request: PauseActivityRequest) -> PauseActivityResponse:
        """Offer no further attempts; the one that runs goes on."""
        await self._for_all(request, _pause(request))
        return PauseActivityResponse()

    async def unpause_activity(self, request: UnpauseActivityRequest) -> UnpauseActivityResponse:
        """Offer attempts again."""
        jitter_ns = duration_ns(request.jitter)

        def work(tx: Transition, activity: Activity) -> None:
            control.unpause(
                tx,
                activity,
                reset_attempts=request.reset_attempts,
                reset_heartbeat=request.reset_heartbeat,
                jitter_ns=jitter_ns,
            )

        await self._for_all(request, work)
        return UnpauseActivityResponse()

    async def reset_activity(self, request: ResetActivityRequest) -> ResetActivityResponse:
        """Begin again with the first attempt."""
        await self._reset_all(request)
        return ResetActivityResponse()

    async def update_activity_options(
        self, request: UpdateActivityOptionsRequest
    ) -> UpdateActivityOptionsResponse:
        """Other timeouts, retry policy or task queue from the next attempt on."""
        return UpdateActivityOptionsResponse(activity_options=await self._update_all(request))

    # -- the younger form --------------------------------------------------------------------------

    async def pause_activity_execution(
        self, request: PauseActivityExecutionRequest
    ) -> PauseActivityExecutionResponse:
        """As `pause_activity`."""
        await self._for_all(request, _pause(request))
        return PauseActivityExecutionResponse()

    async def unpause_activity_execution(
        self, request: UnpauseActivityExecutionRequest
    ) -> UnpauseActivityExecutionResponse:
        """As `unpause_activity`."""
        jitter_ns = duration_ns(request.jitter)
        await self._for_all(
            request, lambda tx, found: control.unpause(tx, found, jitter_ns=jitter_ns)
        )
        return UnpauseActivityExecutionResponse()

    async def reset_activity_execution(
        self, request: ResetActivityExecutionRequest
    ) -> ResetActivityExecutionResponse:
        """As `reset_activity`."""
        await self._reset_all(request)
        return ResetActivityExecutionResponse()

    async def update_activity_execution_options(
        self, request: UpdateActivityExecutionOptionsRequest
    ) -> UpdateActivityExecutionOptionsResponse:
        """As `update_activity_options`."""
        return UpdateActivityExecutionOptionsResponse(
            activity_options=await self._update_all(request)
        )

    # -- parts -------------------------------------------------------------------------------------

    async def _key_of(self, request: Any) -> int:
        node = self.node
        node.namespaces.get(request.namespace)
        if "execution" in request.DESCRIPTOR.fields_by_name:
            execution = request.execution
            if not execution.workflow_id:
                raise InvalidArgument("WorkflowId is not set on request.")
            if request.WhichOneof("activity") is None:
                raise InvalidArgument(
                    "Either Activity.Id or Activity.Type should be set on request."
                )
            workflow_id, run_id = execution.workflow_id, execution.run_id
        else:
            workflow_id, run_id = request.workflow_id, request.run_id
            if not workflow_id:
                raise Unimplemented("perdure does not offer activities without a workflow.")
            if not request.activity_id:
                raise InvalidArgument("ActivityId is not set on request.")
        return await node.executions.resolve(request.namespace, workflow_id, run_id)

    async def _for_all(self, request: Any, work: Callable[[Transition, Activity], T]) -> list[T]:
        """Do something with each activity that a request means, all in one transition."""
        key = await self._key_of(request)

        def operation(tx: Transition) -> list[T]:
            return [work(tx, activity) for activity in _chosen(tx, request)]

        return await self.node.executions.transact(key, operation)

    async def _reset_all(self, request: Any) -> None:
        originals = await self._scheduled(request) if request.restore_original_options else {}
        jitter_ns = duration_ns(request.jitter)

        def work(tx: Transition, activity: Activity) -> None:
            control.reset(
                tx,
                activity,
                original=originals.get(activity.scheduled_event_id),
                reset_heartbeat=request.reset_heartbeat,
                keep_paused=request.keep_paused,
                jitter_ns=jitter_ns,
            )

        await self._for_all(request, work)

    async def _update_all(self, request: Any) -> ActivityOptions:
        fields = _fields(request)
        if request.restore_original:
            originals = await self._scheduled(request)

            def restore(tx: Transition, activity: Activity) -> ActivityOptions:
                original = originals.get(activity.scheduled_event_id)
                if original is None:  # it was scheduled just now, so it has them
                    return control.options(activity)
                return control.restore_options(tx, activity, original)

            return (await self._for_all(request, restore))[-1]

        def change(tx: Transition, activity: Activity) -> ActivityOptions:
            return control.change_options(tx, activity, request.activity_options, fields)

        return (await self._for_all(request, change))[-1]

    async def _scheduled(self, request: Any) -> dict[int, Scheduled]:
        """What the pending activities were scheduled with, by the event's id."""
        key = await self._key_of(request)
        entry = await self.node.executions.read(key)
        found = {}
        for event_id in sorted(entry.run.activities):
            with reading():
                page = await pages.read(
                    self.node.store, key, event_id, event_id, max_events=1, max_bytes=1 << 30
                )
            for event in History.FromString(page.events).events:
                found[event.event_id] = event.activity_task_scheduled_event_attributes
        return found


def _chosen(tx: Transition, request: Any) -> list[Activity]:
    if "execution" not in request.DESCRIPTOR.fields_by_name:
        return control.chosen(tx.run, activity_id=request.activity_id)
    which = request.WhichOneof("activity")
    if which == "id":
        return control.chosen(tx.run, activity_id=request.id)
    if which == "type":
        return control.chosen(tx.run, kind=request.type)
    return control.chosen(tx.run, all_=True)


def _pause(
    request: PauseActivityRequest | PauseActivityExecutionRequest,
) -> Callable[[Transition, Activity], None]:
    def work(tx: Transition, activity: Activity) -> None:
        control.pause(
            tx,
            activity,
            identity=request.identity,
            reason=request.reason,
            request_id=request.request_id,
        )

    return work


def _fields(request: Any) -> set[str]:
    """The fields of the update mask in snake case. Raises InvalidArgument."""
    named = {
        re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path).lower() for path in request.update_mask.paths
    }
    if request.restore_original:
        if named:
            raise InvalidArgument("Both UpdateMask and RestoreOriginal are provided")
        return named
    if not request.HasField("activity_options"):
        raise InvalidArgument("ActivityOptions are not provided")
    if not request.HasField("update_mask"):
        raise InvalidArgument("UpdateMask is not provided")
    unknown = named - control.FIELDS
    if unknown:
        raise InvalidArgument(
            f"UpdateMask names {', '.join(sorted(unknown))}; there are "
            f"{', '.join(sorted(control.FIELDS))}"
        )
    return named
