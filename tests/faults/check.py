"""Is everything in the database that the clients were told, and nothing done twice?

What does not depend on the SDK is asked by the checker of the embedded crash test: see
examples/crash_check.py.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

import crash_check
import outside
from crash_check import Stored
from perdure.store.contract import Store
from perdure.store.sqlite import open_read_only

from . import diary
from .caller import answer, values
from .workflows import WORKFLOWS

DATABASE = "runs.db"
Line = dict[str, Any]


@dataclass
class Findings:
    """What is wrong, one sentence each, and how much was looked at."""

    wrong: list[str] = field(default_factory=list)
    runs: int = 0
    events: int = 0
    executions: int = 0
    told: int = 0
    again: int = 0


async def check(folder: Path, store: Store | None = None) -> Findings:
    """Ask all questions of a finished round: books and diary are in its folder, and so is the
    database, if it is no other store."""
    os.environ[outside.BOOKS_VARIABLE] = str(folder / "books.jsonl")
    runs = await crash_check.read_all(store or open_read_only(folder / DATABASE))
    calls = outside.entries()
    lines = diary.read(folder)
    told = [line for line in lines if line["kind"] not in ("wrong", "again")]
    found = Findings(
        runs=len(runs),
        events=sum(len(run.events) for run in runs),
        executions=len(calls),
        told=len(told),
        again=sum(line["kind"] == "again" for line in lines),
    )
    found.wrong += [f"{x['workflow_id']}: {x['text']}" for x in lines if x["kind"] == "wrong"]
    found.wrong += [
        f"{run.workflow_id}: {w}" for run in runs for w in crash_check.record_faults(run)
    ]
    found.wrong += [f"{run.workflow_id}: still open" for run in runs if run.is_open]
    found.wrong += crash_check.repeated(runs, calls)
    found.wrong += steps_done_twice(runs)
    found.wrong += told_faults(runs, told)
    found.wrong += balance_faults(told)
    found.wrong += await replay_faults(runs)
    return found


async def replay_faults(runs: Iterable[Stored]) -> list[str]:
    """Would the workflow code take the same way again, says the official SDK."""
    replayer = Replayer(workflows=WORKFLOWS, workflow_runner=UnsandboxedWorkflowRunner())
    faults = []
    for run in runs:
        history = WorkflowHistory(run.workflow_id, run.events)
        done = await replayer.replay_workflow(history, raise_on_replay_failure=False)
        if done.replay_failure is not None:
            faults.append(f"{run.workflow_id}: does not replay: {done.replay_failure}")
    return faults


def steps_done_twice(runs: Iterable[Stored]) -> list[str]:
    """Steps that histories record as completed more than once: their keys are all different."""
    done = Counter(
        str(values(event.activity_task_completed_event_attributes.result.payloads)[0])
        for run in runs
        for event in of_type(run.events, "ACTIVITY_TASK_COMPLETED")
    )
    return [f"{what}: completed {times} times" for what, times in done.items() if times > 1]


# --- what the clients were told -----------------------------------------------------------------


def told_faults(runs: Iterable[Stored], told: Iterable[Line]) -> list[str]:
    """Acknowledgements that the database does not bear out."""
    chains: dict[str, list[Stored]] = defaultdict(list)
    for run in runs:
        chains[run.workflow_id].append(run)
    faults = []
    for line in told:
        chain = chains[line["workflow_id"]]
        run_id = line.get("run_id", "")
        pinned = [run for run in chain if run_id in ("", run.loaded.record.run_id)]
        problem = CHECKS[line["kind"]](pinned, line)
        if problem:
            faults.append(f"{line['workflow_id']}: {problem}; told {line}")
    return faults


def _start(pinned: Sequence[Stored], line: Line) -> str:
    return "" if pinned else "the run that was started is not there"


def _signal(pinned: Sequence[Stored], line: Line) -> str:
    """In a run that is named, once. Ids of requests hold for one run: a chain may have it twice."""
    times = sum(
        attributes.signal_name == line["name"]
        and values(attributes.input.payloads) == line["arguments"]
        for run in pinned
        for event in of_type(run.events, "WORKFLOW_EXECUTION_SIGNALED")
        for attributes in [event.workflow_execution_signaled_event_attributes]
    )
    if times == 0 or (times > 1 and line["run_id"]):
        return f"the signal is in history {times} times"
    return ""


def _update(pinned: Sequence[Stored], line: Line) -> str:
    update_id = line["arguments"][0]
    answers = [
        answer(attributes.outcome)
        for run in pinned
        for event in of_type(run.events, "WORKFLOW_EXECUTION_UPDATE_COMPLETED")
        for attributes in [event.workflow_execution_update_completed_event_attributes]
        if attributes.meta.update_id == update_id
    ]
    refused = isinstance(line["answer"], str) and line["answer"].startswith("refused: ")
    right = [] if refused else [line["answer"]]
    return "" if answers == right else f"the answers in history are {answers}"


def _result(pinned: Sequence[Stored], line: Line) -> str:
    results = [
        values(event.workflow_execution_completed_event_attributes.result.payloads)[0]
        for run in pinned
        for event in of_type(run.events, "WORKFLOW_EXECUTION_COMPLETED")
    ]
    return "" if results == [line["value"]] else f"the results in history are {results}"


def balance_faults(told: Iterable[Line]) -> list[str]:
    """Accounts that did not end with what was put in and taken out, by all acknowledgements."""
    balances: Counter[str] = Counter()
    ends: dict[str, int] = {}
    for line in told:
        name = line["workflow_id"]
        if line["kind"] == "signal" and line["name"] == "deposit":
            balances[name] += sum(line["arguments"][1:])
        elif line["kind"] == "update" and isinstance(line["answer"], int):
            balances[name] -= sum(line["arguments"][1:])
        elif line["kind"] == "result" and isinstance(line["value"], dict):
            ends[name] = line["value"].get("balance", 0)
    return [
        f"{name}: ended with {end} cents, not {balances[name]}"
        for name, end in ends.items()
        if end != balances[name]
    ]


CHECKS = {"start": _start, "signal": _signal, "update": _update, "result": _result}


def of_type(events: Iterable[HistoryEvent], name: str) -> Iterable[HistoryEvent]:
    """The events of one type."""
    kind = EventType.Value(f"EVENT_TYPE_{name}")
    return (event for event in events if event.event_type == kind)
