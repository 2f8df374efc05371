"""The store's SQL, by name: ``statements.sql``, ``sharing.sql``, and a commit's, ``batch.sql``.

Why nothing deadlocks: a transaction waits for locks in one order over all nodes, in phases.

1. Advisory locks of the workflow ids that it starts, by number.
2. Rows of states, by key.
3. Other rows of those runs, and new ones. Nobody else has them: a row of a run is changed only by
   who has the run's state row, but for leases and sweeps (see below). No insert waits for another
   node's uncommitted row: keys and ids are handed out once, and who starts a workflow id holds that
   id's lock, so the look-up that follows sees every open run of it.

Statements that lease, release or sweep skip what is locked; they wait for nobody, so it is no harm
to wait for them. A node's sign of life locks its own row of nodes before it takes others', which it
skips when they are locked. All else locks one row in a transaction of its own.
"""

from __future__ import annotations

from typing import Final

from perdure.store.postgres.leases import (
    FUNERAL_NS,
    MESSAGE_LEASE_NS,
    SILENT_NODE_LIVES_NS,
    TASK_LEASE_NS,
)
from perdure.store.rendering import RECORD
from perdure.store.sharing import CLOCK_SLACK_NS
from perdure.store.statements import load

NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000"
"""Nanoseconds since the epoch by the database's clock, which all nodes share."""

BEGAN: Final = NOW.replace("clock_timestamp", "statement_timestamp")
"""The same at the moment when a statement came: of what it waited for it knows nothing."""


def _latest(lives_ns: int) -> str:
    """The latest that something can end which lives so long, by the present clock."""
    return f"{NOW} + {lives_ns + CLOCK_SLACK_NS}"


_QUICK: Final = "set_config('synchronous_commit', 'off', true) = 'off'"
"""A condition that is true, and lets its transaction end before the disk has it."""

LOCK_TIMEOUT: Final = "300ms"
"""Of a commit: the others that are in it, and all that come after it, wait as well."""

_BRISK: Final = f"set_config('lock_timeout', '{LOCK_TIMEOUT}', true) IS NOT NULL"
"""A condition that is true; rows that are found by it are waited for, but not for longer."""

_HASTY: Final = "set_config('lock_timeout', '1s', true) IS NOT NULL"
"""The same for who can ask again."""

_PATIENT: Final = "set_config('lock_timeout', '5s', true) IS NOT NULL"

_LAST_RUNS: Final = """
    SELECT r.key FROM perdure.runs AS r
    WHERE r.namespace = u.namespace AND r.workflow_id BETWEEN u.workflow_id AND u.workflow_id
    ORDER BY r.workflow_id DESC, r.start_ns DESC FETCH FIRST ROW WITH TIES
"""
"""The runs of a workflow id that started last, usually one. Only the index of workflow ids has this
order, so a plan that was made for an empty table does not go through the whole namespace."""

_VALUES: Final = {
    "last_runs": _LAST_RUNS,
    "now": NOW,
    "began": BEGAN,
    "task_lease_max": _latest(TASK_LEASE_NS),
    "message_lease_max": _latest(MESSAGE_LEASE_NS),
    "funeral_max": _latest(FUNERAL_NS),
    "seen_max": f"{NOW} + {SILENT_NODE_LIVES_NS}",
    "quick": _QUICK,
    "brisk": _BRISK,
    "patient": _PATIENT,
    "hasty": _HASTY,
    "record": ", ".join(RECORD),
    "r.record": ", ".join(f"r.{column}" for column in RECORD),
}


def _filled(text: str) -> str:
    for name, value in _VALUES.items():
        text = text.replace(f"{{{name}}}", value)
    return text


STATEMENTS: Final = {name: _filled(text) for name, text in load(__package__).items()}
PARTS: Final = {name: _filled(text) for name, text in load(__package__, "batch.sql").items()}
INDEXES: Final = load(__package__, "indexes.sql")
SHARED: Final = {name: _filled(text) for name, text in load(__package__, "sharing.sql").items()}
