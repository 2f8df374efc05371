"""What a node costs the database that has nothing to do: statements a second, and which.

    uv run --group bench python benchmarks/idle.py [--sleepers 10000] [--seconds 60]

An embedded node with workflows that sleep for an hour and a worker with all its polls parked. The
timeouts of what it did before have passed when the count begins.
"""

from __future__ import annotations

import argparse
import asyncio

import database
import perdure
from perdure_side import note_done, sleeper

AT_ONCE = 200
SETTLED_AFTER_S = 45.0


async def statements_per_s(base: database.Database, sleepers: int, seconds: float) -> float:
    """Of one node, after it has settled."""
    async with (
        perdure.connect(base.dsn) as client,
        client.worker(workflows=[sleeper], activities=[note_done]),
    ):
        gate = asyncio.Semaphore(AT_ONCE)

        async def start(number: int) -> None:
            async with gate:
                await client.start(sleeper, 3600.0, id=f"sleeper-{number}")

        await asyncio.gather(*(start(number) for number in range(sleepers)))
        await asyncio.sleep(SETTLED_AFTER_S)
        before = base.used()
        await asyncio.sleep(seconds)
        looks = 2  # the statements of `used` itself
        return (base.used().statements - before.statements - looks) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sleepers", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    with database.running() as server, database.created(server, "idle") as base:
        found = asyncio.run(statements_per_s(base, given.sleepers, given.seconds))
        print(f"{found:.2f} statements a second with {given.sleepers} workflows asleep")
        with base.session() as session:
            rows = session.execute(
                "SELECT calls, left(regexp_replace(query, '\\s+', ' ', 'g'), 90) "
                "FROM pg_stat_statements ORDER BY calls DESC LIMIT 8"
            ).fetchall()
        for calls, text in rows:
            print(f"{calls:>8} {text}")


if __name__ == "__main__":
    main()
