"""The world outside: the services that the examples call, which fail at random.

They are as real services are: slow now and then, often unavailable, and with books of their own.
The books are a file of JSON lines, one per call, flushed to the disk before the call goes on. So
whoever reads them can tell what really happened, whatever became of the program.

A payment service that is asked twice with the same key charges once. All good ones offer that, and
it is what makes a call safe that was cut off before its answer arrived.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from perdure import activity

FAILURE_RATE = float(os.environ.get("OUTSIDE_FAILURE_RATE", "0.2"))
SLOWNESS_S = float(os.environ.get("OUTSIDE_SLOWNESS_S", "0.02"))

BOOKS_VARIABLE = "OUTSIDE_BOOKS"


class ServiceUnavailable(Exception):
    """The service did not answer this time. It may the next time."""


class AddressUnknown(Exception):
    """The parcel service does not deliver to this address, however often it is asked."""


def books() -> Path:
    """The file with the services' books, by default beside the program's database."""
    return Path(os.environ.get(BOOKS_VARIABLE, "books.jsonl"))


async def call(service: str, key: str, **facts: Any) -> None:
    """One call of a service: noted in the books, then perhaps slow, then perhaps failing.

    Raises:
        ServiceUnavailable: at random.
    """
    note("call", service, key, **facts)
    await asyncio.sleep(random.random() * SLOWNESS_S)
    if random.random() < FAILURE_RATE:
        raise ServiceUnavailable(f"{service} does not answer")


def note_once(service: str, key: str, **facts: Any) -> bool:
    """Note a deed, unless the books have one with this key. Was it noted now?"""
    with books().open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        for line in file:
            entry = json.loads(line)
            if entry["kind"] == "deed" and (entry["service"], entry["key"]) == (service, key):
                return False
        _append(file, "deed", service, key, facts)
        return True


def note(kind: str, service: str, key: str, **facts: Any) -> None:
    """Append a line to the books; it is on the disk when this returns."""
    with books().open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _append(file, kind, service, key, facts)


def _append(file: Any, kind: str, service: str, key: str, facts: dict[str, Any]) -> None:
    entry = {"kind": kind, "service": service, "key": key, "time_ns": time.time_ns(), **facts}
    if activity.in_activity():
        info = activity.info()
        entry["run_id"] = info.workflow_run_id
        entry["activity_id"] = info.activity_id
        entry["attempt"] = info.attempt
    file.write(json.dumps(entry) + "\n")
    file.flush()
    os.fsync(file.fileno())


def call_key() -> str:
    """A key that names the running activity's call, the same in every attempt of it."""
    info = activity.info()
    return f"{info.workflow_id}/{info.activity_id}"


def entries() -> list[dict[str, Any]]:
    """All lines of the books, in order."""
    if not books().exists():
        return []
    with books().open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
