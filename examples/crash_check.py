"""Is everything as it must be, after a program was killed again and again? Used by crash_test.py.

Four questions are asked of a folder with a database (`runs.db`) and the books of the outside world
(`books.jsonl`): did every run end with the right result; did an activity that was recorded as
completed ever run again; is every history contiguous; does the state in the database equal what a
replay of the history gives, and would the workflow code take the same way again?
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus
from temporalio.api.history.v1 import History, HistoryEvent

import approval
import orders
import outside
import pipeline
from perdure import Converter
from perdure.engine import replay as engine_replay
from perdure.service import records
from perdure.store.contract import Loaded, Store
from perdure.store.query import Query
from perdure.store.sqlite import open_read_only
from perdure.testing import Replayer

WORKFLOWS = [orders.checkout, pipeline.Pipeline, approval.Approval]
EVERY_EVENT = 1 << 40


@dataclass
class Stored:
    """One run as the database has it."""

    loaded: Loaded
    events: Sequence[HistoryEvent]

    @property
    def workflow_id(self) -> str:
        return self.loaded.record.workflow_id

    @property
    def is_open(self) -> bool:
        return self.loaded.record.close_ns == 0


@dataclass
class Size:
    """How much work the program has in one round."""

    orders: int = 12
    chunks: int = 40
    approvals: int = 1


@dataclass
class Findings:
    """What is wrong, one sentence each, and how much was looked at."""

    wrong: list[str] = field(default_factory=list)
    runs: int = 0
    events: int = 0
    executions: int = 0


async def check(folder: Path, size: Size, *, finished: bool) -> Findings:
    """Ask all questions; of a program that has not finished, those that can be asked by then."""
    return findings(await read_runs(folder / "runs.db"), size, finished=finished)


def findings(runs: Sequence[Stored], size: Size, *, finished: bool) -> Findings:
    """The same of runs that have been read, and the books."""
    books = outside.entries()
    calls = [entry for entry in books if entry["kind"] == "call"]
    found = Findings(runs=len(runs), executions=len(calls))
    for run in runs:
        found.events += len(run.events)
        found.wrong += [f"{run.workflow_id}: {w}" for w in history_faults(run)]
    found.wrong += repeated(runs, calls)
    if finished:
        found.wrong += result_faults(runs, size)
        found.wrong += book_faults([entry for entry in books if entry["kind"] == "deed"], size)
    return found


async def read_runs(file: Path) -> list[Stored]:
    """Everything in a database file, read without taking hold of it."""
    return await read_all(open_read_only(file))


async def read_all(store: Store, namespace: str = "default") -> list[Stored]:
    """Everything in a store that is not open yet; it is opened and closed."""
    await store.open()
    try:
        found = []
        for record in await store.list_runs(Query(namespace, limit=100_000)):
            loaded = await store.load(record.key)
            batches = await store.history(record.key, 1, EVERY_EVENT, limit=100_000)
            assert loaded is not None
            events = [e for batch in batches for e in History.FromString(batch.events).events]
            found.append(Stored(loaded, events))
        return found
    finally:
        await store.close()


# --- history, state, replay -------------------------------------------------------------------


def history_faults(run: Stored) -> list[str]:
    """Is the history contiguous, does the state follow from it, and does the code?"""
    faults = record_faults(run)
    try:
        Replayer(WORKFLOWS).replay(History(events=run.events))
    except Exception as error:
        faults.append(f"the code does not replay: {error}")
    return faults


def record_faults(run: Stored) -> list[str]:
    """Is the history contiguous, and does the state follow from it?"""
    ids = [event.event_id for event in run.events]
    if ids != list(range(1, len(ids) + 1)):
        return [f"history is not contiguous: {ids}"]
    execution = records.execution(run.loaded)
    rebuilt = engine_replay.rebuild(execution.key, execution.info, run.events)
    return [f"state is not its replay: {d}" for d in engine_replay.differences(execution, rebuilt)]


# --- nothing completed ran again --------------------------------------------------------------


def repeated(runs: Iterable[Stored], calls: Iterable[dict[str, Any]]) -> list[str]:
    """Executions that must not have been: of an attempt twice, or after a recorded completion.

    Attempts before one that timed out, and itself, may still run: their workers are not heard of,
    which is what timeouts are for.
    """
    by_activity: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for call in calls:
        by_activity[call["run_id"], call["activity_id"]].append(call)
    faults = []
    for (run_id, activity_id), made in by_activity.items():
        attempts = Counter(call["attempt"] for call in made)
        faults += [
            f"run {run_id}, activity {activity_id}: attempt {attempt} ran {times} times"
            for attempt, times in attempts.items()
            if times > 1
        ]
    for run in runs:
        for activity_id, attempt, recorded_ns, timed_out in completed(run.events):
            made = by_activity.get((run.loaded.record.run_id, activity_id), [])
            name = f"{run.workflow_id}, activity {activity_id}"
            if attempt not in {call["attempt"] for call in made}:
                faults.append(f"{name}: attempt {attempt} is recorded, but it never ran")
            faults += [
                f"{name}: ran again (attempt {call['attempt']}) after attempt {attempt} completed"
                for call in made
                if call["attempt"] > attempt or call["time_ns"] > recorded_ns
                if call["attempt"] > timed_out
            ]
    return faults


def completed(events: Iterable[HistoryEvent]) -> Iterable[tuple[str, int, int, int]]:
    """(activity id, attempt, time in ns, the attempt before it if that timed out, else 0) of every
    completion that a history records."""
    scheduled: dict[int, str] = {}
    attempts: dict[int, int] = {}
    timed_out: dict[int, int] = {}
    for event in events:
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            attributes = event.activity_task_scheduled_event_attributes
            scheduled[event.event_id] = attributes.activity_id
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            started = event.activity_task_started_event_attributes
            attempts[event.event_id] = started.attempt
            if started.last_failure.HasField("timeout_failure_info"):
                timed_out[event.event_id] = started.attempt - 1
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            end = event.activity_task_completed_event_attributes
            yield (
                scheduled[end.scheduled_event_id],
                attempts[end.started_event_id],
                event.event_time.ToNanoseconds(),
                timed_out.get(end.started_event_id, 0),
            )


# --- results ----------------------------------------------------------------------------------


def result_faults(runs: Iterable[Stored], size: Size) -> list[str]:
    """Did every run end, once, and with the right result?"""
    ended = {run.workflow_id: outcome(run) for run in runs}
    right = expected(size)
    faults = [f"{name}: ended as {ended.get(name)}, not as {right[name]}"
              for name in right if ended.get(name) != right[name]]  # fmt: skip
    return faults + [f"{name}: nobody started this" for name in ended.keys() - right.keys()]


def outcome(run: Stored) -> Any:
    """The result of a run, or the word for how it ended."""
    if run.is_open:
        return "still open"
    last = run.events[-1]
    if last.event_type != EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
        return WorkflowExecutionStatus.Name(run.loaded.record.status)  # type: ignore[arg-type]
    result = last.workflow_execution_completed_event_attributes.result
    return Converter().decode_all(result)[0]


def expected(size: Size) -> dict[str, Any]:
    """Every run by its workflow id, with what it has to end as."""
    right: dict[str, Any] = {}
    for order in orders.make_orders(size.orders):
        name = order.id
        right[name] = (
            "WORKFLOW_EXECUTION_STATUS_FAILED"
            if order.address == "nowhere"
            else {"payment": f"payment-{name}/1", "tracking": f"parcel-{name}"}
        )
    if size.chunks:
        table = pipeline.expected(size.chunks)
        right[f"pipeline-{size.chunks}"] = vars(table)
    for n in range(size.approvals):
        right[approval_name(n)] = f"https://board.example/{approval_name(n)}"
    return right


def approval_name(n: int) -> str:
    return f"notice-{n}" if n else "notice"


def book_faults(deeds: Iterable[dict[str, Any]], size: Size) -> list[str]:
    """Did the outside world see what it had to see, and nothing else?"""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    cents = 0
    for deed in deeds:
        seen[deed["service"]][deed["key"]] += 1
        cents += deed.get("cents", 0)
    placed = orders.make_orders(size.orders)
    shipped = [order for order in placed if order.address != "nowhere"]
    faults = [
        f"books: {service} did {key} {times} times"
        for service, keys in seen.items()
        for key, times in keys.items()
        if times > 1
    ]
    for service, number in (
        ("payments", 2 * len(placed) - len(shipped)),
        ("parcels", len(shipped)),
        ("mail", len(shipped)),
        ("board", size.approvals),
    ):
        if len(seen[service]) != number:
            faults.append(f"books: {len(seen[service])} entries of {service}, not {number}")
    if cents != sum(order.cents for order in shipped):
        faults.append(f"books: {cents} cents were taken, not those of the shipped orders")
    return faults
