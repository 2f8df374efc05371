"""What a failing store means to a caller who only reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from perdure.api.errors import Unavailable
from perdure.store.contract import StoreError


@contextmanager
def reading() -> Iterator[None]:
    """Turn a StoreError into Unavailable."""
    try:
        yield
    except StoreError as error:
        raise Unavailable(f"The database cannot be read: {error}") from error
