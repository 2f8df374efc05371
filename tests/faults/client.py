"""The clients: scenarios, many at a time, until they are told to stop.

python -m tests.faults.client ADDRESS FOLDER SEED [FIRST]
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import traceback
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from .caller import Caller
from .diary import Diary
from .worker import connected
from .workflows import Link, receipt

LANES = 6
STOP = "stop"
"""A file of this name tells the clients to begin nothing new, and to finish."""


async def main(address: str, folder: Path, seed: str, first: str = "0") -> None:
    """Run scenarios until there is a file `stop`, and wait for their ends.

    `first`: the number of the first scenario, where several processes of clients have their own.
    """
    diary = Diary(folder)
    client = await connected(address, "faults-client")
    numbers = count(int(first))
    lanes = (
        lane(Caller(client, diary, random.Random(f"{seed}/{n}")), folder, numbers, int(first))
        for n in range(LANES)
    )
    await asyncio.gather(*lanes)


async def lane(caller: Caller, folder: Path, numbers: Iterator[int], first: int) -> None:
    """One scenario after the other, of which the first of all lanes are of all kinds."""
    scenarios = [steps, account, account, chain, family]
    while not (folder / STOP).exists():
        number = next(numbers)
        begun = number - first
        scenario = scenarios[begun] if begun < len(scenarios) else caller.dice.choice(scenarios)
        name = f"{scenario.__name__}-{number}"
        try:
            await scenario(caller, name)
        except Exception:
            caller.wrong(name, traceback.format_exc(limit=-4))


def expect(caller: Caller, name: str, found: Any, right: Any) -> None:
    """Note a result that is not right."""
    if found != right:
        caller.wrong(name, f"ended as {found!r}, not as {right!r}")


async def steps(caller: Caller, name: str) -> None:
    """Activities, local activities and timers in a row."""
    size = caller.dice.randint(3, 8)
    await caller.start("Steps", name, size, repeated=True)
    if not await caller.is_listed(name):
        caller.wrong(name, "started, but a list does not find it")
    expect(caller, name, await caller.result(name), [receipt(f"{name}/{n}") for n in range(size)])


async def account(caller: Caller, name: str) -> None:
    """Signals and updates, of which each must be done once, and a query that sees them."""
    first = f"{name}/first"
    begun = ("start", "signal", "update")[int(name.rpartition("-")[2]) % 3]
    balance, deposits, withdrawals = 0, [], []
    if begun == "signal":
        run_id = await caller.signal_with_start("Account", name, "deposit", first, 7)
        balance, deposits = 7, [first]
    elif begun == "update":
        run_id, _ = await caller.update_with_start("Account", name, "withdraw", first, 3)
        balance, withdrawals = -3, [first]
    else:
        run_id = await caller.start("Account", name, repeated=True)
    for number in range(caller.dice.randint(2, 5)):
        word = f"{name}/{number}"
        cents = caller.dice.randint(0, 9)
        if caller.dice.random() < 0.5:
            await caller.signal(name, run_id, "deposit", word, cents)
            balance += cents
            deposits.append(word)
        elif await withdrawn(caller, name, run_id, word, cents):
            balance -= cents
            withdrawals.append(word)
        heard = await caller.query(name, run_id, "heard")
        if not {*deposits, *withdrawals} <= {*heard}:
            caller.wrong(name, f"a query knows {heard}, not all of {deposits} {withdrawals}")
    await caller.signal(name, run_id, "close")
    right = {"balance": balance, "deposits": sorted(deposits), "withdrawals": sorted(withdrawals)}
    expect(caller, name, await caller.result(name), right)


async def withdrawn(caller: Caller, name: str, run_id: str, word: str, cents: int) -> bool:
    """Update, and say if it was accepted; the run refuses to withdraw nothing."""
    told = await caller.update(name, run_id, "withdraw", word, cents)
    if cents > 0 and not isinstance(told, int):
        caller.wrong(name, f"the withdrawal of {cents} was answered {told!r}")
    if cents <= 0 and told != f"refused: {word}: {cents} cents cannot be withdrawn":
        caller.wrong(name, f"the withdrawal of {cents} was answered {told!r}")
    return cents > 0


async def chain(caller: Caller, name: str) -> None:
    """Signals to whichever run is the latest, while runs continue as new."""
    link = Link(caller.dice.randint(1, 5))
    await caller.start("Chain", name, link, repeated=False)
    words = [f"{name}/word-{number}" for number in range(caller.dice.randint(2, 6))]
    for word in words:
        await caller.signal(name, "", "tell", word)
    await caller.signal(name, "", "finish")
    expect(caller, name, await caller.result(name), sorted(words))


async def family(caller: Caller, name: str) -> None:
    """Children, signals between workflows, and a cancellation."""
    size = caller.dice.randint(1, 3)
    await caller.start("Family", name, size, repeated=True)
    right = {
        "steps": [[receipt(f"{name}-steps-{n}/{k}") for k in range(2)] for n in range(size)],
        "called": sorted(f"{name}-messenger-{n}" for n in range(size)),
        "sleeper": "cancelled",
    }
    expect(caller, name, await caller.result(name), right)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
    sys.stdout.flush()
    os._exit(0)  # the SDK's threads may still be in Python, and abort when it is taken down
