"""One run of a workflow in memory: events in, commands out."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.protocol.v1 import Message
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure.api.times import timestamp_ns
from perdure.sdk.errors import FailureError, NonDeterminismError
from perdure.sdk.runtime import closing
from perdure.sdk.runtime.activities import Activities
from perdure.sdk.runtime.applying import APPLY, FIRST, IGNORED
from perdure.sdk.runtime.children import Children
from perdure.sdk.runtime.commands import Record, user_place
from perdure.sdk.runtime.context import state
from perdure.sdk.runtime.externals import Externals
from perdure.sdk.runtime.handlers import Handlers
from perdure.sdk.runtime.history import COMMAND_EVENTS, Step, mismatch, steps
from perdure.sdk.runtime.info import WorkflowInfo
from perdure.sdk.runtime.locals import LocalCall, LocalResult, Locals
from perdure.sdk.runtime.loop import Future, WorkflowLoop, first_hash
from perdure.sdk.runtime.markers import LOCAL_ACTIVITY, Markers, marker_id
from perdure.sdk.runtime.streams import Streams
from perdure.sdk.runtime.timers import Timers
from perdure.sdk.runtime.updates import UpdateRequest, Updates, admitted_in, requests_in
from perdure.sdk.runtime.watchdog import WATCHDOG
from perdure.sdk.search_attributes import SearchAttributeKey

if TYPE_CHECKING:
    from perdure.sdk.options import ActivityOptions
    from perdure.sdk.runtime.settings import RunSettings
    from perdure.sdk.signature import Signature
    from perdure.sdk.workflow.definition import WorkflowDefinition

_log = logging.getLogger("perdure.workflow")

_MARKER: Final = EventType.EVENT_TYPE_MARKER_RECORDED
_EXECUTION_STARTED: Final = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
_UPDATE_EVENTS: Final = frozenset(
    (
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED,
    )
)


class Evicted(BaseException):
    """Thrown into workflow code that tries to act while its run leaves the cache."""


class Run:
    """The state of one run between workflow tasks.

    Attributes:
        unanswered: WorkflowTaskStarted of the task that the code has seen and not answered. The
            id would not do: after a lost commit another task may get the same one.

    The worker calls `advance` with new events and takes the commands with `take`. Everything else
    is called by workflow code through the `workflow` namespace.
    """

    def __init__(
        self, settings: RunSettings, type_name: str, workflow_id: str, run_id: str
    ) -> None:
        self.settings = settings
        self.converter = settings.converter
        self.namespace = settings.namespace
        self.type_name = type_name
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.definition: WorkflowDefinition = settings.definition(type_name)
        self.task_queue = settings.task_queue
        # Until the first event tells better, and for tests of parts.
        self.streams = Streams(run_id)
        self.loop = WorkflowLoop(self, first_hash(run_id))  # type: ignore[abstract]
        self.info: WorkflowInfo | None = None
        self.instance: Any = None
        self.input: Sequence[Any] = ()

        self.now_ns = 0
        self.start_ns = 0
        self.replaying = False
        self.read_only = ""
        self.evicted = False
        self.cancel_requested = False
        self.cancel_reason = ""
        self.history_length = 0
        self.history_size_bytes = 0
        self.continue_as_new_suggested = False
        self.last_started_id = 0
        self.seen_id = 0
        self.unanswered: HistoryEvent | None = None
        self.violation: NonDeterminismError | None = None
        self._before_task_id = 0
        self.search_attributes: dict[SearchAttributeKey[Any], Any] = {}
        self.memo_payloads: dict[str, Payload] = {}

        self.batch = 0
        self.commands: list[Record] = []
        self.answer = RespondWorkflowTaskCompletedRequest()
        self.expected: deque[Record] = deque()
        self.closing: Record | None = None
        self.problem: BaseException | None = None
        self.conditions: list[tuple[Callable[[], bool], Future[None]]] = []
        self.main: asyncio.Task[None] | None = None
        self.starting: Callable[[], Coroutine[Any, Any, None]] | None = None

        self.activities: Activities = Activities(self)
        self.timers: Timers = Timers(self)
        self.children: Children = Children(self)
        self.externals: Externals = Externals(self)
        self.locals: Locals = Locals(self)
        self.markers: Markers = Markers(self)
        self.handlers: Handlers = Handlers(self)
        self.updates: Updates = Updates(self)

    # --- driven by the worker -------------------------------------------------------------------

    def advance(
        self, events: Sequence[HistoryEvent], started_event_id: int, messages: Sequence[Message]
    ) -> None:
        """Take new events in, and let the code run as far as it comes.

        Args:
            events: those that follow the last ones.
            started_event_id: of the task in hand; 0 in a pure replay.
            messages: update requests that came with the task.

        Raises:
            NonDeterminismError: the code does not match the history, or did what is forbidden.
            Exception: workflow code raised what is no failure of the run.
        """
        requests = requests_in(messages) if messages else []
        self.inside(self._advance, steps(events, started_event_id), requests)

    def inside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call something as this run's code: its loop, its time, its guards."""
        outer_loop = asyncio._get_running_loop()
        outer_run, outer_guarded = state.run, state.guarded
        asyncio._set_running_loop(self.loop)
        state.run = state.guarded = self
        slot = WATCHDOG.enter(self)
        try:
            return function(*args)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            # Nothing that workflow code raises may end the worker, not even sys.exit().
            raise RuntimeError(f"workflow code raised {type(error).__name__}: {error}") from error
        finally:
            state.run, state.guarded = outer_run, outer_guarded
            asyncio._set_running_loop(outer_loop)
            WATCHDOG.leave(slot)

    def _advance(self, parts: Iterable[Step], requests: Sequence[UpdateRequest]) -> None:
        for step in parts:
            if step.started is not None:
                self.replaying = step.replaying  # a cancellation makes commands as it is taken in
            self._take_in(step)
            if step.started is not None:
                if not step.replaying:
                    requests = [*admitted_in(step.events), *requests]
                self._execute(step, requests)

    def _take_in(self, step: Step) -> None:
        """Match the commands of the last task, and tell everybody what has happened since.

        Signals come first, wherever they are among the events: code that a result wakes, and that
        ends the run or continues as new, must have seen every signal that was there by then.

        Of what came after the last task the code knows nothing yet: only commands are matched.
        """
        is_seen = step.started is not None
        others: list[tuple[Callable[[Run, HistoryEvent], None], HistoryEvent]] = []
        for event in step.events:
            kind = event.event_type
            if kind in IGNORED:
                continue
            key_of = COMMAND_EVENTS.get(kind)
            if key_of is not None:
                self._match(event, key_of(event))
                continue
            apply = APPLY.get(kind)
            if apply is not None and (is_seen or kind == _EXECUTION_STARTED):
                if kind in FIRST:
                    apply(self, event)
                else:
                    others.append((apply, event))
        for take_in, event in others:
            take_in(self, event)
        if self.expected:
            raise mismatch(None, self.expected[0], self)

    def _match(self, event: HistoryEvent, key: tuple[object, ...]) -> None:
        expected = self.expected
        if expected:
            record = expected[0]
            if record.key == key and record.event_type == event.event_type:
                expected.popleft()
                if record.owner is not None:
                    record.owner.recorded(event.event_id)
                return
        if event.event_type == _MARKER and self.markers.is_dispensable(
            event.marker_recorded_event_attributes
        ):
            return
        raise mismatch(event, expected[0] if expected else None, self)

    def _execute(self, step: Step, requests: Sequence[UpdateRequest]) -> None:
        started = step.started
        assert started is not None
        attributes = started.workflow_task_started_event_attributes
        self.now_ns = timestamp_ns(started.event_time)
        self.last_started_id = self.seen_id = self.history_length = started.event_id
        self._before_task_id = attributes.scheduled_event_id - 1
        self.unanswered = None if step.replaying else started
        self.history_size_bytes = attributes.history_size_bytes
        self.continue_as_new_suggested = attributes.suggest_continue_as_new
        markers: list[HistoryEvent] = []
        if step.ahead:
            markers, requests = self._look_ahead(step.ahead)
        elif step.replaying:
            requests = ()
        if requests:
            self.updates.receive(requests)
        if self.starting is not None:
            # After the first signals and updates, so that the run begins with what came with it.
            starting, self.starting = self.starting, None
            self.main = self.loop.create_task(starting(), name="run")
            if self.cancel_requested:  # its first step comes first: only then can it handle this
                self.loop.call_soon(self.main.cancel)
        self.run_until_idle()
        if self.violation is not None:
            raise self.violation  # also if the code has swallowed it: the task must not pass
        for event in markers:
            if self.locals.replayed(event.marker_recorded_event_attributes):
                self.run_until_idle()
        if step.replaying:
            self.expected.extend(self._drain())
            self.markers.ahead = {}
            if self.answer.commands:  # of code that makes commands in a replay, too
                self.answer = RespondWorkflowTaskCompletedRequest()

    def _look_ahead(
        self, ahead: Sequence[HistoryEvent]
    ) -> tuple[list[HistoryEvent], list[UpdateRequest]]:
        """What the replayed task will ask for: its markers, and the updates that it accepted."""
        local, requests = [], []
        for event in ahead:
            if event.event_type != _MARKER:
                requests.append(self.updates.accepted_in_history(event))
                continue
            attributes = event.marker_recorded_event_attributes
            if attributes.marker_name == LOCAL_ACTIVITY:
                local.append(event)
            else:
                key = (attributes.marker_name, marker_id(attributes))
                self.markers.ahead[key] = attributes
        return local, requests

    def run_until_idle(self) -> None:
        """Let the code run until it waits for something that only history can bring.

        Raises:
            BaseException: the code raised what is no failure of the run.
        """
        while True:
            self._turn()
            if not self.updates.receive_deferred():
                return

    def _turn(self) -> None:
        loop = self.loop
        while True:
            loop.run_ready()
            if self.problem is not None:
                problem, self.problem = self.problem, None
                raise problem
            if not self.conditions or not self._wake_one():
                return

    def _wake_one(self) -> bool:
        """Wake the first whose condition holds: it must still hold when its code goes on."""
        conditions = self.conditions
        for index, (condition, future) in enumerate(conditions):
            if future.done():
                del conditions[index]
                return True
            try:
                holds = self.holds(condition)
            except Exception as error:
                del conditions[index]
                future.set_exception(error)
                return True
            if holds:
                del conditions[index]
                future.set_result(None)
                return True
        return False

    def holds(self, condition: Callable[[], bool]) -> bool:
        """Ask a condition, which must change nothing."""
        self.read_only = "the function given to workflow.wait_condition()"
        try:
            return condition()
        finally:
            self.read_only = ""

    def _drain(self) -> list[Record]:
        """The commands of this task that stand, the closing one last."""
        records = [record for record in self.commands if not record.dropped]
        if self.closing is not None and self.closing.batch == self.batch:
            records.append(self.closing)
        self.commands = []
        self.batch += 1
        return records

    def take(self) -> RespondWorkflowTaskCompletedRequest:
        """The answer with its commands and messages. History has to confirm them next time."""
        self.unanswered = None
        answer = self.answer
        made = len(self.commands)
        records = self._drain()
        self.expected.extend(records)
        if len(records) != made or self.closing is not None:
            messages = [record.message for record in records if record.message is not None]
            kept = RespondWorkflowTaskCompletedRequest(commands=messages)
            answer = kept
        self.answer = RespondWorkflowTaskCompletedRequest()
        if self.updates.messages:
            answer.messages.extend(self.updates.messages)
            self.updates.messages = []
        return answer

    def new_command(self) -> Command:
        """An empty command at the end of the answer."""
        command: Command = self.answer.commands.add()
        return command

    def forget_task(self, last_started_id: int) -> None:
        """The service has dropped the last task, which only rejected updates, from history.

        The events that came with it stay, and will come again with the next task.

        Args:
            last_started_id: the task that now counts as the last one.
        """
        self.last_started_id = last_started_id
        self.seen_id = self._before_task_id

    def local_wanted(self) -> list[LocalCall]:
        """Local activities to execute before the task is answered."""
        if self.closing is not None:
            return []
        return list(self.locals.wanted.values())

    def local_finished(self, call: LocalCall, result: LocalResult) -> None:
        """Go on with the result of a local activity.

        Raises:
            BaseException: as `advance`.
        """
        self.inside(self._local_finished, call, result)

    def _local_finished(self, call: LocalCall, result: LocalResult) -> None:
        self.locals.finished(call, result)
        self.run_until_idle()

    def evict(self) -> None:
        """Leave the cache: end every coroutine without letting it act."""
        if self.evicted:
            return
        self.evicted = True
        self.read_only = "a run that is leaving the worker's cache"
        self.inside(self._close_coroutines)

    def _close_coroutines(self) -> None:
        tasks = [task for ref in self.loop.tasks if (task := ref()) is not None]
        for task in tasks:
            if task.done():
                continue
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            try:
                coroutine.close()
            except BaseException:  # a `finally` that awaits, or raises: nobody is there to hear it
                pass
        self.loop.ready.clear()

    # --- commands -------------------------------------------------------------------------------

    def emit(
        self, event_type: int, key: tuple[object, ...], message: Command | None, owner: Any = None
    ) -> Record:
        """Add a command. After the run has closed, only answers to updates count."""
        where: tuple[CodeType, int] | None = user_place() if self.replaying else None
        record = Record(event_type, key, message, owner, self.batch, where)
        if self.closing is not None and event_type not in _UPDATE_EVENTS:
            record.dropped = True
        else:
            self.commands.append(record)
        return record

    def take_back(self, record: Record) -> bool:
        """Drop a command that was not sent yet. False if it was."""
        if record.batch != self.batch:
            return record.dropped
        record.dropped = True
        return True

    def check_writable(self, what: str, detail: str = "") -> None:
        """Refuse commands from code that must change nothing.

        Raises:
            NonDeterminismError: naming the code and what it did.
        """
        if self.evicted:
            raise Evicted
        if self.read_only:
            raise NonDeterminismError(
                f"{what} in {self.read_only}, which must not change the workflow"
                + (f" ({detail})" if detail else "")
            )

    def misplaced(self, record: Record) -> NonDeterminismError:
        """The error for a command that needs an event which history does not hold."""
        return mismatch(None, record, self)

    # --- values ---------------------------------------------------------------------------------

    def fill_arguments(
        self, payloads: Payloads, args: Sequence[Any], signature: Signature | None
    ) -> None:
        """Append a call's arguments.

        Raises:
            ConversionError: naming the argument. It fails the workflow task even if it is caught,
                because arguments are not converted again in a replay.
        """
        if not args:
            return
        try:
            if signature is not None:
                self.converter.fill_arguments(payloads, args, signature)
            else:
                self.converter.fill(payloads, args)
        except Exception as error:
            self.problem = error
            raise

    def decode_result(self, payloads: Payloads, type_: Any, name: str) -> Any:
        """The value of a result.

        Raises:
            ConversionError: naming what gave it. Fails the workflow task.
        """
        try:
            return self.converter.result(payloads, type_)
        except Exception as error:
            error.add_note(f"in the result of {name!r}, called by workflow {self.type_name!r}")
            raise

    def memo(self) -> dict[str, Any]:
        """The memo's values."""
        return {name: self.converter.decode(p) for name, p in self.memo_payloads.items()}

    # --- problems -------------------------------------------------------------------------------

    def is_failure(self, error: BaseException) -> bool:
        """Does this exception fail the run? All others fail the workflow task."""
        kinds = (
            FailureError,
            TimeoutError,  # of asyncio.timeout() and asyncio.wait_for()
            *self.definition.failure_exception_types,
            *self.settings.failure_exception_types,
        )
        if isinstance(error, kinds):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(self.is_failure(inner) for inner in error.exceptions)
        return False

    def code_failed(self, error: BaseException) -> None:
        """The main coroutine or a handler has raised: close the run, or fail the task."""
        if self.evicted or isinstance(error, Evicted):
            return
        if not closing.close_with_error(self, error):
            self.problem = error

    def warn(self, message: str) -> None:
        """Log something about this run, once and not again in a replay."""
        if not self.replaying:
            state_guarded, state.guarded = state.guarded, None
            try:
                _log.warning("%s (workflow %s, run %s)", message, self.workflow_id, self.run_id)
            finally:
                state.guarded = state_guarded

    def log_loop_problem(self, context: Mapping[str, Any]) -> None:
        """What asyncio would tell the loop's exception handler."""
        error = context.get("exception")
        if self.evicted or self.replaying or isinstance(error, Evicted):
            return
        self.warn(f"{context.get('message')}: {error!r}")

    # --- what workflow code calls ---------------------------------------------------------------

    def schedule_activity(
        self,
        name: str,
        args: Sequence[Any],
        signature: Signature | None,
        options: ActivityOptions,
        *,
        local: bool = False,
        result_type: Any = Any,
    ) -> asyncio.Future[Any]:
        """See `perdure.sdk.runtime.context.Runtime`."""
        if self.settings.interceptors:
            return closing.intercepted_activity(
                self, name, args, signature, options, local, result_type
            )
        if local:
            return self.locals.schedule(name, args, signature, options, result_type)
        return self.activities.schedule(name, args, signature, options, result_type)


__all__ = ["Evicted", "Run"]
