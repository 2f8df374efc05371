"""One measurement of one side, in a process of its own: prints a JSON object as its last line.

    python benchmarks/side.py perdure|dbos CASE PLACE SIZE_JSON

PLACE is a folder for a SQLite file, or the connection string of a PostgreSQL database. A case named
`asleep` or `grow` prints, and then waits to be killed with SIGKILL.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys

WAITS_TO_BE_KILLED = ("asleep", "grow")


async def measured(side: str, case: str, place: str, size: dict[str, int]) -> None:
    module = importlib.import_module(f"{side}_side")
    facts = await getattr(module, case)(place, size)
    print(json.dumps(facts), flush=True)
    if case in WAITS_TO_BE_KILLED:
        await asyncio.sleep(3600)
    if size.get("gated"):  # another process's workflows may need this worker: it ends with them
        await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # neither side is measured while it shuts down


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    side, case, place, size = sys.argv[1:]
    asyncio.run(measured(side, case, place, json.loads(size)))


if __name__ == "__main__":
    main()
