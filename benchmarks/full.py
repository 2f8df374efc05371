"""What perdure costs in a database that is full of runs, beside an empty one of the same server.

    uv run --group bench python benchmarks/full.py              # fills one: 1.1 million runs
    … full.py --dsn postgresql://…/filled a b c                # one that `fill.py` filled

The cases are those of `shared.py`; the two databases take turns. New runs stay in the full one.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

import database
import fill
import shared
from tables import ratio, shown


class Elsewhere:
    """A server that runs already.

    Args:
        dsn: of any of its databases.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = urlsplit(dsn)

    @property
    def database(self) -> str:
        """The one that the connection string names."""
        return self._dsn.path.removeprefix("/")

    def dsn(self, name: str = "postgres") -> str:
        """The connection string of another of its databases."""
        return self._dsn._replace(path=f"/{name}").geturl()


@contextmanager
def filled(arguments: argparse.Namespace) -> Iterator[database.Database]:
    """The full database."""
    if arguments.dsn:
        server: Any = Elsewhere(arguments.dsn)
        yield database.Database(server, server.database)
        return
    with database.running() as server, database.created(server, "filled") as base:
        asyncio.run(fill.fill(base.dsn, arguments.closed, arguments.open))
        yield base


def measure_turns(name: str, repeat: int, full: database.Database) -> dict[str, shared.Facts]:
    """The medians of one case in both."""
    case = shared.CASES[name]
    taken: dict[str, list[shared.Facts]] = {"empty": [], "full": []}
    for turn in range(repeat):
        with database.created(full.server, f"empty_{name}_{turn}") as empty:
            taken["empty"].append(shared.run_case(case, "perdure", empty, case.size))
        taken["full"].append(shared.run_case(case, "perdure", full, case.size))
    return {
        where: {key: statistics.median(one[key] for one in facts) for key in facts[0]}
        for where, facts in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[*shared.CASES, []], help="default: a b c")
    parser.add_argument("--dsn", help="of a database that fill.py filled")
    parser.add_argument("--closed", type=int, default=1_000_000)
    parser.add_argument("--open", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3, help="turns, default 3")
    arguments = parser.parse_args()
    table = Table("", "measure", "empty", "full", "full is better by")
    with filled(arguments) as full:
        for name in arguments.cases or ("a", "b", "c"):
            found = measure_turns(name, arguments.repeat, full)
            for row in shared.CASES[name].rows:
                empty, other = found["empty"].get(row.key), found["full"].get(row.key)
                table.add_row(
                    name, row.label, shown(empty, row.unit), shown(other, row.unit),
                    ratio(other, empty, row),
                )  # fmt: skip
            table.add_section()
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    main()
