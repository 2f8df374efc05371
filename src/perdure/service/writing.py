"""A batch of units in one transaction, or in several where the database refuses one for good.

So who asks for what no database can hold takes nobody along. To find the one that is at fault the
batch is halved: one in two hundred costs some fifteen commits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from perdure.api.errors import RPCError, Unavailable
from perdure.service.outcomes import Outcome, find_out
from perdure.service.units import Refused
from perdure.store.contract import Store, StoreError, StoreRefused, Unit

log = logging.getLogger("perdure.service")


class Ending(NamedTuple):
    """What became of a unit, and what its callers hear; None of a lost one: it was a conflict."""

    outcome: Outcome
    failure: RPCError | None = None


_STORED = Ending(Outcome.STORED)
_IN_CONFLICT = Ending(Outcome.LOST)


async def write(store: Store, units: Sequence[Unit]) -> list[Ending]:
    """Write units, in their order; how each ended. After a failure the rest is not tried."""
    endings: list[Ending] = []
    parts = [units]  # what is left, the next part last
    while parts:
        part = parts.pop()
        try:
            conflicts = set(await store.commit(part))
        except StoreRefused as error:
            half = len(part) // 2
            if half:
                parts += [part[half:], part[:half]]
            else:
                endings.append(Ending(Outcome.LOST, Refused(f"It cannot be stored: {error}")))
        except Exception as error:
            failure = told_of(error)
            endings += [Ending(each, failure) for each in await find_out(store, part, error)]
            endings += [Ending(Outcome.LOST, failure)] * (len(units) - len(endings))
            break
        else:
            endings += [
                _IN_CONFLICT if place in conflicts else _STORED for place in range(len(part))
            ]
    return endings


def told_of(error: Exception) -> RPCError:
    """What callers hear of a commit that failed."""
    if isinstance(error, StoreError):
        return Unavailable(f"The database cannot be written: {error}")
    log.error("a commit failed in an unforeseen way", exc_info=error)
    return Unavailable(f"The commit failed: {error!r}")
