"""Chaos by hand: see the package."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest does

from tests.faults.siege import Wrong

from .storm import chaos


def main() -> None:
    """Print what was done; end with 1 and the evidence if anything was wrong."""
    parser = argparse.ArgumentParser(prog="./dev chaos")
    parser.add_argument("--seconds", type=float, default=180, help="how long, default 180")
    parser.add_argument("--seed", type=int, default=None, help="default: a random one")
    given = parser.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix="perdure-chaos-")) / "storm"
    began_s = time.monotonic()
    try:
        report = chaos(folder, given.seconds, seed)
    except Wrong as error:
        sys.exit(f"seed {seed}: WRONG: {error}")
    done = ", ".join(f"{n} {what}" for what, n in report.events.items())
    found, shops = report.found, report.in_shops
    print(
        f"seed {seed}, {time.monotonic() - began_s:.0f} s: {done}; {found.runs} runs with "
        f"{found.events} events, {found.executions} executions of activities, {found.told} "
        f"acknowledgements, {found.again} requests sent again; in applications "
        f"{shops.runs} runs with {shops.events} events, {shops.executions} executions"
    )
    print("nothing lost, nothing done twice")


if __name__ == "__main__":
    main()
