"""The store's SQL: ``statements.sql`` and the parts of a commit, ``batch.sql``, by name."""

from __future__ import annotations

from typing import Final

from perdure.store.statements import load

STATEMENTS = load(__package__)
PARTS = load(__package__, "batch.sql")

NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000"
"""Nanoseconds since the epoch by the database's clock, which all nodes share."""
