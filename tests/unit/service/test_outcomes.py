"""What became of a commit whose answer was lost, by the version that is stored."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.service.outcomes import Outcome, find_out
from perdure.store.contract import Loaded, StoreError, Write

WRITE = Write(key=1, based_on=10, version=20, state=b"mine")


class Stored:
    """As much of a store as is asked; a version of None: the run is not there."""

    def __init__(self, version: int | None) -> None:
        self.version = version

    async def settle(self, _units: Any) -> list[int]:
        return []

    async def load(self, _key: int) -> Any:
        record: Any = None
        if self.version is None:
            return None
        return Loaded(record, self.version, b"mine", 0, [])


@pytest.mark.parametrize(
    ("version", "outcome"),
    [
        (None, Outcome.LOST),
        (10, Outcome.LOST),
        (15, Outcome.LOST),  # another node's commit on the same version
        (20, Outcome.STORED),
        (30, Outcome.UNKNOWN),  # who knows what it went on from
    ],
)
async def test_the_version_tells(version: int | None, outcome: Outcome) -> None:
    store: Any = Stored(version)
    assert await find_out(store, [[WRITE]], StoreError("the answer was lost")) == [outcome]
