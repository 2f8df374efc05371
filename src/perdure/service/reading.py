"""What a failing store means to a caller who only reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from perdure.api.errors import ResourceExhausted, Unavailable
from perdure.store.contract import StoreBusy, StoreError


@contextmanager
def reading() -> Iterator[None]:
    """Turn a StoreError into Unavailable, or ResourceExhausted."""
    try:
        yield
    except StoreBusy as error:
        raise ResourceExhausted(str(error)) from error
    except StoreError as error:
        raise Unavailable(f"The database cannot be read: {error}") from error
