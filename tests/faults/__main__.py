"""Kill a server by hand: see the package."""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from .siege import besiege


def main() -> None:
    """Print what was done; end with 1 and the evidence if anything was wrong."""
    parser = argparse.ArgumentParser(prog="./dev crash --server")
    parser.add_argument("--kills", type=int, default=100, help="how many, default 100")
    parser.add_argument("--seed", type=int, default=None, help="default: a random one")
    parser.add_argument("--keep", type=Path, default=None, help="a folder that is left behind")
    given = parser.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    began_s = time.monotonic()
    tally = besiege(given.kills, seed, given.keep)
    print(
        f"seed {seed}: {tally.kills} kills of the server and {tally.worker_kills} of workers in "
        f"{tally.rounds} rounds and {time.monotonic() - began_s:.0f} s; "
        f"{tally.runs} runs with {tally.events} events, {tally.executions} executions of "
        f"activities; {tally.told} acknowledgements, {tally.again} requests sent again"
    )
    if tally.faults:
        sys.exit("WRONG: " + "\n".join(tally.faults))
    print("nothing lost, nothing done twice")


if __name__ == "__main__":
    main()
