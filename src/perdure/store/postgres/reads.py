"""Rows of the database as the contract's objects."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.store.contract import Loaded, Record

_ATTRIBUTES_AT = Record.__struct_fields__.index("search_attributes")
_decode = msgspec.json.Decoder(dict[str, str | int | float | bool | list[str]]).decode


def to_record(row: Any) -> Record:
    """A row of `runs`: the fields of Record in their order."""
    values = list(row)
    text = values[_ATTRIBUTES_AT]
    values[_ATTRIBUTES_AT] = {} if text == "{}" else _decode(text)
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
