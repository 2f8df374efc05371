"""What became of the units of a commit that failed: the connection may have broken at any moment.

A server that has got a statement goes on with it though its client is gone. So that something is
not stored yet says nothing: first the store has to see to it that the commit is over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum, auto

from perdure.store.contract import Store, StoreError, Unit, Write

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
    """By the version, which nothing else that is ever written of the run has."""
    loaded = await store.load(write.key)
    if loaded is None or loaded.version < write.version:
        return Outcome.LOST
    return Outcome.STORED if loaded.version == write.version else Outcome.UNKNOWN
