"""Starting runs: id reuse and conflict policies, request ids, signal-with-start, children."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.message import Message
from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import (
    ContinueAsNewInitiator,
    EventType,
    WorkflowExecutionStatus,
    WorkflowIdConflictPolicy,
    WorkflowIdReusePolicy,
)
from temporalio.api.workflowservice.v1 import (
    SignalWithStartWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionResponse,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse,
)

from perdure.api.caller import CALLER
from perdure.api.errors import InvalidArgument, NotFound, Unavailable, WorkflowAlreadyStarted
from perdure.api.times import duration_ns
from perdure.engine import cron, events, lifecycle, priorities, retry
from perdure.engine.execution import Execution
from perdure.engine.lifecycle import StartRun
from perdure.engine.outbox import StartChild
from perdure.engine.state import RunInfo
from perdure.engine.transition import Transition
from perdure.service import signalling, validation
from perdure.service.dispatch import HandOut
from perdure.service.entries import Entry
from perdure.service.queue import WORKFLOW, Poll
from perdure.service.settings import Settings
from perdure.service.units import Conflict, Unit
from perdure.service.validation import AnyStart

if TYPE_CHECKING:
    from perdure.service.node import Node

_Status = WorkflowExecutionStatus
_Reuse = WorkflowIdReusePolicy
_OnConflict = WorkflowIdConflictPolicy
_FAILED = frozenset(
    {
        _Status.WORKFLOW_EXECUTION_STATUS_FAILED,
        _Status.WORKFLOW_EXECUTION_STATUS_CANCELED,
        _Status.WORKFLOW_EXECUTION_STATUS_TERMINATED,
        _Status.WORKFLOW_EXECUTION_STATUS_TIMED_OUT,
    }
)
RUNNING = _Status.WORKFLOW_EXECUTION_STATUS_RUNNING


class Outcome(msgspec.Struct):
    """The run that a start led to.

    Attributes:
        started: this request started it, now or when it came before.
        attached: it was there, and this request left a trace in it.
        eager: the first workflow task, for a caller that is a worker too.
    """

    key: int
    run_id: str
    first_run_id: str
    started: bool
    status: int = RUNNING
    eager: HandOut | None = None
    attached: bool = False


# -- what the policies say -------------------------------------------------------------------------


def conflict_policy(request: AnyStart) -> int:
    """What to do about an open run of the same workflow id."""
    if request.workflow_id_reuse_policy == _Reuse.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING:
        return int(_OnConflict.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING)
    if request.workflow_id_conflict_policy:
        return int(request.workflow_id_conflict_policy)
    if isinstance(request, SignalWithStartWorkflowExecutionRequest):
        return int(_OnConflict.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING)
    return int(_OnConflict.WORKFLOW_ID_CONFLICT_POLICY_FAIL)


def check_reuse(run: Execution, policy: int) -> None:
    """Raise WorkflowAlreadyStarted unless another run may follow this closed one."""
    info = run.info
    words = (
        f"WorkflowId: {info.workflow_id}, RunId: {info.run_id}. "
        "Workflow Id reuse policy: "
    )  # fmt: skip
    if policy == _Reuse.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE:
        raise WorkflowAlreadyStarted(
            f"Workflow execution already finished. {words}reject duplicate workflow Id.",
            info.start_request_id,
            info.run_id,
            info.first_run_id,
        )
    failed_only = policy == _Reuse.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY
    if failed_only and run.state.status not in _FAILED:
        raise WorkflowAlreadyStarted(
            f"Workflow execution already finished successfully. {words}"
            "allow duplicate workflow Id if last run failed.",
            info.start_request_id,
            info.run_id,
            info.first_run_id,
        )


def already_running(run: Execution) -> WorkflowAlreadyStarted:
    """What a start gets that meets an open run."""
    info = run.info
    return WorkflowAlreadyStarted(
        f"Workflow execution is already running. WorkflowId: {info.workflow_id}, "
        f"RunId: {info.run_id}.",
        info.start_request_id,
        info.run_id,
        info.first_run_id,
    )


# -- from a request to the engine's words ----------------------------------------------------------


def start_run(
    request: AnyStart, namespace_id: str, run_id: str, now_ns: int, settings: Settings
) -> StartRun:
    """What the engine needs to know of a start request."""
    execution_ns = duration_ns(request.workflow_execution_timeout)
    run_ns = duration_ns(request.workflow_run_timeout)
    if execution_ns:
        run_ns = min(run_ns or execution_ns, execution_ns)
    task_ns = min(
        duration_ns(request.workflow_task_timeout) or settings.default_task_timeout_ns,
        settings.task_timeout_max_ns,
    )
    start = StartRun(
        namespace=request.namespace,
        namespace_id=namespace_id,
        workflow_id=request.workflow_id,
        run_id=run_id,
        workflow_type=request.workflow_type.name,
        task_queue=request.task_queue.name,
        request_id=request.request_id,
        identity=request.identity,
        input=_body(request, "input"),
        header=_body(request, "header"),
        memo=_body(request, "memo"),
        attributes=_body(request, "search_attributes"),
        user_metadata=_body(request, "user_metadata"),
        priority=_body(request, "priority"),
        execution_timeout_ns=execution_ns,
        run_timeout_ns=run_ns,
        task_timeout_ns=min(task_ns, run_ns) if run_ns else task_ns,
        cron_schedule=request.cron_schedule,
        first_task_backoff_ns=duration_ns(request.workflow_start_delay),
    )
    if request.HasField("retry_policy"):
        start.retry = retry.policy(request.retry_policy)
    if request.cron_schedule:
        start.initiator = ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
        start.first_task_backoff_ns = cron.backoff_ns(request.cron_schedule, now_ns, now_ns) or 0
    if request.links:
        start.links = events.links(request.links)
    if isinstance(request, StartWorkflowExecutionRequest):
        start.eager = request.request_eager_execution and not start.first_task_backoff_ns
        start.continued_failure = _body(request, "continued_failure")
        start.last_completion_result = _body(request, "last_completion_result")
    return start


def _body(request: Message, name: str) -> bytes:
    if not request.HasField(name):
        return b""
    message: Message = getattr(request, name)
    return message.SerializeToString()


# -- the one way to start --------------------------------------------------------------------------


class Starting:
    """Starts runs for requests and for parents."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def start(
        self,
        request: AnyStart,
        *,
        signal: SignalWorkflowExecutionRequest | None = None,
        run_id: str = "",
        parent: tuple[RunInfo, int, StartChild] | None = None,
        prepare: Callable[[Entry], None] | None = None,
    ) -> Outcome:
        """Start a run, or find the one that the policies say to use; durable when it returns.

        `signal` is sent to the run in the same commit, to whichever it is. `run_id`: for a child.
        `prepare` is called with a new run before its first workflow task can be handed out.

        Raises:
            InvalidArgument, WorkflowAlreadyStarted, NamespaceNotFound, FailedPrecondition,
            Unavailable.
        """
        node = self._node
        namespace = node.namespaces.get_for_start(request.namespace)
        validation.start(request, node.settings)
        node.namespaces.admit(request.namespace, request.search_attributes)
        before = node.executions.unit_of_current(request.namespace, request.workflow_id)
        why = ""
        for _ in range(node.settings.redo_max):
            await node.executions.committer.room()
            entry = await self._current(request)
            try:
                found = self._existing(entry, request) if entry is not None else None
            except WorkflowAlreadyStarted:
                assert entry is not None
                if not await node.executions.is_sure(entry, before):
                    continue
                raise
            if found is not None:
                assert entry is not None
                if await self._use(entry, found, before, request, signal):
                    return await self._as_begun(entry.run, found)
                continue
            start = start_run(
                request, namespace.id, run_id or node.new_id(), node.clock.now_ns(),
                node.settings,
            )  # fmt: skip
            if parent is not None:
                _adopt(start, *parent)
            outcome, unit = self._begin(entry, start, request, signal, prepare)
            try:
                await unit.wait()
            except Conflict as conflict:
                why = str(conflict)
                continue
            await node.namespaces.are_known([request.search_attributes])
            if outcome.eager is not None:
                await node.dispatcher.complete_history(outcome.key, outcome.eager)
            return outcome
        raise Unavailable(why or "Other starts of this workflow id are in the way; try again.")

    async def _current(self, request: AnyStart) -> Entry | None:
        """The run that has the workflow id now: the open one, else the last."""
        executions = self._node.executions
        while True:
            key = await executions.find(request.namespace, request.workflow_id)
            if key is None:
                return None
            if self._node.neighbours is not None:
                return await executions.entry(key)
            entry = executions.cached(key)
            if entry is not None:
                return entry
            await executions.entry(key)

    def _existing(self, entry: Entry, request: AnyStart) -> Outcome | None:
        """The run to use instead of a new one; None when a new one is to be started."""
        run = entry.run
        info = run.info
        if request.request_id and info.start_request_id == request.request_id:
            started = isinstance(request, StartWorkflowExecutionRequest)  # else: signalled again
            return Outcome(run.key, info.first_run_id, info.first_run_id, started, run.state.status)
        if not run.is_open:
            check_reuse(run, request.workflow_id_reuse_policy)
            return None
        policy = conflict_policy(request)
        if policy == _OnConflict.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING:
            return Outcome(run.key, info.run_id, info.first_run_id, False, run.state.status)
        if policy == _OnConflict.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING:
            return None
        raise already_running(run)

    async def _as_begun(self, last: Execution, found: Outcome) -> Outcome:
        """A request is answered with the run that it started, though others have followed that."""
        info, executions = last.info, self._node.executions
        if found.run_id == info.run_id:
            return found
        key = await executions.find(info.namespace, info.workflow_id, found.run_id)
        if key is not None:
            with suppress(NotFound):  # it was deleted meanwhile
                found.status = (await executions.read(key)).run.state.status
                found.key = key
        return found

    async def _use(
        self,
        entry: Entry,
        found: Outcome,
        before: Unit | None,
        request: AnyStart,
        signal: SignalWorkflowExecutionRequest | None,
    ) -> bool:
        """Signal or mark a run that is there, if asked to; False when it was lost: look again."""
        change: Callable[[Transition], None] | None = None
        if not found.started:
            change = partial(lifecycle.signal, request=signal) if signal else _attachment(request)
        if change is None:
            return entry.unit is None or await self._node.executions.is_sure(entry, before)
        found.attached = signal is None
        _, unit = self._node.executions.apply(entry, change)
        try:
            await unit.wait()
        except Conflict:
            return False
        return True

    def _begin(
        self,
        current: Entry | None,
        start: StartRun,
        request: AnyStart,
        signal: SignalWorkflowExecutionRequest | None,
        prepare: Callable[[Entry], None] | None,
    ) -> tuple[Outcome, Unit]:
        """Queue the new run, and the end of the one that has its workflow id, in one unit."""
        executions = self._node.executions
        unit: Unit | None = None
        follows: int | None = current.run.key if current is not None else 0
        entry, tx = executions.create(start, signal)
        try:
            if current is not None and current.run.is_open:
                _, unit = executions.apply(current, lambda old: _make_way(old, start.run_id))
                follows = None
            eager = self._start_eagerly(entry, tx, request)
            if prepare is not None:
                prepare(entry)
            unit = executions.seal(entry, tx, unit, follows=follows)
        except BaseException:
            executions.poison(entry)
            if unit is not None and current is not None:
                executions.poison(current)
            raise
        info = entry.run.info
        outcome = Outcome(entry.run.key, info.run_id, info.first_run_id, True, RUNNING, eager)
        return outcome, unit

    def _start_eagerly(self, entry: Entry, tx: Transition, request: AnyStart) -> HandOut | None:
        """The first workflow task, at once, for a caller that is a worker and asks for it."""
        if not isinstance(request, StartWorkflowExecutionRequest):
            return None
        if not request.request_eager_execution:
            return None
        ready = [ref for ref in tx.tasks if ref.kind == WORKFLOW]
        if not ready:
            return None  # it begins later
        tx.tasks.remove(ready[0])
        queue = self._node.matching.queue(request.namespace, ready[0].queue, WORKFLOW)
        poll = Poll(queue, request.identity, CALLER.get().in_process)
        return self._node.dispatcher.start_workflow_task(entry, tx, poll)

    # -- children ----------------------------------------------------------------------------------

    async def start_child(
        self, sender: RunInfo, sender_key: int, message: StartChild
    ) -> tuple[str, int]:
        """Start a child under the run id that its parent chose; again, it finds that run."""
        request = StartWorkflowExecutionRequest.FromString(message.request)
        self._node.namespaces.get(request.namespace)
        found = await self._node.executions.find(
            request.namespace, request.workflow_id, message.run_id
        )
        if found is not None:
            await self._node.executions.read(found)
            return message.run_id, found
        request.request_id = message.request_id
        outcome = await self.start(
            request, run_id=message.run_id, parent=(sender, sender_key, message)
        )
        return outcome.run_id, outcome.key


