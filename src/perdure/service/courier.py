"""Carries messages from run to run: at least once, applied exactly once.

A message is a row of the sender's transition. After that commit it is delivered: a transition on
the receiver, then one on the sender, which records the answer and drops the row. If the process
dies in between, the row is read again by the next one, or by another node, and the receiver
recognises what it has seen.

A courier delivers the messages of one sender one after the other. Of a sender whose transitions
several nodes commit, or whose messages several take over from one that died, each delivers its own,
and one may overtake the other. Nothing here relies on more: a workflow that waits for the answer to
a message sends the next one only then.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from temporalio.api.enums.v1 import (
    CancelExternalWorkflowExecutionFailedCause as CancelCause,
)
from temporalio.api.enums.v1 import (
    SignalExternalWorkflowExecutionFailedCause as SignalCause,
)
from temporalio.api.enums.v1 import (
    StartChildWorkflowExecutionFailedCause as StartCause,
)
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
)

from perdure.api.errors import (
    AlreadyExists,
    InvalidArgument,
    NamespaceNotFound,
    NotFound,
    RPCError,
    Unavailable,
)
from perdure.engine import children, external, lifecycle, outbox
from perdure.engine.outbox import CancelRun, ChildClosed, SignalRun, StartChild, TerminateRun
from perdure.engine.state import RunInfo
from perdure.engine.transition import Transition
from perdure.service.clock import Clock, sleep_until
from perdure.service.entries import Entry
from perdure.service.executions import Executions
from perdure.service.namespaces import Namespaces
from perdure.service.settings import Settings
from perdure.store.contract import Store, StoreError
from perdure.store.sharing import Sharing

log = logging.getLogger("perdure.service")

_IDENTITY = "history-service"  # who Temporal's histories name for what a run does to another

_NOT_THERE = 1  # EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND, of signals and of requests to cancel
_AT_ONCE = 1_000  # messages read
_PASSED_BY_MAX = 100_000  # the leases of more have to run out
_TOO_MANY_SIGNALS = 3  # SIGNAL_COUNT_LIMIT_EXCEEDED
_NO_NAMESPACE_TO_CANCEL = int(
    CancelCause.CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_NAMESPACE_NOT_FOUND
)


class Starter(Protocol):
    """Starts children (see starting)."""

    async def start_child(
        self, sender: RunInfo, sender_key: int, message: StartChild
    ) -> tuple[str, int]:
        """Start a child under the message's run id, or find it there; (run id, key)."""


