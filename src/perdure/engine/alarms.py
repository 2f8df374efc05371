"""What time does to a run. ``RunState.wake_at_ns`` is a lower bound of when the next is due."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from temporalio.api.enums.v1 import TimeoutType

from perdure.engine import activities, closing, timers, workflow_tasks
from perdure.engine.execution import Execution
from perdure.engine.state import Activity, Timer
from perdure.engine.transition import Transition

Due = tuple[int, Callable[[Transition], None]]
"""(when, what to do then). What is to be done checks that it is still wanted."""


def ring(tx: Transition) -> None:
    """Do all that is due by now, in order of time, and set the next alarm."""
    run = tx.run
    while run.is_open:
        due = sorted((one for one in _pending(run) if one[0] <= tx.now_ns), key=lambda one: one[0])
        if not due:
            break
        for _, act in due:
            if run.is_open:
                act(tx)
    _set_next(tx)


def next_ns(run: Execution) -> int:
    """When something of an open run is due next; 0 for never."""
    return min((when_ns for when_ns, _ in _pending(run)), default=0)


def _set_next(tx: Transition) -> None:
    state = tx.run.state
    when_ns = next_ns(tx.run) if tx.run.is_open else 0
    if when_ns != state.wake_at_ns:
        state.wake_at_ns = when_ns
        tx.wake_changed = True


def _pending(run: Execution) -> Iterator[Due]:
    """Each thing that time will do to the run; at most one for each item, the earliest."""
    info, state = run.info, run.state
    if info.run_deadline_ns:
        yield info.run_deadline_ns, closing.time_out
    if (
        state.first_task_backoff_until_ns
        and not run.is_held
        and workflow_tasks.never_scheduled(run)
    ):
        yield state.first_task_backoff_until_ns, _end_backoff
    yield from _of_the_task(run)
    for timer in run.timers.values():
        yield timer.due_ns, _fire(timer)
    for activity in run.activities.values():
        yield from _of_an_activity(activity)


def _end_backoff(tx: Transition) -> None:
    """The pause before the first workflow task is over (start delay, retry, cron)."""
    workflow_tasks.ensure_scheduled(tx)


def _of_the_task(run: Execution) -> Iterator[Due]:
    task = run.state.workflow_task
    if task is None:
        return

    def act(tx: Transition) -> None:
        if tx.run.state.workflow_task is not task:
            return
        if task.started_ns:
            workflow_tasks.time_out(tx, TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE)
        elif task.sticky:
            workflow_tasks.time_out(tx, TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START)
        else:
            workflow_tasks.offer_again(tx)

    if task.started_ns:
        yield task.started_ns + task.timeout_ns, act
    elif task.due_ns:
        yield task.due_ns, act
    elif task.sticky:
        yield task.scheduled_ns + run.state.sticky_timeout_ns, act


def _fire(timer: Timer) -> Callable[[Transition], None]:
    def act(tx: Transition) -> None:
        if timer.id in tx.run.items:
            timers.fire(tx, timer)

    return act


def _of_an_activity(activity: Activity) -> Iterator[Due]:
    when_ns, timeout_type = min(activities.deadlines(activity), default=(0, 0))
    waits = activity.waiting and not activity.paused_ns
    if waits and (not when_ns or activity.due_ns < when_ns):
        yield activity.due_ns, lambda tx: activities.offer_again(tx, activity)
        return

    def act(tx: Transition) -> None:
        if activity.id in tx.run.items:
            activities.time_out(tx, activity, timeout_type)

    if when_ns:
        yield when_ns, act