def _make_way(tx: Transition, run_id: str) -> None:
    """End a run so that another, of that run id, can have its workflow id."""
    reason = "TerminateIfRunning WorkflowIdReusePolicy"
    details = Payloads()
    text = details.payloads.add(data=json.dumps(f"terminated by new runID: {run_id}").encode())
    text.metadata["encoding"] = b"json/plain"
    lifecycle.terminate(tx, reason, details, "history-service")


def _adopt(start: StartRun, parent: RunInfo, parent_key: int, message: StartChild) -> None:
    """Make a start that of a child."""
    start.parent_namespace = parent.namespace
    start.parent_namespace_id = parent.namespace_id
    start.parent_workflow_id = parent.workflow_id
    start.parent_run_id = parent.run_id
    start.parent_key = parent_key
    start.parent_initiated_event_id = message.initiated_event_id
    start.root_workflow_id = parent.root_workflow_id or parent.workflow_id
    start.root_run_id = parent.root_run_id or parent.run_id
    start.priority = priorities.merged(parent.priority, start.priority)


def _attachment(request: AnyStart) -> Callable[[Transition], None] | None:
    """What a start leaves in an open run that it was led to, if it asks for that."""
    if not isinstance(request, StartWorkflowExecutionRequest):
        return None
    options = request.on_conflict_options
    if not options.attach_request_id and not options.attach_links:
        return None
    return partial(
        lifecycle.attach,
        request_id=request.request_id if options.attach_request_id else "",
        links=events.links(request.links) if options.attach_links else b"",
    )


