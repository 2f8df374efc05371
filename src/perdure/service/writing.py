"""A batch of units in one transaction, or in several where some of them cannot be written.

So who asks for what no database can hold takes nobody along. To find the one that is at fault the
batch is halved: one in two hundred costs some fifteen commits. And who changes what another session
of the database has locked is left out, and comes again in a later batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from perdure.api.errors import RPCError, Unavailable
from perdure.service.outcomes import Outcome, find_out
from perdure.service.units import Conflict, Refused
from perdure.store.contract import Store, StoreError, StoreLocked, StoreRefused, Unit

log = logging.getLogger("perdure.service")


class Ending(NamedTuple):
    """What became of a unit, and what its callers hear; None of a lost one: it was a conflict."""

    outcome: Outcome
    failure: RPCError | Conflict | None = None


_STORED = Ending(Outcome.STORED)
_IN_CONFLICT = Ending(Outcome.LOST)


async def write(store: Store, units: Sequence[Unit]) -> list[Ending]:
    """Write units, in their order; how each ended. After a failure the rest is not tried."""
    endings = [_STORED] * len(units)
    parts = [list(range(len(units)))]  # what is left, by place, the next part last
    while parts:
        places = parts.pop()
        part = [units[place] for place in places]
        try:
            for position in await store.commit(part):
                endings[places[position]] = _IN_CONFLICT
        except StoreLocked as error:
            for position in error.positions:
                endings[places[position]] = Ending(Outcome.LOST, Conflict(told_of(error).message))
            locked = set(error.positions)
            rest = [place for position, place in enumerate(places) if position not in locked]
            if rest:
                parts.append(rest)
        except StoreRefused as error:
            half = len(places) // 2
            if half:
                parts += [places[half:], places[:half]]
            else:
                endings[places[0]] = Ending(Outcome.LOST, Refused(f"It cannot be stored: {error}"))
        except Exception as error:
            failure = told_of(error)
            for place in (place for left in parts for place in left):
                endings[place] = Ending(Outcome.LOST, failure)
            for place, outcome in zip(places, await find_out(store, part, error), strict=True):
                endings[place] = Ending(outcome, failure)
            break
    return endings


def told_of(error: Exception) -> RPCError:
    """What callers hear of a commit that failed."""
    if isinstance(error, StoreError):
        return Unavailable(f"The database cannot be written: {error}")
    log.error("a commit failed in an unforeseen way", exc_info=error)
    return Unavailable(f"The commit failed: {error!r}")
