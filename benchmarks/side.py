"""One measurement of one side, in a process of its own: prints a JSON object as its last line.

    python benchmarks/side.py perdure|dbos CASE FOLDER SIZE_JSON

A case named `asleep` or `grow` prints, and then waits to be killed with SIGKILL.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
from pathlib import Path

WAITS_TO_BE_KILLED = ("asleep", "grow")


async def measured(side: str, case: str, folder: Path, size: dict[str, int]) -> None:
    module = importlib.import_module(f"{side}_side")
    facts = await getattr(module, case)(folder, size)
    print(json.dumps(facts), flush=True)
    if case in WAITS_TO_BE_KILLED:
        await asyncio.sleep(3600)
    os._exit(0)  # neither side is measured while it shuts down


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    side, case, folder, size = sys.argv[1:]
    asyncio.run(measured(side, case, Path(folder), json.loads(size)))


if __name__ == "__main__":
    main()