class Courier:
    """Delivers the outbox of this node's commits, and what other processes left."""

    def __init__(
        self,
        executions: Executions,
        store: Store,
        clock: Clock,
        settings: Settings,
        namespaces: Namespaces,
        starter: Starter,
    ) -> None:
        self._executions = executions
        self._store = store
        self._clock = clock
        self._settings = settings
        self._namespaces = namespaces
        self._starter = starter
        self._waiting: dict[int, deque[tuple[int, outbox.Message]]] = {}  # by sender
        self._held: set[int] = set()  # row ids in memory
        self._overflow = False  # rows that memory had no room for are in the store
        self._passed_by: list[int] = []  # such rows that this node has leased by its commit
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}
        self._closed = False

    @property
    def is_busy(self) -> bool:
        """Whether a message is under way."""
        return bool(self._waiting)

    async def open(self) -> None:
        """Take up what was not delivered."""
        await self._read_more()

    def deliver(self, messages: list[tuple[int, int, outbox.Message]]) -> None:
        """Messages (row id, sender's key, message) that are committed now."""
        for row_id, key, message in messages:
            if self._closed or row_id in self._held:
                continue
            if self._overflow or len(self._held) >= self._settings.outbox_window:
                self._overflow = True
                if self._store.sharing is not None and len(self._passed_by) < _PASSED_BY_MAX:
                    self._passed_by.append(row_id)
                continue
            self._hold(row_id, key, message)

    def _hold(self, row_id: int, key: int, message: outbox.Message) -> None:
        self._held.add(row_id)
        queue = self._waiting.get(key)
        if queue is None:
            self._waiting[key] = deque([(row_id, message)])
            self._spawn(key)
        else:
            queue.append((row_id, message))

    def _spawn(self, key: int) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, key: int) -> None:
        """Deliver one sender's messages, one after the other."""
        queue = self._waiting[key]
        while queue and not self._closed:
            row_id, message = queue[0]
            try:
                await self._deliver_one(key, row_id, message)
            except (Unavailable, StoreError) as error:
                log.warning("a message of run %d waits: %s", key, error)
                pause_ns = self._settings.retry_ns
                await sleep_until(self._clock, self._clock.now_ns() + pause_ns)
                continue
            except Exception:
                # Left in the store for the next start, or until the lease is over: to drop it would
                # lose what the run waits for.
                log.exception("message %d of run %d cannot be delivered", row_id, key)
            queue.popleft()
            self._held.discard(row_id)
        del self._waiting[key]
        for future in self._waiters.pop(key, ()):
            if not future.done():
                future.set_result(None)
        if self._overflow and not self._waiting and not self._closed:
            self._overflow = False
            await self._read_more_or_later()

    def holds(self, key: int) -> bool:
        """Whether messages of a run are under way from here."""
        return key in self._waiting

    async def delivered(self, key: int) -> None:
        """Wait until one run's messages are delivered, or the courier stops."""
        if key in self._waiting and not self._closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.setdefault(key, []).append(future)
            await future

    async def reread(self) -> None:
        """The store may have messages that memory has not heard of: look."""
        await self._read_more()

    async def _read_more_or_later(self) -> None:
        while not self._closed:
            try:
                await self._read_more()
                return
            except StoreError as error:
                log.warning("undelivered messages cannot be read: %s", error)
                pause_ns = self._settings.retry_ns
                await sleep_until(self._clock, self._clock.now_ns() + pause_ns)

    async def _read_more(self) -> None:
        if self._store.sharing is not None:
            await self._take_over(self._store.sharing)
            return
        after_id = 0
        while len(self._held) < self._settings.outbox_window:
            rows = await self._store.messages(after_id, _AT_ONCE)
            for row in rows:
                if row.id not in self._held:
                    self._hold(row.id, row.key, outbox.decode(row.body))
            if len(rows) < _AT_ONCE:
                return
            after_id = rows[-1].id
        self._overflow = True

    async def _take_over(self, sharing: Sharing) -> None:
        """Take up what no node delivers."""
        passed_by, self._passed_by = self._passed_by, []
        if passed_by:
            await sharing.release_messages(passed_by)
        while len(self._held) < self._settings.outbox_window:
            rows = await sharing.lease_messages(_AT_ONCE)
            for row in rows:
                if row.id not in self._held:
                    self._hold(row.id, row.key, outbox.decode(row.body))
            if len(rows) < _AT_ONCE:
                return
        self._overflow = True

    async def close(self) -> None:
        """Finish the deliveries under way; the rest is for the next start, or for other nodes."""
        self._closed = True
        for futures in self._waiters.values():
            for future in futures:
                if not future.done():
                    future.set_result(None)
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=5.0)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._store.sharing is not None:
            await self._give_up(self._store.sharing)

    async def _give_up(self, sharing: Sharing) -> None:
        """Let other nodes deliver what this one will not."""
        left = [*self._held, *self._passed_by]
        try:
            if left:
                await sharing.release_messages(left)
        except StoreError as error:  # they do it when the leases are over
            log.warning("undelivered messages cannot be given up: %s", error)

    # -- one message -------------------------------------------------------------------------------

    async def _deliver_one(self, key: int, row_id: int, message: outbox.Message) -> None:
        try:
            sender = await self._executions.entry(key)
        except NotFound:
            return  # the sender was deleted; a store drops what is left of it
        match message:
            case StartChild():
                await self._start_child(sender, row_id, message)
            case SignalRun():
                await self._signal(sender, row_id, message)
            case CancelRun():
                await self._cancel(sender, row_id, message)
            case TerminateRun():
                await self._terminate(message)
                await self._answer(key, row_id)
            case ChildClosed():
                await self._child_closed(message)
                await self._answer(key, row_id)

    async def _answer(
        self, key: int, row_id: int, *operations: Callable[[Transition], object]
    ) -> None:
        """Record what became of a message at its sender, and drop it."""

        def answer(tx: Transition) -> None:
            for operation in operations:
                operation(tx)
            tx.messages_done.append(row_id)

        try:
            await self._executions.transact(key, answer)
        except NotFound:
            pass

    async def _start_child(self, sender: Entry, row_id: int, message: StartChild) -> None:
        run = sender.run
        initiated = message.initiated_event_id
        if not children.wanted(run, initiated):
            # Perhaps an earlier delivery started it and the parent closed before it was told.
            child = run.children.get(initiated)
            found = child and await self._executions.find(
                child.namespace, child.workflow_id, message.run_id
            )
            policy = partial(_closed_meanwhile, initiated, message.run_id, found or 0)
            await self._answer(run.key, row_id, policy)
            return
        try:
            run_id, key = await self._starter.start_child(run.info, run.key, message)
        except Unavailable:
            raise
        except RPCError as error:
            cause = StartCause.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_WORKFLOW_ALREADY_EXISTS
            if isinstance(error, NamespaceNotFound):
                cause = StartCause.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_NAMESPACE_NOT_FOUND
            elif not isinstance(error, AlreadyExists):
                log.warning("child of %s refused: %s", run.info.workflow_id, error.message)
            failed = partial(children.start_failed, initiated_event_id=initiated, cause=int(cause))
            await self._answer(run.key, row_id, failed)
            return
        request = StartWorkflowExecutionRequest.FromString(message.request)
        started = partial(
            children.started,
            initiated_event_id=initiated,
            run_id=run_id,
            key=key,
            header=request.header.SerializeToString(),
        )
        policy = partial(_closed_meanwhile, initiated, run_id, key)
        await self._answer(run.key, row_id, started, policy)

    async def _signal(self, sender: Entry, row_id: int, message: SignalRun) -> None:
        request = SignalWorkflowExecutionRequest.FromString(message.request)
        request.identity = _IDENTITY
        info, key = sender.run.info, sender.run.key
        operation = partial(
            lifecycle.signal,
            request=request,
            external_workflow_id=info.workflow_id,
            external_run_id=info.run_id,
        )
        try:
            find = partial(self._target, info, message)
            await self._executions.transact_found(find, operation)
        except (NotFound, InvalidArgument) as error:
            failed = partial(external.signal_failed, message=message, cause=_signal_cause(error))
            await self._answer(key, row_id, failed)
            return
        await self._answer(key, row_id, partial(external.signaled, message=message))

    async def _cancel(self, sender: Entry, row_id: int, message: CancelRun) -> None:
        info, key = sender.run.info, sender.run.key
        awaited = message.initiated_event_id > 0
        request = RequestCancelWorkflowExecutionRequest(
            namespace=message.namespace,
            request_id=message.request_id,
            reason=message.reason,
            identity=_IDENTITY,
        )
        operation = partial(
            lifecycle.request_cancel,
            request=request,
            external_workflow_id=info.workflow_id,
            external_run_id=info.run_id,
            external_initiated_event_id=message.initiated_event_id,
        )
        try:
            find = partial(self._target, info) if awaited else self._chain
            with suppress(lifecycle.AlreadyClosed):
                await self._executions.transact_found(partial(find, message), operation)
        except NotFound as error:
            cause = _NO_NAMESPACE_TO_CANCEL if isinstance(error, NamespaceNotFound) else _NOT_THERE
            answer = partial(external.cancel_failed, message=message, cause=cause)
        else:
            answer = partial(external.cancelled, message=message)
        await self._answer(key, row_id, *([answer] if awaited else []))

    async def _terminate(self, message: TerminateRun) -> None:
        try:
            find = partial(self._chain, message)
            await self._executions.transact_found(find, partial(_terminate, message.reason))
        except Unavailable:
            raise
        except NotFound:
            pass  # closed or deleted: what was wanted

    async def _child_closed(self, message: ChildClosed) -> None:
        key = message.parent_key
        for _ in range(10):  # a parent may have been reset, and its successor again
            try:
                parent = await self._executions.entry(key)
                state, info = parent.run.state, parent.run.info
                if not state.reset_run_id:
                    await self._executions.transact(key, partial(children.closed, message=message))
                    return
                found = await self._executions.find(
                    info.namespace, info.workflow_id, state.reset_run_id
                )
            except NotFound:
                return
            if found is None:
                return
            key = found

    # -- whom a message means ----------------------------------------------------------------------

    async def _target(self, sender: RunInfo, message: SignalRun | CancelRun) -> int:
        """The run that a workflow named. Raises NotFound."""
        self._namespaces.get(message.namespace)
        key = await self._executions.resolve(message.namespace, message.workflow_id, message.run_id)
        target = await self._executions.entry(key)
        if not external.may_reach(sender, target.run.info, message):
            raise NotFound("external workflow execution not found")
        return key

    async def _chain(self, message: CancelRun | TerminateRun) -> int:
        """The open run of a child that started as `run_id`. Raises NotFound."""
        key = await self._executions.resolve(message.namespace, message.workflow_id)
        target = await self._executions.entry(key)
        if message.run_id not in (target.run.info.first_run_id, target.run.info.run_id):
            raise NotFound("the child is gone; another run has its workflow id")
        return key


def _closed_meanwhile(initiated_event_id: int, run_id: str, key: int, tx: Transition) -> None:
    """A parent that closed while its child was being started applies its close policy now."""
    child = tx.run.children.get(initiated_event_id)
    if tx.run.is_open or child is None or not key or child.key:
        return
    child.run_id = run_id
    child.key = key
    tx.put(child)
    policy = children.after_close(child)
    if policy is not None and not tx.run.state.reset_run_id:
        tx.messages.append(policy)


def _signal_cause(error: RPCError) -> int:
    if isinstance(error, NamespaceNotFound):
        return SignalCause.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_NAMESPACE_NOT_FOUND
    if isinstance(error, InvalidArgument):
        return _TOO_MANY_SIGNALS
    return _NOT_THERE


def _terminate(reason: str, tx: Transition) -> None:
    lifecycle.terminate(tx, reason, None, _IDENTITY)
