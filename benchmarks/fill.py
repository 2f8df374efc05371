"""Fills a PostgreSQL database with closed and open runs, a million in a few minutes.

    uv run --group bench python benchmarks/fill.py postgresql://… [--closed 1000000] [--open 100000]

A node runs a few workflows of each type; their rows, as it wrote them, are copied with other ids,
times, attributes and (closed ones) statuses. The ids in the copied blobs are replaced as well, so
that a node can load, list and delete the copies. Open runs sleep until long after the benchmark.

All have the attributes Customer, Region, Amount, Due (some days after the start) and Tags, but for
one in a thousand that has none; another one in a thousand has Ticket and Score as well.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

import perdure
from perdure import activity, workflow

TYPES = 8
QUEUES = 4
CUSTOMERS = 20_000
REGIONS = ("africa", "america", "asia", "europe", "oceania")
SPAN_NS = 30 * 86_400 * 1_000_000_000  # starts are spread over the last 30 days
_CHUNK = 10_000
_WEIGHTS = {2: 90, 3: 6, 4: 2, 5: 1, 7: 1}  # completed, failed, cancelled, terminated, timed out
_ID_BLOCK = 65_536
_CUSTOMER, _AMOUNT, _TICKET = "customer-xxxxx", 54_321, "ticket-xxxxx"
_DUE = datetime(2030, 1, 1, tzinfo=UTC)
_TIME = "%Y-%m-%dT%H:%M:%S"
_DUE_WITHIN_S = 5 * 86_400
RARE_EVERY = 1_000  # of so many runs one has attributes of its own, and one has none


@activity
async def nothing() -> None:
    """An activity that does nothing."""


def _type(number: int) -> Any:
    @workflow(name=f"order-{number}")
    async def order(sleep_s: float) -> int:
        await nothing()
        await asyncio.sleep(sleep_s)
        return number

    return order


def _attributes(number: int) -> dict[str, Any]:
    return {
        "Customer": _CUSTOMER,
        "Region": REGIONS[number % len(REGIONS)],
        "Amount": _AMOUNT,
        "Due": _DUE,
        "Tags": [f"tag-{number}", "all"],
    }


def _attributes_by_id() -> dict[str, tuple[int, dict[str, Any]]]:
    """The number of the type and the attributes of templates, by the ends of their ids."""
    usual = {f"usual-{number}": (number, _attributes(number)) for number in range(TYPES)}
    rare = _attributes(1) | {"Ticket": _TICKET, "Score": 0.5}
    return usual | {"rare": (1, rare), "plain": (2, {})}


@dataclass
class Template:
    """The rows of one run that a node wrote."""

    run: dict[str, Any]
    state: dict[str, Any]
    items: list[dict[str, Any]]
    history: list[dict[str, Any]]


async def run_templates(dsn: str) -> None:
    """Let a node write an open and a closed run of each type."""
    types = [_type(number) for number in range(TYPES)]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(perdure.connect(dsn))
        for queue in range(QUEUES):
            worker = client.worker(f"queue-{queue}", workflows=types, activities=[nothing])
            await stack.enter_async_context(worker)
        handles = []
        for name, (number, attributes) in _attributes_by_id().items():
            for sleep_s in (0.01, 365 * 86_400.0):
                handle = await client.start(
                    types[number],
                    sleep_s,
                    id=f"template-{sleep_s < 1:d}-{name}",
                    task_queue=f"queue-{number % QUEUES}",
                    search_attributes=attributes,
                )
                if sleep_s < 1:
                    handles.append(handle)
        for handle in handles:
            await handle.result()
        await asyncio.sleep(12)  # until the alarm of the first workflow task was put off


async def read_templates(connection: Any) -> list[Template]:
    """What the node wrote."""

    async def rows(table: str, key: int) -> list[dict[str, Any]]:
        found = await connection.fetch(f"SELECT * FROM perdure.{table} WHERE key = $1", key)
        return [dict(row) for row in found]

    templates = []
    query = "SELECT * FROM perdure.runs WHERE workflow_id LIKE 'template-%' ORDER BY key"
    for run in [dict(row) for row in await connection.fetch(query)]:
        state, items, history = [
            await rows(table, run["key"]) for table in ("states", "items", "history")
        ]
        templates.append(Template(run, state[0], items, history))
    return templates


def copies(
    templates: list[Template], count: int, first_key: int, dice: random.Random
) -> Iterator[dict[str, list[tuple[Any, ...]]]]:
    """Rows of so many runs like the templates, by table and in chunks."""
    now_ns = time.time_ns()
    statuses = dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=count)
    for begin in range(0, count, _CHUNK):
        rows: dict[str, list[tuple[Any, ...]]] = {
            table: [] for table in ("runs", "states", "items", "history")
        }
        for number in range(begin, min(count, begin + _CHUNK)):
            template = _chosen(templates, number)
            _copy(template, first_key + number, statuses[number], now_ns, dice, rows)
        yield rows


def _chosen(templates: list[Template], number: int) -> Template:
    """Each usual one in turn, and now and then another."""
    usual, rare, plain = (
        [one for one in templates if kind in one.run["workflow_id"]]
        for kind in ("usual", "rare", "plain")
    )
    if number % RARE_EVERY == 0:
        return rare[0]
    return plain[0] if number % RARE_EVERY == 1 else usual[number % len(usual)]


def _copy(
    template: Template,
    key: int,
    status: int,
    now_ns: int,
    dice: random.Random,
    rows: dict[str, list[tuple[Any, ...]]],
) -> None:
    run = template.run
    start_ns = now_ns - dice.randrange(SPAN_NS)
    due_s = start_ns // 10**9 + dice.randrange(_DUE_WITHIN_S)
    ids = {
        _CUSTOMER: f"customer-{dice.randrange(CUSTOMERS):05d}",
        str(_AMOUNT): f"{dice.randrange(10_000, 100_000)}",
        f"{_DUE.timestamp():.0f}000000000": f"{due_s}000000000",
        f"{_DUE:{_TIME}}": f"{datetime.fromtimestamp(due_s, UTC):{_TIME}}",
        _TICKET: f"ticket-{dice.randrange(100_000):05d}",
        "0.5": f"0.{dice.randrange(1, 10)}",
        # Last: nothing is replaced in them.
        run["run_id"]: str(uuid.UUID(int=dice.getrandbits(128), version=4)),
        run["workflow_id"]: f"{key:0{len(run['workflow_id'])}d}"[-len(run["workflow_id"]) :],
    }
    changed = {
        "key": key,
        "start_ns": start_ns,
        "execution_ns": start_ns,
    }
    if run["close_ns"]:
        took_ns = dice.randrange(1_000_000, 3_600_000_000_000)
        changed |= {"close_ns": min(now_ns, start_ns + took_ns), "status": status}
    rows["runs"].append(tuple((_renamed(run, ids) | changed).values()))
    rows["states"].append(tuple((template.state | {"key": key}).values()))
    rows["items"] += [tuple((row | {"key": key}).values()) for row in template.items]
    for row in template.history:
        position = row["position"] + key % (1 << 20)  # the index is to be as large as a real one
        moved = _renamed(row, ids) | {"key": key, "position": position}
        rows["history"].append(tuple(moved.values()))


def _renamed(row: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    return {name: _with_ids(value, ids) for name, value in row.items()}


def _with_ids(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, str):
        for old, new in ids.items():
            value = value.replace(old, new)
    elif isinstance(value, bytes):
        for old, new in ids.items():
            value = value.replace(old.encode(), new.encode())
    return value


async def fill(dsn: str, closed: int, still_open: int) -> None:
    """Add so many runs to a database."""
    await run_templates(dsn)
    connection = await asyncpg.connect(dsn)
    try:
        templates = await read_templates(connection)
        first_key = await connection.fetchval("SELECT nextval('perdure.ids')")
        blocks = (closed + still_open) // _ID_BLOCK + 2
        await connection.execute(f"SELECT setval('perdure.ids', {first_key + blocks * _ID_BLOCK})")
        await connection.execute("SET synchronous_commit = off")
        dice = random.Random(1)
        for is_open, count in ((False, closed), (True, still_open)):
            chosen = [one for one in templates if (one.run["close_ns"] == 0) == is_open]
            done = 0
            for rows in copies(chosen, count, first_key, dice):
                for table, records in rows.items():
                    await connection.copy_records_to_table(
                        table, schema_name="perdure", records=records
                    )
                done += len(rows["runs"])
                print(f"\r{'open' if is_open else 'closed'}: {done:,}", end="", flush=True)
            first_key += count
            print()
        await connection.execute("VACUUM (ANALYZE)", timeout=1_800)
    finally:
        await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dsn", help="postgresql://…")
    parser.add_argument("--closed", type=int, default=1_000_000)
    parser.add_argument("--open", type=int, default=100_000)
    arguments = parser.parse_args()
    asyncio.run(fill(arguments.dsn, arguments.closed, arguments.open))


if __name__ == "__main__":
    main()