class StartRPCs:
    """The RPCs that start runs, as a part of the service."""

    node: Node

    async def start_workflow_execution(
        self, request: StartWorkflowExecutionRequest
    ) -> StartWorkflowExecutionResponse:
        """Start a run. The same request id again answers with that run, though others follow it.

        Raises:
            InvalidArgument: the request lacks something or is too large; nothing is stored.
            WorkflowAlreadyStarted: another run has the workflow id and the policies forbid more.
            NamespaceNotFound, FailedPrecondition: no such namespace, or a deprecated one.
            Unavailable: the store failed; the run may or may not be there.
        """
        outcome = await self.node.starting.start(request)
        return start_response(outcome, request)

    async def signal_with_start_workflow_execution(
        self, request: SignalWithStartWorkflowExecutionRequest
    ) -> SignalWithStartWorkflowExecutionResponse:
        """Signal the open run of a workflow id, or start one and signal that, in one commit."""
        settings = self.node.settings
        if conflict_policy(request) == _OnConflict.WORKFLOW_ID_CONFLICT_POLICY_FAIL:
            raise InvalidArgument(
                "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL is not "
                "supported for this operation."
            )
        validation.required(request.signal_name, "SignalName", settings)
        validation.payload(request.signal_input, "signal_input", settings)
        signal = SignalWorkflowExecutionRequest(
            namespace=request.namespace,
            signal_name=request.signal_name,
            identity=request.identity,
            request_id=request.request_id,
            control=request.control,
            links=request.links,
        )
        if request.HasField("signal_input"):
            signal.input.CopyFrom(request.signal_input)
        if request.HasField("header"):
            signal.header.CopyFrom(request.header)
        outcome = await self.node.starting.start(request, signal=signal)
        made = SignalWithStartWorkflowExecutionResponse(
            run_id=outcome.run_id,
            first_execution_run_id=outcome.first_run_id,
            started=outcome.started,
        )
        if request.request_id:
            signalling.refer(made.signal_link, request, request.workflow_id, outcome.run_id)
        return made


def start_response(
    outcome: Outcome, request: StartWorkflowExecutionRequest
) -> StartWorkflowExecutionResponse:
    """The answer to a start."""
    made = StartWorkflowExecutionResponse(
        run_id=outcome.run_id,
        first_execution_run_id=outcome.first_run_id,
        started=outcome.started,
    )
    made.status = outcome.status  # type: ignore[assignment]
    link = made.link.workflow_event
    link.namespace, link.workflow_id = request.namespace, request.workflow_id
    link.run_id = outcome.run_id
    if outcome.attached:
        link.request_id_ref.request_id = request.request_id
        link.request_id_ref.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED
    else:
        link.event_ref.event_id = 1
        link.event_ref.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
    if outcome.eager is not None:
        made.eager_workflow_task.CopyFrom(outcome.eager.response)
    return made
