"""Rows for tests of stores: plausible, and alike but for the key."""

from __future__ import annotations

from typing import Any

from perdure.store.contract import Record, TaskRow, Write

RUNNING, COMPLETED = 1, 2


def record(key: int, **changes: Any) -> Record:
    """A record that is plausible and, but for the key, like all others."""
    fields: dict[str, Any] = {
        "key": key,
        "namespace": "default",
        "workflow_id": f"workflow-{key}",
        "run_id": f"run-{key}",
        "workflow_type": "checkout",
        "task_queue": "orders",
        "status": RUNNING,
        "start_ns": 1_000 + key,
        "execution_ns": 1_000 + key,
        "info": b"info",
        "memo": b"memo",
        "attributes": b"attributes",
    }
    return Record(**{**fields, **changes})


def closed(key: int, **changes: Any) -> Record:
    return record(key, **{"status": COMPLETED, "close_ns": 9_000 + key, **changes})


def start(
    key: int, *, events: bytes = b"started", follows: int | None = None, **changes: Any
) -> Write:
    """The first write of a run."""
    return Write(
        key=key,
        based_on=0,
        version=1,
        state=b"state-1",
        events=events,
        first_event_id=1,
        last_event_id=2,
        record=record(key, **changes),
        follows=follows,
    )


def step(key: int, version: int, **changes: Any) -> Write:
    """A write that leads from `version` to the next one."""
    return Write(
        **{
            "key": key,
            "based_on": version,
            "version": version + 1,
            "state": f"state-{version + 1}".encode(),
            **changes,
        }
    )


def task(id: int, key: int, **changes: Any) -> TaskRow:
    fields = {
        "namespace": "default",
        "queue": "orders",
        "kind": 1,
        "scheduled_event_id": 2,
        "stamp": 7,
        "created_ns": 5,
    }
    return TaskRow(id=id, key=key, **{**fields, **changes})
