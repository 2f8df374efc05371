"""Reset: a run begins anew from a point of its history, and the open run is left.

The old run's termination and the new run are one unit: both are stored, or neither. A repeated
request finds its request id in the new run and is answered with that.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.workflow.v1 import PostResetOperation
from temporalio.api.workflowservice.v1 import (
    ResetWorkflowExecutionRequest,
    ResetWorkflowExecutionResponse,
    SignalWorkflowExecutionRequest,
)

from perdure.api.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from perdure.engine import lifecycle, reset
from perdure.engine.execution import Execution
from perdure.engine.transition import Transition
from perdure.service import pages
from perdure.service.entries import Entry
from perdure.service.pages import END
from perdure.service.reading import reading
from perdure.service.units import Conflict, Unit

if TYPE_CHECKING:
    from perdure.service.node import Node

_INPUTS = frozenset(
    {
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
    }
)


class Chain(NamedTuple):
    """What a reset is made from.

    Attributes:
        base: the run to reset.
        events: all of its events.
        following: signals and updates of the runs that it continued as.
        last_key, last_event_id: the last run of that chain, and how far it was read.
        current_key: the run that has the workflow id now.
    """

    base: Execution
    base_key: int
    events: list[HistoryEvent]
    following: list[HistoryEvent]
    last_key: int
    last_event_id: int
    current_key: int


class ResetRPCs:
    """Reset, as a part of the service."""

    node: Node

    async def reset_workflow_execution(
        self, request: ResetWorkflowExecutionRequest
    ) -> ResetWorkflowExecutionResponse:
        """Begin a run anew from the workflow task that ended with an event.

        Signals and updates that came after that point are applied to the new run too, unless they
        are excluded.

        Raises:
            InvalidArgument: a field lacks, or the event is not the end of a workflow task.
            NotFound: no such run.
            Unavailable: the store failed; the reset may or may not be done. Repeat it with the same
                request id.
        """
        node = self.node
        _check(request)
        node.namespaces.get(request.namespace)
        for _ in range(node.settings.redo_max):
            chain = await self._read_chain(request)
            current = await node.executions.read(chain.current_key)
            if request.request_id in current.run.requests:
                if current.unit is not None and not await current.unit.is_written():
                    continue
                return ResetWorkflowExecutionResponse(run_id=current.run.info.run_id)
            reset.check(request, len(chain.events) + 1)
            done = self._apply(request, chain, current)
            if done is None:
                continue
            run_id, unit = done
            try:
                await unit.wait()
            except Conflict:
                continue
            return ResetWorkflowExecutionResponse(run_id=run_id)
        raise Unavailable("The run changes too often to be reset now; try again.")

    # -- reading -----------------------------------------------------------------------------------

    async def _read_chain(self, request: ResetWorkflowExecutionRequest) -> Chain:
        executions = self.node.executions
        named = request.workflow_execution
        key = await executions.resolve(request.namespace, named.workflow_id, named.run_id)
        base = (await executions.read(key)).run
        events = await self._events(key)
        following: list[HistoryEvent] = []
        last_key, last_event_id = key, len(events)
        run_id = reset.next_run_id(events)
        for _ in range(self.node.settings.reset_followers_max):
            found = run_id and await executions.find(
                request.namespace, base.info.workflow_id, run_id
            )
            if not found:
                break
            theirs = await self._events(found)
            following += [event for event in theirs if event.event_type in _INPUTS]
            last_key, last_event_id = found, len(theirs)
            run_id = reset.next_run_id(theirs)
        else:
            raise FailedPrecondition(
                f"more than {self.node.settings.reset_followers_max} runs follow the one to reset: "
                "reset a later one"
            )
        current_key = await executions.find(request.namespace, base.info.workflow_id)
        if current_key is None:
            raise NotFound(f"workflow not found for ID: {base.info.workflow_id}")
        return Chain(base, key, events, following, last_key, last_event_id, current_key)

    async def _events(self, key: int) -> list[HistoryEvent]:
        """All committed events of a run."""
        events: list[HistoryEvent] = []
        more = True
        while more:
            with reading():
                page = await pages.read(
                    self.node.store,
                    key,
                    len(events) + 1,
                    END,
                    max_events=self.node.settings.history_page_events_max,
                    max_bytes=self.node.settings.history_page_bytes,
                )
            events += History.FromString(page.events).events
            more = page.more
        return events

    # -- the one step ------------------------------------------------------------------------------

    def _apply(
        self, request: ResetWorkflowExecutionRequest, chain: Chain, current: Entry
    ) -> tuple[str, Unit] | None:
        """Leave the open run and make the new one; None when what was read is out of date."""
        executions = self.node.executions
        if chain.base_key == chain.current_key:
            chain = chain._replace(base=current.run)
        if current.dropped or executions.cached(chain.current_key) is not current:
            return None
        if not current.run.is_open:
            if executions.cached_open(request.namespace, chain.base.info.workflow_id) is not None:
                return None  # it was started meanwhile
            seen = current.run.state.next_event_id - 1
            if chain.last_key == chain.current_key and seen != chain.last_event_id:
                return None
            fresh = self._reset(request, chain, self.node.random)
            return fresh.run.info.run_id, self._adopt(fresh, None, follows=chain.current_key)
        self._reset(request, chain, random.Random(0))  # it may refuse: before any change
        tx = executions.begin(current)
        try:
            run_id = tx.new_id()
            reset.leave(tx, run_id)
            lifecycle.terminate(tx, request.reason, None, reset.RESETTER_IDENTITY)
            complete = _with_latest(chain, current, tx)
            if complete is None:
                executions.poison(current)
                return None
            fresh = self._reset(request, complete, self.node.random, run_id)
        except BaseException:
            executions.poison(current)
            raise
        return run_id, self._adopt(fresh, executions.seal(current, tx))

    def _reset(
        self,
        request: ResetWorkflowExecutionRequest,
        chain: Chain,
        rng: random.Random,
        run_id: str = "",
    ) -> Transition:
        node = self.node
        now_ns = node.clock.now_ns()
        rehearsal = rng is not node.random
        tx = reset.reset(
            request,
            chain.base,
            chain.events,
            chain.following,
            key=0 if rehearsal else node.ids.take(),
            run_id=run_id or node.new_id(),
            now_ns=now_ns,
            rng=rng,
        )
        tx.limits = node.settings.limits
        for operation in request.post_reset_operations:
            _signal(tx, request, operation)
        return tx

    def _adopt(self, tx: Transition, unit: Unit | None, follows: int | None = None) -> Unit:
        executions = self.node.executions
        if unit is None:
            unit = Unit()
            executions.committer.put(unit)
        return executions.seal(executions.adopt(tx), tx, unit, follows=follows)


def _check(request: ResetWorkflowExecutionRequest) -> None:
    if not request.HasField("workflow_execution"):
        raise InvalidArgument("Execution is not set on request.")
    if not request.request_id:
        raise InvalidArgument("RequestId is not set on request.")
    for operation in request.post_reset_operations:
        if operation.WhichOneof("variant") == "update_workflow_options":
            raise Unimplemented("perdure cannot change a run's options after a reset.")


def _with_latest(chain: Chain, current: Entry, tx: Transition) -> Chain | None:
    """The chain with what the open run did since it was read; None when memory has less."""
    if chain.last_key != chain.current_key:
        return chain
    newest = current.events(chain.last_event_id + 1, tx.parts)
    if newest is None:
        return None
    events = list(History.FromString(newest).events)
    if chain.last_key == chain.base_key:
        return chain._replace(events=chain.events + events)
    inputs = [event for event in events if event.event_type in _INPUTS]
    return chain._replace(following=chain.following + inputs)


def _signal(
    tx: Transition, request: ResetWorkflowExecutionRequest, operation: PostResetOperation
) -> None:
    wanted = operation.signal_workflow
    signal = SignalWorkflowExecutionRequest(
        namespace=request.namespace, signal_name=wanted.signal_name, identity=request.identity
    )
    if wanted.HasField("input"):
        signal.input.CopyFrom(wanted.input)
    signal.header.CopyFrom(wanted.header)
    signal.links.extend(wanted.links)
    lifecycle.signal(tx, signal)
