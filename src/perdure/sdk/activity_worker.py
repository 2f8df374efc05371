"""The part of a worker that runs activities.

With a service in this process, every slot is a coroutine that polls, runs what it gets and answers,
so that an activity costs no task of its own. With a remote service, a few pollers feed the slots.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.common.v1 import Payloads
from temporalio.api.taskqueue.v1 import TaskQueueMetadata
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    RespondActivityTaskCompletedRequest,
)

from perdure.api import errors as rpc
from perdure.api.times import SECOND_NS, duration_ns
from perdure.api.trouble import Trouble
from perdure.sdk import activity_context
from perdure.sdk.activity_answers import Answers, shutdown_error
from perdure.sdk.activity_context import ActivityInfo, CancellationReason
from perdure.sdk.calls import is_remote
from perdure.sdk.codecs import decode_message
from perdure.sdk.errors import CompleteAsync, UnknownTypeError
from perdure.sdk.interceptors import (
    ActivityInterceptor,
    ExecuteActivity,
    HeartbeatActivity,
    chain,
)
from perdure.sdk.leaving import Leaving
from perdure.sdk.processes import Processes
from perdure.sdk.running import RunningActivity, RunningLocal
from perdure.sdk.threads import Threads

if TYPE_CHECKING:
    from perdure.sdk.activity import Activity
    from perdure.sdk.client import Client
    from perdure.sdk.runtime.local_execution import LocalAttempt

__all__ = ["ActivityWorker"]

_log = logging.getLogger("perdure.activity")

_WATCH_INTERVAL_S: Final = 1.0
_POLL_PAUSE_S: Final = 0.2
_LONGEST_POLL_PAUSE_S: Final = 10.0
_FORCED_END_S: Final = 2.0
"""How long cancelled activities may take to end, once the grace period is over."""

_TAKEN_WITHIN_S: Final = 5.0
"""How long a worker that stops waits for activities that come with answers to workflow tasks."""

Attempt = RunningActivity | RunningLocal


class ActivityWorker:
    """Polls one task queue for activities and runs them.

    Args:
        client: whose service and namespace are used.
        activities: by type name.
        leaving: by which the service is told of the end.
        trouble: tells that polls fail, once for the whole worker.
        slots: how many run at a time.
        pollers: how many polls are open at a time, of a remote service.
        local_slots: how many local activities run at a time.
        process_slots: how many child processes there may be.
        tasks_per_second: limit for the whole task queue, kept by the service; None for none.
    """

    def __init__(
        self,
        client: Client,
        task_queue: str,
        activities: Mapping[str, Activity[..., Any]],
        *,
        interceptors: Sequence[Any] = (),
        identity: str,
        leaving: Leaving,
        trouble: Trouble,
        slots: int,
        pollers: int,
        local_slots: int,
        process_slots: int,
        tasks_per_second: float | None = None,
    ) -> None:
        self.client = client
        self.task_queue = task_queue
        self.activities = activities
        self.identity = identity
        self.shutting_down = False
        self._leaving = leaving
        self._trouble = trouble
        self._polling: list[asyncio.Task[None]] = []
        self.slots = slots
        self.running: set[Attempt] = set()
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # set by `run`
        self._pollers = min(pollers, slots) if is_remote(client.service) else slots
        self._taken = 0
        self._free = asyncio.Condition()
        self._held = 0
        self._none_held = asyncio.Event()
        self._none_held.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = Threads(slots, "perdure-activity")
        self._processes = Processes(process_slots)
        self._local_slots = asyncio.Semaphore(local_slots)
        self._answers = Answers(client, identity)
        self._limit = tasks_per_second
        self._no_codec = client.converter.codec is None
        intercepting = [i for i in interceptors if isinstance(i, ActivityInterceptor)]
        execute = chain(intercepting, ActivityInterceptor, "execute_activity", self._execute)
        self._around = execute if execute != self._execute else None
        beat: Callable[[HeartbeatActivity], None] = _record_heartbeat
        around_beat = chain(intercepting, ActivityInterceptor, "heartbeat", beat)
        self.heartbeat = None if around_beat is beat else around_beat

    @property
    def takes_eagerly(self) -> bool:
        """Is it worth while to be given activities with the answer to a workflow task?

        Not with a service in this process, where every free slot has a poll that gets it as soon,
        and not when the task queue has a rate: Temporal's server does not count those.
        """
        return bool(self.activities) and self._limit is None and is_remote(self.client.service)

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `shutdown`.

        Raises:
            RPCError: the service refuses to be polled.
        """
        self.loop = asyncio.get_running_loop()
        watch = self.loop.create_task(self._watch(), name="perdure-activity-watch")
        poll = self._feed_slots if is_remote(self.client.service) else self._serve_slot
        pollers = self._polling = [
            self.loop.create_task(poll(), name=f"perdure-activity-poll-{number}")
            for number in range(self._pollers)
        ]
        try:
            await asyncio.wait(pollers, return_when=asyncio.FIRST_EXCEPTION)
            for poller in pollers:
                if poller.done() and not poller.cancelled():
                    poller.result()
        finally:
            for task in [*pollers, watch]:
                task.cancel()
            self._threads.close()
            self._processes.close()

    async def shutdown(self, grace_s: float) -> None:
        """Take no more activities, let the running ones finish, cancel what is left, and end.

        What is left is failed with the type "WorkerShutdown", to be retried at once elsewhere.

        Args:
            grace_s: how long running activities may take to finish.
        """
        if self.shutting_down:
            return
        self.shutting_down = True
        async with self._free:
            self._free.notify_all()
        await self._leaving.end([poll for poll in self._polling if not poll.done()])
        for poll in self._idle_polls():
            poll.cancel()
        await self._until_taken()
        await self._until_idle(grace_s)
        for attempt in list(self.running):
            attempt.cancel(CancellationReason.WORKER_SHUTDOWN)
        await self._until_idle(_FORCED_END_S)
        for attempt in list(self.running):  # they ignore it; their threads die with the process
            if isinstance(attempt, RunningActivity):
                await self._hand_back(attempt)
            attempt.slot.cancel()
        self.running.clear()

    def _idle_polls(self) -> list[asyncio.Task[None]]:
        busy = {attempt.slot for attempt in self.running}
        return [poll for poll in self._polling if poll not in busy]

    async def _until_taken(self) -> None:
        """Wait for activities that the service may just be giving out with the answer to a workflow
        task: nobody else gets them before their time limit. Afterwards all that came has begun."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_held.wait(), _TAKEN_WITHIN_S)
        await asyncio.sleep(0)

    async def _until_idle(self, limit_s: float) -> None:
        """Wait until no activity runs, or the time is over."""
        slots = {attempt.slot for attempt in self.running}
        if slots:
            await asyncio.wait(slots, timeout=limit_s)

    async def _hand_back(self, attempt: RunningActivity) -> None:
        attempt.abandoned = True
        attempt.finish()
        try:
            await self._answers.fail(attempt.task, shutdown_error(), attempt)
        except rpc.RPCError as error:
            _log.warning("Could not hand back %s: %s", attempt.definition.name, error)

    async def _watch(self) -> None:
        """Tell activities to stop whose time for one attempt is over: the service has given up."""
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            now = time.time()
            for attempt in list(self.running):
                if isinstance(attempt, RunningActivity) and _is_overdue(attempt, now):
                    attempt.cancel(CancellationReason.TIMED_OUT)

    # --- polling ------------------------------------------------------------------------------

    async def _serve_slot(self) -> None:
        """Poll, run, answer, again: one slot of a service in this process."""
        me = asyncio.current_task()
        assert me is not None
        request = self._poll_request()
        service = self.client.service
        can_park = hasattr(type(service), "park_activity_poll")  # a service in this process
        next_poll: Any = None
        while not self.shutting_down:
            if next_poll is None:
                task = await self._polled(request)
            else:
                task = await next_poll.response()
                next_poll = None
            if task is None or not task.task_token:
                continue
            if not can_park:
                await self.handle(task, me)
                continue

            def park_next() -> None:
                nonlocal next_poll
                if not self.shutting_down:
                    next_poll = service.park_activity_poll(request)

            try:
                await self.handle(task, me, park_next)
            except BaseException:
                if next_poll is not None:
                    next_poll.cancel()
                raise
        if next_poll is not None:
            next_poll.cancel()

    async def _feed_slots(self) -> None:
        """Poll a remote service whenever a slot is free, and start what comes."""
        request = self._poll_request()
        while await self._take_slot():
            task = None
            try:
                task = await self._polled(request)
            finally:
                if task is None:
                    self._give_back()
            if task is not None:
                self._start(task)

    async def _polled(self, request: PollActivityTaskQueueRequest) -> Any:
        """The next task; None if there was none for the time of a poll."""
        pause_s = _POLL_PAUSE_S
        while True:
            try:
                task = await self.client.service.poll_activity_task_queue(request)
                self._trouble.over()
                return task if task.task_token else None
            except rpc.DeadlineExceeded:
                return None
            except (rpc.InvalidArgument, rpc.PermissionDenied, rpc.Unimplemented, rpc.NotFound):
                raise
            except rpc.RPCError as error:
                self._trouble.met(error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_POLL_PAUSE_S)

    def _poll_request(self) -> PollActivityTaskQueueRequest:
        request = PollActivityTaskQueueRequest(
            namespace=self.client.namespace, identity=self.identity
        )
        request.worker_instance_key = self._leaving.instance_key
        request.task_queue.name = self.task_queue
        if self._limit is not None:
            metadata = TaskQueueMetadata()
            metadata.max_tasks_per_second.value = self._limit
            request.task_queue_metadata.CopyFrom(metadata)
        return request

    # --- slots of a remote service ------------------------------------------------------------

    async def _take_slot(self) -> bool:
        """Wait for a free slot, and take it; False when the worker shuts down."""
        async with self._free:
            await self._free.wait_for(lambda: self.shutting_down or self._taken < self.slots)
            if self.shutting_down:
                return False
            self._taken += 1
            return True

    def _give_back(self) -> None:
        self._taken -= 1
        if not self.shutting_down:
            waker = self.loop.create_task(self._wake_poller())
            self._tasks.add(waker)
            waker.add_done_callback(self._tasks.discard)

    async def _wake_poller(self) -> None:
        async with self._free:
            self._free.notify()

    def _start(self, task: PollActivityTaskQueueResponse) -> None:
        """Run an activity in a task of its own; its slot is taken already."""
        runner = self.loop.create_task(self._run_in_slot(task))
        self._tasks.add(runner)
        runner.add_done_callback(self._tasks.discard)

    async def _run_in_slot(self, task: PollActivityTaskQueueResponse) -> None:
        me = asyncio.current_task()
        assert me is not None
        try:
            await self.handle(task, me)
        finally:
            self._give_back()

    def reserve(self, wanted: int) -> int:
        """Hold up to so many free slots, for activities that may come with the answer to a
        workflow task; how many it were. `take` has to follow."""
        held = 0 if self.shutting_down else max(0, min(wanted, self.slots - self._taken))
        self._taken += held
        self._count_held(held)
        return held

    def take(self, tasks: Sequence[PollActivityTaskQueueResponse], held: int) -> None:
        """Run what came, in slots that were held for it; others are free again."""
        assert len(tasks) <= held, f"{len(tasks)} activities came for {held} slots"
        for task in tasks:
            self._start(task)
        for _ in range(held - len(tasks)):
            self._give_back()
        self._count_held(-held)

    def _count_held(self, change: int) -> None:
        self._held += change
        if self._held:
            self._none_held.clear()
        else:
            self._none_held.set()

    # --- one activity -------------------------------------------------------------------------

    async def handle(
        self,
        task: PollActivityTaskQueueResponse,
        slot: asyncio.Task[Any],
        before_answer: Callable[[], None] | None = None,
    ) -> None:
        """Run one attempt and answer for it.

        `before_answer` is called when the function is done: what the answer leads to may then come
        to this slot at once.
        """
        definition = self.activities.get(task.activity_type.name)
        if definition is None:
            await self._answers.refuse(task, list(self.activities))
            return
        attempt = RunningActivity(self, task, definition, slot)
        self.running.add(attempt)
        token = activity_context.running.set(attempt)
        completed: RespondActivityTaskCompletedRequest | None = None
        error: BaseException | None = None
        try:
            try:
                completed = await self._completed(attempt)
            finally:
                attempt.finish()
                activity_context.running.reset(token)
        except Exception as raised:
            error = raised
        except (asyncio.CancelledError, CompleteAsync) as raised:
            if slot.cancelling() and (attempt.reason is None or attempt.abandoned):
                raise  # the worker itself is being cancelled
            error = raised
        try:
            if attempt.reason is not None:
                await _absorb_cancellation(slot)
            if before_answer is not None:
                before_answer()
            await self._answers.answer(attempt, completed, error)
        finally:
            self.running.discard(attempt)

    async def _completed(self, attempt: RunningActivity) -> RespondActivityTaskCompletedRequest:
        """Run the function; returns the answer with its result."""
        task, definition = attempt.task, attempt.definition
        converter = self.client.converter
        if not self._no_codec:
            task = attempt.task = await self._decoded(task)
        args = converter.arguments(task.input, definition.signature)
        if self._around is not None:
            headers = dict(task.header.fields)
            call = ExecuteActivity(activity=definition, args=args, headers=headers)
            value = await self._around(call)
        elif definition.is_async:
            positional, keywords = definition.signature.unbind(args)
            value = await definition.function(*positional, **keywords)
        else:
            value = await self._run_sync(attempt, args)
        request = RespondActivityTaskCompletedRequest()
        request.task_token = task.task_token
        request.namespace = self.client.namespace
        request.identity = self.identity
        converter.fill_result(request.result, value, definition.signature)
        return request

    async def _decoded(self, task: PollActivityTaskQueueResponse) -> PollActivityTaskQueueResponse:
        """A copy of the task with its payloads decoded."""
        own = PollActivityTaskQueueResponse()
        own.CopyFrom(task)
        assert self.client.converter.codec is not None
        await decode_message(self.client.converter.codec, own)
        return own

    async def _execute(self, call: ExecuteActivity) -> Any:
        """The innermost of the interceptors."""
        attempt = activity_context.current()
        assert isinstance(attempt, RunningActivity | RunningLocal)
        definition = call.activity
        if definition.is_async:
            positional, keywords = definition.signature.unbind(call.args)
            return await definition.function(*positional, **keywords)
        return await self._run_sync(attempt, call.args)

    async def _run_sync(self, attempt: Attempt, args: Sequence[Any]) -> Any:
        definition = attempt.definition
        positional, keywords = definition.signature.unbind(args)
        if definition.executor == "process":
            return await self._processes.run(
                definition,
                positional,
                keywords,
                attempt.info,
                attempt.record_from_child,
                attempt.attach_child,
            )
        return await self._threads.run(
            functools.partial(_in_thread, attempt, definition.function, positional, keywords)
        )

    # --- local activities ---------------------------------------------------------------------

    async def run_local(self, made: LocalAttempt) -> Payloads:
        """Run one attempt of a local activity; returns its result.

        Raises:
            UnknownTypeError: no such activity is registered.
            Exception, asyncio.CancelledError: what the function raised.
        """
        definition = self.activities.get(made.activity_type)
        if definition is None:
            raise UnknownTypeError("activity", made.activity_type, list(self.activities))
        converter = self.client.converter
        args = converter.arguments(made.input, definition.signature)
        async with self._local_slots:
            value = await self._run_local(definition, made, args)
        result = Payloads()
        converter.fill_result(result, value, definition.signature)
        return result

    async def _run_local(
        self, definition: Activity[..., Any], made: LocalAttempt, args: Sequence[Any]
    ) -> Any:
        slot = asyncio.current_task()
        assert slot is not None
        attempt = RunningLocal(self, definition, _local_info(made), slot)
        self.running.add(attempt)
        token = activity_context.running.set(attempt)
        call = ExecuteActivity(activity=definition, args=args, headers=made.headers)
        try:
            return await (self._around or self._execute)(call)
        except asyncio.CancelledError:
            attempt.mark_cancelled(CancellationReason.CANCEL_REQUESTED)  # for a thread to see
            raise
        finally:
            attempt.finish()
            activity_context.running.reset(token)
            self.running.discard(attempt)


def _local_info(made: LocalAttempt) -> ActivityInfo:
    scheduled = datetime.fromtimestamp(made.scheduled_ns / SECOND_NS, UTC)
    return ActivityInfo(
        activity_id=made.activity_id,
        activity_type=made.activity_type,
        attempt=made.attempt,
        namespace=made.namespace,
        task_queue=made.task_queue,
        task_token=b"",
        workflow_id=made.workflow_id,
        workflow_run_id=made.run_id,
        workflow_type=made.workflow_type,
        is_local=True,
        scheduled_time=scheduled,
        current_attempt_scheduled_time=scheduled,
        start_to_close_timeout=made.start_to_close_timeout,
        schedule_to_close_timeout=made.schedule_to_close_timeout,
        retry=made.retry,
    )


def _in_thread(
    attempt: Attempt, function: Callable[..., Any], args: Sequence[Any], keywords: dict[str, Any]
) -> Any:
    token = activity_context.running.set(attempt)
    try:
        return function(*args, **keywords)
    finally:
        activity_context.running.reset(token)


def _record_heartbeat(call: HeartbeatActivity) -> None:
    """The innermost of the heartbeat's interceptors."""
    attempt = activity_context.current()
    if isinstance(attempt, RunningActivity):
        attempt.record(call.details)


async def _absorb_cancellation(slot: asyncio.Task[Any]) -> None:
    """Take back the cancellation of a task that has reached, or missed, its activity.

    One that was asked for at the activity's last step would otherwise strike the answer.
    """
    if not slot.cancelling():
        return
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        pass
    while slot.cancelling():
        slot.uncancel()


def _is_overdue(attempt: RunningActivity, now: float) -> bool:
    """Has the attempt run for longer than it may, and a little, as clocks differ?"""
    limit_s = duration_ns(attempt.task.start_to_close_timeout) / SECOND_NS
    started = attempt.task.started_time
    if not limit_s or not started.seconds:
        return False
    return now > started.seconds + limit_s * 1.05 + _WATCH_INTERVAL_S
