"""What must hold of a whole store when all is over."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from google.protobuf.message import Message
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import History, HistoryEvent

from perdure.api.times import timestamp_ns
from perdure.engine.execution import Execution
from perdure.engine.replay import differences, rebuild
from perdure.sdk.converter import Converter
from perdure.service.node import Node
from perdure.store.contract import Record
from perdure.store.query import Query
from perdure.testing import Replayer

from .refusals import missed_signals, unfounded
from .workload import WORKFLOWS, Ledger, Plan, agrees, expected

LIMIT = 10_000
_CONVERTER = Converter()


@dataclass
class Run:
    """One run as the store has it."""

    record: Record
    state: Execution
    events: list[HistoryEvent]

    @property
    def name(self) -> str:
        return f"{self.record.workflow_id} ({self.record.run_id})"

    def of_type(self, kind: str) -> Iterator[HistoryEvent]:
        """Events like 'ActivityTaskCompleted'."""
        number = EventType.Value(f"EVENT_TYPE_{kind}")
        return (event for event in self.events if event.event_type == number)


async def read_runs(node: Node) -> list[Run]:
    """All runs of the store, in the order of their keys."""
    records = await node.store.list_runs(Query("default", limit=LIMIT))
    assert len(records) < LIMIT
    runs = []
    for record in sorted(records, key=lambda record: record.key):
        batches = await node.store.history(record.key, 1, 2**62, limit=LIMIT)
        events = History.FromString(b"".join(batch.events for batch in batches)).events
        entry = await node.executions.entry(record.key)
        runs.append(Run(record, entry.run, list(events)))
    return runs


def digest(runs: list[Run]) -> str:
    """A hash of all histories: equal for two simulations that were the same."""
    total = hashlib.sha256()
    for run in runs:
        for event in run.events:
            total.update(event.SerializeToString(deterministic=True))
    return total.hexdigest()


async def check(node: Node, runs: list[Run], plans: list[Plan], ledger: Ledger) -> list[str]:
    """Everything that is wrong, one sentence each."""
    wrong: list[str] = []
    for run in runs:
        wrong += history_faults(run, ledger)
        wrong += replay_faults(run)
        wrong += activity_faults(run, ledger)
        wrong += missed_signals(run.state, run.events, ledger.evidence)
    wrong += signal_faults(runs, plans, ledger)
    wrong += update_faults(runs, ledger)
    wrong += promise_faults(runs, plans, ledger)
    wrong += unfounded(ledger.evidence)
    wrong += await leftovers(node)
    return wrong


def history_faults(run: Run, ledger: Ledger) -> list[str]:
    """Contiguous from 1, in time's order, and every event refers to earlier ones."""
    wrong = []
    ids = [event.event_id for event in run.events]
    if ids != list(range(1, len(ids) + 1)):
        wrong.append(f"{run.name}: event ids {ids}")
    # Not of all events: an activity's start is recorded late, buffered events change places.
    times = [timestamp_ns(event.event_time) for event in run.of_type("WORKFLOW_TASK_COMPLETED")]
    if any(later + ledger.clocks_differ_ns < sooner for sooner, later in pairwise(times)):
        wrong.append(f"{run.name}: time goes backwards")
    for event in run.events:
        which = event.WhichOneof("attributes")
        if which is None:
            wrong.append(f"{run.name}: event {event.event_id} has no attributes")
            continue
        for name, value in _references(getattr(event, which)):
            if value >= event.event_id:
                wrong.append(f"{run.name}: event {event.event_id} refers to {name} {value}")
    return wrong


def _references(attributes: Message) -> Iterator[tuple[str, int]]:
    for field, value in attributes.ListFields():
        local = field.name.endswith("event_id") and not field.name.startswith("parent")
        if local and field.name not in ("external_initiated_event_id",):
            yield field.name, value


def replay_faults(run: Run) -> list[str]:
    """The state is what history says, and the SDK's code still does what history holds."""
    wrong = [
        f"{run.name}: {difference}"
        for difference in differences(
            run.state, rebuild(run.record.key, run.state.info, run.events)
        )
    ]
    if run.state.is_open:
        wrong.append(f"{run.name}: still open")
    if run.record.status != run.state.state.status:
        wrong.append(f"{run.name}: listed with another status than its state has")
    replayed = Replayer(WORKFLOWS).replay_all({run.name: History(events=run.events)})[0]
    if not replayed.ok:
        wrong.append(str(replayed))
    return wrong


