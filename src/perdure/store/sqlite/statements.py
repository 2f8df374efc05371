"""The store's SQL: ``statements.sql``, cut into named statements."""

from __future__ import annotations

from perdure.store.statements import load

STATEMENTS = load(__package__)
