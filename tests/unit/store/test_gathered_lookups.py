"""Look-ups that are wanted at the same time are made together, and never answered from before."""

from __future__ import annotations

import asyncio

import pytest

from perdure.store.contract import StoreError, StoreUnavailable
from perdure.store.postgres.gathering import Gathering


class Table:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.asked: list[list[str]] = []
        self.turn = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def look_up(self, keys: list[str]) -> dict[str, int]:
        self.asked.append(keys)
        found = {key: self.rows[key] for key in keys if key in self.rows}
        await self.turn.acquire()
        if self.error is not None:
            raise self.error
        return found


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_asked_while_one_look_up_runs_is_asked_together_after_it() -> None:
    table = Table()
    gathering = Gathering(table.look_up)
    table.rows["a"] = 1
    first = asyncio.create_task(gathering.get("a"))
    await settle()
    table.rows["a"] = 2  # after the first look-up read, before the others ask
    later = [asyncio.create_task(gathering.get(key)) for key in ("a", "b", "a")]
    await settle()
    assert table.asked == [["a"]]
    table.turn.release()
    await settle()
    assert first.result() == 1
    assert table.asked == [["a"], ["a", "b"]]
    table.turn.release()
    assert await asyncio.gather(*later) == [2, None, 2]


async def test_an_error_is_everybodys_and_the_next_look_up_is_made() -> None:
    table = Table()
    gathering = Gathering(table.look_up)
    table.error = ValueError("no")
    asked = [asyncio.create_task(gathering.get(key)) for key in "ab"]
    table.turn.release()
    for task in asked:
        with pytest.raises(ValueError, match="no"):
            await task
    table.error, table.rows["a"] = None, 1
    table.turn.release()
    assert await gathering.get("a") == 1


async def test_who_gives_up_takes_nobody_along() -> None:
    table = Table()
    table.rows["a"] = 1
    gathering = Gathering(table.look_up)
    gone, stays = (asyncio.create_task(gathering.get("a")) for _ in range(2))
    await settle()
    gone.cancel()
    await settle()
    table.turn.release()
    assert await stays == 1
    assert gone.cancelled()


async def test_a_key_that_is_refused_is_refused_to_who_asked_for_it() -> None:
    async def look_up(keys: list[str]) -> dict[str, int]:
        await asyncio.sleep(0)
        if "bad" in keys:
            raise StoreError("a bad key")
        return {key: len(key) for key in keys if key != "none"}

    gathering = Gathering(look_up)
    asked = [asyncio.create_task(gathering.get(key)) for key in ("one", "bad", "three", "none")]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert (outcomes[0], outcomes[2], outcomes[3]) == (3, 5, None)
    assert isinstance(outcomes[1], StoreError)


async def test_a_database_that_is_away_is_asked_once() -> None:
    asked: list[list[str]] = []

    async def look_up(keys: list[str]) -> dict[str, int]:
        asked.append(keys)
        raise StoreUnavailable("away")

    gathering = Gathering(look_up)
    outcomes = await asyncio.gather(*map(gathering.get, "abc"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert asked == [["a", "b", "c"]]
