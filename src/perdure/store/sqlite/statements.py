"""The store's SQL: ``statements.sql``, by name; {record} is the fields of Record."""

from __future__ import annotations

from perdure.store.rendering import RECORD
from perdure.store.statements import load

STATEMENTS = {
    name: text.replace("{record}", ", ".join(RECORD)) for name, text in load(__package__).items()
}
