"""The store's SQL: ``statements.sql`` and the parts of a commit, ``batch.sql``, by name."""

from __future__ import annotations

from typing import Final

from perdure.store.statements import load

NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000"
"""Nanoseconds since the epoch by the database's clock, which all nodes share."""

_QUICK: Final = "set_config('synchronous_commit', 'off', true) = 'off'"
"""A condition that is true, and lets its transaction end before the disk has it."""

LOCK_TIMEOUT: Final = "5s"
_PATIENT: Final = f"set_config('lock_timeout', '{LOCK_TIMEOUT}', true) IS NOT NULL"
"""A condition that is true; rows that are found by it are waited for, but not for ever."""


_HASTY: Final = "set_config('lock_timeout', '1s', true) IS NOT NULL"
"""The same for who can ask again."""


def _filled(text: str) -> str:
    text = text.replace("{now}", NOW).replace("{quick}", _QUICK)
    return text.replace("{patient}", _PATIENT).replace("{hasty}", _HASTY)


STATEMENTS: Final = {name: _filled(text) for name, text in load(__package__).items()}
PARTS: Final = {name: _filled(text) for name, text in load(__package__, "batch.sql").items()}
SHARED: Final = {name: _filled(text) for name, text in load(__package__, "sharing.sql").items()}
