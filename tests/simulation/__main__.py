"""Simulate many seeds, or one with a trace.

uv run python -m tests.simulation --seeds 1000 --from 0
uv run python -m tests.simulation --seed 4711
uv run python -m tests.simulation --cluster --seeds 100
"""

from __future__ import annotations

import argparse
import os
import sys
import time


def main() -> int:
    """The number of seeds that failed, as an exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--seed", type=int, help="only this one, with all log lines")
    parser.add_argument("--cluster", action="store_true", help="three nodes on one database")
    given = parser.parse_args()
    if given.seed is not None:
        os.environ["SIMULATION_TRACE"] = "1"
    from .cluster import simulate_cluster
    from .simulate import simulate as simulate_node

    simulate = simulate_cluster if given.cluster else simulate_node
    seeds = range(given.first, given.first + given.seeds) if given.seed is None else [given.seed]
    began_s, failed, events = time.perf_counter(), 0, 0
    for seed in seeds:
        outcome = simulate(seed)
        events += outcome.events
        if outcome.wrong or given.seed is not None:
            print(outcome, flush=True)
        failed += bool(outcome.wrong)
    spent_s = time.perf_counter() - began_s
    print(
        f"{len(seeds)} seeds, {failed} failed, {events} events, "
        f"{spent_s / len(seeds) * 1e3:.0f} ms a seed"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
