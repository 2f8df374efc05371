"""Rows of the database as the contract's objects."""

from __future__ import annotations

from typing import Any

from perdure.store.contract import Loaded, Record
from perdure.store.folding import attributes_of

_ATTRIBUTES_AT = Record.__struct_fields__.index("search_attributes")


def to_record(row: Any) -> Record:
    """A row of `runs`: the fields of Record in their order."""
    values = list(row)
    values[_ATTRIBUTES_AT] = attributes_of(values[_ATTRIBUTES_AT])
    return Record(*values)


def to_loaded(row: Any) -> Loaded:
    """A row of the statement `load`."""
    version, wake_at_ns, state, *record, items = row
    return Loaded(
        record=to_record(record),
        version=version,
        wake_at_ns=wake_at_ns,
        state=state,
        items=[] if items is None else [tuple(item) for item in items],
    )
