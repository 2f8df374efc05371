"""The oracle: the rules of a run, small, slow and obvious.

Written from the rules and not from the engine, so that the two can disagree. History is a list of
event names; everything is found by looking through lists. Time is in whole milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TASK_TIMEOUT_MS = 10_000
OPEN = "Running"


@dataclass
class Activity:
    id: str
    start_to_close_ms: int
    max_attempts: int
    ready_ms: int  # when the present attempt may be taken
    scheduled_ms: int
    attempt: int = 1
    started_ms: int | None = None
    cancel_requested: bool = False


@dataclass
class Task:
    """The workflow task of a run."""

    attempt: int
    scheduled_ms: int
    started_ms: int | None = None


@dataclass
class Run:
    workflow_id: str
    number: int  # 1 for the first run of this id, 2 for the next …
    request_id: str
    status: str = OPEN
    events: list[str] = field(default_factory=list)
    buffered: list[str] = field(default_factory=list)
    task: Task | None = None
    activities: dict[str, Activity] = field(default_factory=dict)
    timers: dict[str, int] = field(default_factory=dict)
    signals_seen: set[str] = field(default_factory=set)
    cancel_requested: bool = False
    failed_at: int = -1  # length of history right after the last failed workflow task
    attempt: int = 1  # of the workflow task that comes next
    wants_task: bool = False  # a command made news for the workflow itself


class Refused(Exception):
    """The operation is an error; the text is the name of the gRPC status."""


class Model:
    """All runs of one namespace and one task queue."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.runs: list[Run] = []
        self.workflow_queue: list[
            tuple[Run, int]
        ] = []  # (run, scheduled_ms): first come, first served

    # -- finding -----------------------------------------------------------------------------------

    def runs_of(self, workflow_id: str) -> list[Run]:
        return [run for run in self.runs if run.workflow_id == workflow_id]

    def current(self, workflow_id: str) -> Run | None:
        runs = self.runs_of(workflow_id)
        return runs[-1] if runs else None

    def open_run(self, workflow_id: str) -> Run:
        run = self.current(workflow_id)
        if run is None or run.status != OPEN:
            raise Refused("NOT_FOUND")
        return run

    def count(self, status: str) -> int:
        return sum(run.status == status for run in self.runs)

    # -- what clients ask --------------------------------------------------------------------------

    def start(self, workflow_id: str, request_id: str, reuse: str, conflict: str) -> Run:
        """Returns the run that the caller is told of."""
        run = self.current(workflow_id)
        if run is not None and run.request_id == request_id:
            return run
        if run is not None and run.status == OPEN:
            if conflict == "use_existing":
                return run
            if conflict == "fail":
                raise Refused("ALREADY_EXISTS")
            self._close(run, "WorkflowExecutionTerminated", "Terminated")
        elif run is not None:
            failed = run.status in ("Failed", "Canceled", "Terminated", "TimedOut")
            if reuse == "reject_duplicate" or (reuse == "failed_only" and not failed):
                raise Refused("ALREADY_EXISTS")
        return self._begin(workflow_id, request_id)

    def _begin(self, workflow_id: str, request_id: str) -> Run:
        run = Run(workflow_id, len(self.runs_of(workflow_id)) + 1, request_id)
        run.events.append("WorkflowExecutionStarted")
        self.runs.append(run)
        self._need_task(run)
        return run

    def signal(self, workflow_id: str, request_id: str) -> None:
        last = self.current(workflow_id)
        if last is not None and request_id in last.signals_seen:
            return  # delivered before; also when the run has closed since
        run = self.open_run(workflow_id)
        run.signals_seen.add(request_id)
        self._happen(run, "WorkflowExecutionSignaled")

    def request_cancel(self, workflow_id: str) -> None:
        run = self.current(workflow_id)
        if run is None:
            raise Refused("NOT_FOUND")
        if run.status != OPEN:
            return  # it has ended: what was wanted
        if run.cancel_requested:
            return  # asked before: nothing new is recorded
        run.cancel_requested = True
        self._happen(run, "WorkflowExecutionCancelRequested")

    def terminate(self, workflow_id: str) -> None:
        run = self.open_run(workflow_id)
        self._close(run, "WorkflowExecutionTerminated", "Terminated")

    # -- workflow tasks ----------------------------------------------------------------------------

    def _happen(self, run: Run, event: str) -> None:
        """An event from outside: at once, or after the workflow task that is running."""
        if run.task is not None and run.task.started_ms is not None:
            run.buffered.append(event)
        else:
            run.events.append(event)
            self._need_task(run)

    def _need_task(self, run: Run) -> None:
        if run.status != OPEN or run.task is not None:
            return
        if run.attempt > 1 and len(run.events) != run.failed_at:
            run.attempt = 1  # something new came: no longer a retry of the same task
        if run.attempt == 1:
            run.events.append("WorkflowTaskScheduled")
        run.task = Task(run.attempt, self.now_ms)
        self.workflow_queue.append((run, self.now_ms))

    def poll_workflow(self) -> Run | None:
        while self.workflow_queue:
            run, scheduled_ms = self.workflow_queue.pop(0)
            task = run.task
            if run.status != OPEN or task is None or task.started_ms is not None:
                continue
            if task.scheduled_ms != scheduled_ms:
                continue
            task.started_ms = self.now_ms
            if task.attempt > 1 and len(run.events) != run.failed_at:
                task.attempt = 1  # events came while the retry was waiting
                run.events.append("WorkflowTaskScheduled")
            if task.attempt == 1:
                run.events.append("WorkflowTaskStarted")
            return run
        return None

    def complete_task(self, run: Run, commands: list[tuple[str, str]]) -> None:
        """Commands: ("activity", id), ("timer", id), ("cancel_timer", id), ("cancel_activity", id),
        ("marker", ""), and last, if any, ("complete"|"fail"|"cancel"|"continue", "")."""
        task = run.task
        if run.status != OPEN or task is None or task.started_ms is None:
            raise Refused("NOT_FOUND")
        closes = bool(commands) and commands[-1][0] in ("complete", "fail", "cancel", "continue")
        if closes and run.buffered:
            self._fail_task(run, "WorkflowTaskFailed")  # it closed without having seen all
            raise Refused("INVALID_ARGUMENT")
        if task.attempt > 1:
            run.events += ["WorkflowTaskScheduled", "WorkflowTaskStarted"]
        run.events.append("WorkflowTaskCompleted")
        run.task = None
        run.attempt = 1
        for kind, name in commands:
            getattr(self, f"_command_{kind}")(run, name)
        if run.status == OPEN:
            self._flush(run)
            if run.wants_task:
                self._need_task(run)
        run.wants_task = False

    def fail_task(self, run: Run) -> None:
        if run.status != OPEN or run.task is None or run.task.started_ms is None:
            raise Refused("NOT_FOUND")
        self._fail_task(run, "WorkflowTaskFailed")

    def _fail_task(self, run: Run, event: str) -> None:
        assert run.task is not None
        if run.task.attempt == 1:  # a retry that fails again leaves no trace in history
            run.events.append(event)
        run.failed_at = len(run.events)
        run.attempt = run.task.attempt + 1
        run.task = None
        buffered, run.buffered = run.buffered, []
        run.events += _flush_order(buffered)
        self._need_task(run)

    def _flush(self, run: Run) -> None:
        if run.buffered:
            buffered, run.buffered = run.buffered, []
            run.events += _flush_order(buffered)
            self._need_task(run)

    # -- commands ----------------------------------------------------------------------------------

    def _command_activity(self, run: Run, name: str) -> None:
        activity_id, start_to_close, attempts = name.split(":")
        run.events.append("ActivityTaskScheduled")
        run.activities[activity_id] = Activity(
            activity_id, int(start_to_close), int(attempts), self.now_ms, self.now_ms
        )

    def _command_timer(self, run: Run, name: str) -> None:
        timer_id, length = name.split(":")
        run.events.append("TimerStarted")
        run.timers[timer_id] = self.now_ms + int(length)

    def _command_cancel_timer(self, run: Run, name: str) -> None:
        del run.timers[name]
        run.events.append("TimerCanceled")

    def _command_cancel_activity(self, run: Run, name: str) -> None:
        activity = run.activities[name]
        run.events.append("ActivityTaskCancelRequested")
        activity.cancel_requested = True
        if activity.started_ms is None:  # nobody works on it: cancelled on the spot
            del run.activities[name]
            run.buffered.append("ActivityTaskCanceled")  # after the events of all commands
            run.wants_task = True

    def _command_marker(self, run: Run, _: str) -> None:
        run.events.append("MarkerRecorded")

    def _command_complete(self, run: Run, _: str) -> None:
        self._close(run, "WorkflowExecutionCompleted", "Completed")

    def _command_fail(self, run: Run, _: str) -> None:
        self._close(run, "WorkflowExecutionFailed", "Failed")

    def _command_cancel(self, run: Run, _: str) -> None:
        self._close(run, "WorkflowExecutionCanceled", "Canceled")

    def _command_continue(self, run: Run, _: str) -> None:
        self._close(run, "WorkflowExecutionContinuedAsNew", "ContinuedAsNew")
        self._begin(run.workflow_id, "").signals_seen |= run.signals_seen

    def _close(self, run: Run, event: str, status: str) -> None:
        if run.task is not None and run.task.started_ms is not None and status == "Terminated":
            if run.task.attempt == 1:
                run.events.append("WorkflowTaskFailed")  # forced out of its task
            run.events += _flush_order(run.buffered)
        run.buffered = []
        run.task = None
        run.events.append(event)
        run.status = status
        run.activities.clear()
        run.timers.clear()

    # -- activities --------------------------------------------------------------------------------

    def ready_activities(self) -> list[tuple[Run, Activity]]:
        """Which activity tasks a poll may give: any attempt that is due and that nobody has."""
        return [
            (run, activity)
            for run in self.runs
            if run.status == OPEN
            for activity in run.activities.values()
            if activity.started_ms is None and activity.ready_ms <= self.now_ms
        ]

    def take_activity(self, run: Run, activity_id: str) -> None:
        run.activities[activity_id].started_ms = self.now_ms

    def _held(self, run: Run, activity_id: str, attempt: int) -> Activity:
        activity = run.activities.get(activity_id)
        if activity is None or activity.started_ms is None or activity.attempt != attempt:
            raise Refused("NOT_FOUND")
        return activity

    def _end_activity(self, run: Run, activity_id: str, event: str) -> None:
        del run.activities[activity_id]
        if run.task is not None and run.task.started_ms is not None:
            run.buffered += ["ActivityTaskStarted", event]
        else:
            run.events += ["ActivityTaskStarted", event]
            self._need_task(run)

    def complete_activity(self, run: Run, activity_id: str, attempt: int) -> None:
        self._held(run, activity_id, attempt)
        self._end_activity(run, activity_id, "ActivityTaskCompleted")

    def cancel_activity(self, run: Run, activity_id: str, attempt: int) -> None:
        if not self._held(run, activity_id, attempt).cancel_requested:
            raise Refused("INVALID_ARGUMENT")
        self._end_activity(run, activity_id, "ActivityTaskCanceled")

    def fail_activity(self, run: Run, activity_id: str, attempt: int, retryable: bool) -> None:
        activity = self._held(run, activity_id, attempt)
        if not (retryable and self._retry(activity)):
            self._end_activity(run, activity_id, "ActivityTaskFailed")

    def _retry(self, activity: Activity, *, pause: bool = True) -> bool:
        if activity.cancel_requested or activity.attempt >= activity.max_attempts > 0:
            return False
        activity.ready_ms = self.now_ms + (1000 * 2 ** (activity.attempt - 1) if pause else 0)
        activity.attempt += 1
        activity.started_ms = None
        return True

    # -- failures ----------------------------------------------------------------------------------

    def restart(self) -> None:
        """The process dies, and with it all workers: what they held is taken back."""
        for run in self.runs:
            if run.status != OPEN:
                continue
            task = run.task
            if task is not None and task.started_ms is not None:
                if task.attempt == 1:
                    run.events.append("WorkflowTaskTimedOut")
                attempt = task.attempt  # not counted: the next is of the same number
                run.task = None
                buffered, run.buffered = run.buffered, []
                run.failed_at = len(run.events)
                run.attempt = attempt
                run.events += _flush_order(buffered)
                self._need_task(run)
            for activity in list(run.activities.values()):
                if activity.started_ms is not None and not self._retry(activity, pause=False):
                    self._end_activity(run, activity.id, "ActivityTaskTimedOut")

    # -- time --------------------------------------------------------------------------------------

    def advance(self, until_ms: int) -> None:
        """Let time pass; what is due on the way happens in order."""
        while True:
            due = [
                (when, i, what) for i, (when, what) in enumerate(self._due()) if when <= until_ms
            ]
            if not due:
                break
            when, _, (run, kind, name) = min(due, key=lambda entry: entry[:2])
            self.now_ms = max(self.now_ms, when)
            getattr(self, f"_due_{kind}")(run, name)
        self.now_ms = until_ms

    def _due(self) -> list[tuple[int, tuple[Run, str, str]]]:
        found = []
        for run in self.runs:
            if run.status != OPEN:
                continue
            if run.task is not None and run.task.started_ms is not None:
                found.append((run.task.started_ms + TASK_TIMEOUT_MS, (run, "task", "")))
            for timer_id, when in run.timers.items():
                found.append((when, (run, "timer", timer_id)))
            for activity in run.activities.values():
                if activity.started_ms is not None:
                    when = activity.started_ms + activity.start_to_close_ms
                    found.append((when, (run, "activity", activity.id)))
        return found

    def _due_task(self, run: Run, _: str) -> None:
        self._fail_task(run, "WorkflowTaskTimedOut")

    def _due_timer(self, run: Run, timer_id: str) -> None:
        del run.timers[timer_id]
        self._happen(run, "TimerFired")

    def _due_activity(self, run: Run, activity_id: str) -> None:
        if not self._retry(run.activities[activity_id]):
            self._end_activity(run, activity_id, "ActivityTaskTimedOut")


_CLOSED_LAST = (
    "ActivityTaskCompleted",
    "ActivityTaskFailed",
    "ActivityTaskTimedOut",
    "ActivityTaskCanceled",
)


def _flush_order(buffered: list[str]) -> list[str]:
    """Buffered events as they enter history: the ends of activities after all others."""
    return [e for e in buffered if e not in _CLOSED_LAST] + [
        e for e in buffered if e in _CLOSED_LAST
    ]