def activity_faults(run: Run, ledger: Ledger) -> list[str]:
    """A completed activity completed once, and does not run again."""
    wrong = []
    ids = {
        event.event_id: event.activity_task_scheduled_event_attributes.activity_id
        for event in run.of_type("ACTIVITY_TASK_SCHEDULED")
    }
    ends: Counter[int] = Counter()
    for event in run.of_type("ACTIVITY_TASK_COMPLETED"):
        scheduled = event.activity_task_completed_event_attributes.scheduled_event_id
        ends[scheduled] += 1
        end_ns = timestamp_ns(event.event_time)
        for begin_ns in ledger.began.get((run.record.run_id, ids[scheduled]), ()):
            if begin_ns > end_ns + ledger.clocks_differ_ns:
                wrong.append(f"{run.name}: activity {scheduled} ran after it was completed")
    wrong += [f"{run.name}: activity {s} completed {n} times" for s, n in ends.items() if n > 1]
    for key, scheduled in ledger.completed:
        if key == run.record.key and ends[scheduled] != 1:
            wrong.append(f"{run.name}: the acknowledged end of activity {scheduled} is lost")
    return wrong


def stranded_faults(runs: list[Run]) -> list[str]:
    """No activity is held by nobody until its time is over; for workers that die with their node.

    What a worker held that died is offered again, with a failure that says so.
    """
    wrong = []
    for run in runs:
        for kind in ("ACTIVITY_TASK_STARTED", "ACTIVITY_TASK_TIMED_OUT"):
            for event in run.of_type(kind):
                attributes = getattr(event, event.WhichOneof("attributes") or "")
                failure = getattr(attributes, "last_failure", None) or attributes.failure
                if "StartToClose" in failure.message:
                    wrong.append(f"{run.name}: event {event.event_id}: {failure.message}")
    return wrong


def signal_faults(runs: list[Run], plans: list[Plan], ledger: Ledger) -> list[str]:
    """Every acknowledged signal is in history once, those between workflows too."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        for event in run.of_type("WORKFLOW_EXECUTION_SIGNALED"):
            attributes = event.workflow_execution_signaled_event_attributes
            seen[run.record.workflow_id][_CONVERTER.decode_all(attributes.input)[0]] += 1
    wrong = []
    for workflow_id, names in seen.items():
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            wrong.append(f"{workflow_id}: signals {twice} were recorded twice")
    for workflow_id, acknowledged in ledger.signals.items():
        lost = acknowledged - set(seen[workflow_id])
        if lost:
            wrong.append(f"{workflow_id}: acknowledged signals {sorted(lost)} are lost")
    received = {name for names in seen.values() for name in names}
    for run in runs:
        for event in run.of_type("EXTERNAL_WORKFLOW_EXECUTION_SIGNALED"):
            began = event.external_workflow_execution_signaled_event_attributes.initiated_event_id
            origin = run.events[began - 1]
            given = origin.signal_external_workflow_execution_initiated_event_attributes.input
            if _CONVERTER.decode_all(given)[0] not in received:
                wrong.append(f"{run.name}: signal of event {began} was delivered to nobody")
    return wrong


def update_faults(runs: list[Run], ledger: Ledger) -> list[str]:
    """Every answered update is in history, once."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        for event in run.of_type("WORKFLOW_EXECUTION_UPDATE_COMPLETED"):
            meta = event.workflow_execution_update_completed_event_attributes.meta
            seen[run.record.workflow_id][meta.update_id] += 1
    wrong = []
    for workflow_id, names in seen.items():
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            wrong.append(f"{workflow_id}: updates {twice} were completed twice")
    for workflow_id, answered in ledger.updates.items():
        lost = set(answered) - set(seen[workflow_id])
        if lost:
            wrong.append(f"{workflow_id}: answered updates {sorted(lost)} are lost")
    return wrong


def promise_faults(runs: list[Run], plans: list[Plan], ledger: Ledger) -> list[str]:
    """Every acknowledged workflow exists once and came to what it should."""
    chains = defaultdict(set)
    for run in runs:
        chains[run.record.workflow_id].add(run.record.first_run_id)
    wrong = [f"{w}: it was started twice" for w, firsts in chains.items() if len(firsts) > 1]
    for plan in plans:
        if plan.id in ledger.started and plan.id not in chains:
            wrong.append(f"{plan.id}: its acknowledged start is lost")
        result = ledger.results.get(plan.id)
        if plan.cancel and result == "cancelled":
            continue
        if not agrees(result, expected(plan)) and not plan.cancel:
            wrong.append(f"{plan.id}: it came to {result}, not to {expected(plan)}")
    return wrong


async def leftovers(node: Node) -> list[str]:
    """Nothing waits for anybody."""
    wrong = [f"tasks are left over: {row}" for row in await node.store.backlogs()]
    wrong += [f"a message is left over: {row}" for row in await node.store.messages(0, 10)]
    wrong += [f"run {key} is still marked in flight" for key in await node.store.in_flight()]
    alarm = await node.store.next_alarm()
    return wrong + ([f"an alarm is left over: {alarm}"] if alarm else [])
