"""The end of a commit that nobody hears of: its connection broke, and the server may not know yet.

The server goes on with what it has got: it waits for a row, for the disk, or for a replica. And
what is on its way to the server may come late. The server's process cannot be asked: a pooler may
be between. So the commit's own locks are waited for. Who has the lock of a run that is as it was
takes away the version that the commit is based on: it cannot succeed any more. The version in its
place is on disk, and nobody else's: should it be lost with a server, who has seen it notices. A
commit that starts runs is a transaction that holds the locks of their workflow ids from before its
first write to its end, and whose end was not asked for before it had them: who gets those comes
after it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from perdure.store.contract import Unit
from perdure.store.postgres.choice import lock_number
from perdure.store.postgres.statements import STATEMENTS as SQL


async def settle(run: Callable[..., Awaitable[list[Any]]], units: Sequence[Unit]) -> list[int]:
    """Have a commit be over; the positions of units that are certainly not stored.

    `run` runs a statement, as a transaction of its own.
    """
    writes = [write for unit in units for write in unit]
    starts = [write.record for write in writes if not write.based_on and write.record is not None]
    if starts:
        names = {(record.namespace, record.workflow_id) for record in starts}
        await run(SQL["starts_over"], list(map(lock_number, names)))
    based_on: dict[int, int] = {}
    for write in writes:
        if write.based_on:
            based_on.setdefault(write.key, write.based_on)
    if not based_on:
        return []
    rows = await run(SQL["fence"], list(based_on), list(based_on.values()))
    fenced = {row[0] for row in rows}
    return [
        position
        for position, unit in enumerate(units)
        if any(write.key in fenced for write in unit)
    ]
