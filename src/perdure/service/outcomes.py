"""What became of the units of a commit that failed: the connection may have broken at any moment.

A server that has got a statement goes on with it though its client is gone. So that something is
not stored yet says nothing: first the store has to see to it that the commit is over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum, auto

from perdure.store.contract import Loaded, Store, StoreError, Unit, Write

log = logging.getLogger("perdure.service")


class Outcome(Enum):
    """STORED: only the answer was lost. LOST: it is not stored, and never will be. UNKNOWN: it may
    be, or may yet come, or others have changed the run since."""

    STORED = auto()
    LOST = auto()
    UNKNOWN = auto()


async def find_out(store: Store, units: Sequence[Unit], error: Exception) -> list[Outcome]:
    """What became of each unit of a commit that failed with an error."""
    if isinstance(error, StoreError) and error.refused:
        return [Outcome.LOST] * len(units)
    try:
        lost = set(await store.settle(units))
        return [
            Outcome.LOST if position in lost else await _outcome(store, unit[0])
            for position, unit in enumerate(units)
        ]
    except StoreError:  # still out of reach, or still at it
        pass
    except Exception:
        log.exception("what became of a commit could not be found out")
    return [Outcome.UNKNOWN] * len(units)


async def _outcome(store: Store, write: Write) -> Outcome:
    loaded = await store.load(write.key)
    if loaded is None or loaded.version < write.version:
        return Outcome.LOST
    return Outcome.STORED if await _is_of(store, loaded, write) else Outcome.UNKNOWN


async def _is_of(store: Store, loaded: Loaded, write: Write) -> bool:
    """Whether a run is just as a write left it; another node's of that version may differ in
    nothing but an event or an item."""
    if loaded.version != write.version or loaded.state != write.state:
        return False
    items = dict(loaded.items)
    if any(items.get(item_id) != body for item_id, body in write.put_items):
        return False
    if not write.events:
        return True
    first, last = write.first_event_id, write.last_event_id
    batches = await store.history(write.key, first, last, limit=1)
    return bool(batches) and batches[0].events == write.events
